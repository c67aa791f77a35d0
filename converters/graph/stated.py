"""Statements of the user on a model's inputs: sizes of free axes, fixed values, and the shapes of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from converters.graph.interface import Number
from edgekit.errors import SettingsError

LARGEST_SIZE = 2**31 - 1  # of an axis: LiteRT counts in 32 bits
SINGLE = "x"  # the name that data files may use for the only input


class DataArray(msgspec.Struct, frozen=True):
    """One array of the data file.

    Attributes:
        shape: Its sizes, with the samples first, except where a scalar is given once.
        value: The value of an array with one element; None for other arrays.
    """

    shape: tuple[int, ...]
    value: Number | None = None


class Stated(msgspec.Struct, frozen=True):
    """Statements of the user on the inputs.

    Attributes:
        shapes: Sizes of all axes of an input, by its name (``--input-shape``).
        dims: Sizes of free axes by their symbol (``--dim``).
        fixed: Values of inputs that are always the same, by name (``--fix``).
        data: Arrays of the data file by name; empty without one.
        cut: Tensors that become the outputs (``--cut``); ``auto`` alone for the proposed ones, empty for no cut.
        state: The input that an output feeds in the next call, by the output's name (``--state``).
        propose: Take the proposed sizes of free axes instead of a refusal, and say so in a note.
    """

    shapes: Mapping[str, Sequence[int]] = {}
    dims: Mapping[str, int] = {}
    fixed: Mapping[str, Number] = {}
    data: Mapping[str, DataArray] = {}
    state: Mapping[str, str] = {}
    propose: bool = False
    cut: Sequence[str] = ()

    def data_of(self, name: str, inputs: Sequence[str]) -> DataArray | None:
        """The data of input `name` of a model with `inputs`; ``x`` is the only input that needs data."""
        found = self.data.get(name)
        known = {*self.fixed, *self.data, *self.state.values()}
        open_inputs = [one for one in inputs if one not in known]
        if found is None and open_inputs == [name]:
            found = self.data.get(SINGLE)
        return found


NOTHING = Stated()


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """The name and the sizes of ``NAME=1,3,320,320``.

    Raises:
        SettingsError: The text has another form.
    """
    name, equals, sizes = text.rpartition("=")
    parts = [part.strip() for part in sizes.replace("x", ",").split(",")]
    if not (equals and name and all(map(_is_size, parts))):
        raise SettingsError(
            f"input shape {text!r} does not have the form NAME=SIZE,SIZE with sizes from 1 to {LARGEST_SIZE}",
            advice="Give for example x=1,3,320,320.",
        )
    return name, tuple(int(part) for part in parts)


def _is_size(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(LARGEST_SIZE)) and 0 < int(text) <= LARGEST_SIZE


def parse_state(text: str) -> tuple[str, str]:
    """The output and the input of ``OUTPUT=INPUT``.

    Raises:
        SettingsError: The text has another form.
    """
    output, equals, fed = (part.strip() for part in text.partition("="))
    if not (output and equals and fed):
        raise SettingsError(
            f"state {text!r} does not have the form OUTPUT=INPUT",
            advice="Give for example hn=h: the output hn is the input h of the next call.",
        )
    return output, fed


def parse_dim(text: str) -> tuple[str, int]:
    """The symbol and the size of ``SYMBOL=N``.

    Raises:
        SettingsError: The text has another form.
    """
    symbol, equals, size = text.rpartition("=")
    if not (equals and symbol and _is_size(size.strip())):
        raise SettingsError(
            f"dim {text!r} does not have the form SYMBOL=N with N from 1 to {LARGEST_SIZE}",
            advice="Give for example height=320.",
        )
    return symbol, int(size)


def parse_fixed(text: str) -> tuple[str, Number]:
    """The name and the value of ``NAME=VALUE``: a number, ``true`` or ``false``.

    Raises:
        SettingsError: The text has another form.
    """
    name, equals, value = text.rpartition("=")
    words = {"true": True, "false": False}
    if equals and name and value.strip().lower() in words:
        return name, words[value.strip().lower()]
    for kind in (int, float):
        try:
            number = kind(value)
        except ValueError:
            continue
        if equals and name and abs(number) < float("inf"):
            return name, number
    raise SettingsError(
        f"{text!r} does not have the form NAME=VALUE with a number", advice="Give for example sr=16000."
    )
