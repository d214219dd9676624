"""onnxruntime-web in Node: the same codes as here, and a child process that neither hangs nor outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qdeploy import runner
from qdeploy.core import elementwise, scheme
from qdeploy.core.errors import QDeployError
from qdeploy.export.passes.pack_weights import pack
from qdeploy.runtimes import ort_web
from qdeploy.runtimes.ort_web import Runtime
from qdeploy.targets.local import Target
from tests.bundles import float_model, integer_model, write_bundle
from tests.emulation import Question
from tests.node import require_onnxruntime_web
from tests.runtimes.test_emulated_cpus import LEFT, RIGHT, elementwise_questions, identical, operands

FEED = {"input": np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8)).astype(np.float32)}


@pytest.fixture(scope="module", autouse=True)
def _onnxruntime_web():
    require_onnxruntime_web()


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def here(model: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return runner.run_session(runner.make_session(model, 1), feeds)


def merged(questions: dict[str, Question]) -> tuple[bytes, dict[str, np.ndarray]]:
    """All questions as one model, and what to feed it: a Node process takes half a second to start."""
    graph, feeds = onnx.GraphProto(name="questions"), {}
    for name, question in questions.items():
        model = onnx.load_model_from_string(question.model())
        part = onnx.compose.add_prefix(model, f"{name}.").graph
        for field in ("node", "initializer", "input", "output"):
            getattr(graph, field).extend(getattr(part, field))
        feeds |= {f"{name}.{key}": value for key, value in question.feeds.items()}
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString(), feeds


# ------------------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("threads", [1, 2])
def test_golden_vectors_of_an_integer_bundle_bit_for_bit(threads, tmp_path):
    bundle = runner.read_bundle(write_bundle(tmp_path))
    feeds = runner.make_feeds(bundle["manifest"], {"input": bundle["golden"]["input.input"]})
    output = Runtime(bundle["model"], threads=threads).run(feeds)["output"]
    assert np.array_equal(bits(output), bits(bundle["golden"]["output.output"]))


def test_a_worker_checks_the_golden_vectors_and_they_pass(tmp_path):
    with Target().open(write_bundle(tmp_path), name="ptq-int8", runtime="ort_web") as worker:
        loaded = worker.load(threads=1)
    assert loaded["golden"]["passed"]
    assert loaded["golden"]["samples"] == 8
    assert loaded["runtime"].startswith("onnxruntime-web ")


def test_floats_agree_to_rounding():
    """They are not bit-identical: sums are added in another order."""
    expected = here(float_model(), FEED)["output"]
    np.testing.assert_allclose(Runtime(float_model(), threads=1).run(FEED)["output"], expected, atol=1e-5)


def test_integer_kernels_give_the_same_codes_as_here():
    model, feeds = merged(identical())
    found, expected = Runtime(model, threads=2).run(feeds), here(model, feeds)
    assert len(found) == len(identical())
    assert [name for name in expected if not np.array_equal(bits(found[name]), bits(expected[name]))] == []


def test_sums_and_products_of_all_pairs_of_codes_are_those_of_the_plain_definition():
    questions = elementwise_questions()
    model, feeds = merged(questions)
    found = Runtime(model, threads=1).run(feeds)
    plain = {"Add": elementwise.add_plain, "Mul": elementwise.mul_plain}
    for name in questions:
        expected = plain[name[:3]](*operands(int(name[3:])), LEFT, RIGHT)
        np.testing.assert_array_equal(found[f"{name}.y"], expected)
        assert len(np.unique(expected)) > 100


@pytest.mark.parametrize("width", [2, 3, 4, 7])
def test_packed_weights_are_right(width):
    weights = scheme.weight(width)
    model = onnx.load_model_from_string(integer_model())
    (w,) = (tensor for tensor in model.graph.initializer if tensor.name == "w")
    codes = np.random.default_rng(0).integers(weights.qmin, weights.qmax + 1, w.dims).astype(np.int8)
    w.CopyFrom(numpy_helper.from_array(codes, "w"))
    packed = ir.from_proto(model)
    pack(packed, [(packed.graph.initializers["w"], weights)])
    found = Runtime(ir.to_proto(packed).SerializeToString(), threads=1).run(FEED)["output"]
    assert np.array_equal(bits(found), bits(here(model.SerializeToString(), FEED)["output"]))


# ------------------------------------------------------------------------------------------------------------ tensors


def identity(dtypes: list[np.dtype]) -> bytes:
    kinds = [helper.np_dtype_to_tensor_dtype(dtype) for dtype in dtypes]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"i{n}"], [f"o{n}"]) for n in range(len(kinds))],
        "identity",
        [info(f"i{n}", kind, None) for n, kind in enumerate(kinds)],
        [info(f"o{n}", kind, None) for n, kind in enumerate(kinds)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def test_arrays_of_every_type_cross_the_pipe_unchanged():
    rng = np.random.default_rng(0)
    arrays = [
        np.array([2**63 - 1, -(2**63), 2**53 + 1]),
        np.array([2**64 - 1], np.uint64),
        *(rng.integers(0, 128, (3, 5)).astype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4)),
        np.array([np.pi, np.inf, -0.0, np.nan], np.float32),
        np.array([[np.pi]], np.float64),
        np.array([1.5, 6e-8, np.inf], np.float16),
        np.array([True, False]),
        np.float32(3.0),  # no axes
        np.zeros((0, 4), np.float32),  # no values
        rng.integers(0, 256, (16, 3, 224, 224), dtype=np.uint8),  # megabytes
        np.asfortranarray(rng.normal(size=(3, 4)).astype(np.float32)),
        rng.normal(size=(3, 4)).astype(">f4"),
    ]
    native = [np.asarray(array, array.dtype.newbyteorder("=")) for array in arrays]
    found = Runtime(identity([array.dtype for array in native]), threads=1).run(
        {f"i{n}": array for n, array in enumerate(arrays)}
    )
    for n, array in enumerate(native):
        assert (found[f"o{n}"].dtype, found[f"o{n}"].shape) == (array.dtype, array.shape)
        assert found[f"o{n}"].tobytes() == array.tobytes()


def test_what_is_no_tensor_is_refused():
    loaded = Runtime(identity([np.dtype(np.float32)]), threads=1)
    with pytest.raises(QDeployError, match="i0 is complex64"):
        loaded.run({"i0": np.zeros(3, np.complex64)})


# -------------------------------------------------------------------------------------------------------------- times


def test_a_block_is_timed_by_node_and_changes_no_answer():
    loaded = Runtime(integer_model(), threads=2)
    before = loaded.run(FEED)["output"]
    times = loaded.block(FEED, 0.05)
    assert all(isinstance(nanoseconds, int) and nanoseconds > 0 for nanoseconds in times)
    assert len(times) > 1
    assert len(loaded.block(FEED, 0.0)) == 1
    assert np.array_equal(loaded.run(FEED)["output"], before)
    with pytest.raises(QDeployError, match="lacks the input"):
        loaded.block({}, 0.05)


def test_memory_is_that_of_node():
    floats = np.zeros(64 << 18, np.float32)  # 64 MiB
    loaded = Runtime(identity([floats.dtype]), threads=1)
    before = loaded.peak_rss_bytes()
    loaded.run({"i0": floats})
    assert loaded.peak_rss_bytes() > before + floats.nbytes


# ---------------------------------------------------------------------------------------------------------- processes


def gone(pid: int) -> bool:
    """Whether a process has ended: it is not there, or waits for its parent to ask for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
