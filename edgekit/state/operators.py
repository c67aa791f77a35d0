"""Table of operators: who may use the controller's API, by token. Tokens are random and stored as hashes only."""

from __future__ import annotations

import enum
import hashlib
import secrets

import msgspec
import sqlalchemy as sa

from edgekit.bundle.manifest import NAME_PATTERN
from edgekit.errors import NotFoundError, SettingsError
from edgekit.state._sql import FleetTable
from edgekit.state.audit import record
from edgekit.state.tables import operators

TOKEN_PREFIX = "ekop_"  # noqa: S105  # so that people and scanners of leaked secrets recognize a token
TOKEN_BYTES = 32


class Role(str, enum.Enum):
    """The permissions of an operator; each role includes those of the one before.

    VIEWER: read. OPERATOR: also start and steer rollouts, send commands, and change standing assignments. ADMIN: also
    remove devices, make enrollment codes, and see who has a token.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """True if this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


class Operator(msgspec.Struct, frozen=True):
    """One operator.

    Attributes:
        name: Its name, for the audit log.
        role: What it may do.
        created: Wall clock seconds.
    """

    name: str
    role: Role
    created: float


class OperatorTable(FleetTable):
    """The operators of one fleet."""

    def add(self, name: str, role: Role, now: float) -> str:
        """Add an operator.

        Args:
            name: Its name.
            role: What it may do.
            now: Wall clock seconds.

        Returns:
            Its token, which is not stored and cannot be shown again.

        Raises:
            SettingsError: the name is not valid, or taken.
        """
        if not NAME_PATTERN.fullmatch(name):
            raise SettingsError(f"operator name {name!r} does not match {NAME_PATTERN.pattern}")
        token = TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_BYTES)
        with self._writing() as connection:
            taken = sa.select(operators.c.name).where(operators.c.fleet == self._fleet, operators.c.name == name)
            if connection.execute(taken).first() is not None:
                raise SettingsError(
                    f"operator {name!r} has a token already",
                    advice=f"Choose another name, or run first: edgekit controller token remove {name}",
                )
            row = {"role": role.value, "token": _hash(token), "created": now}
            connection.execute(operators.insert().values(fleet=self._fleet, name=name, **row))
            after = {"role": role.value}
            record(connection, self._fleet, self._author, "token.add", name, now=now, after=after)
        return token

    def remove(self, name: str, now: float) -> Operator:
        """Remove an operator at `now` (wall clock seconds) and return it; its token stops working at once.

        Raises:
            NotFoundError: there is no such operator.
        """
        mine = sa.and_(operators.c.fleet == self._fleet, operators.c.name == name)
        with self._writing() as connection:
            row = connection.execute(sa.select(operators).where(mine)).mappings().first()
            if row is None:
                raise NotFoundError(f"no operator {name!r} has a token", advice="See: edgekit controller token list")
            connection.execute(operators.delete().where(mine))
            before = {"role": row["role"]}
            record(connection, self._fleet, self._author, "token.remove", name, now=now, before=before)
        return _read(row)

    def all(self) -> list[Operator]:
        """All operators, by name."""
        query = sa.select(operators).where(operators.c.fleet == self._fleet).order_by(operators.c.name)
        with self._reading() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def find(self, token: str) -> Operator | None:
        """The operator with this token; None if no operator has it."""
        if not token.startswith(TOKEN_PREFIX) or len(token) > 200:
            return None
        query = sa.select(operators).where(operators.c.fleet == self._fleet, operators.c.token == _hash(token))
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        return _read(row) if row is not None else None


def _read(row: sa.RowMapping) -> Operator:
    return Operator(row["name"], Role(row["role"]), row["created"])


def _hash(token: str) -> str:
    """sha256 of a token. It has 256 random bits, so that neither a salt nor a slow hash would add anything."""
    return hashlib.sha256(token.encode()).hexdigest()
