"""Run the named benchmarks, or all of them: `python -m benchmarks [NAME ...] [-- ARGUMENT ...]`.

Arguments behind `--` go to the benchmark that takes some (`wild`, `prune`, `fleet`).
"""

from __future__ import annotations

import importlib
import sys

NAMES = ("convert", "serve", "start", "swap", "fleet", "pages", "update", "cascade", "recheck", "faults")
LONG = ("wild", "prune")  # hours, so by name only
WITH_ARGUMENTS = (*LONG, "fleet")


def main() -> int:
    """Run each benchmark. An unknown name is a usage error (exit code 2)."""
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    chosen, arguments = words[:end] or list(NAMES), words[end + 1 :]
    unknown = [name for name in chosen if name not in (*NAMES, *LONG)]
    if unknown:
        print(f"unknown benchmark: {', '.join(unknown)}; known: {', '.join((*NAMES, *LONG))}", file=sys.stderr)
        return 2
    for name in chosen:
        print(f"== {name}", file=sys.stderr)
        module = importlib.import_module(f"benchmarks.{name}")
        module.main(arguments) if name in WITH_ARGUMENTS else module.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