@pytest.mark.parametrize("busy", ["time.sleep(600)", "loaded.block(feeds, 600)"], ids=["idle", "measuring"])
def test_node_ends_with_the_process_that_started_it(busy, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(integer_model())
    code = f"""
import pathlib, time
import numpy
from qdeploy.runtimes.ort_web import Runtime
loaded = Runtime(pathlib.Path({str(model)!r}), threads=2)
feeds = {{"input": numpy.zeros((1, 1, 8, 8), numpy.float32)}}
print(loaded._node._process.pid, flush=True)
{busy}
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        node = int(process.stdout.readline())
        time.sleep(0.5)  # until it is busy
        assert not gone(node)
        process.kill()
    deadline = time.monotonic() + 30
    while not gone(node):
        assert time.monotonic() < deadline, "Node outlived the process that started it"
        time.sleep(0.05)


def test_closing_ends_node_and_may_be_repeated():
    loaded = Runtime(integer_model(), threads=1)
    process = loaded._node._process
    loaded.close()
    loaded.close()
    assert process.returncode == 0
    with pytest.raises(QDeployError, match="has ended"):
        loaded.run(FEED)


def test_node_ends_when_nobody_holds_the_runtime():
    loaded = Runtime(integer_model(), threads=1)
    process = loaded._node._process
    del loaded
    assert process.returncode == 0


def test_a_death_of_node_is_an_error_and_not_a_wait():
    loaded = Runtime(integer_model(), threads=1)
    loaded._node._process.send_signal(signal.SIGKILL)
    with pytest.raises(QDeployError, match="Node was killed by SIGKILL during 'run'"):
        loaded.run(FEED)
    with pytest.raises(QDeployError, match="has ended"):
        loaded.run(FEED)


def test_an_interrupt_of_the_terminal_is_left_to_the_process_that_asks():
    loaded = Runtime(integer_model(), threads=1)
    loaded._node._process.send_signal(signal.SIGINT)
    assert loaded.run(FEED)["output"].shape == (3, 10)


# ------------------------------------------------------------------------------------------------------- what is there


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QDEPLOY_NODE_MODULES", raising=False)
    monkeypatch.setenv("QDEPLOY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(QDeployError, match="no onnxruntime-web") as caught:
        Runtime(integer_model())
    command = f"npm install --prefix {tmp_path / 'cache' / 'node'} onnxruntime-web@{ort_web.TESTED}"
    assert caught.value.hint == f"Run {command}"
    monkeypatch.setenv("QDEPLOY_NODE_MODULES", str(tmp_path))
    with pytest.raises(QDeployError, match=f"QDEPLOY_NODE_MODULES names {tmp_path}") as caught:
        Runtime(integer_model())
    assert command in caught.value.hint


def test_the_package_is_found_in_folders_above_and_where_it_is_named(tmp_path, monkeypatch):
    below = tmp_path / "project" / "below"
    below.mkdir(parents=True)
    for folder in ("project", "elsewhere"):
        package = tmp_path / folder / "node_modules" / "onnxruntime-web"
        package.mkdir(parents=True)
        (package / "package.json").write_text("{}")
    monkeypatch.chdir(below)
    monkeypatch.delenv("QDEPLOY_NODE_MODULES", raising=False)
    assert ort_web.find_package() == tmp_path / "project" / "node_modules" / "onnxruntime-web"
    monkeypatch.setenv("QDEPLOY_NODE_MODULES", str(tmp_path / "elsewhere" / "node_modules"))
    assert ort_web.find_package() == tmp_path / "elsewhere" / "node_modules" / "onnxruntime-web"


def test_no_node_is_an_error_that_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("QDEPLOY_NODE", str(tmp_path / "node"))
    with pytest.raises(QDeployError, match=r"QDEPLOY_NODE names .*node, which is no program"):
        Runtime(integer_model())
    monkeypatch.delenv("QDEPLOY_NODE")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(QDeployError, match="no Node on this machine"):
        Runtime(integer_model())


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for Node")
def test_what_node_says_when_it_fails_is_in_the_error(tmp_path, monkeypatch):
    node = tmp_path / "node"
    node.write_text("#!/bin/sh\necho 'file:1' >&2\necho 'SyntaxError: too old for this' >&2\necho >&2\nexit 3\n")
    node.chmod(0o755)
    monkeypatch.setenv("QDEPLOY_NODE", str(node))
    with pytest.raises(QDeployError, match=r"Node ended with exit code 3 during 'load'. SyntaxError: too old for this"):
        Runtime(integer_model())


def test_a_broken_package_is_an_error(tmp_path, monkeypatch):
    package = tmp_path / "node_modules" / "onnxruntime-web"
    package.mkdir(parents=True)
    (package / "package.json").write_text(
        '{"name": "onnxruntime-web", "main": "missing.js", "exports": "./missing.js"}'
    )
    monkeypatch.setenv("QDEPLOY_NODE_MODULES", str(package.parent))
    with pytest.raises(QDeployError, match="cannot load the model: Cannot find module"):
        Runtime(integer_model())
