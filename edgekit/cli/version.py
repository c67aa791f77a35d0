"""`--version`, and with `--verbose` the information for a bug report."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, TypeVar

import click

from edgekit import __version__

# All packages that edgekit or one of its extras requires, the runtimes first.
REPORTED_PACKAGES = (
    "ai-edge-litert", "tflite-runtime", "onnxruntime", "onnxruntime-gpu", "tensorflow", "tensorflow-cpu", "keras",
    "torch", "onnx", "onnxscript", "onnxslim", "tf2onnx", "litert-quantizer", "numpy", "scipy", "scikit-learn",
    "paho-mqtt", "amqtt", "httptools", "grpcio", "protobuf", "tuf", "securesystemslib", "cryptography", "obstore",
    "zstandard", "sqlalchemy", "alembic", "psycopg", "pillow", "click", "msgspec", "jinja2", "joblib", "flatbuffers",
    "lark", "starlette", "uvicorn", "cyclonedx-python-lib", "threadpoolctl", "tomli",
)  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])


def version_options(function: F) -> F:
    """Add ``--version`` and ``--json`` to a `VersionedGroup`, which already has ``--verbose``."""
    function = click.option("--json", "as_json", is_flag=True, help="With --version: print it as JSON.")(function)
    text = "Show the version and exit; with --verbose also the system and the installed packages."
    return click.option("--version", "show_version", is_flag=True, help=text)(function)


class VersionedGroup(click.Group):
    """A group that answers ``--version`` after all its options are read, so that their order does not matter."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; with ``--version``, print the version and exit."""
        rest = super().parse_args(ctx, args)
        wanted, as_json = ctx.params.pop("show_version", False), ctx.params.pop("as_json", False)
        if ctx.resilient_parsing:
            return rest
        if wanted:
            _print_version(ctx.info_name or "edgekit", verbose=ctx.params["verbose"], as_json=as_json)
            ctx.exit()
        if as_json:
            raise click.UsageError("--json before a command is only for --version; write it after the command.", ctx)
        return rest


def environment() -> dict[str, Any]:
    """Versions, system and machine for a bug report; None for a package or program that is not installed."""
    from edgekit.mqtt.mosquitto import find_mosquitto
    from edgekit.versions import version_of

    return {
        "edgekit": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "machine": platform.machine(),
        "mosquitto": find_mosquitto(),
        "packages": {name: version_of(name) for name in REPORTED_PACKAGES},
    }


def _print_version(program: str, *, verbose: bool, as_json: bool) -> None:
    from edgekit.cli.common.console import print_json

    found: dict[str, Any] = environment() if verbose else {"edgekit": __version__}
    if as_json:
        print_json(found)
        return
    click.echo(f"{program}, version {__version__}")
    if not verbose:
        return
    lines = {name: found[name] for name in ("python", "system", "machine")}
    lines["mosquitto"] = found["mosquitto"] or "not found"
    lines.update({name: version or "not installed" for name, version in found["packages"].items()})
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name.ljust(width)}  {value}")
