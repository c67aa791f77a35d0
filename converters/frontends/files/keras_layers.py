"""Refuses layers of Keras models that no device can run, by name, from the file's configuration and without Keras."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from converters.frontends.refusals import quantized
from edgekit.errors import ModelFormatError, UnsupportedOpError

SAVED_MODEL = (
    'where its code is, export the model with model.export("folder"), and convert that folder: a SavedModel '
    "needs no Python code"
)
TEXT = "the step word-pieces of --preprocess does this for word pieces; otherwise the application does it"
# What stands in front of the model instead of a layer that reads text or looks values up.
LOOKUPS = {
    "TextVectorization": f"tokenize before the model ({TEXT})",
    "StringLookup": f"look words up before the model ({TEXT})",
    "IntegerLookup": "look values up before the model, for example by a table of layer.get_vocabulary()",
    "Hashing": "hash values before the model, with the same number of bins",
    "HashedCrossing": "cross and hash values before the model, with the same number of bins",
}
WRAPPED = ("QuantizeWrapper", "QuantizeWrapperV2", "QuantizeLayer", "QuantizeAnnotate")  # of tfmot
SKIPPED = ("compile_config", "build_config", "shared_object_id")


class KerasLayer(msgspec.Struct, frozen=True):
    """An object of a Keras configuration: a layer, or a function or value that a layer has.

    Attributes:
        kind: Name of its class.
        layer: Name of the layer that it is or belongs to.
        module: Module of its class; empty where the file does not say.
        registered: Name under which custom code was registered; empty for Keras's own classes.
        options: Its configuration.
    """

    kind: str
    layer: str
    module: str
    registered: str
    options: Mapping[str, Any]


def require_plain_layers(config: Any, source: str) -> None:
    """Check that the model of `config` (the parsed JSON) consists of Keras's own layers that devices can run.

    Raises:
        UnsupportedOpError: A layer is Python code, or looks up text or values.
        ModelFormatError: The model is quantized, needs custom code, or keeps state between calls.
    """
    layers = list(_layers(config, ""))
    for layer in layers:
        _refuse_quantized(layer, source)
    for layer in layers:
        _refuse_code(layer)
    for layer in layers:
        _refuse_lookup(layer)
    custom = [layer for layer in layers if _is_custom(layer)]
    if custom:
        raise custom_code(source, [(_class_name(layer), layer.layer) for layer in custom])
    stateful = [layer for layer in layers if layer.options.get("stateful") is True]
    if stateful:
        raise ModelFormatError(
            f"{source}: {_named([(layer.kind, layer.layer) for layer in stateful])} "
            "keeps its state between calls (stateful=True)",
            advice="Save the model with stateful=False. To keep state on the device, make it an input and an output "
            "(initial_state=..., return_state=True), export to ONNX, and convert with --state OUTPUT=INPUT.",
        )


def custom_code(source: str, named: list[tuple[str, str]]) -> ModelFormatError:
    """The refusal of classes and functions that the file names and does not contain, as (name, layer)."""
    return ModelFormatError(
        f"{source} needs Python code that is not in the file: {_named(named)}",
        advice=f"Use Keras's own layers; or, {SAVED_MODEL}.",
    )


def _named(pairs: list[tuple[str, str]]) -> str:
    shown = [f"{kind} (layer {layer!r})" if layer else kind for kind, layer in dict.fromkeys(pairs)]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def _layers(value: Any, layer: str) -> Iterator[KerasLayer]:
    """Every object in a configuration, outer ones first."""
    pending = [(value, layer)]
    while pending:
        found, owner = pending.pop()
        if isinstance(found, list):
            pending.extend((item, owner) for item in reversed(found))
        if not isinstance(found, dict):
            continue
        options = found.get("config")
        if isinstance(found.get("class_name"), str) and "config" in found:
            name = options.get("name") if isinstance(options, dict) else None
            owner = name if isinstance(name, str) and name else owner
            module = found.get("module")
            kind = found["class_name"]
            yield KerasLayer(
                f"the function {options}" if kind == "function" and isinstance(options, str) else kind,
                owner,
                module if isinstance(module, str) else "",
                str(found.get("registered_name") or ""),
                options if isinstance(options, dict) else {},
            )
        pending.extend((item, owner) for key, item in reversed(list(found.items())) if key not in SKIPPED)


def _refuse_quantized(layer: KerasLayer, source: str) -> None:
    if layer.kind in WRAPPED:
        raise quantized(source, layer.kind, layer.layer)
    policy = layer.kind.endswith("DTypePolicy") and layer.kind != "DTypePolicy"
    if policy or (layer.kind == "DTypePolicy" and "_from_" in str(layer.options.get("name"))):
        raise quantized(source, f"the dtype policy {layer.options.get('name') or layer.kind}", layer.layer)


def _refuse_code(layer: KerasLayer) -> None:
    if layer.kind in ("Lambda", "TFOpLambda", "SlicingOpLambda", "TFSMLayer"):
        raise UnsupportedOpError(
            layer.kind,
            layer.layer,
            backend="any target, since it is Python code inside the file"
            if layer.kind == "Lambda"
            else "any target, since the file does not contain what it computes",
            advice=f"Replace the {layer.kind} layer by Keras layers or keras.ops, and save again; or, {SAVED_MODEL}.",
        )


def _refuse_lookup(layer: KerasLayer) -> None:
    if layer.kind in LOOKUPS:
        raise UnsupportedOpError(
            layer.kind,
            layer.layer,
            backend="any target, since runtimes on devices have no text and no tables",
            advice=f"Save the model without it, from the next layer on, and {LOOKUPS[layer.kind]}.",
        )


def _class_name(layer: KerasLayer) -> str:
    return layer.kind if layer.registered == "function" else layer.registered


def _is_custom(layer: KerasLayer) -> bool:
    if layer.registered == "function":  # an activation or another option
        return True
    own = layer.module.split(".")[0] in ("keras", "tf_keras", "") or layer.module.startswith("tensorflow.")
    return bool(layer.registered) and (not own or not layer.module)
