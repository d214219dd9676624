from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from qdeploy import runner
from qdeploy.bench.system import Clock
from qdeploy.cli import doctor
from qdeploy.core import plugins
from qdeploy.core.records import Environment, from_json


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(doctor.command)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_the_sections_are_there(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = invoke()
    assert result.exit_code == 0
    sections = ("Machine", "Instruction sets for int8", "Software", "Runtimes", "Targets", "Known traps here")
    for words in (*sections, "onnxruntime", "allowed of"):
        assert words in result.output


def test_json_is_the_same_as_data():
    facts = json.loads(invoke("--json").output)
    environment = from_json(Environment, facts["environment"])
    assert facts["versions"]["onnxruntime"] == environment.onnxruntime
    assert isinstance(facts["saturates"], bool)
    assert set(facts) == set(doctor.examine())
    assert all(trap["what"] and trap["remedy"] for trap in facts["traps"])


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core cannot be over-subscribed")
def test_fewer_cores_than_threads_and_an_emulated_cpu_are_traps_and_torch_is_not_imported():
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from qdeploy.cli import doctor\n"
        "doctor.command(as_json=True)\n"
        "assert not {'torch', 'torchvision', 'lightning_fabric', 'openvino'} & set(sys.modules)\n"
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
    assert facts["slowdown"] is None  # times of an emulated CPU mean nothing


def test_providers_are_named_as_the_command_line_takes_them():
    names = doctor.providers(["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert names == ["CPU", "CUDA"]
    facts = doctor.examine()
    assert facts["providers"][0] == "CPU"
    assert [runner.provider_name(name) for name in facts["providers"]]


def test_what_can_run_here_is_told_of_every_runtime_and_target():
    facts = doctor.examine()
    assert list(facts["runtimes"]) == plugins.names("runtime")
    assert list(facts["targets"]) == plugins.names("target")
    assert list(facts["loggers"]) == plugins.names("logger")
    assert facts["runtimes"]["onnxruntime"] == facts["targets"]["local"] == ""


def test_what_is_missing_is_told_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("QDEPLOY_EMULATORS", str(tmp_path))
    monkeypatch.delenv("QDEPLOY_NODE", raising=False)
    monkeypatch.delenv("QDEPLOY_CONTAINER", raising=False)
    runtimes, targets = doctor.missing("runtime"), doctor.missing("target")
    assert "There is no Node on this machine" in runtimes["ort_web"]
    assert "Install Docker or Podman." in targets["container"]
    assert "ssh, is not installed here. Install openssh." in targets["ssh"]
    if sys.platform == "linux":
        assert f"There are no emulated CPUs in {tmp_path}. This fetches them" in targets["qemu"]
    monkeypatch.setenv("COLUMNS", "200")
    assert " ".join(targets["ssh"].split()) in " ".join(invoke().output.split())


def test_clocks_in_words():
    fast = Clock(4, "intel_pstate", "powersave", "balance_power", 3400000, 3400000)
    slow = Clock(8, "cpufreq-dt", "schedutil", "", 0, 0)
    assert doctor._clock([fast], False) == "powersave (intel_pstate, balance_power), up to 3.4 GHz; turbo off"
    both = "powersave (intel_pstate, balance_power), up to 3.4 GHz on 4 CPUs; schedutil (cpufreq-dt) on 8 CPUs"
    assert doctor._clock([fast, slow], None) == both
    assert "not reported" in doctor._clock([], None)


def test_help_shows_an_example():
    assert "qdeploy doctor" in invoke("--help").output
