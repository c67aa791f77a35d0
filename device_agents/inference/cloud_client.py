"""CloudTier over HTTP: calls any Open Inference Protocol v2 server with the binary tensor extension."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import msgspec
import urllib3

from device_agents.inference.routing_rules import CloudRefusedError
from edgekit.errors import CloudError, DataError
from edgekit.serving.oip import codec as oip
from edgekit.tensors import Array
from edgekit.waiting import within

MAX_ANSWER_BYTES = 64 * 1024**2
CONNECTIONS = 8
_CHUNK_BYTES = 256 * 1024
_TRY_LATER = (408, 429)


class CloudClient:
    """CloudTier over kept-alive connections; each request runs in a thread of a small pool.

    Args:
        url: Base URL, for example ``https://cloud.example:8700``.
        model: Model name there; empty for the same name as on the device.
        api_key: Sent as ``Authorization: Bearer``; empty for none.
    """

    def __init__(self, url: str, *, model: str = "", api_key: str = "") -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, retries=False)
        self._executor = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="cloud")

    async def infer(self, model: str, inputs: Mapping[str, Array], *, timeout_seconds: float) -> dict[str, Array]:
        """Call the cloud tier; see CloudTier.infer.

        Raises:
            CloudError: there was no usable answer in time; the message says why.
            CloudRefusedError: the tier answered that it does not accept this request (4xx).
        """
        deadline = time.monotonic() + timeout_seconds
        ask = functools.partial(self._ask, self._model or model, dict(inputs), deadline)
        try:
            return await within(timeout_seconds, asyncio.get_running_loop().run_in_executor(self._executor, ask))
        except asyncio.TimeoutError:
            raise CloudError(f"the cloud tier did not answer within {timeout_seconds:.2g} s") from None

    def close(self) -> None:
        """Close the connections; running requests end at their own deadlines."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._pool.clear()

    def _ask(self, model: str, inputs: dict[str, Array], deadline: float) -> dict[str, Array]:
        try:
            sent = oip.encode_request(inputs)
            status, body, header = self._post(f"{self._url}/v2/models/{quote(model)}/infer", sent, deadline)
            if status != 200:
                kind = CloudRefusedError if 400 <= status < 500 and status not in _TRY_LATER else CloudError
                raise kind(f"the cloud tier answered {status}: {_reason(body)}")
            return oip.parse_response(body, oip.header_length(header)).outputs
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise CloudError(f"the cloud tier at {self._url} cannot be reached: {error}") from error
        except DataError as error:
            raise CloudError(f"the cloud tier's answer cannot be used: {error}") from error

    def _post(self, url: str, sent: oip.Encoded, deadline: float) -> tuple[int, bytes, str | None]:
        left = max(deadline - time.monotonic(), 0.001)
        reply = self._pool.request(
            "POST",
            url,
            body=sent.body,
            headers={**self._headers, **sent.headers},
            timeout=urllib3.Timeout(connect=left, read=left),
            redirect=False,  # the API key is sent to the configured server only
            preload_content=False,
        )
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(reply.close)  # a reply that was not read to its end cannot be used again
            body = b"".join(_chunks(reply, deadline))
            unfinished.pop_all()
        reply.release_conn()
        return reply.status, body, reply.headers.get(oip.HEADER)


def _chunks(reply: urllib3.BaseHTTPResponse, deadline: float) -> list[bytes]:
    """The parts of the body; its size and the time for it are limited.

    Raises:
        CloudError: the body is too long, or did not arrive before `deadline` (monotonic seconds).
    """
    parts: list[bytes] = []
    size = 0
    for part in reply.stream(_CHUNK_BYTES):
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise CloudError(f"the cloud tier's answer is longer than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise CloudError("the cloud tier's answer came too slowly")
        parts.append(part)
    return parts


def _reason(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body)["error"])[:300]
    except (msgspec.MsgspecError, KeyError, TypeError):
        return repr(body[:100])
