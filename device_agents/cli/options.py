"""Options that several commands of the agent have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--config``."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("agent.toml"),
        envvar="EDGEKIT_AGENT_CONFIG",
        show_default=True,
        help="Settings file of the agent, as `edgekit device enroll` wrote it.",
    )(function)
