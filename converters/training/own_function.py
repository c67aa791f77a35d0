"""The user's training loop by its name ``module:function``. Importing it here needs no TensorFlow, so it is quick."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from converters.foreign_text import named
from edgekit.errors import SettingsError

Loop = Callable[[Any, Any, Any, int], None]


def find_loop(name: str) -> None:
    """Check that the function `name` can be imported. Raises as `loop_of`."""
    loop_of(name)


def loop_of(name: str) -> Loop:
    """The function `name`.

    Raises:
        SettingsError: It cannot be imported, or it is no function.
    """
    module, _, attribute = name.partition(":")
    try:
        function: Loop = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing the user's module runs the user's code
        raise SettingsError(
            f"training loop {name!r} cannot be imported: {named(error)}",
            advice="Give --finetune module:function, with the module's folder on PYTHONPATH.",
        ) from error
    if not callable(function):
        raise SettingsError(f"training loop {name!r} is a {type(function).__name__}, expected a function")
    return function
