"""Options that say how a source model is read: its signature, sizes and values of its inputs, and a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_OPTIONS = (
    click.option("--signature", metavar="NAME", help="The signature of a SavedModel [default: serving_default]."),
    click.option(
        "--input-shape",
        "input_shapes",
        metavar="NAME=SIZES",
        multiple=True,
        help="Sizes of an input, as in x=1,3,320,320.",
    ),
    click.option("--dim", "dims", metavar="SYMBOL=N", multiple=True, help="Size of a free axis by its symbol."),
    click.option(
        "--fix", "fixed", metavar="NAME=VALUE", multiple=True, help="The input always has this value, as in sr=16000."
    ),
    click.option(
        "--cut", default="", metavar="OUTPUT[,OUTPUT]", help="These tensors become the outputs; or auto: before an NMS."
    ),
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command. Their values are texts; `parse_model_options` turns them into those of `Stated`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_model_options(choices: dict[str, Any]) -> None:
    """Replace the texts of the options in `choices` by their values.

    Raises:
        SettingsError: A text has another form.
    """
    from converters.graph.stated import parse_dim, parse_fixed, parse_shape

    for name, parse in (("input_shapes", parse_shape), ("dims", parse_dim), ("fixed", parse_fixed)):
        choices[name] = dict(parse(text) for text in choices[name])
    choices["cut"] = tuple(filter(None, choices["cut"].split(",")))
