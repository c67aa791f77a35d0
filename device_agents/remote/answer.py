"""The outcome of a remote command, before it is sent. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec


class CommandAnswer(msgspec.Struct, frozen=True):
    """How a command ended.

    Attributes:
        ok: Whether it succeeded.
        message: The result in a sentence.
        detail: Values for programs, of at most some ten kilobytes.
        restart: The agent restarts after the answer has been sent.
    """

    ok: bool
    message: str
    detail: dict[str, Any] = {}
    restart: bool = False


Handler = Callable[[Any], Awaitable[CommandAnswer]]  # given the parsed arguments of its kind
