"""Filters and cohorts as SQL: conditions on the table of devices, and the saved groups that they name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from edgekit.bounds import CLOCKS_DIFFER_SECONDS, MAX_DATE
from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.errors import NotFoundError, SettingsError
from edgekit.filters import All, Compare, Filter, Flag, Group, Not, OneOf, parse_filter
from edgekit.filters.values import Field, fields_of, groups_of
from edgekit.rollout.cohort import Cohort
from edgekit.state._sql import FleetTable, put
from edgekit.state.audit import record
from edgekit.state.fleet.attributes import LABEL, sorted_version
from edgekit.state.tables import attributes, devices, groups, presence

MAX_NESTING = 10
MAX_NEAR = 5
Condition = sa.ColumnElement[bool]
_AGES = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class SavedGroup(msgspec.Struct, frozen=True):
    """A saved group: a name for a filter; `created` is wall clock seconds."""

    name: str
    filter: str
    created: float


class Selection(msgspec.Struct, frozen=True):
    """Turns a filter into SQL.

    Attributes:
        now: Wall clock seconds, for `online` and `seen`.
        offline_after_seconds: A device that sent nothing for this long is offline.
        groups: Filters of the saved groups by name.
    """

    now: float
    offline_after_seconds: float
    groups: Mapping[str, str] = {}


def online_condition(now: float, offline_after_seconds: float) -> Condition:
    """The rows of the table of presence whose devices are online, as `is_recent` says."""
    seen = presence.c.seen
    return sa.and_(presence.c.online, seen >= now - offline_after_seconds, seen <= now + CLOCKS_DIFFER_SECONDS)


def is_recent(seen: float, now: float, offline_after_seconds: float) -> bool:
    """True where a device sent something at `seen` that shows that it is there at `now`; wall clock seconds.

    A later time is that of a controller's clock that was ahead, and shows nothing.
    """
    return now - offline_after_seconds <= seen <= now + CLOCKS_DIFFER_SECONDS


def may_change() -> Condition:
    """The devices that get new assignments: all but those in quarantine."""
    return devices.c.quarantined.is_(None)


def cohort_condition(cohort: Cohort, now: float, offline_after_seconds: float) -> Condition:
    """The devices that a cohort selects, as a condition on the table of devices."""
    conditions: list[Condition] = []
    if cohort.targets:
        conditions.append(devices.c.target.in_(cohort.targets))
    conditions += [_indexed(Field(LABEL, key), attributes.c.value == value) for key, value in cohort.labels.items()]
    if cohort.filter:
        selection = Selection(now, offline_after_seconds, cohort.groups)
        conditions.append(filter_condition(parse_filter(cohort.filter), selection))
    return sa.and_(sa.true(), *conditions)


def filter_condition(found: Filter, selection: Selection, depth: int = 0) -> Condition:
    """A filter as a condition on the table of devices.

    Raises:
        SettingsError: it names a group that is not there, or groups that name each other.
    """
    if isinstance(found, Compare):
        return _compare(found, selection)
    if isinstance(found, OneOf):
        parts = [_compare(Compare(found.field, "==", value), selection) for value in found.values]
        return sa.or_(*parts)
    if isinstance(found, Flag):
        return _flag(found.name, selection)
    if isinstance(found, Group):
        if depth >= MAX_NESTING:
            raise SettingsError(f"group {found.name} is nested more than {MAX_NESTING} deep, or contains itself")
        return filter_condition(parse_filter(_group(found.name, selection)), selection, depth + 1)
    if isinstance(found, Not):
        return sa.not_(filter_condition(found.filter, selection, depth))
    parts = [filter_condition(one, selection, depth) for one in found.filters]
    return sa.and_(*parts) if isinstance(found, All) else sa.or_(*parts)


def _group(name: str, selection: Selection) -> str:
    if name not in selection.groups:
        near = difflib.get_close_matches(name, selection.groups, n=1)
        advice = f"Did you mean {near[0]!r}?" if near else "See: edgekit device group list"
        raise SettingsError(f"there is no group {name!r}", advice=advice)
    return selection.groups[name]


def _compare(found: Compare, selection: Selection) -> Condition:
    kind, operator, value = found.field.kind, found.operator, found.value
    if kind in ("name", "target"):
        same = devices.c[kind] == value
        return sa.not_(same) if operator == "!=" else same
    if kind == "seen":
        return _seen(operator, value, selection.now)
    if value is None:
        any_row = _indexed(found.field, sa.true())
        return any_row if operator == "!=" else sa.not_(any_row)
    if operator in ("==", "!="):
        text = value
        if kind == "version":
            same = _indexed(found.field, attributes.c.sorted == _padded(value))
        else:
            same = _indexed(found.field, attributes.c.value == text)
        return sa.not_(same) if operator == "!=" else same
    return _indexed(found.field, _ordered(kind, operator, value))


def _ordered(kind: str, operator: str, value: str) -> Condition:
    """Numbers are compared as numbers, and versions as versions: 2.3 is a limit for both."""
    number = _number(value)
    column, limit = attributes.c.sorted, _padded(value)
    versions = sa.and_(column != "", column.op(operator, is_comparison=True)(limit))
    if kind == "version" or number is None or value.count(".") > 1:
        return versions
    numbers = attributes.c.number.op(operator, is_comparison=True)(number)
    if not value.replace(".", "").isdigit():
        return numbers
    return sa.or_(numbers, sa.and_(attributes.c.number.is_(None), versions))


def _seen(operator: str, value: str | None, now: float) -> Condition:
    """`seen > 2h`: the last message of the device is older than that; a device never seen is older than anything."""
    if value is None:
        never = sa.not_(_present(presence.c.seen > 0))
        return sa.not_(never) if operator == "!=" else never
    unit = _AGES.get(value[-1])
    age = float(value[:-1]) * unit if unit else float(value)
    limit = max(-MAX_DATE, now - age)
    recent = _present(presence.c.seen > limit) if operator in ("<", ">=") else _present(presence.c.seen >= limit)
    return recent if operator in ("<", "<=") else sa.not_(recent)


def _flag(name: str, selection: Selection) -> Condition:
    if name == "waiting":
        return _indexed(Field("waiting"), sa.true(), any_key=True)
    online = _present(online_condition(selection.now, selection.offline_after_seconds))
    return online if name == "online" else sa.not_(online)


def _present(condition: Condition) -> Condition:
    mine = sa.and_(presence.c.fleet == devices.c.fleet, presence.c.device == devices.c.name)
    return sa.select(presence.c.device).where(mine, condition).correlate(devices).exists()


def _indexed(field: Field, condition: Condition, *, any_key: bool = False) -> Condition:
    mine = sa.and_(
        attributes.c.fleet == devices.c.fleet,
        attributes.c.device == devices.c.name,
        attributes.c.kind == field.kind,
    )
    if not any_key:
        mine = sa.and_(mine, attributes.c.key == field.key)
    return sa.select(attributes.c.device).where(mine, condition).correlate(devices).exists()


def _padded(version: str) -> str:
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")]
    return sorted_version(".".join(map(str, [*parts, 0, 0][:3])))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class GroupTable(FleetTable):
    """The saved groups of one fleet."""

    def save(self, name: str, text: str, now: float) -> SavedGroup | None:
        """Save a group; returns the one of this name before, None if there was none.

        Raises:
            SettingsError: the name or the filter is not valid, or the groups that it names do not end.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise SettingsError(f"group name {name!r} does not match {NAME_PATTERN.pattern}")
        before = next((one for one in self.all() if one.name == name), None)
        known = {**self.filters(), name: text}
        filter_condition(Group(name), Selection(now, 0.0, known))
        with self._writing() as connection:
            put(connection, groups, {"fleet": self._fleet, "name": name}, {"filter": text, "created": now})
            states = {"before": {"filter": before.filter} if before else None, "after": {"filter": text}}
            record(connection, self._fleet, self._author, "group.save", name, now=now, **states)
        return before

    def remove(self, name: str, now: float) -> SavedGroup:
        """Remove a group at `now` (wall clock seconds) and return it.

        Raises:
            NotFoundError: there is no such group.
            SettingsError: another group names it.
        """
        known = {one.name: one for one in self.all()}
        if name not in known:
            raise NotFoundError(f"there is no group {name!r}", advice="See: edgekit device group list")
        users = sorted(one.name for one in known.values() if name in groups_of(parse_filter(one.filter)))
        if users:
            raise SettingsError(f"group {name!r} is used by {', '.join(users)}", advice="Change those groups first.")
        with self._writing() as connection:
            connection.execute(groups.delete().where(groups.c.fleet == self._fleet, groups.c.name == name))
            state = {"filter": known[name].filter}
            record(connection, self._fleet, self._author, "group.remove", name, now=now, before=state)
        return known[name]

    def all(self) -> list[SavedGroup]:
        """All groups, by name."""
        query = sa.select(groups).where(groups.c.fleet == self._fleet).order_by(groups.c.name)
        with self._reading() as connection:
            return [SavedGroup(row.name, row.filter, row.created) for row in connection.execute(query)]

    def filters(self) -> dict[str, str]:
        """The filter of each group by its name."""
        return {one.name: one.filter for one in self.all()}

    def resolved(self, cohort: Cohort) -> Cohort:
        """The cohort with the saved groups that its filter names, as they are now.

        Raises:
            SettingsError: there is no such group, or groups name each other.
        """
        found = parse_filter(cohort.filter)
        known = self.filters()
        filter_condition(found, Selection(0.0, 0.0, known))
        used: dict[str, str] = {}
        waiting = groups_of(found)
        while waiting:
            name = waiting.pop()
            used[name] = known[name]
            waiting |= groups_of(parse_filter(known[name])) - set(used)
        return msgspec.structs.replace(cohort, groups=used)

    def nearest(self, cohort: Cohort) -> list[str]:
        """For each label or target that a cohort names: the nearest values in the fleet, as text for people."""
        wanted: list[tuple[Field, Sequence[str]]] = [(Field(LABEL, key), [v]) for key, v in cohort.labels.items()]
        wanted += [(Field("target"), cohort.targets)] if cohort.targets else []
        wanted += fields_of(parse_filter(cohort.filter)) if cohort.filter else []
        with self._reading() as connection:
            texts = [self._near(connection, field, value) for field, values in wanted for value in values]
        return [text for text in dict.fromkeys(texts) if text]

    def _near(self, connection: sa.Connection, field: Field, value: str) -> str:
        """The values in the fleet that are nearest to one that no device has; empty where one has it."""
        if field.kind in ("name", "target"):
            column: sa.ColumnElement[str] = devices.c[field.kind]
            query = sa.select(column).where(devices.c.fleet == self._fleet)
            word = field.kind
        elif field.kind == LABEL:
            column = attributes.c.value
            mine = sa.and_(attributes.c.fleet == self._fleet, attributes.c.kind == LABEL)
            query = sa.select(column).where(mine, attributes.c.key == field.key)
            word = f"label {field.key}"
        else:
            return ""
        found = sorted(connection.execute(query.distinct().limit(1000)).scalars())
        if value in found:
            return ""
        if not found and field.kind == LABEL:
            keys = sorted(connection.execute(sa.select(attributes.c.key).where(mine).distinct()).scalars())
            near = difflib.get_close_matches(field.key, keys, n=MAX_NEAR) or keys[:MAX_NEAR]
            return f"no device has a {word}; labels are {', '.join(near) or 'not used'}"
        near = difflib.get_close_matches(value, found, n=MAX_NEAR)
        others = " and others" if not near and len(found) > MAX_NEAR else ""
        return f"no device has {word} {value!r}; there are {', '.join(near or found[:MAX_NEAR])}{others}"
