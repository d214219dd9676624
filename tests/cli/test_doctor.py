from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from qdeploy.cli import doctor
from qdeploy.core.records import Environment, from_json
from tests.bench.test_traps import GOOD


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(doctor.command)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_sections_are_there(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke()
    assert result.exit_code == 0
    for words in ("Machine", "Instruction sets for int8", "Software", "Known traps here", "onnxruntime", "allowed of"):
        assert words in result.output


def test_json_is_the_same_as_data():
    facts = json.loads(invoke("--json").output)
    environment = from_json(Environment, facts["environment"])
    assert facts["versions"]["onnxruntime"] == environment.onnxruntime
    assert "CPUExecutionProvider" in facts["providers"]
    assert isinstance(facts["saturates"], bool)
    assert all(trap["what"] and trap["remedy"] for trap in facts["traps"])


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be over-subscribed")
def test_fewer_cores_than_threads_and_an_emulated_cpu_are_traps_and_torch_is_not_imported():
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from qdeploy.cli import doctor\n"
        "doctor.command(as_json=True)\n"
        "assert not {'torch', 'torchvision', 'lightning_fabric'} & set(sys.modules)\n"
    )
    variables = {**os.environ, "QDEPLOY_EMULATOR": "qemu", "OMP_NUM_THREADS": "64"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=variables)
    facts = json.loads(result.stdout)
    whats = [trap["what"] for trap in facts["traps"]]
    assert facts["environment"]["cores_allowed"] == 1
    assert any("emulated (qemu)" in what for what in whats)
    assert any("OMP_NUM_THREADS is 64" in what for what in whats)
    threads = facts["default_threads"]
    assert any(f"starts {threads} threads, but 1 of" in what for what in whats) == (threads > 1)


def test_measured_traps():
    (trap,) = doctor.measured_traps(GOOD, default_threads=8, saturates=False)
    assert "starts 8 threads, but 4 of 8 cores are allowed (cgroup quota)" in trap.what
    assert "intra_op_num_threads=4" in trap.remedy
    (trap,) = doctor.measured_traps(GOOD, default_threads=None, saturates=True)
    assert "saturate" in trap.what
    assert doctor.measured_traps(dataclasses.replace(GOOD, cores_allowed=8), default_threads=8, saturates=False) == []


def test_build_traps():
    release = "git-branch=HEAD, build type=Release"
    assert doctor.build_traps(release, ["onnxruntime"]) == []
    (trap,) = doctor.build_traps("git-branch=HEAD, build type=Debug", ["onnxruntime"])
    assert "no release build" in trap.what
    (trap,) = doctor.build_traps(release, ["onnxruntime", "onnxruntime-gpu"])
    assert "overwrite each other" in trap.what


def test_help_shows_an_example():
    assert "qdeploy doctor" in invoke("--help").output
