"""docs/states.md and its picture show the tables of the state machines."""

from __future__ import annotations

import pytest

from device_agents.deployment import Failed, UpdateState
from device_agents.update.machine import TABLE, Row
from tests.machines import diagrams
from tests.machines.diagrams import PAGE, PICTURE, page, picture


def test_the_page_of_states_is_what_the_tables_say() -> None:
    """A row that changes changes the page; run python -m tests.machines.diagrams."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_the_picture_of_states_is_what_the_table_says() -> None:
    """The same for the picture, which names every state."""
    drawn = picture()
    assert PICTURE.read_text(encoding="utf-8") == drawn
    assert all(f">{state.value}<" in drawn for state in UpdateState)


@pytest.mark.parametrize("state", [UpdateState.IDLE, UpdateState.COMMITTING])
def test_a_transition_without_a_place_in_the_picture_is_an_error(
    state: UpdateState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new transition cannot be forgotten in the picture."""
    monkeypatch.setattr(diagrams, "TABLE", (*TABLE, Row(state, Failed, "", UpdateState.TESTING)))
    with pytest.raises(ValueError, match="TESTING"):
        picture()
