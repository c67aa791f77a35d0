"""The servers that edgekit is measured against: the same protocol, model and runtime settings, and nothing else.

Usage: serve_peers.py bare|threads|fastapi MODEL.onnx PORT. Each runs where its libraries are; edgekit is not needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


if __name__ == "__main__":
    {"bare": run_bare, "fastapi": run_fastapi, "threads": run_threads}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
