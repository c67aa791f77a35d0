"""The choice of the versions from which deltas of a new bundle are made."""

from __future__ import annotations

import msgspec
import pytest

from edgekit.bundle.manifest import Encryption, WrappedKey
from edgekit.mqtt.messages import Running
from edgekit.registry.deltas import MAX_AUTOMATIC, BaseChoice, choose_bases
from tests.simulators.bundles import manifest_of

MANIFEST = manifest_of("digits", version="9.0.0", target="raspberry-pi-4")


def fleet(*versions: str, model: str = "digits", target: str = "raspberry-pi-4") -> list:
    """One device for each version."""
    return [(target, {model: Running("0" * 64, version)}) for version in versions]


def test_the_versions_that_most_devices_run_are_chosen() -> None:
    """The most used comes first, and there are at most MAX_AUTOMATIC."""
    running = fleet("1.0.0", "1.1.0", "1.1.0", "1.2.0", "1.2.0", "1.2.0", "1.3.0", "1.4.0", "1.4.0")
    chosen = choose_bases(MANIFEST, [], running)
    assert chosen.versions[:1] == ("1.2.0",)
    assert set(chosen.versions[1:3]) == {"1.1.0", "1.4.0"}
    assert len(chosen.versions) == MAX_AUTOMATIC
    assert not chosen.named


def test_other_targets_models_and_the_version_itself_do_not_count() -> None:
    """A device of another target, or with another model, needs no delta."""
    running = fleet("1.0.0", target="jetson-orin") + fleet("1.1.0", model="faces")
    assert choose_bases(MANIFEST, [], running) == BaseChoice()


def test_named_versions_win_over_the_fleet() -> None:
    """They are kept in their order, and each must be published."""
    assert choose_bases(MANIFEST, ["0.9.0"], fleet("1.0.0")) == BaseChoice(("0.9.0",), named=True)


@pytest.mark.parametrize("named", [["none"], ["1.0.0", "none"]])
def test_none_makes_no_delta(named: list[str]) -> None:
    """The word `none` wins over every version."""
    assert choose_bases(MANIFEST, named, fleet("1.0.0")) == BaseChoice()


def test_encrypted_bundles_get_no_delta_and_a_reason() -> None:
    """Each encrypted bundle has a key of its own, so a delta would be as large as the file."""
    sealed = msgspec.structs.replace(
        MANIFEST, encryption=Encryption((WrappedKey("cameras", "0" * 64, "1" * 64, "2" * 96),))
    )
    chosen = choose_bases(sealed, [], fleet("1.0.0"))
    assert chosen.versions == ()
    assert "encrypted" in chosen.reason
