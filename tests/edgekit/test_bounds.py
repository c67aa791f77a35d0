"""Numbers from outside are finite and in range, wherever they come in."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator

import click
import msgspec
import pytest

from edgekit.bounds import MAX_INTEGER, not_finite, number_fault
from edgekit.cli.common.numbers import Number, Seconds, Whole
from edgekit.cli.main import COMMANDS
from edgekit.errors import SettingsError
from edgekit.rollout.plan import RolloutPlan, Wave, parse_waves
from edgekit.settings import AgentSettings, ControlSettings, load_settings

NO_NUMBERS = ("nan", "NaN", "-nan", "inf", "-inf", "infinity", "1e999", "-1e999")
TOO_LARGE = (str(2**63), str(-(2**63)), "9" * 30, "9" * 5000)


def parameters(command: click.Command, path: str) -> Iterator[tuple[str, click.Parameter]]:
    """Every option and argument of a command and of those below it."""
    for one in command.params:
        yield f"{path} {one.name}", one
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from parameters(below, f"{path} {name}")


def numeric() -> list[tuple[str, click.Parameter]]:
    """Every option and argument of `edgekit` and `edgekit-agent` whose value is a number."""
    found = []
    places = {name: module for name, (module, _) in COMMANDS.items()}
    for noun, place in {**places, "edgekit-agent": "device_agents.__main__:agent"}.items():
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        for name, parameter in parameters(command, noun):
            if parameter.type.name in ("float", "integer", "float range", "integer range", "duration"):
                found.append((name, parameter))
    return found


def test_no_option_takes_what_is_no_number_or_cannot_be_stored() -> None:
    """NaN, infinities and integers of more than 53 bits are usage errors for every option of every command."""
    options = numeric()
    assert len(options) > 20
    for name, parameter in options:
        for text in (*NO_NUMBERS, *TOO_LARGE):
            with pytest.raises(click.BadParameter):
                assert parameter.type.convert(text, parameter, None) is None, f"{name} takes {text[:30]}"


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("1.5", 1.5), ("90s", 90.0), ("15m", 900.0), ("2h", 7200.0), ("7d", 604_800.0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """A duration is in seconds or has a unit."""
    assert Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["-1", "0", "5w", "m", "1h30m", "999999d", ""])
def test_odd_durations_are_usage_errors(text: str) -> None:
    """A duration below or above its bounds, or in another form, is refused."""
    with pytest.raises(click.BadParameter):
        Seconds().convert(text, None, None)


def test_ranges_are_named() -> None:
    """The message of a number out of range names the range."""
    with pytest.raises(click.BadParameter, match="0<=x<=1"):
        Number(0, 1).convert("1.5", None, None)
    with pytest.raises(click.BadParameter, match="1<=x<=9"):
        Whole(1, 9).convert("10", None, None)
    assert "expected 0 to 1" in number_fault("share", math.nan, 0, 1)


@pytest.mark.parametrize(
    "plan",
    [
        {"device_deadline_seconds": math.inf},
        {"device_deadline_seconds": math.nan},
        {"device_deadline_seconds": 1e300},
        {"max_wait_seconds": math.inf},
        {"max_wait_seconds": -1.0},
        {"error_threshold": math.nan},
        {"success_threshold": math.inf},
        {"min_failures": 2**60},
        {"waves": (Wave(count=2**60), Wave(share=1.0))},
        {"waves": (Wave(share=math.nan), Wave(share=1.0))},
    ],
)
def test_plans_hold_only_numbers_that_can_be_stored_and_read(plan: dict[str, float]) -> None:
    """A plan that JSON would turn into null, or that has no last wave in any fleet, is refused."""
    with pytest.raises(SettingsError):
        RolloutPlan(**plan)  # type: ignore[arg-type]


def test_every_plan_that_is_accepted_is_read_back() -> None:
    """The extremes of what is accepted survive the database's JSON."""
    plan = RolloutPlan(waves=parse_waves(f"{MAX_INTEGER},100%"), device_deadline_seconds=1e9, max_wait_seconds=1e-3)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=RolloutPlan) == plan


@pytest.mark.parametrize("kind", [ControlSettings, AgentSettings])
@pytest.mark.parametrize("text", ["inf", "nan", "1e300"])
def test_no_setting_is_infinite(kind: type, text: str) -> None:
    """Every number of the settings, from the environment as from a file, is finite."""
    given = {"device": "d", "fleet": "f", "target": "t"} if kind is AgentSettings else {}
    for field in msgspec.structs.fields(kind):
        if isinstance(field.default, float):
            environ = {f"EDGEKIT_{field.name.upper()}": text}
            if text == "1e300" and field.name not in ("heartbeat_seconds", "tick_seconds", "deployment_hours"):
                continue  # finite, and only compared with
            with pytest.raises(SettingsError):
                load_settings(kind, file=None, environ=environ, flags=given)


def test_numbers_are_found_wherever_they_are_nested() -> None:
    """The names of odd numbers are complete."""
    assert list(not_finite({"a": [1.0, math.inf], "b": {"c": 2**60}, "d": True})) == ["a", "b.c"]
