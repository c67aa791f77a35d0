"""The pages of rollouts: list, one rollout with its live waves, its actions, and a new one in four steps."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from edgekit.controller.operations import DEFAULTS, RolloutRequest
from edgekit.controller.web.endpoint import NameOrNone, NumberPath
from edgekit.controller.web.endpoints import AbortBody, PageQuery, PauseBody
from edgekit.controller.web.pages import PageSite, Visit, converted
from edgekit.errors import AuthorError, EdgekitError
from edgekit.registry import CatalogueEntry
from edgekit.rollout.gate_watch import gate_views
from edgekit.rollout.holding import holding_text
from edgekit.rollout.progress import WaveProgress, duration, rate_text, seconds_left, wave_progress
from edgekit.rollout.shadowing import shadow_text
from edgekit.rollout.values import (
    UNDECIDED,
    Aborted,
    Approved,
    DeviceState,
    Forced,
    Paused,
    Resumed,
    Retried,
    Rollout,
    RolloutEvent,
    RolloutState,
)
from edgekit.state.operators import Role

# The order of the numbers on a rollout's page: what is done, what is to come, and the others.
_FIRST = (DeviceState.SUCCEEDED, DeviceState.ASSIGNED, DeviceState.PENDING)
_ORDER = (*_FIRST, *(one for one in DeviceState if one not in _FIRST))
ROLLOUTS_PER_PAGE = 50
MEMBERS_PER_PAGE = 100
POLL_SECONDS = 1.0
MAX_STREAM_SECONDS = 3600.0  # a browser connects again by itself
MAX_ESTIMATED = 500  # devices up to which a page reads all of them to estimate the time left

_NAMES = ("model", "version", "filter", "downgrade", "waves", "success_threshold", "error_threshold", "min_failures",
          "device_deadline_seconds", "max_wait_seconds", "gates", "soak_seconds", "on_failure",
          "canaries", "approval", "shadow", "shadow_seconds", "control", "per_hour", "ramp", "window",
          "consent")  # fmt: skip
_OPTIONAL = ("gates", "canaries", "approval", "window")
# Options of `edgekit rollout start` for fields of the form that are not as by default.
_OPTIONS = {
    "success_threshold": "--success-threshold", "error_threshold": "--error-threshold",
    "min_failures": "--min-failures", "device_deadline_seconds": "--device-deadline", "max_wait_seconds": "--max-wait",
    "canaries": "--canaries", "approval": "--approval", "per_hour": "--per-hour", "ramp": "--ramp",
    "window": "--window", "control": "--control", "soak_seconds": "--soak", "shadow": "--shadow",
    "shadow_seconds": "--shadow-for", "on_failure": "--on-failure",
}  # fmt: skip
_FIELDS = (
    ("waves", "Waves", "Sizes counted from the start, as shares or numbers of devices; the last one is 100%."),
    ("per_hour", "Devices an hour", "At most so many get the version within an hour, a tenth at once; 0 for no limit."),
    ("ramp", "Ramp", "The devices an hour of each wave are those of the wave before it times this."),
    ("success_threshold", "Success threshold", "The next wave starts when this share of the current one succeeded."),
    (
        "error_threshold",
        "Error threshold",
        "It pauses when more than this share of the assigned devices failed.",
    ),
    ("min_failures", "Least failures", "It does not pause before this many devices failed."),
    ("device_deadline_seconds", "Deadline in seconds", "A device that reports nothing for this long has failed."),
    ("max_wait_seconds", "Longest wait in seconds", "A device that waits on purpose for longer is not reached."),
    (
        "gates",
        "Gates (optional)",
        "Stops where the new model is worse: outcome, errors, fallback, latency 50ms, agreement:0.95 (needs shadow).",
    ),
    (
        "control",
        "Gates compare with",
        "previous: each device's previous model; cohort: also devices of later waves, which run the old version.",
    ),
    ("soak_seconds", "Soak in seconds", "Each wave is watched for so long after its devices have succeeded."),
    (
        "shadow",
        "Shadow inputs",
        "Each device first runs the new model beside its active one on so many inputs.",
    ),
    ("shadow_seconds", "Longest shadow in seconds", "A device without that many inputs stops comparing after this."),
    ("on_failure", "On failure", "pause; or return: end the rollout, and give every device what it had before."),
    ("canaries", "Canaries (optional)", "A filter: these devices come first, as a wave of their own."),
    ("window", "Window (optional)", "Devices change in this time of their day only, for example 22:00-05:00."),
    ("approval", "Approval (optional)", "start: someone approves the first wave; waves: someone approves each wave."),
)


# What each form of a rollout's page does; the argument holds the reason, where the form has one.
_STEERING: dict[str, Callable[[dict[str, str]], RolloutEvent]] = {
    "pause": lambda fields: Paused(converted(fields, PauseBody).reason),
    "resume": lambda fields: Resumed(),
    "abort": lambda fields: Aborted(converted(fields, AbortBody).reason),
    "approve": lambda fields: Approved(),
    "retry": lambda fields: Retried(),
    "force": lambda fields: Forced(),
}


class MemberQuery(msgspec.Struct, frozen=True):
    """Which devices of a rollout: in a state, after a name."""

    state: DeviceState | None = None
    after: NameOrNone = ""


def rollout_routes(site: PageSite, stopping: asyncio.Event) -> list[Route]:
    """The routes of the pages in this module; streams end when `stopping` is set."""

    async def stream(request: Request) -> Response:
        try:
            visitor = await run_in_threadpool(site.door.visitor, request)
            site.door.check(request, visitor, Role.VIEWER)
            number = converted(dict(request.path_params), NumberPath).number
            await run_in_threadpool(site.operations.state.rollouts.revision, number)
        except EdgekitError as error:
            return await run_in_threadpool(site.failure, request, error)
        changes = _changes(site, number, stopping)
        return StreamingResponse(changes, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    return [
        site.route("/rollouts", _list),
        site.route("/rollouts/new", _new),
        site.route("/rollouts/new", _start, role=Role.OPERATOR, method="POST"),
        site.route("/rollouts/{number}", _one),
        site.route("/rollouts/{number}/part", _part),
        Route("/rollouts/{number}/stream", stream),
        *(
            site.route(f"/rollouts/{{number}}/{verb}", _steering(verb), role=Role.OPERATOR, method="POST")
            for verb in _STEERING
        ),
    ]


async def _changes(site: PageSite, number: int, stopping: asyncio.Event) -> AsyncIterator[str]:
    """Server-sent events: `changed` with the revision whenever the rollout changes, `ended` after its end."""
    shown = -1
    end = asyncio.get_running_loop().time() + MAX_STREAM_SECONDS
    while not stopping.is_set() and asyncio.get_running_loop().time() < end:
        try:
            revision, ended = await run_in_threadpool(site.operations.state.rollouts.revision, number)
        except EdgekitError:
            return  # the browser connects again, and gets the error then
        if revision != shown:
            yield f"event: changed\ndata: {revision}\n\n"
            shown = revision
        else:
            yield ": the connection is open\n\n"
        if ended:
            yield f"event: ended\ndata: {revision}\n\n"
            return
        await asyncio.sleep(POLL_SECONDS)


def _list(visit: Visit) -> Response:
    query: PageQuery = visit.query(PageQuery, limit=ROLLOUTS_PER_PAGE)
    rollouts = visit.operations.state.rollouts.documents(limit=query.limit + 1, before=query.before)
    older = len(rollouts) > query.limit
    return visit.page("rollouts.html", "Rollouts", query=query, rollouts=rollouts[: query.limit], older=older)


def _values(visit: Visit) -> dict[str, Any]:
    """Values for the live part of a rollout's page, from counts in SQL."""
    number = converted(dict(visit.request.path_params), NumberPath).number
    rollout, described = visit.operations.state.rollouts.counted(number)
    waves = wave_progress(rollout.plan, rollout.wave, described.counts)
    eligible = sum(described.counts.values()) - described.counts["SKIPPED"] - described.counts["CANCELLED"]
    return {
        "rollout": described,
        "decided": rollout.decision,
        "waves": [_wave(rollout, index, one) for index, one in enumerate(waves)],
        "eligible": eligible,
        "marks": [one.limit / eligible for one in waves[:-1] if 0 < one.limit < eligible],
        **_estimates(visit, rollout, eligible),
        "rate": rate_text(rollout),
        "gates": gate_views(visit.operations.state.rollouts.get(number)) if rollout.plan.gates else [],
        "states": [(one.value, one.name.lower().replace("_", " ")) for one in _ORDER],
    }


