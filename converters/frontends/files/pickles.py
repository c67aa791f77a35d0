"""Says what a pickle holds, from the names of classes in it. Nothing is unpickled."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO

from converters.frontends.files import export_lines
from edgekit.errors import ModelFormatError

PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
OLD_PYTORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch before 1.6: a pickle of a magic number comes first
COMPRESSED = (b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x1f\x8b")
LONGEST_SCAN = 20_000  # operations of a pickle that are looked at
WEIGHTS = ("collections.OrderedDict", "torch._utils._rebuild", "torch.", "numpy.", "_codecs.", "builtins.")


def refuse_pickle(path: Path, head: bytes) -> None:
    """Refuse a file that is a pickle.

    Raises:
        ModelFormatError: It is; the error says what it holds, and how to export the model.
    """
    if head.startswith(OLD_PYTORCH):
        with path.open("rb") as file:
            raise _refusal(path, "a PyTorch file from before version 1.6, which is a pickle", _classes(file, skip=3))
    if head[:1] == b"\x80" and head[1:2] in PROTOCOLS:
        with path.open("rb") as file:
            raise _refusal(path, "a Python pickle", _classes(file))
    if head[:2] in COMPRESSED and {".pkl", ".joblib"} & set(path.suffixes):
        raise _refusal(path, "a compressed file as joblib writes it, which is a pickle", [])


def refuse_zip_of_pickles(path: Path, archive: zipfile.ZipFile, names: list[str]) -> None:
    """Refuse an archive of PyTorch with a pickle in it: weights, a whole model, or TorchScript.

    Raises:
        ModelFormatError: It is one; the error says which, and how to export the model.
    """
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise ModelFormatError(
            f"{path} is a TorchScript program: pickles and code in a zip archive",
            advice=export_lines.torchscript(path.name),
        )
    inner = next((name for name in names if name.endswith(("data.pkl", ".pickle"))), "")
    if inner:
        with archive.open(inner) as file:
            raise _refusal(path, "a PyTorch file, which is a pickle in a zip archive", _classes(file))


def _refusal(path: Path, what: str, classes: list[str]) -> ModelFormatError:
    """The refusal of a pickle that names `classes`; the first class that is not of arrays is the model's."""
    own = [one for one in classes if not one.startswith(WEIGHTS) or one.startswith("torch.nn.")]
    danger = "loading it could run any program, so edgekit refuses it"
    name, torch = path.name, any(one.startswith("torch.") for one in classes) or "PyTorch" in what
    if torch and not own:
        return ModelFormatError(
            f"{path} is {what}, with weights and no model; {danger}", advice=export_lines.state_dict(name)
        )
    holds = f", with an object of class {own[0]}" if own else ""
    advice = export_lines.whole_model(name, own[0]) if torch else export_lines.pickled(name, own[0] if own else "")
    return ModelFormatError(f"{path} is {what}{holds}; {danger}", advice=advice)


def _classes(file: IO[bytes], skip: int = 0) -> list[str]:
    """The classes and functions that a pickle names, in order; the first `skip` pickles of the file are passed over."""
    found: list[str] = []
    strings: list[str] = []
    try:
        for _ in range(skip):
            for _ in pickletools.genops(file):
                pass
        for count, (operation, argument, _) in enumerate(pickletools.genops(file)):
            if operation.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL" and len(strings) > 1:
                found.append(f"{strings[-2]}.{strings[-1]}")
            elif isinstance(argument, str):
                strings = [*strings[-1:], argument]
            if count > LONGEST_SCAN:
                break
    except (ValueError, EOFError, zipfile.BadZipFile, OverflowError):  # damaged, or cut short: what was found is enough
        pass
    return list(dict.fromkeys(found))
