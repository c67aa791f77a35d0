"""CloudTier over HTTP: calls any Open Inference Protocol v2 server, in binary or, where it knows no binary, in JSON."""

from __future__ import annotations

import asyncio
import functools
import itertools
import secrets
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import quote

import msgspec

from device_agents.inference.cloud.failures import (
    CloudOverloadedError,
    CloudRefusedError,
    CloudTimeoutError,
    CloudUnreachableError,
    CloudUnusableError,
)
from device_agents.inference.cloud.http_client import HttpClient, HttpReply, without_user
from edgekit.errors import CloudError, DataError, SettingsError
from edgekit.protocols import CloudAnswer
from edgekit.serving.oip import codec as oip
from edgekit.serving.oip.deadlines import DEADLINE_PARAMETER, MAX_DEADLINE_MS
from edgekit.serving.session.preparation import POSTPROCESS_PARAMETER
from edgekit.tensors import Array

_NO_BINARY = (400, 406, 415, 422, 500, 501)  # what servers without binary tensors answer to one
_NO_FORM = 415  # the status of a server that does not take the form of a request
_TOO_LONG = 413
_LONG = 256 * 1024  # bytes from which tensors are copied and parsed outside the event loop
_RETURN_SHARE, _LONGEST_RETURN_SECONDS = 0.1, 0.02  # of the time left, kept for the way back
_JSON_PAUSE_SECONDS = 600.0
_MOVED = (301, 308)  # for good; other redirects may come from a network that wants a login first


