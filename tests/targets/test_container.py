"""The container target against a real engine: Podman, with an image that is made of this machine's own Python."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.bench import schedule
from qdeploy.core.errors import QDeployError
from qdeploy.targets.container import Target, find_engine, runs_natively
from tests.bundles import write_bundle
from tests.engine import BARE, FOREIGN, IMAGE, podman

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[Path]:
    with podman() as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An engine that no container is left in, and that is the one to take."""
    monkeypatch.setenv("QDEPLOY_CONTAINER", str(shared_engine))
    yield shared_engine
    assert containers(shared_engine) == []


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [write_bundle(folder, "fp32", "float32"), write_bundle(folder, "int8")]


def containers(engine: Path) -> list[str]:
    listed = subprocess.run([engine, "ps", "--all", "--quiet"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def program(folder: Path, name: str, script: str) -> Path:
    """A program of that name which is first on a PATH of ``folder``."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# -------------------------------------------------------------------------------------------------------- measuring


def test_bundles_are_timed_in_a_container(engine, bundles, monkeypatch):
    monkeypatch.setattr(schedule, "WARM_UP_SECONDS", 0.2)
    bench = schedule.run(bundles, target=f"container:{IMAGE}?cpus=1&memory=1g", seconds=0.3)
    assert bench.target == f"container:{IMAGE}?cpus=1&memory=1g"
    assert [row.name for row in bench.rows] == ["fp32", "int8"]
    assert all(row.latency.p50_ms.value > 0 for row in bench.rows)
    assert bench.environment.cores_allowed == 1
    assert {row.latency.threads for row in bench.rows} == {1}


def test_answers_in_a_container_are_those_of_here(engine, bundles, tmp_path):
    raw = np.random.default_rng(3).integers(0, 17, (5, 8, 8), dtype=np.uint8)
    hostile = tmp_path / "a:ro,z; touch pwned.qdeploy.zip"
    hostile.write_bytes(bundles[1].read_bytes())
    hostile.chmod(0o600)
    with Target(IMAGE) as place, place.open(hostile, name="int8") as worker:
        golden = worker.load(threads=1)["golden"]
        assert (golden["passed"], golden["samples"], golden["comparison"]) == (True, 8, "exact")
        there = worker.predict({"input": raw})["output"]
    here = runner.predict(runner.read_bundle(bundles[1]), {"input": raw}, 1)["output"]
    np.testing.assert_array_equal(there, here)


def test_a_container_has_no_network_and_writes_nothing_here(engine, bundles):
    look = (
        "import pathlib, socket, sys; print(*(name for _, name in socket.if_nameindex()))\n"
        "try: pathlib.Path('/qdeploy/new').touch()\n"
        "except OSError as error: print(error.strerror)"
    )
    with Target(IMAGE) as place, place.open(bundles[1], name="int8") as worker:
        worker.load(threads=1)
        done = subprocess.run([*place._run, "-c", look], capture_output=True, text=True)
        folder = place._folder
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
        assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert done.stdout.splitlines() == ["lo", "Read-only file system"], done.stderr
    assert not folder.parent.exists()


def test_times_of_an_image_for_another_cpu_are_withheld(engine, bundles):
    """The image only says that it is for another CPU, so it runs here; what is tested is that the record says so."""
    with Target(FOREIGN) as place, place.open(bundles[1], name="int8") as worker:
        told = worker.load(threads=1)["environment"]["emulator"]
    _, host = find_engine()
    assert told == f"s390x on {host}"


def test_what_runs_natively():
    assert runs_natively("amd64", "amd64")
    assert runs_natively("386", "amd64")
    assert runs_natively("", "amd64")
    assert not runs_natively("arm64", "amd64")
    assert not runs_natively("amd64", "386")


# --------------------------------------------------------------------------------------------------------- accidents


def test_leaving_in_the_middle_removes_the_container(engine, bundles):
    with Target(IMAGE) as place:
        worker = place.open(bundles[1], name="int8")
        worker.load(threads=1)
        assert len(containers(engine)) == 1
    assert containers(engine) == []
    worker.close()


def test_a_container_ends_with_the_process_here(engine, bundles):
    """SIGKILL of the client: the runner inside reads the end of its input, and the engine removes the container."""
    with Target(IMAGE) as place:
        worker = place.open(bundles[1], name="int8")
        worker.load(threads=1)
        worker._process.kill()
        with pytest.raises(QDeployError, match=f"int8 in container:{IMAGE}: its worker was killed by SIGKILL"):
            worker.block(0.05)
        deadline = time.monotonic() + 20
        while containers(engine) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert containers(engine) == []


def test_a_process_that_needs_more_memory_than_it_may(engine, bundles, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Target(f"{IMAGE}?memory=200m") as place, place.open(bundles[1], name="int8") as worker:
        worker.load(threads=1)
        raw = np.zeros((600_000, 8, 8), np.uint8)  # four times as much when the runner has made floats of it
        with pytest.raises(QDeployError, match="its worker ended with exit code 137 during 'predict'") as caught:
            worker.predict({"input": raw})
    assert "?memory=2g" in caught.value.hint
    assert not list(tmp_path.iterdir())  # Podman's own file "oom" is not left here


# --------------------------------------------------------------------------------------------------------- refusals


def refused(match: str, bundle: Path, address: str) -> QDeployError:
    """The error of opening a bundle, the same for a second one without asking again."""
    with Target(address) as place:
        with pytest.raises(QDeployError, match=match) as caught:
            place.open(bundle, name="x")
        with pytest.raises(QDeployError) as again:
            place.open(bundle, name="y")
    assert again.value is caught.value
    return caught.value


def test_an_image_that_is_not_here_is_not_fetched(engine, bundles):
    error = refused("podman has no such image", bundles[1], "localhost/no-such:image")
    assert "podman pull localhost/no-such:image" in error.hint


def test_an_image_that_cannot_run_bundles(engine, bundles):
    error = refused(
        "cannot import numpy and onnxruntime: ModuleNotFoundError: No module named 'numpy'", bundles[1], BARE
    )
    assert "docker/runner.Dockerfile" in error.hint
    refused("it has no /no/python3 that runs", bundles[1], f"{IMAGE}?python=/no/python3")
    refused("it was killed, most likely for its memory|Python was killed", bundles[1], f"{IMAGE}?memory=24m")


def test_an_image_for_one_platform_only(engine, bundles):
    refused("the container does not start", bundles[1], f"{IMAGE}?platform=linux/riscv64")


def test_without_an_engine(bundles, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QDEPLOY_CONTAINER", raising=False)
    assert "Podman" in refused(r"There is no container engine\.", bundles[1], "image").hint
    monkeypatch.setenv("QDEPLOY_CONTAINER", "nerdctl")
    refused("QDEPLOY_CONTAINER names nerdctl, which is no program", bundles[1], "image")


def test_an_engine_whose_service_does_not_run(bundles, monkeypatch, tmp_path):
    program(tmp_path, "docker", "echo 'Cannot connect to the Docker daemon. Is it running?' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QDEPLOY_CONTAINER", raising=False)
    error = refused("docker does not work: Cannot connect to the Docker daemon", bundles[1], "image")
    assert "service" in error.hint


def test_podman_is_taken_where_docker_does_not_answer(monkeypatch, tmp_path):
    program(tmp_path, "docker", "exit 1")
    working = program(tmp_path, "podman", """echo '{"Client": {"OsArch": "linux/arm64"}}'""")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QDEPLOY_CONTAINER", raising=False)
    assert find_engine() == (str(working), "arm64")
    docker = program(tmp_path, "docker", """echo '{"Client": {"Arch": "arm64"}, "Server": {"Arch": "amd64"}}'""")
    assert find_engine() == (str(docker), "amd64")


@pytest.mark.parametrize("address", ["", "-v/:/x", "a b", "image;ls", "a$b", "?cpus=1", "ü"])
def test_what_is_no_image_is_refused(address):
    with pytest.raises(QDeployError, match="is no name of an image"):
        Target(address)


@pytest.mark.parametrize(
    "options", ["cpus=0", "cpus=-1", "cpus=1 --privileged", "memory=0", "memory=1x", "platform=arm64", "gpus=all"]
)
def test_what_is_no_limit_is_refused(options):
    with pytest.raises(QDeployError, match=r"of the target 'container' cannot be|has no option"):
        Target(f"image?{options}")


def test_images_and_limits_as_the_engine_is_told():
    digest = "registry.example:5000/team/image@sha256:" + "0" * 64
    target = Target(f"{digest}?cpus=1.5&memory=512m&platform=linux/arm64/v8&python=/opt/venv/bin/python3")
    assert target._image == digest
    assert target._limits == ["--cpus", "1.5", "--memory", "512m", "--platform", "linux/arm64/v8"]
    assert target._python == "/opt/venv/bin/python3"


def test_other_runtimes_are_refused(bundles):
    with pytest.raises(QDeployError, match="runs on --target local only, not on container:image"):
        Target("image").open(bundles[1], name="x", runtime="ort_web")


def test_the_command_line_takes_the_target(engine, bundles, tmp_path):
    command = [sys.executable, "-m", "qdeploy", "bench", str(bundles[1]), "--target", f"container:{BARE}"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "No module named 'numpy'" in " ".join(done.stderr.replace("│", " ").split())
