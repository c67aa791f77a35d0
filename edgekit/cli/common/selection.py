"""Options that select devices (--filter, --target, --label), the same for every command."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli.common.console import usage
from edgekit.cli.common.fleet import parse_labels
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
