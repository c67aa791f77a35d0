"""`edgekit completion`: print the script for shell completion in bash, zsh or fish."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


def completion_command(program: str) -> click.Command:
    """The command ``completion`` of `program`.

    The shell calls `program` for each completion, and click answers it before any command runs.
    """
    text = f"""Print the script that completes `{program}` commands and options in a shell.

    \b
    Examples, each for the start-up file of its shell:
      {program} completion bash            eval "$({program} completion bash)" in ~/.bashrc; bash 4.4 or newer
      {program} completion zsh             eval "$({program} completion zsh)" in ~/.zshrc, after compinit
      {program} completion fish            {program} completion fish | source, in ~/.config/fish/config.fish
    """

    @click.command("completion", help=text, short_help="Print a shell's completion script.")
    @click.argument("shell", type=click.Choice(SHELLS))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        from click.shell_completion import get_completion_class

        found = get_completion_class(shell)
        if found is None:
            raise click.UsageError(f"click {click.__version__} has no completion for {shell}.", ctx)
        variable = f"_{program.replace('-', '_')}_COMPLETE".upper()  # click reads the shell's request from it
        click.echo(found(ctx.find_root().command, {}, program, variable).source())

    return completion


completion = completion_command("edgekit")