class CloudClient:
    """CloudTier over kept-alive connections.

    Args:
        url: Base URL, for example ``https://cloud.example:8700``.
        model: Model name there, for every model; empty for the name that is asked.
        api_key: Sent as ``Authorization: Bearer``; empty for none.
        tls: For https, with the authority of the server or a certificate of the device; None for the system's
            authorities and no certificate.
        may_retry: Whether a request may be sent once more: a reused connection had been forgotten, or a server failed
            that may take no binary tensors.

    Raises:
        SettingsError: the URL has another scheme than http and https, or no host; or the key cannot be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "",
        api_key: str = "",
        tls: ssl.SSLContext | None = None,
        may_retry: Callable[[], bool] = lambda: True,
    ) -> None:
        self._url = without_user(url)
        self._model = model
        if not (api_key.isascii() and api_key.isprintable()):
            raise SettingsError(
                "the API key for the cloud tier is not one line of ASCII characters",
                advice="Write the key alone into the file of cloud_api_key_file, without its owner and other keys.",
            )
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = HttpClient(url, tls=tls, may_retry=may_retry)
        except ValueError as error:
            raise SettingsError(f"cloud_url: {error}") from error
        self._takes_binary: dict[str, bool] = {}  # by model
        self._may_retry = may_retry
        self._asked_in_json: set[str] = set()
        self._refused_in_json: dict[str, float] = {}
        self._id, self._requests = secrets.token_hex(4), itertools.count(1)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        *,
        timeout_seconds: float,
        wanted: Collection[str] | None = None,
        postprocess: bool | None = None,
    ) -> CloudAnswer:
        """Call the cloud tier; see CloudTier.infer. The deadline goes with the request, so that it is not run too late.

        Raises:
            CloudError: there was no usable answer in time; `failures` has a class for each kind.
        """
        name, deadline = self._model or model, time.monotonic() + timeout_seconds
        binary = self._takes_binary.get(name, True)
        steps = {} if postprocess is None else {POSTPROCESS_PARAMETER: postprocess}
        try:
            reply = await self._ask(name, inputs, deadline, steps, binary=binary)
        except DataError as error:
            message = f"the cloud tier takes no binary tensors, and the inputs have no form in JSON: {error}"
            raise CloudRefusedError(message, status=_NO_FORM) from error
        if reply.status in _NO_BINARY and binary and self._may_try_json(name):
            reply, binary = await self._in_json(name, inputs, deadline, steps, reply)
        if reply.status != 200:
            raise _refusal(reply)
        self._takes_binary[name] = binary
        _refuse_compressed(reply)
        try:
            length = oip.header_length(reply.headers.get(oip.HEADER.lower()))
            if len(reply.body) > _LONG:
                found = await asyncio.to_thread(oip.parse_response, reply.body, length, wanted=wanted)
            else:
                found = oip.parse_response(reply.body, length, wanted=wanted)
        except DataError as error:
            raise CloudUnusableError(f"the cloud tier's answer cannot be used: {error}") from error
        return CloudAnswer(found.outputs, found.version, str(found.parameters.get("edgekit_model") or ""))

    async def get(self, path: str, *, timeout_seconds: float) -> HttpReply:
        """The answer to a GET request, whatever its status is.

        Raises:
            CloudTimeoutError, CloudUnreachableError: there is none.
        """
        return await self._send("GET", path, self._headers, b"", time.monotonic() + timeout_seconds)

    def close(self) -> None:
        """Close the unused connections."""
        self._http.close()

    def _may_try_json(self, name: str) -> bool:
        """True now and then for a model that never answered a binary request."""
        refused_at = self._refused_in_json.get(name, -_JSON_PAUSE_SECONDS)
        if name in self._takes_binary or time.monotonic() - refused_at < _JSON_PAUSE_SECONDS:
            return False
        if name in self._asked_in_json:
            return self._may_retry()
        self._asked_in_json.add(name)
        return True

    async def _in_json(
        self, name: str, inputs: Mapping[str, Array], deadline: float, steps: Mapping[str, bool], refusal: HttpReply
    ) -> tuple[HttpReply, bool]:
        """The reply to the same request in JSON and False; or the refusal and True, where JSON is refused for its form.

        A server that cannot parse a binary request says nothing on its model. One that gives the same refusal to both
        forms has parsed both.
        """
        try:
            reply = await self._ask(name, inputs, deadline, steps, binary=False)
        except (DataError, CloudError):
            return refusal, True
        if (reply.status, reply.body) == (refusal.status, refusal.body):
            self._refused_in_json[name] = time.monotonic()
        return (refusal, True) if reply.status in (_NO_FORM, _TOO_LONG) else (reply, False)

    async def _ask(
        self, name: str, inputs: Mapping[str, Array], deadline: float, steps: Mapping[str, bool], *, binary: bool
    ) -> HttpReply:
        left = deadline - time.monotonic()
        way_back = min(_LONGEST_RETURN_SECONDS, _RETURN_SHARE * left)
        deadline_ms = min(max((left - way_back) * 1000, 1.0), MAX_DEADLINE_MS)
        parameters = {DEADLINE_PARAMETER: round(deadline_ms, 1), **steps}
        request_id = f"{self._id}-{next(self._requests)}"  # models on KServe answer 500 where there is none
        encode = functools.partial(oip.encode_request, parameters=parameters, binary=binary, request_id=request_id)
        if sum(value.nbytes for value in inputs.values()) > _LONG:
            sent = await asyncio.to_thread(encode, inputs)
        else:
            sent = encode(inputs)
        path = f"/v2/models/{quote(name, safe='')}/infer"
        return await self._send("POST", path, {**self._headers, **sent.headers}, sent.body, deadline)

    async def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, deadline: float
    ) -> HttpReply:
        left = max(deadline - time.monotonic(), 0.001)
        try:
            return await self._http.request(method, path, headers=headers, body=body, timeout_seconds=left)
        except asyncio.TimeoutError:
            raise CloudTimeoutError(f"the cloud tier did not answer within {left:.2g} s") from None
        except OSError as error:
            raise CloudUnreachableError(f"the cloud tier at {self._url} cannot be reached: {error}") from error


def _refuse_compressed(reply: HttpReply) -> None:
    coding = reply.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        raise CloudUnusableError(
            f"the cloud tier's answer is compressed ({coding[:40]!r}), and the device asked for it as it is; switch "
            "compression off in the proxy before it"
        )


def _refusal(reply: HttpReply) -> CloudError:
    """The error of an answer that is not 200. Redirects are not followed: the key is for the configured server only."""
    message = f"the cloud tier answered {reply.status}: {reason_of(reply)}"
    after = reply.headers.get("retry-after")
    if reply.status == 429 or (reply.status == 503 and after):
        return CloudOverloadedError(message, retry_after_seconds=retry_after_seconds(after, time.time()))
    if reply.status in _MOVED or (400 <= reply.status < 500 and reply.status != 408):
        return CloudRefusedError(message, status=reply.status)
    return CloudError(message)


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """The seconds that a Retry-After header names, as a number or as a date; None for no usable value."""
    if not value:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value.strip()[:9])
    try:
        return max(parsedate_to_datetime(value).timestamp() - now, 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def reason_of(reply: HttpReply) -> str:
    """The reason in an answer that is not 200, for people."""
    if 300 <= reply.status < 400:
        to = reply.headers.get("location", "")[:200]
        return f"a redirect to {to!r}; redirects are not followed, so name the server itself in cloud_url"
    return reason_in(reply.body)


def reason_in(body: bytes) -> str:
    """The message of an error document, or the begin of any other body."""
    try:
        document = msgspec.json.decode(body)
        return str(document.get("error") or document["detail"])[:300]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError):
        return repr(body[:100])
