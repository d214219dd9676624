"""One bundle, the same answers everywhere: digits and ResNet-20 on emulated CPUs and in WebAssembly, code by code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qdeploy import pipeline, runner
from qdeploy.recipe.load import load
from qdeploy.targets._base import open_target
from tests.emulation import ARM64
from tests.node import require_onnxruntime_web

ROOT = Path(__file__).parents[1]
PLACES = [("qemu:Haswell", "onnxruntime"), *((f"qemu:{cpu}", "onnxruntime") for cpu in ARM64), ("local", "ort_web")]
FAST_KERNELS = {"session.x64quantprecision": "0"}  # what code that does not know of saturation runs


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load(ROOT / "recipes" / "digits.yaml", overrides=["train.epochs=2"])
    folder = tmp_path_factory.mktemp("digits")
    pipeline.build(recipe, folder, measure=False)
    return folder


@pytest.fixture(scope="module")
def resnet20(shared_data: Path, cifar10_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = shared_data / "pretrained" / "resnet20-12fca82f.th"
    overrides = [f"model.checkpoint={checkpoint}", f"data.root={cifar10_npz.parent}", "data.download=false"]
    recipe = load(
        ROOT / "recipes" / "cifar10_portable.yaml", overrides=overrides, only=["int8", "int8-unconstrained", "int4"]
    )
    folder = tmp_path_factory.mktemp("resnet20")
    pipeline.build(recipe, folder, measure=False)
    return folder


def adversarial(shape: tuple[int, ...], highest: int) -> np.ndarray:
    """Raw samples at the ends of their range, which saturate sums: all at the top, and every pattern by chance."""
    rng = np.random.default_rng(0)
    white = np.full((1, *shape), highest, np.uint8)
    return np.concatenate([white, highest * rng.integers(0, 2, (7, *shape), dtype=np.uint8)])


def ask(place: str, runtime: str, bundle: Path, raw: np.ndarray, **load: object) -> np.ndarray:
    """The outputs of a bundle, whose golden vectors must pass unless options are given."""
    name = runner.read_bundle(bundle)["manifest"]["inputs"][0]["name"]
    with open_target(place) as target, target.open(bundle, name=bundle.name, runtime=runtime) as worker:
        loaded = worker.load(threads=1, **load)
        assert loaded["golden"]["passed"] or load, f"{bundle.name} on {place}"
        (outputs,) = worker.predict({name: raw}).values()
    return np.asarray(outputs)


def places() -> Iterator[tuple[str, str]]:
    for place, runtime in PLACES:
        if runtime == "ort_web":
            require_onnxruntime_web()
        yield place, runtime


@pytest.mark.slow
def test_digits_are_bit_identical_everywhere(digits: Path, emulators):
    bundle = digits / "ptq-int8.qdeploy.zip"
    assert runner.read_bundle(bundle)["manifest"]["portability"] == {"saturation": [], "arithmetic": []}
    raw = adversarial((8, 8), 16)
    expected = ask("local", "onnxruntime", bundle, raw)
    for place, runtime in places():
        np.testing.assert_array_equal(ask(place, runtime, bundle, raw), expected, err_msg=f"{place} {runtime}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_resnet20_is_bit_identical_everywhere(name: str, resnet20: Path, emulators):
    bundle = resnet20 / f"{name}.qdeploy.zip"
    opened = runner.read_bundle(bundle)
    assert opened["manifest"]["portability"] == {"saturation": [], "arithmetic": []}
    (images,) = (opened["golden"][key] for key in opened["golden"] if key.startswith("input."))
    raw = np.concatenate([adversarial((32, 32, 3), 255), images])
    expected = ask("local", "onnxruntime", bundle, raw)
    for place, runtime in places():
        np.testing.assert_array_equal(ask(place, runtime, bundle, raw), expected, err_msg=f"{place} {runtime}")


@pytest.mark.slow
def test_an_unconstrained_resnet20_fails_on_avx2_and_is_cured(resnet20: Path, emulators):
    """Products saturate in 16 bits without VNNI; the proof, or slower kernels for a bundle without one, cure that."""
    raw = adversarial((32, 32, 3), 255)
    unconstrained, portable = (resnet20 / f"{name}.qdeploy.zip" for name in ("int8-unconstrained", "int8"))
    manifest = runner.read_bundle(unconstrained)["manifest"]["portability"]
    assert len(manifest["saturation"]) == 20
    assert len(manifest["arithmetic"]) >= 5
    expected = ask("local", "onnxruntime", unconstrained, raw)
    wrong = ask("qemu:Haswell", "onnxruntime", unconstrained, raw, options=FAST_KERNELS)
    assert np.abs(wrong - expected).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_array_equal(ask("qemu:Haswell", "onnxruntime", unconstrained, raw), expected)
    same = ask("local", "onnxruntime", portable, raw)
    np.testing.assert_array_equal(ask("qemu:Haswell", "onnxruntime", portable, raw, options=FAST_KERNELS), same)


@pytest.mark.slow
def test_being_portable_costs_resnet20_nothing(resnet20: Path):
    metrics = {
        name: runner.read_bundle(resnet20 / f"{name}.qdeploy.zip")["manifest"]["metric"]["value"]
        for name in ("int8", "int8-unconstrained")
    }
    assert metrics["int8"] >= metrics["int8-unconstrained"] - 0.0005
