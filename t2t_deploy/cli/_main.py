"""The command group, and how errors leave it."""

from __future__ import annotations

import importlib
import signal
import sys
from types import FrameType
from typing import Any

import click

from t2t_deploy import __version__
from t2t_deploy.cli._output import Output
from t2t_deploy.errors import DeployError

# command -> module below t2t_deploy.cli; modules import nothing heavy before a command runs
_COMMANDS = {
    "variants": "_variants",
    "export": "_export",
    "calibrate": "_calibrate",
    "quantize": "_quantize",
    "build-trt": "_build_trt",
    "verify": "_verify",
    "evaluate": "_evaluate",
    "bench": "_bench",
    "predict": "_predict",
    "inspect": "_inspect",
    "package": "_package",
    "workspace": "_workspace",
    "doctor": "_doctor",
    "completion": "_completion",
}
_INTERRUPTED = 130
_TERMINATED = 143


class _Group(click.Group):
    """Finds commands by name, in the order of the work."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"t2t_deploy.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,  # a missing command is wrong usage, said in one line
)
@click.version_option(__version__, prog_name="t2t-deploy")
def cli() -> None:
    """Take a trained T2T-ViT to a verified ONNX file, an engine and a benchmark.

    \b
    t2t-deploy export --variant 14     checkpoint -> verified ONNX
    t2t-deploy build-trt --fp16        newest export -> TensorRT engine
    t2t-deploy bench                   everything made, against eager PyTorch
    """


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit.

    0 done; 1 an error the user can fix; 2 wrong usage; 3 done but a check fell short; 130 Ctrl-C.
    """
    words = sys.argv[1:] if args is None else args
    output = Output(as_json="--json" in words)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = cli.main(args=words, prog_name="t2t-deploy", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except DeployError as err:
        output.error(err.kind, str(err))
        sys.exit(err.exit_status)
    except click.ClickException as err:
        output.error("UsageError", _usage_message(err))
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        output.error("Interrupted", "interrupted; nothing half-written was left")
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on: say nothing more, and not to a closed pipe
        sys.exit(1)


def _usage_message(err: click.ClickException) -> str:
    context = getattr(err, "ctx", None)
    hint = f" Try '{context.command_path} --help'." if context is not None else ""
    return err.format_message() + hint


def _terminate(number: int, frame: FrameType | None) -> Any:
    """Leave through the stack, so that temporary files and workers are cleaned up."""
    sys.exit(_TERMINATED)
