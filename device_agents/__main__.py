"""`edgekit-agent`: run the agent, show its stored state, check that it can run."""

from __future__ import annotations

import logging
import sys

import click

from edgekit.cli.lazy_group import LazyGroup
from edgekit.cli.main import run as run_command
from edgekit.cli.version import version_options
from edgekit.log_lines import log_to_stderr
from edgekit.repeats import limit_log_lines

COMMANDS = {
    "run": ("device_agents.cli.run:run", "Run until interrupted."),
    "status": ("device_agents.cli.status:status", "Show the stored state of the agent."),
    "check": ("device_agents.cli.check:check", "Check everything that the agent needs."),
    "join": ("device_agents.cli.join:join", "Enroll this device at the claim listener of the fleet's broker."),
    "agree": ("device_agents.cli.agree:agree", "Agree to the update of a model that waits for it, or decline it."),
    "import": ("device_agents.cli.update_file:import_command", "Install an update file, without a network."),
    "completion": ("device_agents.cli.completion:completion", "Print the script that completes commands in a shell."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", "-v", is_flag=True, help="Log every step; show tracebacks.")
@version_options
def agent(verbose: bool) -> None:
    """Keep the models of this device up to date, and answer local applications.

    \b
    Examples:
      edgekit-agent check --config pi-1/agent.toml
      edgekit-agent run --config pi-1/agent.toml
    """
    log_to_stderr(logging.DEBUG if verbose else logging.WARNING)
    limit_log_lines()
    logging.getLogger("device_agents").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 3 refused, 130 interrupted."""
    sys.exit(run_command(agent, "edgekit-agent"))


if __name__ == "__main__":
    main()
