"""Runs one fuzz target under libFuzzer; `tests.fuzz.run` starts it."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["edgekit", "device_agents"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target named by the first argument; the other arguments are libFuzzer's options."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
