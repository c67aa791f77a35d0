"""Which devices can read a manifest is known from their version of edgekit."""

from __future__ import annotations

import msgspec
import pytest

from edgekit.bundle.bindings import Binding
from edgekit.bundle.compat import numbers
from edgekit.bundle.manifest import Golden, Manifest, OutputQuality, Quality
from edgekit.bundle.readers import NEEDS, too_old
from edgekit.bundle.recipe import Recipe
from edgekit.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FLOAT32, (None, 3))
STATE = TensorSpec("h", DType.FLOAT32, (None, 4))
PLAIN = Manifest(
    name="digits",
    version="1.0.0",
    target="raspberry-pi-4",
    runtime="litert",
    files=(),
    inputs=(Binding(X, X),),
    outputs=(Binding(X, X),),
    golden=Golden(1, (), False),
    recipe=Recipe(),
)


def replaced(**fields: object) -> Manifest:
    return msgspec.structs.replace(PLAIN, **fields)


def quality(**fields: object) -> Quality:
    return Quality("accuracy", 0.9, 0.9, 100, True, **fields)  # type: ignore[arg-type]


USES = {
    "outputs": replaced(quality=quality(outputs=(OutputQuality("x"),))),
    "hard": replaced(quality=quality(hard=7)),
    "state": replaced(inputs=(Binding(X, X), Binding(STATE, STATE, state="hn"))),
    "fixed": replaced(inputs=(Binding(X, X), Binding(STATE, STATE, value=0.5))),
    "unread": replaced(inputs=(Binding(X, X), Binding(STATE, STATE, unread=True))),
    "send_inputs": replaced(send_inputs="never"),
    "batch": replaced(outputs=(Binding(TensorSpec("y", DType.FLOAT32, (5, None)), X),)),
}


@pytest.mark.parametrize("use", USES)
def test_devices_that_cannot_read_a_manifest_are_named(use: str) -> None:
    """Only the older device is named; the one that has not reported its version is not judged."""
    found = too_old(USES[use], {"new": "0.2.0.dev0", "old": "0.1.0", "silent": ""})
    assert found is not None
    assert (found.release, found.devices) == ("0.2.0", {"old": "0.1.0"})
    assert len(found.uses) == 1
    assert found.message.endswith("which needs edgekit 0.2.0: old (0.1.0); update edgekit there first")


def test_a_manifest_of_the_first_release_is_read_everywhere() -> None:
    """Nothing new is used, so no device is too old."""
    assert too_old(PLAIN, {"old": "0.1.0"}) is None
    assert too_old(replaced(quality=quality()), {"old": "0.1.0"}) is None


def test_many_devices_are_counted() -> None:
    """At most ten are named."""
    found = too_old(USES["state"], {f"cam-{index:02}": "0.1.0" for index in range(14)})
    assert found is not None
    assert found.message.startswith("14 devices cannot read this bundle, because it has state between calls")
    assert "cam-09 (0.1.0), and 4 more; update" in found.message


def test_this_release_reads_everything() -> None:
    """No line needs a release that is newer than this source."""
    from edgekit import __version__

    assert all(numbers(release) <= numbers(__version__) for _, release, _ in NEEDS)
