"""Every quantizer, on real data, as deployed: the recipe that puts them side by side, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy import pipeline
from qdeploy.core import plugins, records
from qdeploy.core.errors import NotRepresentableError, QDeployError
from qdeploy.core.records import Results, Variant
from qdeploy.recipe.load import load

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "digits_quantizers.yaml"
WIDTHS = (8, 4, 2)

SMALL = """
name: small
model: {factory: "models/simple_cnn.py:SimpleCNN", channels: 8}
data: {name: digits, calibration: 64}
train: {epochs: 2, lr: 0.004}
variants:
  fp32: {}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    out = tmp_path_factory.mktemp("quantizers")
    recipe = load(RECIPE)
    pipeline.build(recipe, out, measure=False)
    assert pipeline.pending(recipe, out) == []
    return records.load(Results, out / "results.json")


@pytest.fixture(scope="module")
def variants(results: Results) -> dict[str, Variant]:
    return {variant.name: variant for variant in results.variants}


@pytest.mark.slow
def test_every_plugin_is_there_at_every_width(results: Results) -> None:
    names = {variant.name for variant in results.variants} | {refusal.name for refusal in results.refusals}
    rounded = {f"{name}-w{bits}" for name in plugins.names("rounding") for bits in WIDTHS}
    trained = {f"{name}-w{bits}a{bits}" for name in plugins.names("fake quant") for bits in WIDTHS}
    assert names == {"fp32", "fp16", "bf16"} | rounded | trained


@pytest.mark.slow
def test_all_of_it_runs_in_integers_and_agrees_with_integer_arithmetic(variants: dict[str, Variant]) -> None:
    for name, variant in variants.items():
        assert variant.differing_codes == 0
        assert variant.integer_mac_share == (1.0 if variant.method in ("ptq", "qat") else 0.0), name


@pytest.mark.slow
def test_every_layer_has_the_bits_that_were_asked_for(variants: dict[str, Variant]) -> None:
    for name, variant in variants.items():
        if variant.method not in ("ptq", "qat"):
            continue
        bits = int(name.split("-w")[1][0])
        weighted = [layer for layer in variant.layers if layer.weight_bits is not None]
        assert [layer.weight_bits for layer in weighted] == [8, *[bits] * (len(weighted) - 2), 8], name


@pytest.mark.slow
def test_fewer_bits_make_a_smaller_file(variants: dict[str, Variant]) -> None:
    for method in plugins.names("rounding"):
        sizes = [variants[f"{method}-w{bits}"].size_bytes for bits in WIDTHS]
        assert sizes == sorted(sizes, reverse=True)
    assert variants["fp16"].size_bytes == variants["bf16"].size_bytes < 0.6 * variants["fp32"].size_bytes


@pytest.mark.slow
def test_accuracy_at_8_and_4_bits_and_what_the_data_is_worth_at_2(variants: dict[str, Variant]) -> None:
    value = {name: variant.metric.value for name, variant in variants.items()}
    for name in value:
        if name.endswith(("w8", "w8a8", "16")):
            assert value[name] >= value["fp32"] - 0.012, name
        elif name.endswith(("gptq-w4", "adaround-w4", "w4a4")):
            assert value[name] >= value["fp32"] - 0.03, name
    assert value["gptq-w2"] > value["nearest-w2"] + 0.05
    assert value["adaround-w2"] > value["nearest-w2"] + 0.05


@pytest.mark.slow
def test_what_has_no_exact_form_is_said_and_not_approximated(results: Results) -> None:
    (refusal,) = results.refusals
    assert refusal.name == "apot-w8a8"
    assert "not representable" in refusal.reason


def recipe(tmp_path: Path, *variants: str) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL + "".join(f"  {line}\n" for line in variants))
    return path


def test_a_recipe_of_nothing_but_a_refusal_is_an_error_before_any_work(tmp_path: Path) -> None:
    found = load(recipe(tmp_path, "a: {method: qat, fake_quant: qil, weights: {bits: 1}}"))
    with pytest.raises(NotRepresentableError, match="Variant a: QIL weights of 1 bit are not representable"):
        pipeline.build(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_rule_for_a_layer_that_is_not_there_is_an_error_before_any_work(tmp_path: Path) -> None:
    found = load(recipe(tmp_path, "a: {method: ptq, rules: [{match: 'layer9.*', weights: {bits: 4}}]}"))
    with pytest.raises(QDeployError, match=r"'layer9\.\*' matches no layer with weights"):
        pipeline.build(found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rules_decide_layer_by_layer_and_packing_changes_only_the_file(tmp_path: Path) -> None:
    rules = "rules: [{match: '*', weights: {bits: 3}}, {match: 'stem.0.0', method: float32}]"
    path = recipe(tmp_path, f"packed: {{method: ptq, {rules}}}", f"plain: {{method: ptq, packing: none, {rules}}}")
    _, packed, plain = pipeline.build(load(path), tmp_path / "out", measure=False).variants
    bits = {layer.name: layer.weight_bits for layer in packed.layers if layer.macs}
    first, *rest = bits.values()
    assert first is None
    assert set(rest) == {3}
    assert 0 < packed.integer_mac_share < 1
    assert packed.size_bytes < plain.size_bytes
    assert (packed.metric, packed.agreement) == (plain.metric, plain.agreement)


def test_training_on_is_its_own_stage(tmp_path: Path) -> None:
    line = "a: {method: qat, weights: {bits: 4}, activations: {bits: 4}, train: {epochs: 1, augment: [crop]}%s}"
    out = tmp_path / "out"
    pipeline.build(load(recipe(tmp_path, line % "")), out, measure=False)
    history = next((out / "stages" / "a" / "qat").glob("*/history.json"))
    assert '"kept_epoch": 1' in history.read_text()
    assert pipeline.pending(load(recipe(tmp_path, line % "")), out) == []
    unpacked = load(recipe(tmp_path, line % ", packing: none"))
    assert [stage.name for stage in pipeline.pending(unpacked, out)] == ["a/model", "a/verify", "a/bundle"]
