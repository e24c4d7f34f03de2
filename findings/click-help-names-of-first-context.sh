#!/usr/bin/env bash
# click: which names ask for a command's help is decided by the first context that asks, for good.
#
# Guess: a group's context_settings={"help_option_names": ["-h", "--help"]} give every command below it
# -h, whatever was asked of that command before: each call has a context of its own.
# Seen: a command builds its help option once and keeps it. Asked on its own first (as a man page, a
# documentation plugin or a test does), it is stuck with --help: below the group, later in the same
# process, -h is "No such option" and --help's line lacks -h. The names in the command's own
# context_settings change nothing then, since a context made by hand does not read them.
# Why it matters: the same program answers -h or not, and prints one help or another, depending on what
# ran before; a snapshot of help texts passes alone and fails in a suite.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check click==8.5.1
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import importlib.metadata

import click
from click.testing import CliRunner

NAMES = {"help_option_names": ["-h", "--help"]}


class Named(click.Command):
    def get_help_option_names(self, ctx):
        return ["-h", "--help"]


def program(kind=click.Command, **settings):
    command = kind("work", **settings)
    return command, click.Group("tool", commands=[command], context_settings=NAMES)


def asked_below(group):
    done = CliRunner().invoke(group, ["work", "-h"])
    return done.exit_code, "-h, --help" in done.output


print("click", importlib.metadata.version("click"))
_, group = program()
alone = asked_below(group)
command, group = program()
command.get_help(click.Context(command))
after = asked_below(group)
command, group = program(context_settings=NAMES)
command.get_help(click.Context(command))
settings = asked_below(group)
command, group = program(Named)
command.get_help(click.Context(command))
method = asked_below(group)
print("exit status of -h below the group, and whether help names it:")
print("  nothing asked before   ", alone)
print("  its help asked on its own before", after)
print("  the same, names in the command's own settings", settings)
print("  the same, get_help_option_names overridden", method)
assert alone == (0, True), alone
assert after == (2, False), after
assert settings == (2, False), settings
assert method == (0, True), method
EOF
