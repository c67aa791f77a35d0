"""Table of webhooks: who is told of rollouts and alarms.

The queue of a webhook is the audit log and the table of events: what comes after the last delivered entry of each. So
an event and its place in the queue are one row, and nothing is lost while a receiver is away.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any
from urllib.parse import urlsplit

import msgspec
import sqlalchemy as sa

from edgekit.bounds import CLOCKS_DIFFER_SECONDS, MAX_ROW
from edgekit.errors import NotFoundError, RefusedError
from edgekit.state._sql import FleetTable, to_json, untrusted_text
from edgekit.state.audit import record, take_turn
from edgekit.state.tables import audit, events, webhooks

KINDS = ("rollout", "alarm", "audit")
SECRET_PREFIX = "whsec_"  # noqa: S105  # of the Standard Webhooks specification
MAX_ERROR = 500
MAX_RETRY_SECONDS = 3600.0
SKIPPED_AT_ONCE = 500  # rows that are looked through for the next notice
_ROLLOUT_STEPS = ("rollout.assign", "rollout.keep", "rollout.bundle")  # many, and no decisions


class Webhook(msgspec.Struct, frozen=True):
    """One receiver.

    Attributes:
        id: Its number.
        url: Where events are posted to.
        kinds: What it is told of: ``rollout`` (starts, decisions, ends), ``alarm`` (events with an error), ``audit``
            (every change).
        created, delivered: Wall clock seconds of its addition and of the last delivery; 0 for none.
        failures: Deliveries that failed since the last one that did not.
        error: Why the last one failed; empty after a delivery.
        pending: Audit entries and events that it is still to be asked about.
    """

    id: int
    url: str
    kinds: tuple[str, ...]
    created: float
    delivered: float
    failures: int
    error: str
    pending: int


class Notice(msgspec.Struct, frozen=True):
    """One event for a receiver, as it is posted.

    Attributes:
        id: Of the event, the same in every attempt, so that a receiver can drop a second delivery.
        fleet: Name of the fleet.
        kind: ``alarm``, or the change, for example ``rollout.paused``.
        at: Wall clock seconds.
        subject: The device, or the number of the rollout.
        who: Who made the change; empty for an alarm.
        data: The states before and after the change, or the event of the device.
    """

    id: str
    fleet: str
    kind: str
    at: float
    subject: str
    who: str
    data: dict[str, Any]


class Batch(msgspec.Struct, frozen=True):
    """The notices to post next to one receiver, in this order.

    Attributes:
        webhook: Number of the receiver.
        url, secret: Where to, and the key of the signature.
        failures: Deliveries that failed since the last one that did not.
        notices: Each with the places in the audit log and in the events that are reached by its delivery.
        reached: Those places after the last one.
    """

    webhook: int
    url: str
    secret: str
    failures: int
    notices: list[tuple[Notice, tuple[int, int]]]
    reached: tuple[int, int]


class WebhookTable(FleetTable):
    """The webhooks of one fleet."""

    def add(self, url: str, kinds: tuple[str, ...], now: float) -> tuple[Webhook, str]:
        """Add a receiver of everything that happens from now on.

        Args:
            url: Its address, checked by the caller.
            kinds: Some of KINDS.
            now: Wall clock seconds.

        Returns:
            The webhook, and the key with which each delivery is signed.

        Raises:
            RefusedError: there is one with this address, which would get everything twice.
        """
        secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
        with self._writing() as connection:
            take_turn(connection)  # two commands at once would both find none
            self._check_new(connection, url)
            newest = [
                connection.execute(sa.select(sa.func.max(column)).where(table.c.fleet == self._fleet)).scalar() or 0
                for table, column in ((audit, audit.c.number), (events, events.c.id))
            ]
            row = {
                "url": url,
                "secret": secret,
                "kinds": to_json(kinds),
                "created": now,
                "audit_sent": newest[0] + 1,  # the entry of its own addition
                "event_sent": newest[1],
                "failures": 0,
                "next_at": 0.0,
                "delivered": 0.0,
                "error": "",
            }
            result = connection.execute(webhooks.insert().values(fleet=self._fleet, **row))
            number = int((result.inserted_primary_key or (0,))[0])
            after = {"url": url, "kinds": list(kinds)}
            record(connection, self._fleet, self._author, "webhook.add", number, now=now, after=after)
        return next(one for one in self.all() if one.id == number), secret

    def _check_new(self, connection: sa.Connection, url: str) -> None:
        query = sa.select(webhooks).where(webhooks.c.fleet == self._fleet).order_by(webhooks.c.id)
        for row in connection.execute(query):
            if _address(row.url) == _address(url):
                kinds = " and ".join(msgspec.json.decode(row.kinds))
                raise RefusedError(
                    f"webhook {row.id} posts {kinds} to {row.url} already; a second one would post everything twice",
                    advice=f"For other kinds or a new secret, first: edgekit controller webhook remove {row.id}",
                )

    def remove(self, number: int, now: float) -> None:
        """Remove a receiver at `now` (wall clock seconds).

        Raises:
            NotFoundError: there is no such webhook.
        """
        mine = sa.and_(webhooks.c.fleet == self._fleet, webhooks.c.id == min(number, MAX_ROW))
        with self._writing() as connection:
            row = connection.execute(sa.select(webhooks.c.url).where(mine)).first()
            if row is None:
                raise NotFoundError(f"there is no webhook {number}", advice="See: edgekit controller webhook list")
            connection.execute(webhooks.delete().where(mine))
            record(connection, self._fleet, self._author, "webhook.remove", number, now=now, before={"url": row.url})

    def skip(self, number: int, now: float) -> Notice:
        """Leave out the notice that a receiver is to get next, and post the one after it at once.

        Returns:
            The notice that was left out.

        Raises:
            NotFoundError: there is no such webhook, or it waits for nothing.
        """
        mine = sa.and_(webhooks.c.fleet == self._fleet, webhooks.c.id == min(number, MAX_ROW))
        with self._writing() as connection:
            stored = connection.execute(sa.select(webhooks).where(mine).with_for_update()).mappings().first()
            if stored is None:
                raise NotFoundError(f"there is no webhook {number}", advice="See: edgekit controller webhook list")
            row = {str(name): value for name, value in stored.items()}
            found = self._batch(connection, row, SKIPPED_AT_ONCE)
            while not found.notices and found.reached != (row["audit_sent"], row["event_sent"]):
                row |= {"audit_sent": found.reached[0], "event_sent": found.reached[1]}
                found = self._batch(connection, row, SKIPPED_AT_ONCE)
            if not found.notices:
                raise NotFoundError(f"webhook {number} has got everything; there is nothing to leave out")
            notice, reached = found.notices[0]
            values = {"audit_sent": reached[0], "event_sent": reached[1], "failures": 0, "error": "", "next_at": 0.0}
            connection.execute(webhooks.update().where(mine).values(**values))
            left_out = {"notice": notice.id, "kind": notice.kind}
            record(connection, self._fleet, self._author, "webhook.skip", number, now=now, after=left_out)
        return notice

    def all(self) -> list[Webhook]:
        """All webhooks, oldest first."""
        later_audit = (
            sa.select(sa.func.count())
            .where(audit.c.fleet == webhooks.c.fleet, audit.c.number > webhooks.c.audit_sent)
            .correlate(webhooks)
            .scalar_subquery()
        )
        later_events = (
            sa.select(sa.func.count())
            .where(events.c.fleet == webhooks.c.fleet, events.c.id > webhooks.c.event_sent)
            .correlate(webhooks)
            .scalar_subquery()
        )
        query = sa.select(webhooks, (later_audit + later_events).label("pending"))
        query = query.where(webhooks.c.fleet == self._fleet).order_by(webhooks.c.id)
        with self._reading() as connection:
            return [
                Webhook(
                    id=row["id"],
                    url=row["url"],
                    kinds=tuple(msgspec.json.decode(row["kinds"])),
                    created=row["created"],
                    delivered=row["delivered"],
                    failures=row["failures"],
                    error=row["error"],
                    pending=row["pending"],
                )
                for row in connection.execute(query).mappings()
            ]

    def take(self, now: float, lease_seconds: float, limit: int) -> list[Batch]:
        """The next notices of each webhook that is due; no other controller takes them for `lease_seconds`.

        Args:
            now: Wall clock seconds.
            lease_seconds: Time to deliver them in.
            limit: Notices of one webhook.
        """
        due = sa.and_(webhooks.c.fleet == self._fleet, _is_due(now))
        with self._reading() as connection:
            numbers = connection.execute(_BEHIND, {"of_fleet": self._fleet, "now": now}).scalars().all()
        batches = []
        for number in numbers:
            with self._writing() as connection:
                mine = sa.and_(due, webhooks.c.id == number)
                row = connection.execute(sa.select(webhooks).where(mine).with_for_update()).mappings().first()
                if row is not None:
                    connection.execute(webhooks.update().where(mine).values(next_at=now + lease_seconds))
                    batches.append(self._batch(connection, row, limit))
        return batches

    def delivered(self, number: int, reached: tuple[int, int], now: float, until: float) -> None:
        """Note a delivery.

        Args:
            number: Number of the webhook.
            reached: It has everything up to these places of the audit log and of the events.
            now: Wall clock seconds.
            until: No other controller delivers before this time.
        """
        values = {"failures": 0, "error": "", "delivered": now, "next_at": until}
        self._note(number, {**values, "audit_sent": reached[0], "event_sent": reached[1]})

    def release(self, number: int, reached: tuple[int, int] | None = None) -> None:
        """Let any controller deliver what comes next; with `reached`, nothing up to these places is for the webhook."""
        places = {"audit_sent": reached[0], "event_sent": reached[1]} if reached else {}
        self._note(number, {**places, "next_at": 0.0})

    def failed(self, number: int, error: str, next_at: float) -> None:
        """Note a delivery that failed; the next attempt is due at `next_at` (wall clock seconds)."""
        failures = webhooks.c.failures + 1
        self._note(number, {"failures": failures, "error": untrusted_text(error, MAX_ERROR), "next_at": next_at})

    def _note(self, number: int, values: dict[str, Any]) -> None:
        with self._writing() as connection:
            mine = sa.and_(webhooks.c.fleet == self._fleet, webhooks.c.id == number)
            connection.execute(webhooks.update().where(mine).values(**values))

    def _batch(self, connection: sa.Connection, row: sa.RowMapping | dict[str, Any], limit: int) -> Batch:
        kinds = msgspec.json.decode(row["kinds"])
        newer = sa.select(audit).where(audit.c.fleet == self._fleet, audit.c.number > row["audit_sent"])
        changes = connection.execute(newer.order_by(audit.c.number).limit(limit)).mappings().all()
        later = sa.select(events).where(events.c.fleet == self._fleet, events.c.id > row["event_sent"])
        happened = connection.execute(later.order_by(events.c.id).limit(limit)).mappings().all()
        place = (row["audit_sent"], row["event_sent"])
        notices = []
        for one in [*changes, *happened]:  # each in its own order, so that no place is passed before its notice
            if "hash" in one:
                place = (max(place[0], one["number"]), place[1])
                wanted = "audit" in kinds or ("rollout" in kinds and _is_decision(one["what"]))
                found = _change(self._fleet, one)
            else:
                place = (place[0], max(place[1], one["id"]))
                wanted = "alarm" in kinds and bool(one["error"])
                found = _alarm(self._fleet, one)
            if wanted:
                notices.append((found, place))
        return Batch(row["id"], row["url"], row["secret"], row["failures"], notices, place)


def _is_decision(what: str) -> bool:
    return what.startswith("rollout.") and what not in _ROLLOUT_STEPS


def _change(fleet: str, row: sa.RowMapping) -> Notice:
    data = {"before": msgspec.json.decode(row["before"]), "after": msgspec.json.decode(row["after"])}
    return Notice(f"audit-{row['number']}", fleet, row["what"], row["at"], row["subject"], row["who"], data)


def _alarm(fleet: str, row: sa.RowMapping) -> Notice:
    data = {name: row[name] for name in ("kind", "model", "error", "message")}
    data["detail"] = msgspec.json.decode(row["detail"])
    return Notice(f"event-{row['id']}", fleet, "alarm", row["at"], row["device"], "", data)


def _is_due(now: float | sa.BindParameter[float]) -> sa.ColumnElement[bool]:
    """The webhooks that may be posted to at `now`; a time that no wait has is that of a clock that was ahead."""
    longest = now + (MAX_RETRY_SECONDS + CLOCKS_DIFFER_SECONDS)
    return sa.or_(webhooks.c.next_at <= now, webhooks.c.next_at > longest)


def _behind() -> sa.Select[tuple[int]]:
    """The webhooks that are due and have not got the newest notices."""
    fleet: sa.BindParameter[str] = sa.bindparam("of_fleet")
    newest_audit = sa.select(sa.func.max(audit.c.number)).where(audit.c.fleet == fleet).scalar_subquery()
    newest_event = sa.select(sa.func.max(events.c.id)).where(events.c.fleet == fleet).scalar_subquery()
    behind = sa.or_(newest_audit > webhooks.c.audit_sent, newest_event > webhooks.c.event_sent)
    now: sa.BindParameter[float] = sa.bindparam("now", type_=sa.Double)
    return sa.select(webhooks.c.id).where(webhooks.c.fleet == fleet, _is_due(now), behind)


_BEHIND = _behind()  # built at import: building a statement takes longer than running it


def _address(url: str) -> tuple[str, str, int, str, str]:
    """An address in one spelling: the case of the host and the usual port do not count."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port, parts.path or "/", parts.query
