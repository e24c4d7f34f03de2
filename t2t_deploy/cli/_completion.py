"""``t2t-deploy completion``."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import get_completion_class

from t2t_deploy.cli._adapter import plain_command
from t2t_deploy.cli._output import Output

_SHELLS = ("bash", "zsh", "fish")


@plain_command("completion", [click.Argument(["shell"], type=click.Choice(_SHELLS))])
def command(workspace: Any, output: Output, shell: str) -> None:
    """Print a script that lets a shell complete commands, options and their values.

    \b
    t2t-deploy completion bash > ~/.local/share/bash-completion/completions/t2t-deploy
    t2t-deploy completion zsh > ~/.zfunc/_t2t-deploy          a folder of $fpath
    t2t-deploy completion fish > ~/.config/fish/completions/t2t-deploy.fish
    """
    made = get_completion_class(shell)
    assert made is not None, shell  # click has all three
    root = click.get_current_context().find_root()
    # the name that click looks for when the script calls the program back
    name = root.info_name or "t2t-deploy"
    variable = f"_{name.replace('-', '_')}_COMPLETE".upper()
    script = made(root.command, {}, name, variable).source()
    output.result({"shell": shell, "script": script}, lambda console: click.echo(script))