def _estimates(visit: Visit, rollout: Rollout, eligible: int) -> dict[str, str]:
    """The time left, and which devices hold the rollout back; both read every device."""
    if rollout.state is not RolloutState.RUNNING or eligible > MAX_ESTIMATED:
        return {"left": "", "holding": ""}
    whole, now = visit.operations.state.rollouts.get(rollout.id), visit.operations.now
    left = seconds_left(whole, now)
    return {"left": duration(left) if left is not None else "", "holding": holding_text(whole, now)}


def _wave(rollout: Rollout, index: int, wave: WaveProgress) -> dict[str, Any]:
    word, kind = "to come", ""
    if index < rollout.wave or (index == rollout.wave and rollout.state is RolloutState.FINISHED):
        word, kind = "done", "done"
    elif index == rollout.wave:
        stopped = rollout.state is not RolloutState.RUNNING
        word, kind = (rollout.state.value.lower(), "stopped") if stopped else ("in progress", "current")
    return {**msgspec.structs.asdict(wave), "word": word, "kind": kind}


def _part(visit: Visit) -> Response:
    return visit.page("rollout_part.html", **_values(visit))


def _one(visit: Visit) -> Response:
    values = _values(visit)
    query: MemberQuery = visit.query(MemberQuery)
    number, state = values["rollout"].id, visit.operations.state
    members = state.rollouts.members(number, state=query.state, after=query.after, limit=MEMBERS_PER_PAGE + 1)
    more = len(members) > MEMBERS_PER_PAGE
    members = members[:MEMBERS_PER_PAGE]
    rollout, _ = state.rollouts.counted(number)
    return visit.page(
        "rollout.html",
        "Rollouts",
        **values,
        state=query.state.value if query.state else "",
        names={one.value: one.name.lower().replace("_", " ") for one in _ORDER},
        members=[(name, one, shadow_text(one, rollout.plan)) for name, one in members],
        next_after=members[-1][0] if more else "",
        cohort=rollout.cohort.text,
        ended=rollout.ended,
        consent=rollout.plan.consent,
        retryable=sum(values["rollout"].counts[one.value] for one in (DeviceState.FAILED, DeviceState.NOT_REACHED)),
        undecided=sum(values["rollout"].counts[one.value] for one in UNDECIDED),
        may_operate=visit.visitor.may(Role.OPERATOR),
    )


