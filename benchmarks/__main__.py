"""Run the named benchmarks, or all of them: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import importlib
import sys

NAMES = ("convert", "serve", "swap", "fleet", "update")


def main() -> int:
    """Run each benchmark. An unknown name is a usage error (exit code 2)."""
    chosen = sys.argv[1:] or list(NAMES)
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        print(f"unknown benchmark: {', '.join(unknown)}; known: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"== {name}", file=sys.stderr)
        importlib.import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
