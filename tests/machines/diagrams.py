"""Draws docs/states.md from the tables: python -m tests.machines.diagrams"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from device_agents.deployment import S
from device_agents.update.machine import BOOT_TABLE, TABLE, Row
from edgekit.rollout.machine import TABLE as ROLLOUT_TABLE

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


def page() -> str:
    """The whole page."""
    return "\n".join(
        [
            "# States",
            "",
            "Drawn from the tables by `python -m tests.machines.diagrams`; a test fails when this page is stale.",
            "",
            "## Update: one model of one device",
            "",
            "`device_agents/update/machine.py`. The diagram leaves out what a state answers with itself, and what many",
            "do alike: before ACTIVATING a failure, a deadline, a cancel or a newer offer goes to CLEANING, and the",
            "active slot was never touched; from ACTIVATING on a failure or deadline goes to ROLLING_BACK.",
            "",
            *_diagram(),
            "",
            "### Every row",
            "",
            *_rows(TABLE),
            "",
            "### After a restart",
            "",
            "`often`: the device has stopped in TESTING, ACTIVATING or PROBATION as often as is allowed.",
            "",
            *_rows(BOOT_TABLE),
            "",
            "## Rollout: one version of one model for a fleet",
            "",
            "`edgekit/rollout/machine.py`. `Surveyed` brings what the devices report; the rule decides what follows.",
            "",
            "| state | event | rule |",
            "| --- | --- | --- |",
            *(f"| {s.value} | {e.__name__} | {rule.__name__.strip('_')} |" for (s, e), rule in ROLLOUT_TABLE.items()),
            "",
        ]
    )


def _diagram() -> list[str]:
    arrows: dict[tuple[S, S], list[str]] = defaultdict(list)
    sideways = (S.CLEANING, S.ROLLING_BACK)
    for row in TABLE:
        forward = row.then is not row.state and not (row.then in sideways and row.event.__name__ in _ALIKE)
        if forward:
            label = row.event.__name__ + (f" ({row.when})" if row.when else "")
            arrows[(row.state, row.then)].append(label)
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> IDLE"]
    for (state, then), labels in arrows.items():
        lines.append(f"    {state.value} --> {then.value}: {', '.join(labels)}")
    return [*lines, "    TESTING --> CLEANING: Failed", "    PROBATION --> ROLLING_BACK: Failed", "```"]


_ALIKE = ("Failed", "DeadlinePassed", "Cancelled", "Offered")


def _rows(table: tuple[Row, ...]) -> list[str]:
    lines = ["| state | event | when | next | effects |", "| --- | --- | --- | --- | --- |"]
    for row in table:
        effects = ", ".join(effect.value for effect in row.effects)
        lines.append(f"| {row.state.value} | {row.event.__name__} | {row.when} | {row.then.value} | {effects} |")
    return lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
