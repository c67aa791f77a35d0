"""Send a photo and get labels: a bundle contains the steps before and after the model, which steps.toml defines.

Converts a model that recognizes colours, like `edgekit convert colours.onnx --target server --preprocess steps.toml`,
and posts a JPEG to its endpoint. Prints the media types that the model accepts, then the labels by descending score:

    colours takes image/jpeg, image/png
    green 0.75, blue 0.15, red 0.10
"""

import asyncio
import io
import json
from pathlib import Path
from urllib.request import Request, urlopen

import onnx.parser
from PIL import Image

from converters import convert
from device_agents import InferenceService
from edgekit.bundle.manifest import parse_manifest
from edgekit.serving.http.app import App
from edgekit.serving.http.server import serve

MODEL = """<ir_version: 9, opset_import: ["" : 17]> colours (float[n, 3, 32, 32] image) => (float[n, 3] scores)
{ mean = ReduceMean<axes = [2, 3], keepdims = 0>(image) scores = Softmax(mean) }"""
STEPS = """
before = [{raw = "photo", steps = [
  {do = "decode-image"},
  {do = "resize", height = 32, width = 32, method = "pillow-bilinear", fit = "crop"},
  {do = "scale", by = 0.0117647},
  {do = "layout", to = "CHW"},
]}]
after = [{do = "top-k", k = 3, labels = ["red", "green", "blue"]}]
"""


async def ask(bundle: Path, photo: bytes) -> None:
    async with InferenceService() as service:
        manifest = await asyncio.to_thread((bundle / "manifest.json").read_bytes)
        await service.activate("colours", parse_manifest(manifest), bundle)
        async with serve(App(service, max_request_bytes=2**20), http="127.0.0.1:0", socket=None) as bound:
            url = f"{bound.url}/v2/models/colours"
            metadata = json.load(await asyncio.to_thread(urlopen, url))
            print("colours takes", ", ".join(metadata["edgekit_bytes"][0]["media_types"]))
            request = Request(f"{url}/infer", photo, {"Content-Type": "image/jpeg"})
            outputs = json.load(await asyncio.to_thread(urlopen, request))["outputs"]
            answer = {one["name"]: one["data"] for one in outputs}
            ranked = zip(answer["labels"], answer["scores"], strict=True)
            print(", ".join(f"{label} {score:.2f}" for label, score in ranked))


onnx.save(onnx.parser.parse_model(MODEL), "colours.onnx")
Path("steps.toml").write_text(STEPS)
[report] = convert("colours.onnx", targets=["server"], preprocess="steps.toml")
Image.new("RGB", (640, 480), (30, 200, 60)).save(jpeg := io.BytesIO(), "JPEG")
asyncio.run(ask(Path(report.bundle), jpeg.getvalue()))
