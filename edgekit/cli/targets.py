"""`edgekit targets`: lists target profiles."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.bundle.targets import TargetProfile, find_target, known_targets
from edgekit.cli.common.console import json_option, print_json, print_table
from edgekit.errors import SettingsError


@click.command()
@click.argument("name", required=False)
@click.option("--targets-file", type=click.Path(path_type=Path), help="Your own target profiles (.toml).")
@json_option
def targets(name: str | None, targets_file: Path | None, as_json: bool) -> None:
    """List target profiles, or show one profile.

    \b
    Examples:
      edgekit targets
      edgekit targets raspberry-pi-4
      edgekit targets --json
      edgekit targets my-board --targets-file boards.toml
    """
    table = known_targets(_text(targets_file) if targets_file else None)
    if name is not None:
        profile = find_target(name, table)
        if as_json:
            print_json(profile)
        else:
            print_table(["field", "value"], _fields(profile))
        return
    if as_json:
        print_json(list(table.values()))
        return
    rows = [
        (profile.name, profile.title, profile.arch, " ".join(profile.runtimes), " ".join(profile.precisions))
        for profile in table.values()
    ]
    print_table(["name", "for", "arch", "runtimes", "precisions"], rows)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"target profiles {path} cannot be read: {error}") from error


def _fields(profile: TargetProfile) -> list[tuple[str, str]]:
    return [
        ("name", profile.name),
        ("for", profile.title),
        ("arch", profile.arch),
        ("runtimes", ", ".join(profile.runtimes) + " (the first is the default)"),
        ("providers", ", ".join(profile.providers)),
        ("memory", f"{profile.memory_mib} MiB"),
        ("cpu features", ", ".join(profile.cpu_features) or "none assumed"),
        ("precisions", ", ".join(profile.precisions)),
        ("cost", _speed(profile)),
        ("int8 activations", "symmetric" if profile.int8_symmetric else "asymmetric"),
        ("batch", "free" if profile.free_batch else "1"),
        ("edgekit-agent", "runs on it" if profile.agent else "cannot run on it"),
    ]


def _speed(profile: TargetProfile) -> str:
    if not profile.speed:
        return "in instructions, estimated from the CPU features"
    speeds = ", ".join(f"{precision} {speed:g}x" for precision, speed in profile.speed.items())
    return f"in multiply-adds, with {speeds}"
