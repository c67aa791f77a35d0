"""`edgekit inspect`: shows a model or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from edgekit.bundle.bindings import Binding, Joined
from edgekit.bundle.manifest import MANIFEST_NAME, ROLE_REPORT, Manifest, parse_manifest
from edgekit.cli.common.console import json_option, needs_extra, print_json, print_table
from edgekit.cli.common.native_output import native_output_hidden
from edgekit.cli.model_options import model_options, parse_model_options
from edgekit.errors import ManifestError
from edgekit.tensors import TensorSpec


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@model_options
@json_option
def inspect(path: Path, as_json: bool, **choices: Any) -> None:
    """Show a model or a bundle: inputs, outputs, operators, size, quality, cost.

    The options say how a model is read, as for `edgekit convert`. Free axes without a size get proposed ones.

    \b
    Examples:
      edgekit inspect model.onnx
      edgekit inspect saved_model --signature embed
      edgekit inspect detector.onnx --cut auto
      edgekit inspect bundles/digits-1.0.0-raspberry-pi-4
    """
    bundle = (path / MANIFEST_NAME).is_file()
    if bundle and any(choices.values()):
        raise click.UsageError(f"{path} is a bundle; these options are for models.")
    facts = _bundle(path) if bundle else _model(path, choices)
    if as_json:
        print_json(facts)
        return
    tensors = [("input", *row) for row in _rows(facts["inputs"])] + [
        ("output", *row) for row in _rows(facts["outputs"])
    ]
    rows = [(key, _text(value)) for key, value in facts.items() if key not in ("inputs", "outputs")]
    print_table(["fact", "value"], rows)
    click.echo()
    print_table(["", "name", "dtype", "shape", "in the artifact"], tensors)


def _bundle(path: Path) -> dict[str, Any]:
    try:
        data = (path / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise ManifestError(f"{path / MANIFEST_NAME} cannot be read: {error}") from error
    manifest = parse_manifest(data)
    return {
        "kind": "bundle",
        "name": manifest.name,
        "version": manifest.version,
        "target": manifest.target,
        "runtime": manifest.runtime,
        "digest": manifest.digest,
        "bytes": manifest.total_bytes,
        "files": {entry.path: entry.size for entry in manifest.files},
        **_contents(path, manifest),
        "recipe": manifest.recipe.id,
        "task": manifest.task.kind,
        "quality": _quality(manifest),
        **_output_qualities(manifest),
        "cost": f"{manifest.cost.value:.4g} {manifest.cost.unit} ({manifest.cost.kind})" if manifest.cost else None,
        "golden": _golden(manifest),
        "send_inputs": manifest.may_send,
        "requires": manifest.requires,
        "source": manifest.source_sha256,
        "inputs": [_binding(binding) for binding in manifest.inputs],
        "outputs": [_binding(binding) for binding in manifest.outputs],
    }


class _Contents(msgspec.Struct):
    """The operators of an artifact, as in the report of `edgekit convert`."""

    operators: dict[str, int]
    pieces: int | None = None


class _Report(msgspec.Struct):
    contents: _Contents | None = None


def _contents(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """The operators from the bundle's report; empty where the report has none."""
    entries = [entry for entry in manifest.files if entry.role == ROLE_REPORT and entry.path.endswith(".json")]
    if not entries:
        return {}
    try:
        contents = msgspec.json.decode((folder / entries[0].path).read_bytes(), type=_Report).contents
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ManifestError(f"{folder / entries[0].path} cannot be read: {error}") from error
    if contents is None:
        return {}
    pieces = {}
    if contents.pieces is not None:
        pieces = {"xnnpack": f"{contents.pieces} pieces" if contents.pieces != 1 else "one piece"}
    return {"operators": contents.operators, **pieces}


def _quality(manifest: Manifest) -> str | None:
    quality = manifest.quality
    if quality is None:
        return None
    proven = "proven" if quality.proven else "not proven"
    hard = f", {quality.hard} of them hard ones of devices" if isinstance(quality.hard, int) else ""
    samples = f"{quality.n} samples{hard}"
    return f"{quality.metric} {quality.value:.4f} (float {quality.float_value:.4f}, {samples}, {proven})"


