"""The stand-alone runner: environment, cores, sessions, preprocessing, self-test. Its bundles: test_runner_bundles."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qdeploy import runner
from qdeploy.core.records import Environment, from_json
from qdeploy.targets import qemu
from tests.bundles import float_model, integer_model

RUNNER = Path(runner.__file__)


def test_it_imports_nothing_but_the_standard_library_numpy_and_onnxruntime():
    nodes = list(ast.walk(ast.parse(RUNNER.read_text(encoding="utf-8"))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    others = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    assert others == {"numpy", "onnxruntime", "PIL"}  # PIL only where an image is read


# ---------------------------------------------------------------------------------------------- environment record


def test_the_environment_is_what_records_expect():
    environment = from_json(Environment, json.loads(json.dumps(runner.environment())))
    assert 1 <= environment.cores_allowed <= environment.cores_present
    assert environment.cpu
    assert environment.memory_bytes > 1 << 20
    assert set(environment.isa) <= set(runner.ISA_FLAGS)


X86 = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512_vnni amx_int8\n\nprocessor\t: 1\n"
PI = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n\nModel\t\t: Raspberry Pi 5 Model B\n"
BIG_LITTLE = "Features\t: fp asimd\nCPU part\t: 0xd05\n\nFeatures\t: fp asimd\nCPU part\t: 0xd0b\n"
UNKNOWN = "Features\t: fp asimd i8mm\nCPU part\t: 0xfff\n"


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (X86, "Intel(R) Xeon(R)", {"avx2", "avx512_vnni", "amx_int8"}),
        (PI, "Raspberry Pi 5 Model B (Cortex-A76)", {"asimd", "asimddp"}),
        (BIG_LITTLE, "Cortex-A55 + Cortex-A76", {"asimd"}),
        (UNKNOWN, "ARM part 0xfff", {"asimd", "i8mm"}),
        ("", "", set()),
    ],
)
def test_cpuinfo_of_x86_and_arm(text, name, flags):
    found_name, found_flags = runner.parse_cpuinfo(text)
    assert found_name == name
    assert found_flags & set(runner.ISA_FLAGS) == flags


def test_a_launcher_can_say_that_the_cpu_is_emulated(monkeypatch):
    monkeypatch.setenv("QDEPLOY_EMULATOR", "qemu:cortex-a76")
    assert runner.environment()["emulator"] == "qemu:cortex-a76"


def test_qemu_is_noticed_and_the_host_is_not_taken_for_what_it_emulates(emulators):
    code = "import json; from qdeploy import runner; print(json.dumps(runner.environment()))"
    result = subprocess.run([*qemu.Target("Haswell").python, "-c", code], capture_output=True, text=True, check=True)
    environment = json.loads(result.stdout)
    assert environment["emulator"] == "qemu"
    assert environment["isa"] == []
    assert environment["cpu"] not in Path("/proc/cpuinfo").read_text().split("\t: ")


def test_powersave_is_said_with_the_driver_where_the_cpu_sets_its_own_clock(tmp_path):
    assert runner.governor(str(tmp_path)) is None
    (tmp_path / "scaling_governor").write_text("powersave\n")
    assert runner.governor(str(tmp_path)) == "powersave"
    (tmp_path / "scaling_driver").write_text("intel_pstate\n")
    assert runner.governor(str(tmp_path)) == "powersave (intel_pstate)"


# --------------------------------------------------------------------------------------------------- allowed cores


def cgroup(tmp_path: Path, membership: str, **quotas: str) -> float | None:
    """cgroup_quota of a made-up cgroup tree; the keys of ``quotas`` are paths with __ for /."""
    (tmp_path / "cgroup").write_text(membership)
    for name, text in quotas.items():
        file = tmp_path / "fs" / name.replace("__", "/").replace("cpu_max", "cpu.max").replace("cfs_", "cpu.cfs_")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return runner.cgroup_quota(str(tmp_path / "cgroup"), str(tmp_path / "fs"))


def test_cgroup_v2_quota(tmp_path):
    assert cgroup(tmp_path, "0::/job\n", job__cpu_max="150000 100000\n") == 1.5


def test_the_tightest_cgroup_above_counts(tmp_path):
    quotas = {"a__cpu_max": "200000 100000\n", "a__b__cpu_max": "max 100000\n", "a__b__c__cpu_max": "400000 100000\n"}
    assert cgroup(tmp_path, "0::/a/b/c\n", **quotas) == 2.0


def test_cgroup_v1_quota_in_a_container_that_does_not_see_its_own_path(tmp_path):
    quotas = {"cpu,cpuacct__cfs_quota_us": "50000\n", "cpu,cpuacct__cfs_period_us": "100000\n"}
    assert cgroup(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/docker/0123\n", **quotas) == 0.5


@pytest.mark.parametrize("quotas", [{}, {"job__cpu_max": "max 100000\n"}, {"cpu__cfs_quota_us": "-1\n"}])
def test_no_quota_is_none(tmp_path, quotas):
    assert cgroup(tmp_path, "0::/job\n1:cpu:/job\n", **quotas) is None


def test_a_fraction_of_a_core_is_one_core(monkeypatch):
    monkeypatch.setattr(runner, "cgroup_quota", lambda: 0.5)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert runner.allowed_cores()[0] == 1


def test_slurm_limits_and_nonsense_does_not(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(runner, "cgroup_quota", lambda: None)
    for value, expected in (("6", (6, "SLURM_CPUS_PER_TASK")), ("0", (64, "all cores")), ("x", (64, "all cores"))):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", value)
        assert runner.allowed_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_the_affinity_mask_gives_one_thread(tmp_path):
    (tmp_path / "model.onnx").write_bytes(integer_model())
    code = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from qdeploy import runner\n"
        "tasks = lambda: len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 0\n"
        "before = tasks(); session = runner.make_session(sys.argv[1])\n"
        "print(session.get_session_options().intra_op_num_threads, tasks() - before, runner.allowed_cores())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    # One thread, and it is the caller's own: onnxruntime started none.
    expected = "(1, 'affinity mask')" if (os.cpu_count() or 1) > 1 else "(1, 'all cores')"
    assert result.stdout.strip() == f"1 0 {expected}"


# -------------------------------------------------------------------------------------------------------- sessions


def test_more_threads_than_cores_do_not_spin():
    allowed, _ = runner.allowed_cores()
    entry = "session.intra_op.allow_spinning"
    options = runner.make_session(float_model(), allowed + 1).get_session_options()
    assert options.get_session_config_entry(entry) == "0"
    with pytest.raises(RuntimeError):  # unset: onnxruntime's own default
        runner.make_session(float_model(), 1).get_session_options().get_session_config_entry(entry)


def test_options_reach_onnxruntime_and_the_optimized_graph_is_written(tmp_path):
    options = {"session.x64quantprecision": "1"}
    target = tmp_path / "optimized.onnx"
    session = runner.make_session(float_model(), 1, options=options, optimized_path=str(target))
    assert session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"
    assert target.stat().st_size > 0


def test_a_broken_model_and_no_threads_are_one_line_errors():
    with pytest.raises(runner.RunnerError, match=r"onnxruntime .* cannot load the model"):
        runner.make_session(b"no model", 1)
    with pytest.raises(runner.RunnerError, match="0 threads"):
        runner.make_session(float_model(), 0)
    with pytest.raises(runner.RunnerError, match="100000 threads"):
        runner.make_session(float_model(), 100_000)


# --------------------------------------------------------------------------------------------------- preprocessing


def test_scale_channel_layout_and_cast():
    raw = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    steps = [{"op": "channel"}, {"op": "scale", "factor": 0.5}, {"op": "layout", "from": "HWC", "to": "CHW"}]
    x = runner.preprocess(raw, steps)
    assert x.shape == (2, 1, 3, 4)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert np.array_equal(x[:, 0], raw * np.float32(0.5))
    assert runner.preprocess(raw, [{"op": "cast", "dtype": "int64"}]).dtype == np.int64


def test_normalize_is_by_the_last_axis_in_float32():
    raw = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), dtype=np.uint8)
    mean, std = [10.0, 20.0, 30.0], [1.0, 2.0, 4.0]
    x = runner.preprocess(raw, [{"op": "normalize", "mean": mean, "std": std}])
    expected = (raw.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
    assert x.dtype == np.float32
    assert np.array_equal(x, expected)
    scalar = runner.preprocess(raw, [{"op": "normalize", "mean": 0.1307, "std": 0.3081}])
    assert np.array_equal(scalar, (raw.astype(np.float32) - np.float32(0.1307)) / np.float32(0.3081))


SIZES = [((37, 53), (16, 20)), ((8, 8), (32, 30)), ((64, 48), (64, 24)), ((5, 7), (1, 1)), ((100, 3), (7, 50))]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_resize_is_that_of_torch_and_of_pillow(source, target):
    import torch
    from PIL import Image

    image = np.random.default_rng(0).uniform(0, 255, (2, *source, 3)).astype(np.float32)
    ours = runner.preprocess(image, [{"op": "resize", "height": target[0], "width": target[1]}])
    assert ours.shape == (2, *target, 3)
    assert ours.dtype == np.float32
    tensor = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    theirs = torch.nn.functional.interpolate(tensor, target, mode="bilinear", antialias=True, align_corners=False)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=2e-3)
    pillow = Image.fromarray(image[1, :, :, 2]).resize(target[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours[1, :, :, 2], np.asarray(pillow), atol=2e-3)


@pytest.mark.parametrize(("source", "resized"), [((30, 40), (12, 16)), ((41, 30), (16, 12)), ((30, 30), (12, 12))])
def test_resize_shorter_keeps_the_aspect_and_center_crop_the_middle(source, resized):
    image = np.random.default_rng(0).uniform(0, 1, (1, *source, 3)).astype(np.float32)
    shorter = runner.preprocess(image, [{"op": "resize_shorter", "size": 12}])
    assert shorter.shape == (1, *resized, 3)
    crop = runner.preprocess(shorter, [{"op": "center_crop", "height": 8, "width": 6}])
    top, left = round((resized[0] - 8) / 2), round((resized[1] - 6) / 2)
    assert np.array_equal(crop, shorter[:, top : top + 8, left : left + 6])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "resizee"}, r"no preprocessing op 'resizee'. Known: resize"),
        ({"op": "scale", "factr": 2.0}, "scale.*fails on shape"),
        ({"op": "layout", "from": "HWC", "to": "CHX"}, "no permutation"),
        ({"op": "cast", "dtype": "object"}, "not a numeric type"),
        ({"op": "center_crop", "height": 99, "width": 1}, "smaller than 99 x 1"),
        ({"op": "normalize", "mean": [1, 2], "std": [1, 1]}, "normalize.*fails"),
    ],
)
def test_a_wrong_step_is_a_clear_error(step, message):
    with pytest.raises(runner.RunnerError, match=message):
        runner.preprocess(np.zeros((1, 4, 4, 3), np.uint8), [step])


# ----------------------------------------------------------------------------------------------------- timing loop


def test_a_block_holds_at_least_one_call_and_counts_every_call_but_the_first():
    calls = []
    times = runner.time_block(lambda: calls.append(1), 0.0)
    assert len(times) == 1
    assert len(calls) == 2
    assert all(isinstance(time, int) and time >= 0 for time in times)


def test_slow_models_get_fewer_blocks_but_never_less_than_five():
    assert runner.plan_blocks(2.0, 1e-5) == (runner.ROUNDS, 0.1)
    assert runner.plan_blocks(2.0, 0.1) == (6, 2.0 / 6)
    assert runner.plan_blocks(2.0, 10.0)[0] == 5
    assert runner.plan_blocks(2.0, 0.0)[0] == runner.ROUNDS


def test_warm_up_ends_without_steady_times():
    lengths = iter(range(1, 1000))

    def slower_every_time(seconds: float) -> list[int]:
        return runner.time_block(lambda: sum(range(next(lengths) * 20_000)), seconds)

    assert runner.warm_up(slower_every_time, limit_seconds=0.2)["call_seconds"] > 0


def test_peak_memory_is_of_this_process():
    before = runner.peak_rss_bytes()
    block = np.ones(32 << 20, np.uint8)
    assert runner.peak_rss_bytes() >= before
    assert before > block.nbytes / 8
