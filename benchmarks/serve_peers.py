"""The servers with which edgekit is compared: same model and runtime settings, each in its fastest configuration.

Usage: serve_peers.py NAME MODEL.onnx PORT. Each server runs in its own environment, without edgekit. `bare`, `threads`,
`fastapi`, `mlserver` and `kserve` implement the Open Inference Protocol; `litserve` and `bentoml` have a JSON route
(``/predict``).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HEADER = "inference-header-content-length"


def session(path: str) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session with edgekit's settings: one thread, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answer(
    model: onnxruntime.InferenceSession,
    body: bytes,
    length: str | None,
    loads: Callable[[bytes], Any],
    dumps: Callable[[Any], bytes],
) -> tuple[bytes, dict[str, str]]:
    """Decode a request, run the model, encode the answer. The answer to a binary request is binary.

    Args:
        length: The Inference-Header-Content-Length of a binary request.
        loads, dumps: The JSON decoder and encoder.
    """
    document = loads(body[: int(length)] if length else body)
    tensor = document["inputs"][0]
    if length:
        x = np.frombuffer(body, np.float32, offset=int(length)).reshape(tensor["shape"])
    else:
        x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    (y,) = model.run(None, {tensor["name"]: x})
    output: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(y.shape)}
    if not length:
        output["data"] = y.ravel().tolist()
        return dumps({"model_name": "m", "outputs": [output]}), {"content-type": "application/json"}
    data = y.tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = dumps({"model_name": "m", "outputs": [output]})
    return head + data, {"content-type": "application/octet-stream", HEADER: str(len(head))}


def stdlib_dumps(value: dict[str, Any]) -> bytes:
    """JSON of the standard library, without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def run_bare(path: str, port: int) -> None:
    """A raw ASGI handler on uvicorn, with edgekit's JSON library and settings."""
    import msgspec
    import uvicorn

    model, loads, dumps = session(path), msgspec.json.Decoder().decode, msgspec.json.Encoder().encode

    async def app(scope: Any, receive: Any, send: Any) -> None:
        parts, more = [], True
        while more:
            message = await receive()
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        length = next((v.decode() for k, v in scope["headers"] if k == HEADER.encode()), None)
        body, headers = answer(model, b"".join(parts), length, loads, dumps)
        headers["content-length"] = str(len(body))
        raw = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    fast: dict[str, Any] = {"loop": "asyncio", "http": "httptools", "lifespan": "off"}
    quiet: dict[str, Any] = {"access_log": False, "log_level": "error", "server_header": False, "date_header": False}
    uvicorn.run(app, port=port, **fast, **quiet)


def run_fastapi(path: str, port: int) -> None:
    """FastAPI with raw requests and without pydantic models: its fastest configuration."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    model, app = session(path), FastAPI()

    async def infer(request: Any) -> Response:
        body, headers = answer(model, await request.body(), request.headers.get(HEADER), json.loads, stdlib_dumps)
        return Response(body, headers=headers)

    infer.__annotations__["request"] = Request  # the local name: a string annotation would not resolve
    app.post("/v2/models/m/infer")(infer)
    uvicorn.run(app, port=port, loop="asyncio", http="httptools", access_log=False, log_level="error")


def run_threads(path: str, port: int) -> None:
    """The HTTP server of the standard library with one thread per connection."""
    model = session(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one write per answer
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            data, headers = answer(model, body, self.headers.get(HEADER), json.loads, stdlib_dumps)
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def run_mlserver(path: str, port: int) -> None:
    """MLServer with one process and without metrics. Its REST endpoint has no binary tensors."""
    from mlserver import MLServer, ModelSettings, Settings

    os.environ["EDGEKIT_BENCH_MODEL"] = path
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=free_port(),
        metrics_endpoint=None,
        parallel_workers=0,
        debug=False,
        gzip_enabled=False,
    )
    model = ModelSettings(name="m", implementation="serve_peer_mlserver.Model")
    asyncio.run(MLServer(settings).start([model]))


def run_kserve(path: str, port: int) -> None:
    """KServe's model server: REST only, one worker, no access log."""
    from kserve import InferOutput, InferResponse, Model, ModelServer

    class Onnx(Model):
        def load(self) -> bool:
            self.session, self.ready = session(path), True
            return True

        async def predict(self, payload: Any, headers: Any = None) -> Any:
            tensor = payload.inputs[0]
            binary = tensor.parameters and "binary_data_size" in tensor.parameters
            (y,) = self.session.run(None, {tensor.name: tensor.as_numpy()})
            output = InferOutput(name="y", shape=list(y.shape), datatype="FP32")
            output.set_data_from_numpy(y, binary_data=bool(binary))
            return InferResponse(payload.id, self.name, [output])

    model = Onnx("m")
    model.load()
    logging.disable(logging.INFO)  # otherwise three log lines per request
    ModelServer(http_port=port, grpc_port=free_port(), enable_grpc=False, workers=1).start([model])


def run_litserve(path: str, port: int) -> None:
    """LitServe with one worker and a JSON route."""
    import litserve
    from serve_peer_litserve import Api

    api = Api()
    api.model_path = path
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False)


def run_bentoml(path: str, port: int) -> None:
    """BentoML with one worker and a JSON route."""
    os.environ["EDGEKIT_BENCH_MODEL"] = path
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-m", "bentoml", "serve", "serve_peer_bentoml:Onnx", "--working-dir", folder]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


RUN = {
    "bare": run_bare,
    "threads": run_threads,
    "fastapi": run_fastapi,
    "mlserver": run_mlserver,
    "kserve": run_kserve,
    "litserve": run_litserve,
    "bentoml": run_bentoml,
}

if __name__ == "__main__":
    RUN[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
