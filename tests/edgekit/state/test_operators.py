"""Operators: tokens that are stored as hashes only, names, and roles that include the ones before."""

from __future__ import annotations

import pytest

from edgekit.errors import NotFoundError, SettingsError
from edgekit.state import FleetState, Operator, Role, open_fleet_state


@pytest.fixture
def state(tmp_path):
    opened = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "f", author="ann")
    yield opened
    opened.close()


def test_a_token_is_shown_once_and_never_stored(state: FleetState, tmp_path) -> None:
    """Neither in the table nor in the audit log; it is found by its hash."""
    token = state.operators.add("ann", Role.OPERATOR, 5.0)
    assert token.startswith("ekop_")
    assert len(token) > 40
    assert state.operators.find(token) == Operator("ann", Role.OPERATOR, 5.0)
    assert state.operators.find(token[:-1]) is None
    assert state.operators.find("") is None
    assert state.operators.find("ekop_" + "x" * 10_000) is None
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in stored
    assert token.removeprefix("ekop_").encode() not in stored


def test_a_name_has_one_token(state: FleetState) -> None:
    """A second one is refused; a removed one works no more; both changes are audited without the token."""
    first = state.operators.add("ann", Role.ADMIN, 5.0)
    with pytest.raises(SettingsError, match="'ann' has a token already"):
        state.operators.add("ann", Role.VIEWER, 6.0)
    with pytest.raises(SettingsError, match="does not match"):
        state.operators.add("Ann Smith", Role.VIEWER, 6.0)
    assert state.operators.remove("ann", 7.0) == Operator("ann", Role.ADMIN, 5.0)
    assert state.operators.find(first) is None
    with pytest.raises(NotFoundError):
        state.operators.remove("ann", 8.0)
    found = [(one.what, one.subject, one.before, one.after) for one in state.audit.entries()]
    assert found == [
        ("token.remove", "ann", {"role": "admin"}, None),
        ("token.add", "ann", None, {"role": "admin"}),
    ]
    assert state.operators.add("ann", Role.VIEWER, 9.0) != first


def test_tokens_are_those_of_one_fleet(state: FleetState, tmp_path) -> None:
    """Another fleet in the same database does not know them."""
    token = state.operators.add("ann", Role.ADMIN, 5.0)
    other = open_fleet_state(f"sqlite:///{tmp_path / 'fleet.db'}", "g")
    assert other.operators.find(token) is None
    assert other.operators.all() == []
    other.close()


def test_roles_include_the_ones_before() -> None:
    """And not the ones after."""
    assert [[role.includes(other) for other in Role] for role in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
