"""One target in libFuzzer; started by tests.fuzz.run."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["edgekit", "device_agents"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """The first word names the target, the rest is libFuzzer's."""
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
