"""Tables of telemetry: hourly roll-ups of each device, the baselines of its bundles, and the alarms of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from edgekit.bounds import MAX_INTEGER, number_fault
from edgekit.errors import DataError
from edgekit.health.alarms import Baseline, Finding, judge_hour
from edgekit.mqtt.messages import Event, Telemetry
from edgekit.sketches.signals import MAX_SKETCHES, parse_signal
from edgekit.sketches.sketch import Sketch, sketch_fault
from edgekit.state._sql import FleetTable, put_all, put_new, to_json, untrusted_json, untrusted_text
from edgekit.state.fleet.alarms import forget_ended, keep_held, release
from edgekit.state.fleet.drift import is_drift
from edgekit.state.fleet.event_writer import insert_event
from edgekit.state.tables import alarms, telemetry_hours, telemetry_marks

HOUR_SECONDS = 3600
MAX_COUNTERS, MAX_NAME = 2_000, 160  # counters that are not 0: a busy model has about ten
MAX_ROLLED_SKETCHES = 512  # of one hour of one device
JUDGED_AT_ONCE = 200
MAX_TEXT = 500
ALARM = "alarm"


class HourBody(msgspec.Struct, frozen=True):
    """The telemetry of one device in one hour.

    Attributes:
        seconds: Length of the windows together.
        counters: Increases that are not 0.
        sketches: By their names in telemetry.
    """

    seconds: float = 0.0
    counters: dict[str, float] = {}
    sketches: dict[str, Sketch] = {}


class CheckedTelemetry(NamedTuple):
    """A message that can be stored: its values that are added up, and its counters as JSON."""

    telemetry: Telemetry
    body: HourBody
    counters: str


class DeviceHour(msgspec.Struct, frozen=True):
    """One roll-up; `start` is the controller's wall clock in seconds, a multiple of an hour."""

    device: str
    start: float
    body: HourBody


_BODY = msgspec.json.Decoder(HourBody)
_BASELINES = msgspec.json.Decoder(dict[str, Baseline])

# Built at import: building a statement takes longer than running it. Two controllers lock the rows in one order.
_MARKS = (
    sa.select(telemetry_marks.c.device, telemetry_marks.c.session, telemetry_marks.c.number)
    .where(telemetry_marks.c.fleet == sa.bindparam("of_fleet"))
    .where(telemetry_marks.c.device.in_(sa.bindparam("names", expanding=True)))
    .order_by(telemetry_marks.c.device)
    .with_for_update()
)
_BODIES = (
    sa.select(telemetry_hours.c.device, telemetry_hours.c.body)
    .where(telemetry_hours.c.fleet == sa.bindparam("of_fleet"), telemetry_hours.c.hour == sa.bindparam("of_hour"))
    .where(telemetry_hours.c.device.in_(sa.bindparam("names", expanding=True)))
    .order_by(telemetry_hours.c.device)
    .with_for_update()
)


