"""The servers that edgekit is measured against: the same model and runtime settings, each in its fastest form.

Usage: serve_peers.py NAME MODEL.onnx PORT. Each runs where its libraries are; edgekit is not needed. `bare`, `threads`,
`fastapi`, `mlserver` and `kserve` speak the Open Inference Protocol; `litserve` and `bentoml` have JSON routes of
their own (``/predict``) and are asked there.
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
    """ONNX Runtime as edgekit sets it: one thread that does not spin."""
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
    """Decode, run, encode: binary where the request was."""
    document = loads(body[: int(length)] if length else body)
    tensor = document["inputs"][0]
    if length:
        x = np.frombuffer(body, np.float32, offset=int(length)).reshape(tensor["shape"])
    else:
        x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
    (y,) = model.run(None, {tensor["name"]: x})
    output = {"name": "y", "datatype": "FP32", "shape": list(y.shape)}
    if not length:
        output["data"] = y.ravel().tolist()
        return dumps({"model_name": "m", "outputs": [output]}), {"content-type": "application/json"}
    data = y.tobytes()
    output["parameters"] = {"binary_data_size": len(data)}
    head = dumps({"model_name": "m", "outputs": [output]})
    return head + data, {"content-type": "application/octet-stream", HEADER: str(len(head))}


def stdlib_dumps(value: dict) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def run_bare(path: str, port: int) -> None:
    """A raw ASGI handler under uvicorn, with the JSON library and the settings that edgekit uses."""
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

    options = {"loop": "asyncio", "http": "httptools", "lifespan": "off", "access_log": False, "log_level": "error"}
    uvicorn.run(app, port=port, server_header=False, date_header=False, **options)


def run_fastapi(path: str, port: int) -> None:
    """FastAPI with the request as it came, no models of pydantic on the way: its fastest form."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    model, app = session(path), FastAPI()

    async def infer(request: Any) -> Response:
        body, headers = answer(model, await request.body(), request.headers.get(HEADER), json.loads, stdlib_dumps)
        return Response(body, headers=headers)

    infer.__annotations__["request"] = Request  # a name of this function, which the string of it would not find
    app.post("/v2/models/m/infer")(infer)
    uvicorn.run(app, port=port, loop="asyncio", http="httptools", access_log=False, log_level="error")


def run_threads(path: str, port: int) -> None:
    """The standard library's server, a thread a connection."""
    model = session(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one write an answer
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found, headers = answer(model, body, self.headers.get(HEADER), json.loads, stdlib_dumps)
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

        def log_message(self, *_: object) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def run_mlserver(path: str, port: int) -> None:
    """One process, without its metrics; its REST takes no binary tensors."""
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
    """Its own model server, REST only, one worker, without access log."""
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
    logging.disable(logging.INFO)  # a line a request, and two of traces
    ModelServer(http_port=port, grpc_port=free_port(), enable_grpc=False, workers=1).start([model])


def run_litserve(path: str, port: int) -> None:
    """One worker; a JSON route of its own."""
    import litserve
    from serve_peer_litserve import Api

    api = Api()
    api.model_path = path
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="error", generate_client_file=False)


def run_bentoml(path: str, port: int) -> None:
    """One worker; a JSON route of its own."""
    os.environ["EDGEKIT_BENCH_MODEL"] = path
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-m", "bentoml", "serve", "serve_peer_bentoml:Onnx", "--working-dir", folder]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(port)])


def free_port() -> int:
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
