"""The lines that export a model from its own framework, ready to paste. Sizes in them are examples."""

from __future__ import annotations

SIZES = "1, 3, 224, 224"
PYTORCH = (
    "In Python, with the model's own input size: "
    f"torch.export.save(torch.export.export(model.eval(), (torch.zeros({SIZES}),)), 'model.pt2')"
)
UNPACK = "Unpack it, and give the model inside."


def state_dict(name: str) -> str:
    """For weights of a PyTorch model, without the model."""
    load = f"model = MyModel(); model.load_state_dict(torch.load({name!r}, weights_only=True))"
    return f"Make the model from its own code: import torch; {load}. {PYTORCH}. Then convert model.pt2."


def whole_model(name: str, kind: str) -> str:
    """For a pickled PyTorch model of class `kind`, which only trusted code may load."""
    if kind.startswith(("ultralytics.", "models.yolo", "models.common")):
        return (
            f"If you trust the file: from ultralytics import YOLO; YOLO({name!r}).export(format='onnx', opset=17). "
            "Then convert the .onnx file."
        )
    return (
        f"If you trust the file: import torch; model = torch.load({name!r}, weights_only=False). {PYTORCH}. "
        "Then convert model.pt2."
    )


def torchscript(name: str) -> str:
    """For a TorchScript program."""
    return (
        f"Export it to ONNX: import torch; model = torch.jit.load({name!r}).eval(); "
        f"torch.onnx.export(model, (torch.zeros({SIZES}),), 'model.onnx', opset_version=17, dynamo=False). "
        "Then convert model.onnx."
    )


def weights_only(kind: str, name: str = "FILE") -> str:
    """For files of ``safetensors``, ``tensorflow`` checkpoints, ``frozen`` graphs and ``paddle``."""
    if kind == "safetensors":
        load = f"from safetensors.torch import load_file; model = MyModel(); model.load_state_dict(load_file({name!r}))"
        return (
            f"Make the model from its own code: {load}. {PYTORCH}. A folder of Hugging Face Transformers: "
            "optimum-cli export onnx --model FOLDER OUTPUT."
        )
    if kind == "frozen":
        return (
            "Export it to ONNX: pip install tf2onnx, then: python -m tf2onnx.convert --graphdef "
            f"{name} --inputs INPUT:0 --outputs OUTPUT:0 --opset 17 --output model.onnx"
        )
    if kind == "paddle":
        return (
            f"Export it to ONNX: pip install paddle2onnx, then: paddle2onnx --model_dir {name} "
            "--model_filename inference.pdmodel --params_filename inference.pdiparams --opset_version 17 "
            "--save_file model.onnx"
        )
    return (
        "Make the model from its own code, load the weights, and save all: model = build(); "
        "model.load_weights(PATH); model.save('model.keras'). Then convert model.keras."
    )


def pickled(name: str, kind: str) -> str:
    """For a pickle of an object of class `kind`."""
    if kind.startswith("sklearn."):
        return (
            "Export it to ONNX where you trained it: pip install skl2onnx, then: from skl2onnx import to_onnx; "
            "open('model.onnx', 'wb').write(to_onnx(model, x[:1].astype('float32')).SerializeToString())"
        )
    if kind.startswith(("torch.", "models.", "ultralytics.")):
        return whole_model(name, kind)
    return f"Export the model where you trained it: PyTorch to .pt2 or ONNX, Keras to .keras. {PYTORCH}"