class TelemetryTable(FleetTable):
    """The telemetry of one fleet."""

    def add(self, telemetry: Telemetry, now: float) -> bool:
        """Add one message; False if it holds nothing, or was added before. Errors as `check_telemetry`."""
        return self.add_all([check_telemetry(telemetry)], now) > 0

    def add_all(self, messages: Sequence[CheckedTelemetry], now: float) -> int:
        """Add messages to the roll-ups of the present hour; returns how many were added.

        Args:
            messages: Messages in the order of their arrival. Only those with a number are added: others cannot be told
                from repetitions.
            now: Wall clock seconds.
        """
        filled = [(one, body) for one, body, _ in messages if one.number > 0 and (body.counters or body.sketches)]
        if not filled:
            return 0
        hour, names = int(now // HOUR_SECONDS), list({one.device for one, _ in filled})
        mine = {"of_fleet": self._fleet, "names": names}
        with self._writing() as connection:
            marks = self._marks(connection, names)
            rows = connection.execute(_BODIES, {**mine, "of_hour": hour})
            bodies = {row.device: _read_body(row.body) for row in rows}
            changed, added = set(), 0
            for one, body in filled:
                mark = (one.session, one.number)
                if mark <= marks.get(one.device, (-1, 0)):
                    continue
                marks[one.device], added = mark, added + 1
                bodies[one.device] = _joined(bodies[one.device], body) if one.device in bodies else body
                changed.add(one.device)
            self._put(connection, hour, {name: (*marks[name], bodies[name]) for name in sorted(changed)})
        return added

    def _marks(self, connection: sa.Connection, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Session and number of the last message of each device, locked against other controllers.

        A device without a row gets one first.
        """
        marks = self._locked(connection, names)
        if missing := sorted(set(names) - marks.keys()):
            new = {"session": 0, "number": 0, "baselines": "{}"}
            rows = [{"fleet": self._fleet, "device": name, **new} for name in missing]
            put_new(connection, telemetry_marks, ("fleet", "device"), rows)
            marks |= self._locked(connection, missing)
        return marks

    def _locked(self, connection: sa.Connection, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        rows = connection.execute(_MARKS, {"of_fleet": self._fleet, "names": names})
        return {row.device: (row.session, row.number) for row in rows}

    def _put(self, connection: sa.Connection, hour: int, changed: Mapping[str, tuple[int, int, HourBody]]) -> None:
        """Write the marks (session and number) and the roll-ups of devices."""
        marks = [
            {"fleet": self._fleet, "device": name, "session": session, "number": number}
            for name, (session, number, _) in changed.items()
        ]
        put_all(connection, telemetry_marks, ("fleet", "device"), marks, on_insert={"baselines": "{}"}, only_if=_newer)
        rows = [
            {"fleet": self._fleet, "device": name, "hour": hour, "body": to_json(body), "judged": False}
            for name, (_, _, body) in changed.items()
        ]
        put_all(connection, telemetry_hours, ("fleet", "device", "hour"), rows)

    def hours(self, device: str, *, since: float = 0.0) -> list[DeviceHour]:
        """The roll-ups of a device whose hour begins at `since` (wall clock seconds) or later, the oldest first."""
        query = (
            sa.select(telemetry_hours)
            .where(telemetry_hours.c.fleet == self._fleet, telemetry_hours.c.device == device)
            .where(telemetry_hours.c.hour >= since / HOUR_SECONDS)
            .order_by(telemetry_hours.c.hour)
        )
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [DeviceHour(device, float(row["hour"] * HOUR_SECONDS), _read_body(row["body"])) for row in rows]

    def judge(self, now: float) -> int:
        """Judge hours that are over, raise and end alarms; returns how many hours were judged.

        Two controllers may call it at once: each hour is judged by one of them.
        """
        over = int(now // HOUR_SECONDS)
        due = (
            sa.select(telemetry_hours.c.device, telemetry_hours.c.hour)
            .where(telemetry_hours.c.fleet == self._fleet, telemetry_hours.c.hour < over)
            .where(sa.not_(telemetry_hours.c.judged))
            .order_by(telemetry_hours.c.hour)
            .limit(JUDGED_AT_ONCE)
        )
        with self._reading() as connection:
            rows = connection.execute(due).all()
        return sum(self._judge_one(row.device, row.hour, now) for row in rows)

    def forget(self, now: float, days: int) -> int:
        """Delete roll-ups that are older than `days`; returns how many."""
        limit = int((now - days * 86_400) // HOUR_SECONDS)
        old = sa.and_(telemetry_hours.c.fleet == self._fleet, telemetry_hours.c.hour < limit)
        with self._writing() as connection:
            return connection.execute(telemetry_hours.delete().where(old)).rowcount

    def _judge_one(self, device: str, hour: int, now: float) -> bool:
        mine = sa.and_(telemetry_marks.c.fleet == self._fleet, telemetry_marks.c.device == device)
        with self._writing() as connection:
            undone = sa.and_(self._hour(device, hour), sa.not_(telemetry_hours.c.judged))
            if connection.execute(telemetry_hours.update().where(undone).values(judged=True)).rowcount != 1:
                return False  # another controller judges it
            body = connection.execute(sa.select(telemetry_hours.c.body).where(self._hour(device, hour))).scalar()
            stored = connection.execute(sa.select(telemetry_marks.c.baselines).where(mine)).scalar()
            judgement = judge_hour(_read_baselines(stored), hour, _read_body(body).sketches)
            text = to_json(judgement.baselines)
            if text != stored:
                connection.execute(telemetry_marks.update().where(mine).values(baselines=text))
            at = float(hour * HOUR_SECONDS)
            for model in judgement.fresh:
                before = sa.and_(self._all(device), alarms.c.model == model, sa.not_(is_drift()))
                connection.execute(alarms.update().where(before, alarms.c.ended.is_(None)).values(ended=at))
                release(connection, before)
            for finding in judgement.findings:
                self._apply(connection, device, at, finding, now)
        return True

    def _apply(self, connection: sa.Connection, device: str, at: float, finding: Finding, now: float) -> None:
        """Raise, keep or end the alarm of a finding; a new alarm is also an event, which pages and webhooks show."""
        kind = untrusted_text(finding.kind, MAX_NAME)
        same = sa.and_(self._all(device), alarms.c.model == finding.model, alarms.c.kind == kind)
        is_open = sa.and_(same, alarms.c.ended.is_(None))
        if not finding.alarm:
            connection.execute(alarms.update().where(is_open).values(ended=at))
            release(connection, same)
            return
        message = untrusted_text(finding.message, MAX_TEXT)
        if connection.execute(alarms.update().where(is_open).values(seen=at, message=message)).rowcount:
            return
        if keep_held(connection, same, seen=at, message=message):
            return
        values = {"model": finding.model, "kind": kind, "message": message}
        row = {"fleet": self._fleet, "device": device, "since": at, "seen": at, **values}
        connection.execute(alarms.insert().values(**row))
        event = Event(device, ALARM, now, finding.model, finding.kind, message)
        insert_event(connection, self._fleet, event, now)
        forget_ended(connection, self._fleet, device)

    def _all(self, device: str) -> sa.ColumnElement[bool]:
        return sa.and_(alarms.c.fleet == self._fleet, alarms.c.device == device)

    def _hour(self, device: str, hour: int) -> sa.ColumnElement[bool]:
        return sa.and_(
            telemetry_hours.c.fleet == self._fleet,
            telemetry_hours.c.device == device,
            telemetry_hours.c.hour == hour,
        )


def _newer(row: Any) -> sa.ColumnElement[bool]:
    same = telemetry_marks.c.session == row.session
    return sa.or_(telemetry_marks.c.session < row.session, sa.and_(same, telemetry_marks.c.number < row.number))


def check_telemetry(telemetry: Telemetry) -> CheckedTelemetry:
    """Check a message. Raises DataError for numbers and names that cannot be added up or stored."""
    for word, rising in (("session", telemetry.session), ("number", telemetry.number)):
        if not 0 <= rising <= MAX_INTEGER:
            raise DataError(f"{word} is {rising}, expected 0 to {MAX_INTEGER}")
    if fault := number_fault("seconds", telemetry.seconds, 0, 1e7):
        raise DataError(fault)
    changed = sum(1 for value in telemetry.counters.values() if value)
    if changed > MAX_COUNTERS or len(telemetry.sketches) > MAX_SKETCHES:
        found = f"{changed} counters and {len(telemetry.sketches)} sketches"
        raise DataError(f"the telemetry has {found}, expected at most {MAX_COUNTERS} and {MAX_SKETCHES}")
    counters: dict[str, float] = {}
    for name, value in telemetry.counters.items():
        if len(name) > MAX_NAME or number_fault(name, value, 0, MAX_INTEGER):
            raise DataError(f"counter {name[:MAX_NAME]!r} is {value!r}, expected 0 to {MAX_INTEGER}")
        if value:
            counters[untrusted_text(name, MAX_NAME)] = value
    for key, sketch in telemetry.sketches.items():
        if len(key) > MAX_NAME or parse_signal(key) is None:
            raise DataError(f"{key[:MAX_NAME]!r} is no name of a sketch")
        if fault := sketch_fault(sketch):
            raise DataError(f"sketch {key} is not valid: {fault}")
    text = untrusted_json(msgspec.structs.replace(telemetry, sketches={}))
    return CheckedTelemetry(telemetry, HourBody(telemetry.seconds, counters, telemetry.sketches), text)


def _joined(one: HourBody, other: HourBody) -> HourBody:
    counters, sketches = dict(one.counters), dict(one.sketches)
    for name, value in other.counters.items():
        if name in counters or len(counters) < MAX_COUNTERS:
            counters[name] = counters.get(name, 0.0) + value
    for key, sketch in other.sketches.items():
        if key in sketches:
            sketches[key] = sketches[key].merged(sketch)
        elif len(sketches) < MAX_ROLLED_SKETCHES:
            sketches[key] = sketch
    return HourBody(one.seconds + other.seconds, counters, sketches)


def _read_body(text: str | None) -> HourBody:
    """A stored roll-up; an empty one where it cannot be read."""
    try:
        return _BODY.decode(text) if text else HourBody()
    except (msgspec.MsgspecError, ValueError):
        return HourBody()


def _read_baselines(text: str | None) -> Mapping[str, Baseline]:
    """Stored baselines; none where they cannot be read: they begin again."""
    try:
        return _BASELINES.decode(text) if text else {}
    except (msgspec.MsgspecError, ValueError):
        return {}
