"""Releases are ordered by version; the order of publishing only decides between equal versions."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from device_agents.deployment import Deployment, Failed, Installed, Limits, Offered, UpdateRecord, UpdateState
from device_agents.deployment import with_highest as with_highest_version
from device_agents.storage.journal import Journal
from device_agents.update.machine import UpdateMachine
from edgekit.bundle.order import is_older, version_order
from edgekit.mqtt import messages
from edgekit.mqtt.messages import Outcome
from edgekit.trust.envelopes import open_envelope
from tests.simulators.device import Desk, Device


def offered(version: str, release: int, **fields: Any) -> Deployment:
    digest = f"{release:064x}"
    return Deployment(digest, 9, "p", "digits", version, "t", release, assignment=release, **fields)


def runs(version: str, release: int, **fields: Any) -> UpdateRecord:
    one = Installed("a", f"{release:064x}", version, release, since=3.0)
    return UpdateRecord(active=one, known_good=one, release=release, **{"highest": version, **fields})


@pytest.mark.parametrize(
    ("version", "release", "older"),
    [("1.2.1", 3, True), ("2.0.0", 1, True), ("2.0.0", 2, False), ("2.0.1", 1, False), ("10.0.0", 1, False)],
)
def test_the_version_decides_and_the_counter_breaks_ties(version: str, release: int, older: bool) -> None:
    """Compared with 2.0.0, which was published second."""
    assert is_older(version, release, than="2.0.0", than_release=2) is older


def test_an_unknown_floor_is_compared_by_counters_and_odd_versions_come_first() -> None:
    """What an earlier agent noted still protects; a text that is no version is older than every version."""
    assert is_older("2.0.0", 1, than="", than_release=2)
    assert not is_older("1.0.0", 3, than="", than_release=2)
    assert version_order("nonsense") < version_order("0.0.0")
    assert version_order("1.2") == version_order("01.0.0") == version_order("1.0.0-rc1") == ()


def test_a_patch_of_an_old_line_is_a_downgrade_and_the_new_line_is_not_blocked() -> None:
    """1.2.1 is published after 2.0.0: a device with 2.0.0 refuses it, and one with 1.2.1 takes 2.0.0."""
    machine = UpdateMachine(Limits())
    refused = machine.step(runs("2.0.0", 2), Offered(offered("1.2.1", 3), at=9.0), 0.0).state
    assert (refused.outcome and refused.outcome.error) == "DowngradeError"
    assert "1.2.1 (release 3) is older than 2.0.0 (release 2)" in str(refused.outcome)
    taken = machine.step(runs("1.2.1", 3), Offered(offered("2.0.0", 2), at=9.0), 0.0).state
    assert taken.name is UpdateState.RESOLVING


def test_an_earlier_journal_gets_the_version_of_its_highest_release() -> None:
    """It is that of any bundle that the record names with this counter; else the counters go on deciding."""
    old = msgspec.structs.replace(runs("2.0.0", 2), highest="")
    assert with_highest_version(old).highest == "2.0.0"
    lost = msgspec.structs.replace(runs("1.0.0", 1), release=2, highest="", failed=offered("2.0.0", 2))
    assert with_highest_version(lost).highest == "2.0.0"
    unknown = msgspec.structs.replace(runs("1.0.0", 1), release=7, highest="")
    assert with_highest_version(unknown) == unknown
    assert with_highest_version(UpdateRecord()) == UpdateRecord()


def test_what_runs_is_offered_again_after_a_refusal() -> None:
    """An abort that came too late names the older bundle for a moment; the record does not stay on the refusal."""
    machine = UpdateMachine(Limits())
    refused = machine.step(runs("2.0.0", 2), Offered(offered("1.0.0", 1), at=9.0), 0.0).state
    assert refused.outcome is not None
    assert refused.outcome.result == "refused"
    again = machine.step(refused, Offered(offered("2.0.0", 2), at=10.0), 0.0).state
    assert again.outcome == Outcome(f"{2:064x}", "2.0.0", "succeeded", at=3.0)
    assert again.failed is None


def test_a_wait_is_kept_while_it_lasts_and_dropped_with_its_deployment() -> None:
    """The same reason keeps its time; another one begins anew; a network error ends it."""
    machine = UpdateMachine(Limits())
    state = machine.step(UpdateRecord(), Offered(offered("1.0.0", 1), at=1.0), 0.0).state

    def fail(state: UpdateRecord, waiting: str, at: float) -> UpdateRecord:
        failed = Failed(error="E", message="m", passing=True, waiting=waiting, at=at)
        return machine.step(msgspec.structs.replace(state, name=UpdateState.RESOLVING), failed, 0.0).state

    first = fail(state, "metered", 5.0)
    assert first.waits == messages.Waiting("metered", 5.0, f"{1:064x}")
    assert fail(first, "metered", 9.0).waits == first.waits
    assert fail(first, "quiet-hours", 9.0).waits == messages.Waiting("quiet-hours", 9.0, f"{1:064x}")
    assert fail(first, "", 9.0).waits is None
    downloading = msgspec.structs.replace(first, name=UpdateState.DOWNLOADING)
    assert downloading.waits is None


async def test_a_device_takes_versions_in_their_order(desk: Desk, device: Device) -> None:
    """2.0.0 and then 1.2.1 are published: the device refuses to go back, keeps the floor in its journal, reports it."""
    newest = desk.publish("2.0.0")
    patch = desk.publish("1.2.1")
    desk.assign(patch)
    await device.settled("1.2.1")
    desk.assign(newest)
    await device.settled("2.0.0")
    desk.assign(patch)
    await device.until(lambda: device.state.outcome.result == "refused")
    assert device.state.outcome.error == "DowngradeError"
    assert device.inference.live["digits"] == "2.0.0"
    assert Journal(device.disk).models()["digits"].highest == "2.0.0"
    report = open_envelope(desk.said("reported")[-1], messages.Reported, device.signer.public_key)
    assert report.models["digits"].highest == "2.0.0"