def _output_qualities(manifest: Manifest) -> dict[str, str]:
    """The proof of each output, under ``quality of OUTPUT``; empty where the model has only one."""
    quality = manifest.quality
    if quality is None or not isinstance(quality.outputs, tuple):
        return {}
    texts = {}
    for one in quality.outputs:
        judged = f"drop at most {one.max_drop:g} in {one.metric} on {one.n} samples"
        texts[f"quality of {one.output}"] = (
            f"{'proven' if one.proven else 'not proven'}: {judged}" if one.metric else "not judged"
        )
    return texts


def _golden(manifest: Manifest) -> str:
    limits = ", ".join(f"{entry.output} within {entry.max_abs:.3g}" for entry in manifest.golden.tolerances)
    decisions = ", decisions must match" if manifest.golden.decisions_match else ""
    return f"{manifest.golden.samples} rows, {limits}{decisions}"


def _model(path: Path, choices: dict[str, Any]) -> dict[str, Any]:
    with needs_extra("convert"):
        from converters.framework_process import TensorFlowProcess
        from converters.frontends import load_model
        from converters.graph.state import state_hint
        from converters.graph.stated import Stated

    parse_model_options(choices)
    signature = choices["signature"] or ""
    stated = Stated(choices["input_shapes"], choices["dims"], choices["fixed"], propose=True, cut=choices["cut"])
    with native_output_hidden(), TensorFlowProcess() as child:
        source = load_model(path, child, stated, signature=signature)
    graph = source.graph
    notes = [*graph.interface.notes, *filter(None, [state_hint(graph)])]
    return {
        "kind": "model",
        "format": source.format,
        "sha256": source.sha256,
        "graph_bytes": len(graph.to_bytes()),
        "opset": graph.opset,
        "parameters": graph.parameters,
        "multiply_adds": sum(graph.macs.values()),
        "operators": graph.operators,
        **({"notes": notes} if notes else {}),
        "batch": _batch(graph.interface, free=graph.free_batch),
        "inputs": [_source_input(one) for one in graph.interface.inputs],
        "outputs": [_plain(spec) for spec in graph.logical_outputs],
    }


def _batch(interface: Any, *, free: bool) -> str:
    if not interface.batched:
        return "none: a call takes one sample"
    return "free" if free else "free for clients; rows run one at a time"


def _source_input(one: Any) -> dict[str, Any]:
    fixed = {"value": one.value} if one.value is not None else {}
    return {**_plain(one.spec), **fixed, **({"unread": True} if one.unread else {})}


def _plain(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype.value, "shape": list(spec.shape)}


def _binding(binding: Binding) -> dict[str, Any]:
    tensor = _plain(binding.spec)
    if not binding.in_artifact:
        return {**tensor, **({"unread": True} if binding.unread is True else {"value": binding.value})}
    if isinstance(binding.joined, Joined):
        return {**tensor, "axis": binding.joined.axis, "parts": [_binding(part) for part in binding.joined.parts]}
    if isinstance(binding.state, str):
        tensor["state"] = binding.state
    tensor["artifact"] = _plain(binding.artifact)
    if binding.scale is not None:
        tensor["artifact"]["scale"] = binding.scale
        tensor["artifact"]["zero_point"] = binding.zero_point
    return tensor


def _rows(tensors: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    return [(t["name"], t["dtype"], _shape(t["shape"]), _in_artifact(t)) for t in tensors]


def _in_artifact(tensor: dict[str, Any]) -> str:
    if "parts" in tensor:
        return f"{' + '.join(map(_in_artifact, tensor['parts']))} along axis {tensor['axis']}"
    if "value" in tensor:
        return f"fixed to {tensor['value']}"
    if tensor.get("unread"):
        return "not read"
    artifact = tensor.get("artifact")
    state = f", state from {tensor['state']}" if "state" in tensor else ""
    return f"{artifact['name']} {artifact['dtype']} {_shape(artifact['shape'])}{state}" if artifact else ""


def _shape(shape: list[int | None]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items()) or "-"
    return "-" if value is None else str(value)
