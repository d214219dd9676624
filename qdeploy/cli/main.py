"""The command line: which commands there are, and how their errors look.

The files of the commands import nothing heavy until they run, so that ``qdeploy --help`` answers at once.
"""

from __future__ import annotations

import errno
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qdeploy import __version__
from qdeploy.cli import accuracy, bench, build, compare, doctor, inspect, verify
from qdeploy.cli import list as list_
from qdeploy.cli.errors import show
from qdeploy.core.errors import QDeployError

# What a disk may answer, and what helps.
_DISK = {
    errno.ENOSPC: "Free some space, or write elsewhere: --out, --json.",
    errno.EDQUOT: "Free some space, or write elsewhere: --out, --json.",
    errno.EROFS: "Write elsewhere: --out, --json.",
    errno.EACCES: "Give yourself the right to write there, or write elsewhere: --out, --json.",
    errno.EPERM: "Give yourself the right to write there, or write elsewhere: --out, --json.",
}


class Commands(TyperGroup):
    """The commands, with one end for each way of failing that is no bug."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. What a user can mend is a panel and exit code 2, Ctrl-C a line and 130."""
        try:
            return super().invoke(ctx)
        except _expected() as error:
            show(error)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in _DISK:
                raise
            show(QDeployError(f"{error.filename or 'A file'}: {error.strerror}.", _DISK[error.errno]))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            _say_interrupted()
            raise typer.Exit(130) from None


app = typer.Typer(
    name="qdeploy",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug keeps its plain traceback
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command("build")(build.command)
app.command("bench")(bench.command)
app.command("inspect")(inspect.command)
app.command("verify")(verify.command)
app.command("accuracy")(accuracy.command)
app.command("compare")(compare.command)
app.command("doctor")(doctor.command)
app.command("list")(list_.command)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"qdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _qdeploy(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """From a PyTorch model to a small, fast, provably right integer artifact that runs in onnxruntime."""


def main() -> None:
    """What the command ``qdeploy`` calls."""
    for name in ("SIGTERM", "SIGHUP"):  # there is no SIGHUP on Windows, and nohup has it ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _terminate)
    try:
        app()
    except KeyboardInterrupt:  # before or after the command itself
        _say_interrupted()
        sys.exit(130)


def _expected() -> tuple[type[Exception], ...]:
    """The errors that carry a message and a hint. The runner stands alone and has one of its own."""
    runner = sys.modules.get("qdeploy.runner")
    return (QDeployError,) if runner is None else (QDeployError, runner.RunnerError)


def _terminate(number: int, _: Any) -> None:
    """Leave as Ctrl-C does: containers, folders and processes, here and elsewhere, are let go of."""
    sys.exit(128 + number)


def _say_interrupted() -> None:
    typer.echo("Interrupted.", err=True)
