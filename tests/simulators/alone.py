"""Runs a function in a fresh process, to measure memory where no other test has allocated or freed any."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def alone(function: Callable[..., T], *args: Any) -> T:
    """Run a function of a module in a process of its own; returns what it returns and raises what it raises."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