def _steering(verb: str) -> Any:
    def steer(visit: Visit) -> Response:
        number = converted(dict(visit.request.path_params), NumberPath).number
        reason = {"reason": visit.form["reason"]} if "reason" in visit.form else {}
        visit.operations.steer(number, _STEERING[verb](reason))
        return RedirectResponse(f"/rollouts/{number}", 303)

    return steer


# --- a new rollout


def _given(fields: Mapping[str, str]) -> dict[str, str]:
    values = {name: fields[name] for name in _NAMES if fields.get(name)}
    model, _, version = fields.get("release", "").partition(" ")
    return {**values, "model": model, "version": version} if version else values


def _request(values: Mapping[str, Any]) -> RolloutRequest:
    """The values of the form as a request. Raises SettingsError if they are not valid."""
    gates = [text.strip() for text in str(values.get("gates", "")).split(",") if text.strip()]
    request: RolloutRequest = converted({**values, "gates": gates}, RolloutRequest)
    return request


def _new(visit: Visit) -> Response:
    values = _given(visit.request.query_params)
    step = {"2": 2, "3": 3, "4": 4}.get(visit.request.query_params.get("step", ""), 1)
    if not values.get("model") or not values.get("version"):
        step = 1
    try:
        return _step(visit, step, values)
    except EdgekitError as error:
        back = step - 1 if step == 4 else min(step, 2)
        return _show(visit, back if step > 1 else 1, values, fault=str(error), advice=error.advice)


