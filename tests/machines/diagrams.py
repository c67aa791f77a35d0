"""Writes docs/states.md and its picture from the tables of the state machines: python -m tests.machines.diagrams"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from device_agents.deployment import Damaged, UpdateState
from device_agents.update.machine import BOOT_TABLE, TABLE, Row
from edgekit.rollout.machine import TABLE as ROLLOUT_TABLE

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "states.md"
PICTURE = DOCS / "images" / "update-states.svg"

# --- the page


def page() -> str:
    """The text of docs/states.md."""
    return "\n".join(
        [
            "# States",
            "",
            "`python -m tests.machines.diagrams` writes this page and its picture from the tables in the code. A",
            "test fails if they are out of date.",
            "",
            "## Update: one model of one device",
            "",
            "The table is in `device_agents/update/machine.py`. [Updates](updates.md) describes an update in words.",
            "",
            f"![States of an update and the events that change them](images/{PICTURE.name})",
            "",
            "- Before ACTIVATING, the active slot is not touched. A failure, a passed deadline, a cancellation or a",
            "  newer offer ends the attempt with CLEANING.",
            "- From ACTIVATING on, a failure or a passed deadline leads to ROLLING_BACK.",
            "- The picture leaves out events that do not change the state.",
            "",
            "### All transitions",
            "",
            *_rows(TABLE),
            "",
            "### After a restart",
            "",
            "After a start, the agent sends `Booted` to each model's machine. `often` means that the device has",
            "stopped in TESTING, ACTIVATING, PROBATION or COMMITTING as often as is allowed, or crashed in SHADOWING.",
            "`looping` means that the agent's process has crashed repeatedly after a commit.",
            "",
            *_rows(BOOT_TABLE),
            "",
            "## Rollout: one version of one model for a fleet",
            "",
            "The table is in `edgekit/rollout/machine.py`. `Surveyed` carries the reports of the devices. The rule in",
            "the last column decides the next state.",
            "",
            "| state | event | rule |",
            "| --- | --- | --- |",
            *(f"| {s.value} | {e.__name__} | {rule.__name__.strip('_')} |" for (s, e), rule in ROLLOUT_TABLE.items()),
            "",
        ]
    )


def _rows(table: tuple[Row, ...]) -> list[str]:
    lines = ["| state | event | when | next | effects |", "| --- | --- | --- | --- | --- |"]
    for row in table:
        effects = ", ".join(effect.value for effect in row.effects)
        lines.append(f"| {row.state.value} | {row.event.__name__} | {row.when} | {row.next_state.value} | {effects} |")
    return lines


# --- the picture: positions are chosen by hand, states and labels come from the table

WIDTH, HEIGHT = 760, 758
BOX_WIDTH, BOX_HEIGHT = 150, 38
LINE = 15  # pixels from one line of a label to the next

CORNERS: dict[UpdateState, tuple[int, int]] = {
    UpdateState.IDLE: (60, 16),
    UpdateState.RESOLVING: (60, 128),
    UpdateState.DOWNLOADING: (60, 196),
    UpdateState.VERIFYING: (60, 264),
    UpdateState.STAGING: (60, 332),
    UpdateState.TESTING: (60, 400),
    UpdateState.SHADOWING: (60, 468),
    UpdateState.ACTIVATING: (60, 564),
    UpdateState.PROBATION: (60, 632),
    UpdateState.COMMITTING: (60, 700),
    UpdateState.CLEANING: (540, 264),
    UpdateState.ROLLING_BACK: (540, 632),
}


class Arrow(NamedTuple):
    """The path of an arrow, and where its label begins; `centre` puts the middle of the label there."""

    path: str
    x: int
    y: int
    centre: bool = False


ARROWS: dict[tuple[UpdateState, UpdateState], Arrow] = {
    (UpdateState.IDLE, UpdateState.RESOLVING): Arrow("M135 54V127", 145, 72),
    (UpdateState.RESOLVING, UpdateState.DOWNLOADING): Arrow("M135 166V195", 145, 185),
    (UpdateState.DOWNLOADING, UpdateState.VERIFYING): Arrow("M135 234V263", 145, 253),
    (UpdateState.VERIFYING, UpdateState.STAGING): Arrow("M135 302V331", 145, 321),
    (UpdateState.STAGING, UpdateState.TESTING): Arrow("M135 370V399", 145, 389),
    (UpdateState.TESTING, UpdateState.ACTIVATING): Arrow("M60 419H22V583H59", 28, 540),
    (UpdateState.TESTING, UpdateState.SHADOWING): Arrow("M72 438V467", 77, 457),
    (UpdateState.SHADOWING, UpdateState.TESTING): Arrow("M192 468V439", 197, 457),
    (UpdateState.ACTIVATING, UpdateState.PROBATION): Arrow("M135 602V631", 145, 621),
    (UpdateState.PROBATION, UpdateState.COMMITTING): Arrow("M135 670V699", 145, 689),
    (UpdateState.COMMITTING, UpdateState.CLEANING): Arrow("M210 719H725V283H691", 400, 713),
    (UpdateState.ROLLING_BACK, UpdateState.CLEANING): Arrow("M615 632V303", 625, 440),
    (UpdateState.IDLE, UpdateState.CLEANING): Arrow("M211 46H628V263", 440, 104, centre=True),
    (UpdateState.CLEANING, UpdateState.IDLE): Arrow("M640 264V35H211", 425, 28, centre=True),
    (UpdateState.CLEANING, UpdateState.RESOLVING): Arrow("M590 264V147H211", 340, 141),
}


class Group(NamedTuple):
    """States that the same events lead to one other state; drawn as a frame with one arrow.

    Attributes:
        title: Lines of text at the right side of the frame; the last one ends above `title_y`.
        frame: Left, top, width, height.
    """

    states: tuple[UpdateState, ...]
    next_state: UpdateState
    title: tuple[str, ...]
    title_y: int
    frame: tuple[int, int, int, int]
    arrow: Arrow


GROUPS = (
    Group(
        (
            UpdateState.RESOLVING,
            UpdateState.DOWNLOADING,
            UpdateState.VERIFYING,
            UpdateState.STAGING,
            UpdateState.TESTING,
            UpdateState.SHADOWING,
        ),
        UpdateState.CLEANING,
        ("active slot", "not touched"),
        500,
        (40, 110, 280, 406),
        Arrow("M320 283H539", 430, 277, centre=True),
    ),
    Group(
        (UpdateState.ACTIVATING, UpdateState.PROBATION, UpdateState.COMMITTING),
        UpdateState.ROLLING_BACK,
        ("new bundle", "answers"),
        588,
        (40, 546, 280, 202),
        Arrow("M320 651H539", 430, 645, centre=True),
    ),
)
ANY_STATE = Arrow("M456 568L556 631", 440, 613)

STYLE = (
    ".t{font:600 14px system-ui,sans-serif;fill:#1d2b38;text-anchor:middle}"
    ".s{font:12.5px system-ui,sans-serif;fill:#44535f}"
    ".l{font:12px system-ui,sans-serif;fill:#1f5fa8}"
    ".m{text-anchor:middle}"
    ".a{stroke:#1f5fa8;stroke-width:1.6;fill:none}"
)


def picture() -> str:
    """The text of docs/images/update-states.svg.

    Raises:
        ValueError: the table has a transition that the picture has no place for, or the other way round.
    """
    single, groups = _transitions()
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        ' aria-label="States of an update and the events that change them">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="e" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L10 5L0 10z" fill="#1f5fa8"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for group, events in zip(GROUPS, groups, strict=True):
        x, y, width, height = group.frame
        parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="12" fill="#f3f6f9" stroke="#c9d3dc"/>'
        )
        for number, line in enumerate(reversed(group.title)):
            at = group.title_y - number * LINE
            parts.append(f'<text x="{x + width - 10}" y="{at}" class="s" text-anchor="end">{line}</text>')
        parts += _arrow(group.arrow, events)
    for edge, labels in single.items():
        parts += _arrow(ARROWS[edge], labels)
    parts += _arrow(ANY_STATE, [Damaged.__name__], before_line=False)
    parts.append('<text x="415" y="563" class="s">any state</text>')
    parts.append('<circle cx="18" cy="35" r="6" fill="#1d2b38"/><path d="M24 35H59" class="a" marker-end="url(#e)"/>')
    for state, (x, y) in CORNERS.items():
        parts.append(
            f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="#fff" stroke="#3b4a5a"'
            f' stroke-width="1.4"/><text x="{x + BOX_WIDTH // 2}" y="{y + 24}" class="t">{state.value}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _transitions() -> tuple[dict[tuple[UpdateState, UpdateState], list[str]], list[list[str]]]:
    """Labels of the single arrows by (state, next state), and labels of the groups' arrows in their order."""
    single: dict[tuple[UpdateState, UpdateState], list[str]] = defaultdict(list)
    grouped: list[dict[UpdateState, list[str]]] = [defaultdict(list) for _ in GROUPS]
    damaged = set()
    for row in TABLE:
        if row.next_state is row.state:
            continue
        if row.event is Damaged and row.next_state is UpdateState.ROLLING_BACK:
            damaged.add(row.state)
            continue
        for group, events in zip(GROUPS, grouped, strict=True):
            if row.state in group.states and row.next_state is group.next_state:
                events[row.state].append(row.event.__name__)
                break
        else:
            label = row.event.__name__ + (f" ({row.when})" if row.when else "")
            single[row.state, row.next_state].append(label)
    if damaged != set(UpdateState) - {UpdateState.ROLLING_BACK}:
        raise ValueError(f"Damaged leads to ROLLING_BACK from {sorted(damaged)}, expected every state")
    if single.keys() != ARROWS.keys():
        raise ValueError(f"arrows without a place, or places without an arrow: {sorted(single.keys() ^ ARROWS.keys())}")
    common = []
    for group, events in zip(GROUPS, grouped, strict=True):
        kinds = {tuple(sorted(set(events[state]))) for state in group.states}
        if len(kinds) != 1:
            raise ValueError(
                f"the states of {' '.join(group.title)!r} leave for {group.next_state.value} by {sorted(kinds)}"
            )
        common.append(list(dict.fromkeys(events[group.states[0]])))
    return dict(single), common


def _arrow(arrow: Arrow, labels: list[str], *, before_line: bool = True) -> list[str]:
    """The path, and its labels in lines of at most two that end above `arrow.y`."""
    lines = [", ".join(labels[start : start + 2]) for start in range(0, len(labels), 2)]
    top = arrow.y - (len(lines) - 1) * LINE if before_line else arrow.y
    middle = " m" if arrow.centre else ""
    return [
        f'<path d="{arrow.path}" class="a" marker-end="url(#e)"/>',
        *(
            f'<text x="{arrow.x}" y="{top + number * LINE}" class="l{middle}">{escape(line)}</text>'
            for number, line in enumerate(lines)
        ),
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    PICTURE.write_text(picture(), encoding="utf-8")
