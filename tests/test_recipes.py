"""The recipes that ship load as they are, and those of the experiments run, made short, on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qdeploy import pipeline
from qdeploy.core.errors import QDeployError
from qdeploy.recipe.load import load

ROOT = Path(__file__).resolve().parent.parent
TABLE = "a;Target\n1;x\n2;y\n"
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_from_any_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a table in the place of the user's, and training in the place of a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text(TABLE)
    overrides = ["model.checkpoint=null", "train={epochs: 1}"] if "checkpoint:" in path.read_text() else []
    try:
        recipe = load(path, overrides)
        for profile in recipe.profiles:
            load(path, overrides, profile=profile)
    except QDeployError as error:
        pytest.fail(str(error))
    assert recipe.description
    assert path.read_text().startswith("# ")


def test_a_table_is_found_beside_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    (tmp_path / "project" / "table.csv").write_text(TABLE)
    recipe = tmp_path / "project" / "recipes" / "mine.yaml"
    recipe.write_text((ROOT / "recipes" / "compare.yaml").read_text().replace("data.csv, target", "table.csv, target"))
    model = f"model.factory={ROOT}/models/mlp.py:MLP"
    monkeypatch.chdir(tmp_path)
    assert load(recipe, [model]).data.options["path"] == str(tmp_path / "project" / "table.csv")
    with pytest.raises(QDeployError, match=r"data.path.* no file tabel.csv(.|\n)*table.csv"):
        load(recipe, [model, "data.path=tabel.csv"])


def build(name: str, overrides: list[str], only: list[str], out: Path) -> dict[str, Any]:
    recipe = load(ROOT / "recipes" / f"{name}.yaml", ["train.device=cpu", *overrides], only)
    return {variant.name: variant for variant in pipeline.build(recipe, out, measure=False).variants}


@pytest.mark.slow
def test_compare_on_students(csv_options, tmp_path: Path):
    overrides = [f"data.path={csv_options['path']}", "train.epochs=3", "model.hidden=[64,64]"]
    overrides += ["variants.qat-int8.train.epochs=1"]
    made = build("compare", overrides, [], tmp_path)
    assert made["fp32"].metric.value > 0.70
    for name in ("ptq-static", "gptq-int8", "qat-int8"):
        assert made[name].integer_mac_share == 1.0
        assert made[name].differing_codes == 0
        assert abs(made[name].delta.value) < 0.03


@pytest.mark.slow
def test_super_resolution_in_integers(super_resolution_root: Path, tmp_path: Path):
    overrides = [f"data.root={super_resolution_root}", "train.epochs=1", "data.train_samples=2000"]
    overrides += ["data.calibration=32", "model.channels=16"]
    made = build("qat_eval/espcn", overrides, ["adaround-8"], tmp_path)
    assert made["no_quant"].metric.name == "psnr"
    assert made["no_quant"].metric.value > 24
    assert made["adaround-8"].integer_mac_share == 1.0
    assert made["adaround-8"].delta.value > -1.0


@pytest.mark.slow
def test_satellite_images_in_integers(eurosat_root: Path, tmp_path: Path):
    overrides = [f"data.root={eurosat_root}", "train.epochs=2", "data.calibration=32", "model.channels=8"]
    overrides += ["variants.qat-int8.train.epochs=1"]
    made = build("eurosat", overrides, [], tmp_path)
    for name in ("ptq-int8", "qat-int8"):
        assert made[name].integer_mac_share == 1.0
        assert made[name].compression > 2
