"""The audit log: every change of the fleet state, append-only and chained by hashes.

Each entry holds the hash of the entry before it. Whoever changes, inserts or removes an entry must compute all later
hashes anew, and then the last one differs from the one that was noted elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from edgekit.errors import VerificationError
from edgekit.state._sql import FleetTable, to_json, untrusted_text
from edgekit.state.tables import audit

FIRST = "0" * 64  # what stands for the hash before the first entry
MAX_NAME, MAX_SUBJECT = 255, 127
PAGE = 1000
_LOCK = 7_235_431  # PostgreSQL's advisory lock: entries are appended one after the other


class AuditEntry(msgspec.Struct, frozen=True):
    """One change of the fleet state.

    Attributes:
        number: Counts the fleet's entries from 1 without gaps.
        at: Wall clock seconds of the machine that made the change.
        who: Who made it: user and host of a command, or a controller.
        what: The change, for example ``rollout.pause``.
        subject: What was changed: a device, the number of a rollout, a group.
        before, after: Its state before and after the change; null where it was made or removed.
        previous: Hash of the entry before.
        hash: Hash of this entry: sha256 of its other fields and the fleet's name, as JSON.
    """

    number: int
    at: float
    who: str
    what: str
    subject: str
    before: Any
    after: Any
    previous: str
    hash: str


def take_turn(connection: sa.Connection) -> None:
    """Wait until no other transaction that changes the fleet state runs; SQLite's writers do so by themselves."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def record(
    connection: sa.Connection,
    fleet: str,
    author: str,
    what: str,
    subject: object,
    *,
    now: float,
    before: Any = None,
    after: Any = None,
) -> None:
    """Append an entry inside the transaction that makes the change.

    Args:
        connection: The transaction.
        fleet: Name of the fleet.
        author: Who makes the change: user and host of a command, or a controller.
        what, subject, before, after: As `AuditEntry`.
        now: Wall clock seconds.
    """
    record_all(connection, fleet, author, what, [(subject, before, after)], now=now)


def record_all(
    connection: sa.Connection,
    fleet: str,
    author: str,
    what: str,
    states: Iterable[tuple[object, Any, Any]],
    *,
    now: float,
) -> None:
    """As `record`, for one change of several subjects: each with its states before and after."""
    take_turn(connection)
    newest = sa.select(audit.c.number, audit.c.hash).where(audit.c.fleet == fleet).order_by(audit.c.number.desc())
    last = connection.execute(newest.limit(1)).first()
    number, previous = (last.number, last.hash) if last else (0, FIRST)
    rows = []
    for subject, before, after in states:
        number += 1
        row = {
            "number": number,
            "at": now,
            "who": untrusted_text(author, MAX_NAME),
            "what": what,
            "subject": untrusted_text(str(subject), MAX_SUBJECT),
            "before": to_json(before).replace("\\u0000", "\\ufffd"),
            "after": to_json(after).replace("\\u0000", "\\ufffd"),
            "previous": previous,
        }
        previous = _hash(fleet, row)
        rows.append({"fleet": fleet, **row, "hash": previous})
    if rows:
        connection.execute(audit.insert(), rows)


def _hash(fleet: str, row: dict[str, Any]) -> str:
    fields = ("number", "at", "who", "what", "subject", "before", "after", "previous")
    return hashlib.sha256(msgspec.json.encode([fleet, *(row[field] for field in fields)])).hexdigest()


class AuditTable(FleetTable):
    """The audit log of one fleet."""

    def entries(
        self, *, limit: int = 50, before: int | None = None, what: str = "", subject: str = ""
    ) -> list[AuditEntry]:
        """Entries, the newest first.

        Args:
            limit: Number of entries.
            before: Only entries with a lower number, for the next page.
            what: Only changes that begin with this text, for example ``rollout``.
            subject: Only changes of this subject.
        """
        query = sa.select(audit).where(audit.c.fleet == self._fleet).order_by(audit.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.number < before)
        if what:
            query = query.where(audit.c.what.startswith(what, autoescape=True))
        if subject:
            query = query.where(audit.c.subject == subject)
        with self._reading() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def verify(self, head: tuple[int, str] | None = None) -> tuple[int, str]:
        """Check every entry of the log and its place in the chain.

        Args:
            head: Number and hash of an entry that was noted elsewhere; it must be in the log.

        Returns:
            Number and hash of the newest entry; 0 and FIRST of an empty log.

        Raises:
            VerificationError: an entry was changed, removed or inserted; names the first one.
        """
        number, previous = 0, FIRST
        noted = head is None or head[0] == 0
        for row in self._rows():
            number += 1
            if row["number"] != number:
                raise VerificationError(f"entry {number} of the audit log is missing; entry {row['number']} follows")
            if row["previous"] != previous:
                raise VerificationError(f"entry {number} of the audit log does not follow entry {number - 1}")
            if row["hash"] != _hash(self._fleet, dict(row)):
                raise VerificationError(f"entry {number} of the audit log was changed after it was written")
            previous = row["hash"]
            if head is not None and number == head[0]:
                noted = previous.startswith(head[1])
                if not noted:
                    raise VerificationError(f"entry {number} of the audit log is not the one that was noted")
        if not noted and head is not None:
            raise VerificationError(f"the audit log ends with entry {number}; entry {head[0]} was noted and is missing")
        return number, previous

    def _rows(self) -> Iterator[sa.RowMapping]:
        last = -1
        while True:
            query = (
                sa.select(audit)
                .where(audit.c.fleet == self._fleet, audit.c.number > last)
                .order_by(audit.c.number)
                .limit(PAGE)
            )
            with self._reading() as connection:
                rows = connection.execute(query).mappings().all()
            yield from rows
            if len(rows) < PAGE:
                return
            last = rows[-1]["number"]


def _read(row: sa.RowMapping) -> AuditEntry:
    values = {field: row[field] for field in AuditEntry.__struct_fields__}
    for field in ("before", "after"):
        try:
            values[field] = msgspec.json.decode(row[field])
        except msgspec.MsgspecError:  # the others are still shown; `verify` names the first one that was changed
            values[field] = row[field]
    return AuditEntry(**values)
