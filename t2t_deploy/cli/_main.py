"""The command group, and how errors leave it."""

from __future__ import annotations

import importlib
import io
import signal
import sys
import warnings
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

from t2t_deploy import __version__
from t2t_deploy._limits import limit_threads
from t2t_deploy.cli._adapter import HelpNames
from t2t_deploy.cli._memory import memory_short
from t2t_deploy.cli._output import Output, has_result
from t2t_deploy.cli._supervisor import end_speechless, leave, supervise
from t2t_deploy.errors import DeployError, MachineError

# In the order of the work. The module of a command is loaded when it runs: the list needs none.
_COMMANDS = {
    "variants": ("_machine", "The family: dimensions, parameters, published accuracy."),
    "export": ("_make", "Checkpoint -> verified ONNX."),
    "calibrate": ("_make", "Pictures -> ranges file, for quantize."),
    "quantize": ("_make", "Export -> INT8 or FP8 graph, verified."),
    "build-trt": ("_make", "ONNX -> TensorRT engine, with what is in it."),
    "verify": ("_check", "Artifacts against the reference."),
    "evaluate": ("_check", "Accuracy on a folder, against the reference."),
    "bench": ("_check", "Latency, throughput and memory against eager PyTorch."),
    "predict": ("_predict", "Pictures -> classes."),
    "inspect": ("_check", "What is in an ONNX file or an engine."),
    "package": ("_make", "A model repository for Triton Inference Server."),
    "tune": ("_tune", "The best file for this machine and a budget."),
    "run": ("_run", "A whole recipe, going on where it stopped."),
    "workspace": ("_machine", "List, check and tidy the artifacts."),
    "doctor": ("_machine", "What this machine can build and run, and why not the rest."),
    "completion": ("_machine", "A script that lets a shell complete commands and options."),
}
_INTERRUPTED = 130
_BY_SIGNAL = 128
# they end a command as Ctrl-C does: a process manager, or a terminal that is closed, sends them
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Terminated(SystemExit):
    """A signal asked the process to end."""


class _Group(HelpNames, click.Group):
    """Finds commands by name, and lists them without loading any."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        home, short_help = _COMMANDS[cmd_name]
        module = importlib.import_module(f"t2t_deploy.cli.{home}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        command.short_help = short_help
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=text)
            for name, (_, text) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=_Group,
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

    0 done; 1 an error the user can fix; 2 wrong usage; 3 done but a check fell short; 130 Ctrl-C;
    143 SIGTERM; 129 SIGHUP.
    """
    words = sys.argv[1:] if args is None else args
    output = Output(as_json="--json" in words)
    # what Pillow finds unusual in a picture's metadata: what it changes here is said as a note
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # the name of a file is bytes, which need not be text
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        _end(words, output, supervised=args is None)
    except MemoryError:
        end_speechless()
        raise
    finally:
        leave()


def _end(words: list[str], output: Output, *, supervised: bool) -> None:
    """Do what was asked for and exit, whatever happened in one line."""
    try:
        if supervised:
            supervise(_command(words), output)
            limit_threads()
        for ending in _ENDING:
            if signal.getsignal(ending) is not signal.SIG_IGN:  # as under nohup
                signal.signal(ending, _terminate)
        status = cli.main(args=words, prog_name="t2t-deploy", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as err:
        context = getattr(err, "ctx", None)
        hint = "" if context is None else f" Try '{context.command_path} --help'."
        output.error("UsageError", err.format_message() + hint)
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort) as err:
        _say_ended(output, err, "interrupted")
        sys.exit(_INTERRUPTED)
    except _Terminated as err:
        _say_ended(output, err, "terminated")
        raise
    except Exception as err:
        found = memory_short(err, _command(words)) or _fixable(err)
        if found is None:
            raise  # a bug: it shows its traceback
        output.error(found.kind, str(found))
        sys.exit(found.exit_status)


def _say_ended(output: Output, err: BaseException, how: str) -> None:
    if has_result(err):
        output.as_json = False  # stdout has its one object
    output.error(how.capitalize(), f"{how}; nothing half-written was left")


def _command(words: list[str]) -> str:
    return next((word for word in words if word in _COMMANDS), "t2t-deploy")


def _fixable(err: Exception) -> DeployError | None:
    """An error of ours, or of the machine's disk, rights and paths where no code expected it."""
    if isinstance(err, DeployError):
        return err
    if not isinstance(err, OSError) or err.errno is None:
        return None
    path = "" if err.filename is None else f" ({err.filename})"
    return MachineError(f"{err.strerror}{path}; see to it and run the command again")


def _terminate(number: int, frame: FrameType | None) -> Any:
    """Leave through the stack, so that temporary files and workers are cleaned up."""
    signal.signal(number, signal.SIG_IGN)  # once is enough: the clean-up is not interrupted
    raise _Terminated(_BY_SIGNAL + number)