def _step(visit: Visit, step: int, values: dict[str, str]) -> Response:
    if step == 1:
        return _show(visit, 1, values, releases=_choices(visit.operations.releases()))
    if step == 3:
        return _show(visit, 3, values, matching=visit.operations.devices(values.get("filter", ""), limit=1).total)
    if step == 4:
        request = _request(values)
        planned = visit.operations.plan(request)
        waves = [(wave.text, wave.limit(planned.devices)) for wave in planned.plan.waves]
        return _show(visit, 4, values, planned=planned, waves=waves, command=_command(request))
    return _show(visit, 2, values)


def _show(visit: Visit, step: int, values: dict[str, str], **shown: Any) -> Response:
    state = visit.operations.state
    defaults = {name: _text(getattr(DEFAULTS, name)) for name in _NAMES[5:] if name not in (*_OPTIONAL, "consent")}
    filled = {"waves": ",".join(wave.text for wave in DEFAULTS.waves), **defaults, **values} if step == 3 else values
    base = {"fault": "", "advice": "", "releases": [], "groups": [], "total": 0, "matching": 0, "planned": None}
    if step == 2:
        base |= {"groups": state.groups.all(), "total": state.devices.count(0.0, 0.0)}
    if step == 3 and "matching" not in shown:
        base["matching"] = visit.operations.devices(values.get("filter", ""), limit=1).total
    return visit.page(
        "new.html",
        "Rollouts",
        status=400 if shown.get("fault") else 200,
        step=step,
        values={"model": "", "version": "", "filter": "", **filled},
        back="/rollouts/new?" + urlencode({"step": step - 1, **values}),
        fields=_FIELDS,
        optional=_OPTIONAL,
        names=_NAMES,
        may_operate=visit.visitor.may(Role.OPERATOR),
        **{"waves": [], "command": "", **base, **shown},
    )


def _choices(releases: list[CatalogueEntry]) -> list[dict[str, Any]]:
    """Versions that can be rolled out, the newest of each model first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in reversed(releases):
        if not one.retired:
            new = {"model": one.name, "version": one.version, "targets": [], "channels": []}
            choice = found.setdefault((one.name, one.version), new)
            choice["targets"].append(one.target)
            if one.channel and one.channel not in choice["channels"]:
                choice["channels"].append(one.channel)
    return list(found.values())


def _command(request: RolloutRequest) -> str:
    """The same on the command line."""
    words = ["edgekit", "rollout", "start", request.model, request.version, "--waves", request.waves]
    words += ["--filter", request.filter] if request.filter else []
    words += ["--downgrade"] if request.downgrade else []
    words += [word for gate in request.gates for word in ("--gate", gate)]
    words += ["--consent"] if request.consent else []
    by_default = RolloutRequest(model=request.model, version=request.version)
    for name, option in _OPTIONS.items():
        value = getattr(request, name)
        if value != getattr(by_default, name):
            words += [option, _text(value)]
    return shlex.join(words)


def _text(value: object) -> str:
    """A value as people type it: 600 and not 600.0."""
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _start(visit: Visit) -> Response:
    values = _given(visit.form)
    try:
        started = visit.operations.start(_request(values))
    except AuthorError as error:
        return _show(visit, 3 if values.get("model") else 1, values, fault=str(error), advice=error.advice)
    return RedirectResponse(f"/rollouts/{started.id}", 303)
