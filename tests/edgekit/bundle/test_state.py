"""State tensors of a streaming model: their form in a manifest, refusals, and a stream from the zero state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from edgekit.bundle.bindings import Binding, binding_faults
from edgekit.bundle.manifest import parse_manifest
from edgekit.bundle.state import client_inputs, client_outputs, run_stream, state_links
from edgekit.errors import DataError
from edgekit.tensors import Array, DType, TensorSpec
from tests.edgekit.bundle.test_manifest import sound

X = TensorSpec("x", DType.FLOAT32, (None, 3))
Y = TensorSpec("y", DType.FLOAT32, (None, 3))
H = TensorSpec("h", DType.FLOAT32, (2, None, 4))
HN = msgspec.structs.replace(H, name="hn")


def plain(spec: TensorSpec, **changes: Any) -> Binding:
    """A binding to an artifact that has the batch first and is the same otherwise."""
    batch = spec.batch_axis or 0
    order = (batch, *(axis for axis in range(len(spec.shape)) if axis != batch))
    artifact = msgspec.structs.replace(spec, shape=tuple(spec.shape[axis] for axis in order))
    return Binding(**{"spec": spec, "artifact": artifact, "permute": order if batch else (), **changes})


INPUTS = (plain(X), plain(H, state="hn"))
OUTPUTS = (plain(Y), plain(HN))


def test_state_comes_back_from_the_bytes_and_is_hidden_from_clients() -> None:
    """A manifest with state survives encoding; clients see neither the state input nor its output."""
    manifest = sound(inputs=INPUTS, outputs=(sound().outputs[0], *OUTPUTS))
    assert parse_manifest(manifest.canonical_bytes()) == manifest
    assert [spec.name for spec in client_inputs(manifest.inputs)] == ["x"]
    assert "hn" not in [spec.name for spec in client_outputs(manifest.inputs, manifest.outputs)]
    (link,) = state_links(manifest.inputs)
    assert (link.output, link.row_bytes, link.zero(5).shape) == ("hn", 32, (2, 5, 4))


def test_a_manifest_without_state_keeps_its_bytes() -> None:
    """The key is absent, so the digests of older bundles stay valid."""
    assert b"state" not in sound().canonical_bytes()


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ((plain(X), plain(H, state="gone")), OUTPUTS, "its state comes from output 'gone', which does not exist"),
        (
            (plain(X), plain(msgspec.structs.replace(H, shape=(1, None, 4)), state="hn")),
            OUTPUTS,
            "h: the state is float32 [1, any, 4], its output hn is float32 [2, any, 4]",
        ),
        (
            (plain(X), plain(msgspec.structs.replace(H, dtype=DType.FLOAT16), state="hn")),
            OUTPUTS,
            "the state is float16",
        ),
        (
            (*INPUTS, plain(msgspec.structs.replace(H, name="c"), state="hn")),
            OUTPUTS,
            "c: output hn is the state of h already",
        ),
        ((plain(X),), (plain(Y, state="x"), plain(HN)), "y: an output has state, which only inputs can have"),
        ((plain(H, state="hn"),), OUTPUTS, "every input or every output is state"),
        (INPUTS, (plain(HN),), "every input or every output is state"),
    ],
)
def test_bindings_with_wrong_state_are_refused(
    inputs: tuple[Binding, ...], outputs: tuple[Binding, ...], says: str
) -> None:
    """Each fault names the tensor, what was found and what was expected."""
    assert any(says in fault for fault in binding_faults(inputs, outputs))


class Summing:
    """A runtime whose state is the sum of all its inputs, and whose answer is that sum."""

    inputs, outputs, provider = (X, H), (Y, HN), "none"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        total = inputs["h"] + inputs["x"].sum()
        return {"y": inputs["x"] * 0 + total.flat[0], "hn": total}

    def close(self) -> None:
        pass


def test_a_stream_starts_from_zero_and_carries_its_state() -> None:
    """Each step sees the sum of the steps before it; a stream without samples is an error."""
    links = state_links(INPUTS)
    steps = np.ones((4, 3), np.float32)
    answers = run_stream(Summing(), links, {"x": steps})
    assert list(answers) == ["y"]
    assert answers["y"][:, 0].tolist() == [3.0, 6.0, 9.0, 12.0]
    with pytest.raises(DataError, match="no samples"):
        run_stream(Summing(), links, {"x": steps[:0]})
