"""The kinds of remote commands and their arguments, which both sides check. Pure rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edgekit.errors import DataError
from edgekit.mqtt.remote_settings import check_settable
from edgekit.mqtt.sample_reasons import HARD, REASONS, SampleReason

SELF_TEST = "self-test"  # run the golden samples of every live model
PROFILE = "profile"  # measure a published bundle in a process of its own
LOGS = "logs"  # the newest lines of the agent's log
RESTART = "restart"  # stop in order and start again
SET = "set"  # change settings until they are taken back
COLLECT = "collect"  # keep samples of answers by a rule for a time, or say how many there are

MAX_LINES = 500
MAX_SAMPLES, MAX_COLLECT_SECONDS = 100_000, 31 * 86_400.0
MAX_VALUE = 200

A = TypeVar("A", bound=msgspec.Struct)


class NoArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of commands without any."""


class LogsArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``logs``: how many of the newest lines to send."""

    lines: Annotated[int, Meta(ge=1, le=MAX_LINES)] = 100


class ProfileArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``profile``: a published bundle and the limits of its process.

    Attributes:
        model, version, target: The bundle, as the catalogue names it.
        digest: sha256 of its manifest; the catalogue must have the same.
        seconds: How long runs are measured.
        limit_seconds: The process is ended after this time, loading included.
        memory_mib: Most private memory of the process.
    """

    model: str
    version: str
    target: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    seconds: Annotated[float, Meta(ge=0.1, le=60)] = 5.0
    limit_seconds: Annotated[float, Meta(ge=1, le=900)] = 180.0
    memory_mib: Annotated[int, Meta(ge=16, le=1_048_576)] = 1024


class SetArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``set``: values by key of `edgekit.mqtt.remote_settings.SETTABLE`, as text; an empty text takes a value back.

    Attributes:
        values: The changes.
        restart: Restart the agent, so that they take effect now.
    """

    values: dict[str, Annotated[str, Meta(max_length=MAX_VALUE)]]
    restart: bool = True


class CollectArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``collect``: a rule that adds to the device's own settings until it has its samples, or its time is over.

    What may leave the device, its daily limits, and the key for which samples are sealed stay those of its settings.

    Attributes:
        samples: Most samples; 0 ends the rule before and only returns counts.
        seconds: How long the rule holds.
        reasons: Which answers are kept.
        share: Share of all answers that is also kept by chance, 0 to 1.
        model: Only of this model; empty for all.
    """

    samples: Annotated[int, Meta(ge=0, le=MAX_SAMPLES)] = 0
    seconds: Annotated[float, Meta(gt=0, le=MAX_COLLECT_SECONDS)] = 86_400.0
    reasons: Annotated[tuple[SampleReason, ...], Meta(max_length=len(REASONS))] = HARD
    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    model: Annotated[str, Meta(max_length=MAX_VALUE)] = ""


ARGUMENTS: dict[str, type[msgspec.Struct]] = {
    SELF_TEST: NoArguments,
    PROFILE: ProfileArguments,
    LOGS: LogsArguments,
    RESTART: NoArguments,
    SET: SetArguments,
    COLLECT: CollectArguments,
}
COMMAND_KINDS = tuple(ARGUMENTS)


def parse_arguments(kind: str, args: Mapping[str, Any]) -> msgspec.Struct:
    """The arguments of a command of a known kind.

    Raises:
        DataError: they do not fit the kind, or change a setting that, or to a value that, `set` may not.
    """
    try:
        found = msgspec.convert(dict(args), ARGUMENTS[kind])
    except msgspec.ValidationError as error:
        raise DataError(f"the arguments of {kind} are not valid: {error}") from error
    if isinstance(found, SetArguments):
        check_settable(found.values)
    return found
