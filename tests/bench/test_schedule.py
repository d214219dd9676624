from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

from qdeploy import runner
from qdeploy.bench.schedule import order, run
from qdeploy.core import records
from qdeploy.core.errors import QDeployError
from tests import bundles
from tests.bundles import write_bundle

# A target of a user's own, in one file: the local one, which also writes down who was asked for what.
RECORDING = """
from pathlib import Path
from qdeploy.targets import local

class Target(local.Target):
    def __init__(self, address):
        super().__init__()
        self.log = Path(address)

    def open(self, bundle, *, name, runtime):
        worker = super().open(bundle, name=name, runtime=runtime)
        ask = worker._ask
        def asked(timeout, do, **arguments):
            with self.log.open("a") as file:
                file.write(f"{do} {name}\\n")
            return ask(timeout, do, **arguments)
        worker._ask = asked
        return worker
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pair")
    return [write_bundle(folder, "fp32", "float32"), write_bundle(folder, "ptq-int8", "ptq")]


def broken(source: Path, target: Path) -> Path:
    """A bundle that is in order, but whose model no onnxruntime loads."""
    manifest, files = bundles.read_members(source)
    model = onnx.load_model_from_string(files["model.onnx"])
    model.graph.node[0].op_type = "NoSuchOperator"
    return bundles.write_members(
        target, {**manifest, "name": "broken"}, {**files, "model.onnx": model.SerializeToString()}
    )


def test_two_bundles_at_two_settings(pair):
    steps = []
    bench = run(
        pair, threads=[1], batches=[1, 4], seconds=0.1, progress=lambda what, share: steps.append((what, share))
    )
    assert [(row.name, row.latency.batch) for row in bench.rows] == [
        ("fp32", 1),
        ("ptq-int8", 1),
        ("fp32", 4),
        ("ptq-int8", 4),
    ]
    assert (bench.target, bench.baseline) == ("local", "fp32")
    for row in bench.rows:
        latency = row.latency
        assert 0 < latency.p50_ms.low <= latency.p50_ms.value <= latency.p50_ms.high
        assert latency.p50_ms.value <= latency.p90_ms <= latency.p99_ms
        assert latency.load_ms > 0
        assert latency.throughput_per_s > 0
        assert latency.peak_rss_bytes > 10 << 20
        assert latency.calls >= latency.blocks == runner.ROUNDS
        assert (latency.speedup is None) == (row.name == "fp32")
        assert latency.withheld is None
    first = bench.rows[1]
    opened = runner.read_bundle(pair[1])
    assert first.latency.bundle_sha256 == opened["sha256"]
    assert first.size_bytes == len(opened["model"])
    assert first.metric == records.Metric("top1", 0.98, 0.97, 0.99, 360)
    assert first.integer_mac_share == 1.0
    ratio = bench.rows[0].latency.p50_ms.value / first.latency.p50_ms.value
    assert first.latency.speedup is not None
    assert first.latency.speedup.value == pytest.approx(ratio)
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1
    assert records.from_json(records.Bench, records.to_json(bench)) == bench


def test_blocks_are_interleaved_and_one_process_at_a_time_is_asked(pair, tmp_path):
    plugin, log = tmp_path / "recording.py", tmp_path / "log"
    plugin.write_text(RECORDING)
    bench = run(pair, target=f"{plugin}:{log}", threads=[1], seconds=0.1)
    asked = [line.split() for line in log.read_text().splitlines()]
    loads = [name for do, name in asked if do == "load"]
    assert loads == ["fp32", "ptq-int8"]  # one process a bundle
    blocks = [name for do, name in asked if do == "block"]
    assert len(blocks) == 2 * runner.ROUNDS
    assert blocks[:8] == ["fp32", "ptq-int8", "ptq-int8", "fp32", "ptq-int8", "fp32", "fp32", "ptq-int8"]
    assert [do for do, _ in asked[-2:]] == ["finish", "finish"]
    assert len(bench.rows) == 2
    assert any(warning.startswith("Short: every bundle was measured in one process") for warning in bench.warnings)


def test_a_longer_bench_sees_several_processes_of_each_bundle(pair, tmp_path):
    """A process keeps its memory layout, and so its luck, for as long as it lives."""
    plugin, log = tmp_path / "recording.py", tmp_path / "log"
    plugin.write_text(RECORDING)
    (row,) = run(pair[:1], target=f"{plugin}:{log}", threads=[1], seconds=1.0).rows
    asked = [line.split()[0] for line in log.read_text().splitlines()]
    one = ["load", "warm_up", *["block"] * 4, "finish"]
    assert asked == one * 5
    assert row.latency.blocks == runner.ROUNDS


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_bundle_has_every_position_equally_often(count):
    rounds = [order(count, index) for index in range(2 * count)]
    assert all(sorted(one) == list(range(count)) for one in rounds)
    for position in range(count):
        assert np.bincount([one[position] for one in rounds], minlength=count).tolist() == [2] * count


def test_a_bundle_that_fails_is_a_warning_and_the_others_go_on(pair, tmp_path):
    bench = run([broken(pair[1], tmp_path / "broken.zip"), *pair], threads=[1], seconds=0.05)
    assert [row.name for row in bench.rows] == ["fp32", "ptq-int8"]
    (warning,) = [w for w in bench.warnings if "broken" in w]
    assert warning.startswith("broken was not measured. broken: onnxruntime")
    assert "NoSuchOperator" in warning
    assert "\n" not in warning


def test_when_all_fail_the_first_error_is_raised(pair, tmp_path):
    with pytest.raises(QDeployError, match="NoSuchOperator"):
        run([broken(pair[1], tmp_path / "broken.zip")], threads=[1], seconds=0.05)


def test_without_one_baseline_there_are_no_speedups_and_several_are_a_warning(pair, tmp_path):
    other = write_bundle(tmp_path, "other", "float32")
    bench = run([pair[0], other], threads=[1], seconds=0.05)
    assert bench.baseline is None
    assert [row.latency.speedup for row in bench.rows] == [None, None]
    assert any("--baseline" in warning for warning in bench.warnings)
    bench = run([pair[0], other], threads=[1], seconds=0.05, baseline="other")
    assert [row.latency.speedup is None for row in bench.rows] == [False, True]


def test_times_of_an_emulated_cpu_are_withheld(pair, monkeypatch):
    monkeypatch.setenv("QDEPLOY_EMULATOR", "qemu")
    bench = run(pair, threads=[1], seconds=0.05)
    for row in bench.rows:
        assert row.latency.withheld == "the CPU is emulated (qemu)"
        assert row.latency.p50_ms == records.Interval(0.0, 0.0, 0.0)
        assert (row.latency.calls, row.latency.speedup) == (0, None)
    assert any("emulated" in warning for warning in bench.warnings)


def test_answers_that_differ_and_threads_beyond_the_allowed_are_warned_of(pair, tmp_path, monkeypatch):
    manifest, files = bundles.read_members(pair[1])
    wrong = bundles.write_members(tmp_path / "wrong.zip", manifest, bundles.shift_golden(files, 1.0))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    bench = run([wrong], threads=[2], seconds=0.05)
    assert bench.environment.cores_allowed == 1
    assert any("ptq-int8 gives other answers here" in w and "10 of 10 golden values" in w for w in bench.warnings)
    assert any("2 threads were used where 1 cores are allowed" in w for w in bench.warnings)
    assert run([wrong], seconds=0.05).rows[0].latency.threads == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0.0}, "no time"),
        ({"threads": [0]}, "positive"),
        ({"batches": [0]}, "positive"),
        ({"target": "locl"}, "no target named 'locl'"),
        ({"target": "local:pi"}, "takes no address"),
        ({"runtime": "onnxrntime"}, "no runtime named"),
        ({"baseline": "fp31"}, "No bundle here is named 'fp31'"),
    ],
)
def test_wrong_arguments_are_one_error_before_any_work(pair, arguments, message):
    with pytest.raises(QDeployError, match=message) as caught:
        run(pair, **arguments)
    assert caught.value.hint


def test_nothing_to_measure_and_a_bad_bundle_are_errors(tmp_path):
    with pytest.raises(QDeployError, match="nothing to measure"):
        run([])
    (tmp_path / "bad.qdeploy.zip").write_bytes(b"x")
    with pytest.raises(QDeployError, match="not a valid bundle: it is not a zip"):
        run([tmp_path / "bad.qdeploy.zip"])


def test_stalls_that_a_median_hides_are_warned_about(pair):
    from qdeploy.bench import schedule

    bench = run(pair[:1], threads=[1], seconds=0.1)
    (row,) = bench.rows
    slow = dataclasses.replace(row.latency, throughput_per_s=1e3 / (2 * row.latency.p50_ms.value))
    steady = dataclasses.replace(row.latency, throughput_per_s=1e3 / row.latency.p50_ms.value)
    for latency, said in ((slow, True), (steady, False)):
        warnings = schedule._noise_warnings([], [dataclasses.replace(row, latency=latency)])
        assert any(warning.startswith("Stalls: the mean time of a call of fp32") for warning in warnings) == said


def test_a_pair_is_compared_in_the_rounds_that_both_ran(pair):
    digests = [runner.read_bundle(bundle)["sha256"] for bundle in pair]
    measured = run(pair, threads=[1], batches=[1, 2], seconds=0.1, pairs=[(digests[0], digests[1]), (digests[0], "0")])
    assert [(r.first, r.second, r.batch) for r in measured.ratios] == [(*digests, 1), (*digests, 2)]
    speedups = [row.latency.speedup for row in measured.rows if row.latency.speedup]
    for ratio, speedup in zip(measured.ratios, speedups, strict=True):
        assert ratio.speedup.inverse().value == pytest.approx(speedup.value)  # here the first one is the baseline
