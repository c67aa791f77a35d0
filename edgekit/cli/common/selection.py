"""Options that select devices (--filter, --target, --label), the same for every command, and what to say if none is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.common.console import usage
from edgekit.cli.common.fleet import parse_labels
from edgekit.errors import NotFoundError
from edgekit.rollout.cohort import Cohort

if TYPE_CHECKING:
    from edgekit.state import FleetState

F = TypeVar("F", bound=Callable[..., Any])


def selection_options(function: F) -> F:
    """Add ``--filter`` (parameter ``filter_text``), ``--target`` (``targets``) and ``--label`` (``labels``)."""
    function = click.option(
        "--filter",
        "filter_text",
        metavar="FILTER",
        default="",
        help="Only devices that match, for example 'label.site in (north, west) and version(digits) < 2.0 and online'.",
    )(function)
    function = click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Only devices with this label (may be repeated)."
    )(function)
    return click.option(
        "--target", "targets", multiple=True, help="Only devices of this target profile (may be repeated)."
    )(function)


def parse_cohort(targets: tuple[str, ...], labels: tuple[str, ...], filter_text: str) -> Cohort:
    """The cohort of the options, before the groups of a database are known.

    Raises:
        click.UsageError: a label or the filter cannot be read; the message has a caret.
    """
    from edgekit.filters import parse_filter

    with usage():
        if filter_text:
            parse_filter(filter_text)
        return Cohort(targets=targets, labels=parse_labels(labels), filter=filter_text)


def with_groups(state: FleetState, cohort: Cohort) -> Cohort:
    """The cohort with the saved groups that its filter names, as they are now.

    Raises:
        click.UsageError: there is no such group, or groups name each other.
    """
    if not cohort.filter:
        return cohort
    with usage():
        return state.groups.resolved(cohort)


def nobody(state: FleetState, cohort: Cohort) -> NotFoundError:
    """The error for a selection without devices: it names the selection and the nearest values of the fleet."""
    if not state.devices.count(0.0, 0.0):
        return NotFoundError(
            f"no device is enrolled in fleet {state.fleet!r}", advice="Enroll one: edgekit device enroll ID --target T"
        )
    advice = "; ".join(state.groups.nearest(cohort))
    advice = advice[:1].upper() + advice[1:] if advice else "See: edgekit device list"
    return NotFoundError(f"no device of fleet {state.fleet!r} matches {cohort.text}", advice=advice)
