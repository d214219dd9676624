"""The ssh target against a real sshd on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from qdeploy import runner
from qdeploy.bench import schedule
from qdeploy.core.errors import QDeployError
from qdeploy.targets._ssh import KEEPER, posix_shell
from qdeploy.targets.ssh import Target
from tests.bundles import unpack, write_bundle
from tests.processes import accept_interrupts
from tests.sshd import Server, serving

ROOT = Path(__file__).resolve().parents[2]
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "tcsh", "fish", "busybox")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that nobody is logged in to, described as it is."""
    shared_server.describe()
    shared_server.trust(shared_server.folder / "host_key.pub")
    shared_server.login_shell()
    monkeypatch.setenv("QDEPLOY_SSH_CONFIG", str(shared_server.config))
    monkeypatch.setattr(schedule, "WARM_UP_SECONDS", 0.2)
    yield shared_server
    eventually(lambda: not shared_server.connections(), "nobody is logged in any more")
    eventually(lambda: shared_server.left() == [], f"{shared_server.left()} is left there")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [write_bundle(folder, "fp32", "float32"), write_bundle(folder, "int8")]


def eventually(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def workers(server: Server) -> list[int]:
    """The process ids of the runners that work in folders there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word.startswith(f"{server.temporary}/qdeploy.") for word in words[1:]):
            found.append(int(path.parent.name))
    return found


def is_python(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("python")


# -------------------------------------------------------------------------------------------------------- measuring


def test_bundles_are_timed_there(server, bundles):
    bench = schedule.run(bundles, target="ssh://device", seconds=0.3, batches=[1, 2])
    assert bench.target == "ssh://device"
    assert [(row.name, row.latency.batch) for row in bench.rows] == [("fp32", 1), ("int8", 1), ("fp32", 2), ("int8", 2)]
    assert all(row.latency.p50_ms.value > 0 for row in bench.rows)
    assert bench.environment.onnxruntime == ort.__version__
    assert not [warning for warning in bench.warnings if "not measured" in warning]


def test_one_login_serves_all_processes_and_each_file_is_sent_once(server, bundles):
    before = server.log.read_text().count("Accepted publickey")
    with Target("device") as place:
        opened = [place.open(bundle, name="x") for bundle in (*bundles, *bundles)]
        for worker in opened:
            assert worker.load()["golden"]["passed"]
        (folder,) = server.temporary.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        sent = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert len(sent) == 4  # runner.py, find_python.py, two bundles
        assert (folder / "runner.py").read_bytes() == Path(runner.__file__).read_bytes()
        for worker in opened:
            worker.close()
        with place.open(bundles[0], name="x") as worker:
            worker.load()
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == sent
    assert server.log.read_text().count("Accepted publickey") == before + 1


def test_answers_there_are_those_of_here(server, bundles):
    raw = np.random.default_rng(3).integers(0, 17, (5, 8, 8), dtype=np.uint8)
    with Target("device") as place, place.open(bundles[1], name="int8") as worker:
        golden = worker.load(threads=1)["golden"]
        assert (golden["passed"], golden["samples"], golden["comparison"]) == (True, 8, "exact")
        there = worker.predict({"input": raw})["output"]
    here = runner.predict(runner.read_bundle(bundles[1]), {"input": raw}, 1)["output"]
    np.testing.assert_array_equal(there, here)


def test_no_name_of_a_file_reaches_a_shell(server, bundles, tmp_path):
    server.login_shell('printf "%s\\n" "$SSH_ORIGINAL_COMMAND" >> "$HOME/commands"')
    names = [
        "a; touch pwned; #",
        "$(touch pwned)",
        "`touch pwned`",
        'it\'s "quoted" & more',
        "-n --version",
        "two\nlines",
    ]
    with Target("device") as place:
        for name in names:
            path = tmp_path / f"{name}.qdeploy.zip"
            path.write_bytes(bundles[1].read_bytes())
            with place.open(path, name=name) as worker:
                assert worker.load(threads=1)["golden"]["passed"]
    commands = (server.home / "commands").read_text()
    assert not [name for name in names if name in commands]
    assert not [path for folder in (server.home, server.temporary, Path.cwd()) for path in folder.glob("pwned*")]


def test_an_unpacked_folder_is_sent_too(server, bundles, tmp_path):
    folder = unpack(bundles[1], tmp_path / "a; touch pwned")
    with Target("device") as place, place.open(folder, name="int8") as worker:
        assert worker.load(threads=1)["golden"]["passed"]


def test_more_processes_than_one_login_may_carry(bundles, monkeypatch):
    """Servers allow 10 sessions a connection by default; what does not fit logs in by itself."""
    with serving("MaxSessions 2") as narrow:
        monkeypatch.setenv("QDEPLOY_SSH_CONFIG", str(narrow.config))
        with Target("device") as place:
            opened = [place.open(bundles[1], name=str(i)) for i in range(4)]
            assert all(worker.load(threads=1)["golden"]["passed"] for worker in opened)
            for worker in opened:
                worker.close()
        assert narrow.left() == []


def test_a_users_configuration_that_would_disturb_does_not(server, bundles):
    server.describe(
        RemoteCommand="false", RequestTTY="force", LocalForward="1 127.0.0.1:1", ControlMaster="auto",
        ControlPath=server.folder / "own", ControlPersist="yes", ForwardAgent="yes",
    )  # fmt: skip
    with Target("device") as place, place.open(bundles[1], name="int8") as worker:
        assert worker.load(threads=1)["golden"]["passed"]
    assert not (server.folder / "own").exists()


def test_other_runtimes_are_refused_before_anybody_logs_in(server, bundles):
    with pytest.raises(QDeployError, match="runs on --target local only, not on ssh://device"):
        Target("device").open(bundles[1], name="x", runtime="ort_web")


# -------------------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("raspberrypi", ["--", "raspberrypi"]),
        ("pi@10.0.0.7:2222", ["-l", "pi", "-p", "2222", "--", "10.0.0.7"]),
        ("pi@host/", ["-l", "pi", "--", "host"]),
        ("[::1]:22", ["-p", "22", "--", "::1"]),
        ("me@[fe80::1%eth0]", ["-l", "me", "--", "fe80::1%eth0"]),
        ("host_1.lan?python=/opt/a%20b/python3", ["--", "host_1.lan"]),
    ],
)
def test_what_ssh_is_told_for_an_address(address, told):
    target = Target(address)
    assert target._destination == told
    assert target.name == f"ssh://{address.partition('?')[0].removesuffix('/')}"


@pytest.mark.parametrize(
    "address",
    ["", "-oProxyCommand=touch pwned", "a;touch pwned", "$(touch pwned)", "a b", "a\nb", "@host", "-l@host", "u@-oX",
     "::1", "[::1", "[x]", "host:", "host:port", "host:123456", "host/path", "a'b", "ü", "a@b@c"],
)  # fmt: skip
def test_what_is_no_address_is_refused(address):
    with pytest.raises(QDeployError, match="is no address") as caught:
        Target(address)
    assert "ssh://" in caught.value.hint


@pytest.mark.parametrize("shell", [shell for shell in SHELLS if shutil.which(shell)])
def test_what_is_asked_of_a_host_means_the_same_in_every_shell(shell, tmp_path):
    """The shell is the one that a user has there, and the folder for temporary files has a space in its name."""
    own = {**os.environ, "TMPDIR": str(tmp_path / "my folder")}
    (tmp_path / "my folder").mkdir()
    command = [shell, *(["sh"] if shell == "busybox" else []), "-c", posix_shell(KEEPER)]
    with subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().removeprefix("qdeploy ").rstrip("\n"))
        assert folder.parent == tmp_path / "my folder"
        assert folder.stat().st_mode & 0o777 == 0o700
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    assert not folder.exists()


# --------------------------------------------------------------------------------------------------------- refusals


def refused(match: str, bundle: Path, address: str = "device") -> QDeployError:
    """The error of opening a bundle, the same for a second one without asking again."""
    with Target(address) as place:
        with pytest.raises(QDeployError, match=match) as caught:
            place.open(bundle, name="x")
        with pytest.raises(QDeployError) as again:
            place.open(bundle, name="y")
    assert again.value is caught.value
    assert caught.value.message.startswith(f"{Target(address).name}: ")
    return caught.value


def test_an_unknown_host_key_is_refused_and_not_learnt(server, bundles):
    server.known_hosts.write_text("")
    error = refused("its host key is not known here", bundles[1])
    assert "by hand" in error.hint
    assert server.known_hosts.read_text() == ""


def test_a_changed_host_key_is_refused(server, bundles):
    server.trust(server.folder / "other_key.pub")
    assert "ssh-keygen -R" in refused("its host key is not the known one", bundles[1]).hint


def test_a_wrong_key_is_refused_without_a_prompt(server, bundles):
    server.describe(IdentityFile=server.folder / "other_key")
    assert "ssh-copy-id" in refused(r"it refuses the login\. ssh says: .*Permission denied", bundles[1]).hint


def test_nobody_there(server, bundles):
    server.describe(Port=1)
    refused("nothing answers at its ssh port", bundles[1])
    server.describe(HostName="no-such-host.invalid")
    refused("no host has this name", bundles[1])


def test_without_ssh(bundles, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QDeployError, match="needs OpenSSH's client"):
        Target("device").open(bundles[1], name="x")


def test_a_configuration_that_is_not_there(bundles, monkeypatch, tmp_path):
    monkeypatch.setenv("QDEPLOY_SSH_CONFIG", str(tmp_path / "none"))
    with pytest.raises(QDeployError, match=r"QDEPLOY_SSH_CONFIG names .*, which is no file"):
        Target("device").open(bundles[1], name="x")


def test_a_shell_that_talks_is_named(server, bundles):
    server.login_shell("echo 'Welcome to this device!'")
    assert "must be silent" in refused("prints 'Welcome to this device!' before", bundles[1]).hint


def test_a_host_without_a_posix_shell(server, bundles):
    server.login_shell("echo \"'exec' is not recognized as an internal or external command\" >&2; exit 1")
    assert "Windows" in refused("runs no POSIX shell. 'exec' is not recognized", bundles[1]).hint


def test_a_full_disk(server, bundles):
    server.login_shell("ulimit -f 64  # blocks of 512 bytes; the runner has more")
    with Target("device") as place, pytest.raises(QDeployError, match="the runner, 0 MiB, cannot be written there"):
        place.open(bundles[1], name="x")


# ----------------------------------------------------------------------------------------------------------- python


def test_a_named_python_runs_the_bundles(server, bundles):
    folder = server.home / "my tools"
    folder.mkdir(exist_ok=True)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nexport QDEPLOY_EMULATOR="what it sets"\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with Target("device?python=~/my%20tools/python3") as place, place.open(bundles[1], name="int8") as worker:
        loaded = worker.load(threads=1)
    assert loaded["golden"]["passed"]
    assert loaded["environment"]["emulator"] == "what it sets"


def test_a_named_python_that_cannot_run_bundles(server, bundles):
    venv = server.home / "empty"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    assert "?python=" in refused("No module named 'numpy'", bundles[1], "device?python=~/empty/bin/python3").hint
    assert "?python=" in refused("it has no /no/python3", bundles[1], "device?python=/no/python3").hint


def base_python(server: Server) -> str:
    """Lines for a login shell in which python3 is the one that this virtual environment was made with.

    pip's settings go along, as the index that it installs from is not everywhere the usual one.
    """
    base = Path(sys.base_prefix, "bin", f"python{sys.version_info[0]}.{sys.version_info[1]}")
    if sys.prefix == sys.base_prefix or not base.exists():
        pytest.skip("this Python is no virtual environment: there is no bare Python to start from")
    (server.home / "bin").mkdir(exist_ok=True)
    link = server.home / "bin" / "python3"
    if not link.is_symlink():
        link.symlink_to(base)
    settings = {key: value for key, value in os.environ.items() if key.startswith("PIP_") or "proxy" in key.lower()}
    exports = [f"export {key}={shlex.quote(value)}" for key, value in settings.items()]
    return "\n".join([*exports, 'PATH="$HOME/bin:$PATH"'])


@pytest.mark.slow
def test_a_python_is_made_there_once(server, bundles):
    server.login_shell(base_python(server))
    wanted = [f"numpy=={np.__version__}", f"onnxruntime=={ort.__version__}"]
    tried = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", *wanted]
    if subprocess.run(tried, capture_output=True, timeout=300).returncode != 0:
        pytest.skip("pip cannot install numpy and onnxruntime on this machine")
    made = []
    for _ in range(2):
        with Target("device") as place, place.open(bundles[1], name="int8") as worker:
            loaded = worker.load(threads=1)
            assert loaded["golden"]["passed"]
            assert loaded["environment"]["onnxruntime"] == ort.__version__
        (venv,) = (server.home / ".cache" / "qdeploy").iterdir()
        made.append((venv.name, (venv / "pyvenv.cfg").stat().st_mtime_ns))
    assert made[0] == made[1]


def test_a_device_without_a_network_is_told_to_name_a_python(server, bundles):
    server.login_shell(base_python(server), "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/ XDG_CACHE_HOME=$HOME/offline")
    assert "?python=" in refused("pip installs no numpy and onnxruntime", bundles[1]).hint
    assert list((server.home / "offline" / "qdeploy").iterdir()) == []


# --------------------------------------------------------------------------------------------------------- accidents


def test_a_connection_that_breaks_leaves_what_was_measured(server, bundles):
    """It breaks in the second of three settings: the first is kept, and the third is measured over a new login."""
    dropped = []

    def drop_once(what: str, share: float) -> None:
        if what == "measure" and share > 1 / 3 and not dropped:
            dropped.append(server.connections())
            server.drop()

    bench = schedule.run(bundles, target="ssh://device", seconds=0.3, batches=[1, 2, 3], progress=drop_once)
    assert dropped
    assert [(row.name, row.latency.batch) for row in bench.rows] == [("fp32", 1), ("int8", 1), ("fp32", 3), ("int8", 3)]
    lost = [warning for warning in bench.warnings if "the connection was lost during 'block'" in warning]
    assert [warning.split()[0] for warning in lost] == ["fp32", "int8"]
    assert all("ssh://device" in warning for warning in lost)


def test_a_host_that_does_not_come_back_is_not_asked_for_every_bundle(server, bundles):
    with Target("device") as place:
        with place.open(bundles[0], name="fp32") as worker:
            worker.load(threads=1)
            server.describe(Port=1)
            server.drop()
            with pytest.raises(QDeployError, match=r"ssh://device: the connection was lost during 'block' of fp32"):
                worker.block(0.1)
        for _ in range(2):
            with pytest.raises(QDeployError, match="nothing answers"):
                place.open(bundles[1], name="int8")


def test_a_process_that_is_killed_there_leaves_the_others(server, bundles):
    with Target("device") as place, place.open(bundles[0], name="fp32") as first:
        first.load(threads=1)
        there = set(workers(server))
        with place.open(bundles[1], name="int8") as second:
            second.load(threads=1)
            (python,) = (pid for pid in set(workers(server)) - there if is_python(pid))
            os.kill(python, signal.SIGKILL)
            with pytest.raises(
                QDeployError, match="int8 on ssh://device: its worker ended with exit code 137"
            ) as caught:
                second.block(0.05)
            assert "memory" in caught.value.hint
        assert first.block(0.05)


def test_a_script_that_is_killed_leaves_nothing_there(server, bundles):
    """SIGKILL: nothing here can clean up, so the other side does."""
    code = (
        "import sys, pathlib, time; from qdeploy.targets.ssh import Target\n"
        "worker = Target('device').open(pathlib.Path(sys.argv[1]), name='x'); worker.load(threads=1)\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    own = {**os.environ, "TMPDIR": str(server.folder)}  # for what stays here: an empty folder
    command = [sys.executable, "-c", code, bundles[1]]
    with subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert server.left()
        assert workers(server)
        process.kill()
    eventually(lambda: not workers(server), "a worker lives on")


def test_ctrl_c_leaves_nothing_there(server, bundles):
    command = [
        sys.executable,
        "-m",
        "qdeploy",
        "bench",
        *map(str, bundles),
        "--target",
        "ssh://device",
        "--seconds",
        "60",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=accept_interrupts,
    )  # fmt: skip
    eventually(lambda: len(workers(server)) >= 2, "no worker starts")
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert workers(server) == []
    assert server.left() == []
