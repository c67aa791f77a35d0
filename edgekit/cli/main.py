"""The `edgekit` command: the table of nouns, and the only place where errors are caught."""

from __future__ import annotations

import errno
import logging
import sys
import traceback
from pathlib import Path

import click

from edgekit.cli.lazy_group import LazyGroup
from edgekit.cli.version import version_options
from edgekit.errors import EdgekitError
from edgekit.log_lines import log_to_stderr, printable
from edgekit.repeats import limit_log_lines

COMMANDS = {
    "convert": ("edgekit.cli.convert:convert", "Make the best proven bundle of a model for each target."),
    "inspect": ("edgekit.cli.inspect:inspect", "Show a model or a bundle: tensors, operators, size, quality, cost."),
    "compare": ("edgekit.cli.compare:compare", "Compare two models or bundles on the same samples."),
    "profile": (
        "edgekit.cli.profile:profile",
        "Measure a bundle: instructions on ARM, or time here.",
    ),
    "recheck": (
        "edgekit.cli.recheck:recheck",
        "Compare a bundle on another version of its runtime.",
    ),
    "calibrate": (
        "edgekit.cli.calibrate:calibrate",
        "Certify when a device sends its answers to the cloud tier.",
    ),
    "targets": ("edgekit.cli.targets:targets", "List target profiles, or show one."),
    "registry": ("edgekit.cli.registry.group:registry", "Create the signed registry, publish bundles, verify it."),
    "rollout": ("edgekit.cli.rollout.group:rollout", "Roll a version out in waves; watch, pause, resume, abort."),
    "device": ("edgekit.cli.device.group:device", "Enroll devices, list and change them, send commands."),
    "assign": ("edgekit.cli.assign:assign", "Standing assignments: what new devices get without a rollout."),
    "alarm": ("edgekit.cli.alarm:alarm", "List alarms of devices: latency, drift, errors, heat."),
    "fleet": ("edgekit.cli.fleet:fleet", "Pause or resume every change of the fleet."),
    "collect": ("edgekit.cli.collect:collect", "Decrypt the samples that devices sent, as data for retraining."),
    "audit": ("edgekit.cli.audit:audit", "Show and verify the log of every change of the fleet."),
    "controller": ("edgekit.cli.controller.group:controller", "Run the fleet controller, back it up and restore it."),
    "cloud": ("edgekit.cli.cloud:cloud", "Run the cloud tier."),
    "ca": ("edgekit.cli.ca:ca", "The fleet's certificate authority: certificates and revocation."),
    "broker": ("edgekit.cli.broker:broker", "Run a private MQTT broker, or configure a fleet's one."),
    "simulate": ("edgekit.cli.simulate:simulate", "Run many simulated devices against a broker."),
    "demo": ("edgekit.cli.demo:demo", "Run the whole journey on this machine, on real data."),
    "completion": ("edgekit.cli.completion:completion", "Print the script that completes commands in a shell."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", type=click.Path(path_type=Path), envvar="EDGEKIT_CONFIG", help="Settings file [default: edgekit.toml]."
)
@click.option("--verbose", "-v", is_flag=True, help="Log at level INFO and show tracebacks.")
@version_options
def edgekit(config: Path | None, verbose: bool) -> None:
    """Convert trained models for edge devices, publish them signed, roll them out and run them.

    \b
    Examples:
      edgekit convert model.keras --target raspberry-pi-4 --data data.npz
      edgekit registry init
      edgekit rollout start digits 1.0.0
      edgekit demo
    """
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    limit_log_lines()


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 3 refused, 130 interrupted."""
    sys.exit(run(edgekit, "edgekit"))


def run(command: click.Command, name: str) -> int:
    """Run `command` and return its exit status; prints every error as one or two lines on stderr."""
    verbose = "--verbose" in sys.argv or "-v" in sys.argv
    try:
        result = command.main(prog_name=name, standalone_mode=False)
    except EdgekitError as error:
        _explain(f"{name}: {error}", error.advice, verbose, foreign_text=error.foreign_text)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(f"\n{name}: interrupted", err=True)
        return 130
    except Exception as error:  # the boundary of the program: a bug prints one line, and a traceback with --verbose
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f": {error.filename}" if error.filename else ""
            advice = "Free some space. Temporary files go to the folder that TMPDIR names; it can be on another disk."
            _explain(f"{name}: the disk is full{where}", advice, verbose)
            return 1
        _explain(
            f"{name}: unexpected {type(error).__name__}: {error}", "Run again with --verbose for a traceback.", verbose
        )
        return 1
    return result if isinstance(result, int) else 0


def _explain(message: str, advice: str, verbose: bool, foreign_text: str = "") -> None:
    if verbose:
        traceback.print_exc()
        for line in foreign_text.splitlines():
            click.echo(printable(f"  | {line}"), err=True)
    for line in message.splitlines():
        click.echo(printable(line), err=True)
    if advice:
        click.echo(advice, err=True)
