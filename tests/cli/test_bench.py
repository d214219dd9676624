from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from qdeploy import runner
from qdeploy.cli import bench
from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from tests.bundles import unpack, write_bundle
from tests.processes import accept_interrupts

# The command as qdeploy/cli/main.py registers it.
APP = """
    import typer
    from qdeploy.cli import bench
    app = typer.Typer()
    app.command("bench")(bench.command)
    app.callback()(lambda: None)
    app()
"""
QUICK = ("--threads", "1", "--seconds", "0.05")


def invoke(*arguments: str):
    app = typer.Typer()
    app.command()(bench.command)
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def make_build(folder: Path) -> Path:
    """A build folder: two bundles below it, and the results.json that names them."""
    variants = []
    for name, method in (("fp32", "float32"), ("ptq-int8", "ptq")):
        bundle = write_bundle(folder / "bundles", name, method)
        opened = runner.read_bundle(bundle)
        variants.append(
            records.Variant(
                name=name,
                method=method,
                metric=records.Metric("top1", 0.98, 0.97, 0.99, 360),
                delta=None if name == "fp32" else records.Interval(0.0, -0.01, 0.01),
                agreement=None if name == "fp32" else 1.0,
                size_bytes=len(opened["model"]),
                compression=1.0,
                bundle=f"bundles/{bundle.name}",
                bundle_sha256=opened["sha256"],
                integer_mac_share=0.0 if name == "fp32" else 1.0,
                differing_codes=0,
                layers=(),
            )
        )
    records.save(records.Results("digits", "fp32", tuple(variants)), folder / "results.json")
    return folder


@pytest.fixture
def build(tmp_path: Path) -> Path:
    return make_build(tmp_path / "digits")


def test_a_build_folder_gets_its_latencies_and_its_report(build, tmp_path):
    result = invoke(
        str(build), "--threads", "1", "--batch", "1,2", "--seconds", "0.05", "--json", str(tmp_path / "b.json")
    )
    assert result.exit_code == 0, result.output
    measured = records.load(records.Bench, tmp_path / "b.json")
    assert [(row.name, row.latency.batch) for row in measured.rows] == [
        ("fp32", 1),
        ("ptq-int8", 1),
        ("fp32", 2),
        ("ptq-int8", 2),
    ]
    results = records.load(records.Results, build / "results.json")
    assert [variant.latency for variant in results.variants] == [row.latency for row in measured.rows[:2]]
    assert results.environment == measured.environment
    speedup = results.variants[1].latency.speedup if results.variants[1].latency else None
    assert speedup is not None
    assert (build / "report.html").stat().st_size > 1000
    assert "report.html" in result.output
    assert "ptq-int8" in result.output


def test_the_contrasts_of_a_build_get_their_ratios(build):
    path = build / "results.json"
    results = records.load(records.Results, path)
    contrast = records.Contrast("ptq-int8", "fp32", records.Interval(0.0, -0.01, 0.01), 1.0)
    records.save(dataclasses.replace(results, contrasts=(contrast,)), path)
    assert invoke(str(build), *QUICK).exit_code == 0
    measured = records.load(records.Results, path)
    latency = measured.variants[1].latency
    assert latency is not None
    assert measured.contrasts[0].speedup == latency.speedup  # against the baseline, so it is the same ratio
    assert measured.variants[1].summary is not None


def test_a_bundle_that_changed_since_the_build_keeps_no_times(build):
    path = build / "results.json"
    results = records.load(records.Results, path)
    old = dataclasses.replace(results.variants[1], bundle_sha256="0" * 64)
    records.save(dataclasses.replace(results, variants=(results.variants[0], old)), path)
    result = invoke(str(build), *QUICK)
    assert result.exit_code == 0, result.output
    assert "No times for ptq-int8" in " ".join(result.output.split())
    updated = records.load(records.Results, path)
    assert [variant.latency is None for variant in updated.variants] == [False, True]


def test_a_short_bench_does_not_replace_times_that_were_measured_for_longer(build):
    path = build / "results.json"
    assert invoke(str(build), "--threads", "1", "--seconds", "0.5").exit_code == 0
    long = path.read_text()
    result = invoke(str(build), "--threads", "1", "--seconds", "0.02")
    assert result.exit_code == 0, result.output
    assert re.search(r"keeps its times: they were measured for [\d.]+ seconds", " ".join(result.output.split()))
    assert path.read_text() == long
    again = re.search(r"To replace them: --seconds ([\d.]+)\.", " ".join(result.output.split()))
    assert again is not None
    assert invoke(str(build), "--threads", "1", "--seconds", again[1]).exit_code == 0
    assert path.read_text() != long


