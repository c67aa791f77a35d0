"""Entry points for Keras and SavedModel. Only the TensorFlow process (framework_process.py) imports this module."""

from __future__ import annotations

from converters.frontends.files.sniff import H5, SAVED_MODEL
from converters.frontends.tensorflow.compiled_calls import without_xla
from converters.frontends.tensorflow.export import exported
from converters.frontends.tensorflow.keras_model import load_keras
from converters.frontends.tensorflow.loaded import Loaded
from converters.frontends.tensorflow.saved_model import load_saved_model
from converters.frontends.tensorflow.source_file import SourceFile
from edgekit.tensors import Array

_loaded: dict[SourceFile, Loaded] = {}


def export_source(source: SourceFile) -> bytes:
    """Export the model as serialized ONNX with the source's names, layout and free sizes.

    Raises:
        ModelFormatError, SettingsError: As `load_keras` and `load_saved_model`.
        UnsupportedOpError: tf2onnx failed at an operator.
    """
    loaded = loaded_model(source)
    if source.format != SAVED_MODEL:
        return exported(loaded, source.path)
    with without_xla(source.path) as plain:
        other = load_saved_model(plain, source.signature) if plain != source.path else loaded
        return exported(other, source.path)


def loaded_model(source: SourceFile) -> Loaded:
    """The source model as a function. It is loaded once in a process, and again after the process ended."""
    if source not in _loaded:
        if source.format == SAVED_MODEL:
            _loaded[source] = load_saved_model(source.path, source.signature)
        else:
            _loaded[source] = load_keras(source.path, legacy=source.format == H5)
    return _loaded[source]


def answers(source: SourceFile, inputs: dict[str, Array]) -> dict[str, Array]:
    """Run the source model on `inputs` (N, ...) and return its outputs."""
    return loaded_model(source).answers(inputs)


def described(source: SourceFile) -> tuple[dict[str, list[int | None]], list[str]]:
    """The sizes of the inputs by name, None for a free one, and the names of the outputs."""
    loaded = loaded_model(source)
    return {spec.name: list(spec.shape) for spec in loaded.inputs}, loaded.outputs
