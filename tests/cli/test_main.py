from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy import __version__
from qdeploy.cli import main
from tests.processes import accept_interrupts

COMMANDS = {"build", "bench", "inspect", "verify", "accuracy", "compare", "doctor", "list"}
# A program with the real command line and one more command, which does what a test wants to see handled.
PROGRAM = """
    import sys, time, typer
    from qdeploy.cli.main import app, main
    from qdeploy.core.errors import QDeployError

    @app.command()
    def probe(what: str) -> None:
        if what == "error":
            raise QDeployError("The [bold]sky[/] is /down/.", "Hold it up.")
        if what == "runner":
            from qdeploy import runner
            raise runner.RunnerError("The runner fell.", "Help it up.")
        if what == "bug":
            raise RuntimeError("a bug")
        if what == "exit":
            raise typer.Exit(1)
        try:
            print("ready", flush=True)
            time.sleep(60)
        finally:
            print("let go", flush=True)

    main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_help_names_every_command_with_what_it_does():
    result = CliRunner().invoke(main.app, ["--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    rows = dict(re.findall(r"│ (\w+) +(\S.*?) *│", result.output.split("Commands")[1]))
    assert set(rows) == COMMANDS
    assert all(len(text) > 20 for text in rows.values())


def test_no_arguments_is_help():
    assert "Usage" in CliRunner().invoke(main.app, []).output


def test_help_imports_nothing_heavy():
    code = """
import sys
from typer.testing import CliRunner
from qdeploy.cli.main import app
for arguments in (["--help"], ["build", "--help"], ["bench", "--help"], ["--version"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0, arguments
heavy = {"torch", "torchvision", "lightning_fabric", "onnx", "onnxruntime", "numpy", "matplotlib", "sklearn"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported: {done.stderr}"


def test_version():
    result = CliRunner().invoke(main.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"qdeploy {__version__}\n")


def test_the_installed_command_is_this_one():
    installed = Path(sys.executable).with_name("qdeploy")
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"qdeploy {__version__}\n"


def test_a_wrong_command_suggests_the_nearest():
    result = CliRunner().invoke(main.app, ["biuld"])
    assert result.exit_code == 2
    assert "Did you mean 'build'?" in result.output


def test_an_error_is_one_panel_with_its_hint_and_no_traceback():
    done = run("probe", "error")
    assert (done.returncode, done.stdout) == (2, "")
    assert "The [bold]sky[/] is /down/." in done.stderr  # not taken for markup
    assert "Hold it up." in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.stderr.count("╭"), done.stderr.count("╰")) == (1, 1)


def test_an_error_of_the_stand_alone_runner_is_one_too():
    done = run("probe", "runner")
    assert done.returncode == 2
    assert "Help it up." in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback():
    done = run("probe", "bug")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("RuntimeError: a bug\n")


def test_a_command_may_choose_its_exit_code():
    assert run("probe", "exit").returncode == 1


def test_ctrl_c_is_one_line():
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), "probe", "wait"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=accept_interrupts, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said.strip() == "Interrupted."


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_terminated_command_lets_go_of_what_it_holds():
    """As Ctrl-C does: a batch system, a service manager and a terminal that is closed end programs with these."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), "probe", "wait"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        # What is ignored here, as under nohup, would be ignored there too.
        heard = functools.partial(signal.signal, number, signal.SIG_DFL)
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=heard) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            said, _ = process.communicate(timeout=30)
        assert (process.returncode, said) == (128 + number, b"let go\n")


def test_a_recipe_error_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Through the real command: before any work, nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("name: a\nmodel: {factory: x}\ndata: {name: digits}\ntrain: {epoch: 1}\n")
    result = CliRunner().invoke(main.app, ["build", "a.yaml"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "train.epoch (line 4): unknown key. Did you mean 'epochs'?" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