def test_a_short_bench_is_better_than_none(build):
    path = build / "results.json"
    assert invoke(str(build), "--threads", "1", "--seconds", "0.5").exit_code == 0
    results = records.load(records.Results, path)
    untimed = dataclasses.replace(results.variants[1], latency=None)
    records.save(dataclasses.replace(results, variants=(results.variants[0], untimed)), path)
    assert invoke(str(build), "--threads", "1", "--seconds", "0.02").exit_code == 0
    assert all(variant.latency is not None for variant in records.load(records.Results, path).variants)


def test_speedups_over_another_builds_model_do_not_enter_a_build(build, tmp_path):
    other = write_bundle(tmp_path, "other", "float32")
    (build / "bundles" / "fp32.qdeploy.zip").rename(tmp_path / "gone.zip")
    write_bundle(build / "bundles", "fp32", "ptq")  # the build's own baseline is another file now
    result = invoke(str(build), str(other), *QUICK)
    assert result.exit_code == 0, result.output
    latency = records.load(records.Results, build / "results.json").variants[1].latency
    assert latency is not None
    assert latency.speedup is None


def test_what_paths_stand_for(build, tmp_path):
    zipped = build / "bundles" / "fp32.qdeploy.zip"
    assert bench.find_bundles(zipped) == [zipped]
    folder = unpack(zipped, tmp_path / "unpacked")
    assert bench.find_bundles(folder) == [folder]
    assert [path.name for path in bench.find_bundles(build)] == ["fp32.qdeploy.zip", "ptq-int8.qdeploy.zip"]
    (build / "results.json").unlink()
    assert bench.find_bundles(build) == sorted((build / "bundles").iterdir())
    result = invoke(str(folder), *QUICK)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{build}/nothing",), "There is no"),
        (("{empty}",), "There is no bundle"),
        (("{build}", "--threads", "1,x"), "--threads '1,x' is not a list of positive numbers"),
        (("{build}", "--batch", "0"), "--batch '0'"),
        (("{build}", "--target", "sssh://pi@host"), "no target named 'sssh'"),
        (("{build}", "--baseline", "int8"), "No bundle here is named 'int8'"),
    ],
)
def test_wrong_arguments_are_qdeploy_errors(build, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    result = invoke(*(argument.format(build=build, empty=tmp_path / "empty") for argument in arguments))
    assert isinstance(result.exception, QDeployError)
    assert message in result.exception.message
    assert result.exception.hint


def test_results_that_name_a_missing_bundle_are_an_error(build):
    (build / "bundles" / "ptq-int8.qdeploy.zip").unlink()
    with pytest.raises(QDeployError, match=r"lists .*ptq-int8.qdeploy.zip, which does not exist"):
        bench.find_bundles(build)


def test_help_shows_an_example():
    assert "qdeploy bench runs/digits --threads 1,2 --batch 1,16" in " ".join(invoke("--help").output.split())


def test_it_runs_where_torch_cannot_be_imported(build, tmp_path):
    """Measuring on a device needs no torch: here every import of it, however deep, fails."""
    blocker = """
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "torchvision", "lightning_fabric", "lightning", "torchmetrics"):
                    raise ImportError(f"{name} is not installed here")
        sys.meta_path.insert(0, Blocker())
    """
    script = tmp_path / "cli.py"
    script.write_text(textwrap.dedent(blocker) + textwrap.dedent(APP))
    command = [sys.executable, str(script), "bench", str(build), *QUICK, "--json", str(tmp_path / "b.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert len(records.load(records.Bench, tmp_path / "b.json").rows) == 2
    assert (build / "report.html").is_file()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_threads_default_to_the_affinity_mask(build, tmp_path):
    script = tmp_path / "cli.py"
    pin = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script.write_text(pin + textwrap.dedent(APP))
    command = [
        sys.executable,
        str(script),
        "bench",
        str(build),
        "--seconds",
        "0.05",
        "--json",
        str(tmp_path / "b.json"),
    ]
    subprocess.run(command, capture_output=True, text=True, check=True)
    measured = records.load(records.Bench, tmp_path / "b.json")
    assert {row.latency.threads for row in measured.rows} == {1}
    assert measured.environment.cores_allowed == 1


@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").is_file(), reason="/proc lists no children")
def test_ctrl_c_stops_the_workers(build, tmp_path):
    script = tmp_path / "cli.py"
    script.write_text(textwrap.dedent(APP))
    command = [sys.executable, str(script), "bench", str(build), "--threads", "1", "--seconds", "300"]
    before = json.loads((build / "results.json").read_text())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=accept_interrupts, **pipes) as process:
        children: list[str] = []
        while len(children) < 2 and process.poll() is None:
            time.sleep(0.05)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        for child in children:  # as a terminal does it, to the whole group
            os.kill(int(child), signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 2)
    assert not re.search("Traceback", errors)
    deadline = time.monotonic() + 30  # whoever adopts the children may take a moment to bury them
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert json.loads((build / "results.json").read_text()) == before
