"""Outputs in parts: their form in a manifest, and refusal of parts that cannot be joined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edgekit.bundle.bindings import Binding, Joined, binding_faults
from edgekit.bundle.manifest import parse_manifest
from edgekit.cli.inspect import inspect
from edgekit.errors import ManifestError
from edgekit.tensors import DType, TensorSpec
from tests.edgekit.bundle.test_manifest import X, refused, sound

WHOLE = TensorSpec("found", DType.FLOAT32, (None, 10, 7))
HELD = msgspec.structs.replace(WHOLE, name="o0+o1", shape=(1, 10, 7))


def part(name: str, size: int, **changes: Any) -> Binding:
    spec = TensorSpec(f"found.{name}", DType.FLOAT32, (None, 10, size))
    artifact = TensorSpec(name, DType.INT8, (1, 10, size))
    return Binding(**{"spec": spec, "artifact": artifact, "scale": 0.5, "zero_point": -128, **changes})


def in_parts(*parts: Binding, axis: int = 2, **changes: Any) -> Binding:
    joined = Joined(axis, parts or (part("o0", 4), part("o1", 3)))
    return Binding(**{"spec": WHOLE, "artifact": HELD, "joined": joined, **changes})


def test_a_manifest_without_parts_has_the_bytes_that_it_always_had() -> None:
    """Its digest is that of releases without parts, so old signatures stay valid."""
    assert sound().digest == "dea800fd580ba70094aaa98ee3093444d9e0ec8d451823d5acd53d32a6679825"
    assert b"joined" not in sound().canonical_bytes()


def test_parts_come_back_from_the_bytes() -> None:
    """Permuted and quantized parts survive encoding, and are tensors of the artifact."""
    turned = part("o1", 3, permute=(0, 2, 1), artifact=TensorSpec("o1", DType.INT8, (1, 3, 10)), scale=0.25)
    plain = part("o0", 4, artifact=TensorSpec("o0", DType.FLOAT32, (1, 10, 4)), scale=None, zero_point=0)
    manifest = sound(outputs=(in_parts(plain, turned), sound().outputs[0]))
    assert parse_manifest(manifest.canonical_bytes()) == manifest
    assert [one.artifact.name for out in manifest.outputs for one in out.parts] == ["o0", "o1", "y"]
    assert json.loads(manifest.canonical_bytes())["outputs"][0]["joined"]["axis"] == 2


@pytest.mark.parametrize(
    ("binding", "says"),
    [
        (in_parts(axis=0), "joined along axis 0, expected 1 to 2"),
        (in_parts(axis=3), "joined along axis 3"),
        (in_parts(axis=-1), "joined along axis -1"),
        (in_parts(axis=1), "expected [any, 10, 7] in all axes but 1"),
        (in_parts(part("o0", 7)), "joined from 1 parts, expected 2 or more"),
        (in_parts(part("o0", 4), part("o1", 4)), "have 4 + 4 along axis 2, expected 7 together"),
        (
            in_parts(part("o0", 4), part("o1", 3, spec=TensorSpec("p", DType.FLOAT32, (None, 10, None)))),
            "have 4 + any along axis 2",
        ),
        (
            in_parts(part("o0", 4), part("o1", 3, spec=TensorSpec("p", DType.FLOAT16, (None, 10, 3)))),
            "its part p has dtype float16, expected float32",
        ),
        (
            in_parts(part("o0", 4), part("o1", 3, spec=TensorSpec("p", DType.FLOAT32, (None, 3)))),
            "its part p has shape [any, 3]",
        ),
        (in_parts(part("o0", 4), part("o1", 3, permute=(0, 1))), "permute [0, 1] is not an order of 3 axes"),
        (
            in_parts(part("o0", 4), part("o1", 3, permute=(0, 2, 1))),
            "has the artifact shape [1, 10, 3], expected [any, 10, 3] with its axes in the order [0, 2, 1]",
        ),
        (in_parts(part("o0", 4), part("o1", 3, scale=None)), "the artifact is int8 but has no scale"),
        (in_parts(part("o0", 4), part("o1", 3, joined=Joined(2, ()))), "its part found.o1 has parts itself"),
        (
            in_parts(part("o0", 4), part("o1", 3, artifact=TensorSpec("o1", DType.INT8, (None, 10, 3)))),
            "has another batch than the whole: [any, 10, 3], [1, 10, 7]",
        ),
        (in_parts(scale=0.1), "cannot also be quantized"),
        (in_parts(permute=(0, 2, 1)), "cannot also be quantized, cast, permuted"),
        (in_parts(artifact=TensorSpec("o", DType.FLOAT32, (1, 10, 6))), "or reshaped as a whole"),
        (
            in_parts(artifact=msgspec.structs.replace(HELD, name="o1")),
            "o1 is the name of a joined output and of a tensor",
        ),
    ],
)
def test_parts_that_do_not_make_the_whole_are_refused(binding: Binding, says: str) -> None:
    """The message has the found and the expected value."""
    assert says in refused(sound(outputs=(binding,)))


def test_an_input_in_parts_is_refused() -> None:
    """Only outputs can have parts."""
    halves = tuple(Binding(s, s) for s in (TensorSpec(n, DType.FLOAT32, (None, 4)) for n in "ab"))
    assert "an input has parts" in refused(sound(inputs=(Binding(X, X, joined=Joined(1, halves)),)))


def test_an_edgekit_that_knows_no_parts_would_not_misread_them() -> None:
    """A release refuses a manifest with an unknown field."""
    data = json.loads(sound(outputs=(in_parts(),)).canonical_bytes())
    data["outputs"][0]["later"] = {}
    text = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ManifestError, match="known fields only"):
        parse_manifest(text)


def test_parts_in_parts_in_parts_end_in_an_error() -> None:
    """Deeply nested parts give an error and no crash."""
    data = sound(outputs=(in_parts(),)).canonical_bytes()
    deep = data.replace(
        b'"joined":{"axis":2,"parts":[', b'"joined":{"axis":2,"parts":[' + b'{"joined":{"parts":[' * 5000
    )
    with pytest.raises(ManifestError):
        parse_manifest(deep)


def test_inspect_shows_how_an_output_is_joined(tmp_path: Path) -> None:
    """The output shows the parts by name and the axis; JSON has the same keys."""
    (tmp_path / "manifest.json").write_bytes(sound(outputs=(in_parts(),)).canonical_bytes())
    text = CliRunner().invoke(inspect, [str(tmp_path)]).output
    assert "o0 int8 [1, 10, 4] + o1 int8 [1, 10, 3] along axis 2" in text
    [output] = json.loads(CliRunner().invoke(inspect, [str(tmp_path), "--json"]).output)["outputs"]
    assert (output["name"], output["shape"], output["axis"]) == ("found", [None, 10, 7], 2)
    assert [one["artifact"]["scale"] for one in output["parts"]] == [0.5, 0.5]


def fixed(value: object, dtype: DType = DType.INT64, **how: object) -> list[str]:
    """The faults of a model with a fixed input."""
    rate, x = TensorSpec("sr", dtype, ()), TensorSpec("x", DType.FLOAT32, (None, 2))
    return binding_faults([Binding(rate, rate, value=value, **how), Binding(x, x)], [Binding(x, x)])  # type: ignore[arg-type]


def test_fixed_input_has_a_value_of_its_type() -> None:
    """A fraction or a truth value is no integer; a model whose every input is fixed has nothing to run."""
    assert not fixed(16000)
    assert not fixed(0.5, DType.FLOAT32)
    assert not fixed(True, DType.BOOL)
    for value, dtype in ((0.5, DType.INT64), (True, DType.INT64), (1, DType.BOOL), (1, DType.BYTES)):
        assert any("cannot hold" in fault for fault in fixed(value, dtype))
    assert any("state" in fault for fault in fixed(1, state="x"))
    x = TensorSpec("x", DType.FLOAT32, (None, 2))
    only = binding_faults([Binding(x, x, unread=True)], [Binding(x, x)])
    assert any("every input" in fault for fault in only)
    assert any("output" in fault for fault in binding_faults([Binding(x, x)], [Binding(x, x, unread=True)]))


def test_axes_of_the_artifact_must_fit_those_of_the_model() -> None:
    """The batch comes first in the artifact, and only a tensor without one may have one more axis there."""

    def faults(spec: tuple[int | None, ...], artifact: tuple[int | None, ...], permute: tuple[int, ...] = ()) -> str:
        sides = [TensorSpec("x", DType.FLOAT32, spec), TensorSpec("a", DType.FLOAT32, artifact)]
        return "; ".join(binding_faults([Binding(*sides, permute)], [Binding(*sides, permute)]))

    sound = [((4, None, 2), (None, 4, 2), (1, 0, 2)), ((4, 2), (1, 4, 2), ()), ((), (1,), ()), ((1, 3), (1, 3), ())]
    assert not any(faults(*one) for one in sound)
    assert "moves the batch axis 1" in faults((4, None, 2), (None, 4, 2))
    assert "2 axes, the artifact has 3" in faults((4, 2), (2, 4, 2))
    assert "the artifact's is 3" in faults((None, 2), (3, 2))
