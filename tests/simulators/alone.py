"""Runs a function in a new process, to measure memory without the allocations of other tests."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def alone(function: Callable[..., T], *args: Any) -> T:
    """Run a module-level function in a new process. Returns its result, or raises its exception."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
