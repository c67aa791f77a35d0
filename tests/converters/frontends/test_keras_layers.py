import json
import zipfile

import h5py
import pytest

from converters.frontends import sniff
from converters.frontends.files.keras_layers import require_plain_layers
from edgekit.errors import ModelFormatError, UnsupportedOpError


def layer(kind, name, *, module="keras.layers", registered=None, **options):
    """The configuration of one layer, as Keras 3 writes it."""
    return {
        "module": module,
        "class_name": kind,
        "config": {"name": name, **options},
        "registered_name": registered,
    }


def model(*layers, **more):
    """The configuration of a functional model that has `layers` in an inner model."""
    inner = layer("Sequential", "inner", module="keras", layers=list(layers))
    return (
        layer("Functional", "net", module="keras.src.models.functional", registered="Functional", layers=[inner]) | more
    )


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("StringLookup", "word-pieces"),
        ("TextVectorization", "tokenize"),
        ("Hashing", "number of bins"),
        ("IntegerLookup", "look values up"),
    ],
)
def test_lookups_are_refused_with_what_replaces_them(kind, advice):
    """The error names the layer, and the advice says what stands in front of the model instead."""
    with pytest.raises(UnsupportedOpError) as caught:
        require_plain_layers(model(layer("Dense", "d"), layer(kind, "words")), "m.keras")
    assert (caught.value.op, caught.value.layer) == (kind, "words")
    assert advice in caught.value.advice


def test_every_custom_class_is_named_with_its_layer():
    """Custom layers and functions are named together; the advice leads to a SavedModel, which needs no code."""
    function = {"module": "builtins", "class_name": "function", "config": "swoosh", "registered_name": "function"}
    config = model(
        layer("Scale", "my_scale", module=None, registered="mine>Scale"),
        layer("Norm", "my_norm", module="keras_hub.layers", registered="keras_hub>Norm"),
        layer("Dense", "d", activation=function),
    )
    with pytest.raises(ModelFormatError) as caught:
        require_plain_layers(config, "m.keras")
    for text in ("mine>Scale (layer 'my_scale')", "keras_hub>Norm", "the function swoosh (layer 'd')"):
        assert text in str(caught.value)
    assert 'model.export("folder")' in caught.value.advice


def test_stateful_layers_are_named_with_both_ways_on():
    """A layer with state between calls is refused; stateful=False or --state is what to type next."""
    with pytest.raises(ModelFormatError, match=r"LSTM \(layer 'memory'\).*between calls") as caught:
        require_plain_layers(model(layer("LSTM", "memory", stateful=True)), "m.keras")
    assert "stateful=False" in caught.value.advice
    assert "--state" in caught.value.advice


@pytest.mark.parametrize(
    "part",
    [
        layer("QuantizeWrapperV2", "quant_dense", module=None, registered="QuantizeWrapperV2"),
        layer("Dense", "d", dtype=layer("QuantizedDTypePolicy", None, module="keras", mode="int8")),
    ],
)
def test_quantized_models_get_the_refusal_of_all_formats(part):
    """Quantization-aware training and int8 policies are refused as quantized."""
    with pytest.raises(ModelFormatError, match="is quantized already"):
        require_plain_layers(model(part), "m.keras")


def test_plain_models_and_custom_losses_pass():
    """Keras's own layers pass, also those of Keras 2; what only training needs is not looked at."""
    old = {"class_name": "Dense", "config": {"name": "old"}}
    compiled = {"loss": {"class_name": "MyLoss", "config": {}, "registered_name": "mine>MyLoss", "module": None}}
    require_plain_layers(model(layer("Dense", "d"), old, compile_config=compiled), "m.keras")


def test_both_kinds_of_file_are_looked_at_without_keras(tmp_path):
    """A .keras and an .h5 with a Lambda layer are refused by the layer's name when the format is recognized."""
    config = json.dumps(model(layer("Lambda", "twice")))
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", b"")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = config
    for name in ("m.keras", "m.h5"):
        with pytest.raises(UnsupportedOpError) as caught:
            sniff(tmp_path / name)
        assert (caught.value.op, caught.value.layer) == ("Lambda", "twice")


def test_an_h5_with_weights_only_says_how_to_save_the_model(tmp_path):
    """Weights without a model are refused with the lines that make a model file."""
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_group("dense_1")
    with pytest.raises(ModelFormatError, match=r"weights without a model .*dense_1") as caught:
        sniff(tmp_path / "w.h5")
    assert "load_weights" in caught.value.advice
