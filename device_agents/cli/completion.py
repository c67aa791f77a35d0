"""`edgekit-agent completion`."""

from edgekit.cli.completion import completion_command

completion = completion_command("edgekit-agent")
