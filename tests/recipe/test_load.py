from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.recipe.load import load
from qdeploy.train.checkpoint import save
from qdeploy.train.reference import load_model

GOOD = """\
name: mine
model: {factory: "models/net.py:net", width: 8}
data: {name: digits, calibration: 100}
train:
  epochs: 3
  lr: 1e-3
variants:
  base: {}
  int8:
    method: ptq
    weights: {observer: mse}
  int4:
    method: ptq
    weights: {bits: 4}
    calibration: {samples: 50}
bench: {threads: [1, 2], batch: 4, seconds: 1}
"""


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def test_what_is_written_is_what_is_read(read, project: Path):
    recipe = read(GOOD)
    assert (recipe.name, recipe.baseline, list(recipe.variants)) == ("mine", "base", ["base", "int8", "int4"])
    assert recipe.model.arguments == {"width": 8}
    assert recipe.model.dump() == {"factory": "models/net.py:net", "arguments": {"width": 8}}
    assert (recipe.data.name, recipe.data.options) == ("digits", {"calibration": 100})
    assert recipe.base == project
    int4 = recipe.variants["int4"]
    assert (int4.weights.bits, int4.weights.observer, int4.rounding.name) == (4, "minmax", "nearest")
    assert (recipe.bench.threads, recipe.bench.batch, recipe.bench.seconds) == ((1, 2), (4,), 1.0)


def test_train_is_what_fit_takes(read):
    import inspect

    from qdeploy.train.fit import fit

    recipe = read(GOOD.replace("method: ptq\n    weights: {bits: 4}", "method: qat"))
    options = recipe.train.dump()
    assert options["lr"] == 0.001
    taken = set(inspect.signature(fit).parameters)
    assert set(options) < set(recipe.variants["int4"].train.dump()) <= taken


def test_calibration_samples_are_written_out(read):
    variants = read(GOOD).variants
    assert {name: v.calibration.samples for name, v in variants.items()} == {"base": 100, "int8": 100, "int4": 50}


def test_what_a_bundle_says_of_its_quantization(read):
    variants = read(GOOD).variants
    assert variants["base"].describe() == {}
    assert variants["int4"].describe() == {
        "method": "ptq",
        "weights": {"bits": 4, "grid": "midtread", "observer": "minmax"},
        "activations": {"bits": 8, "observer": "minmax", "range": "static"},
        "rounding": {"name": "nearest"},
        "calibration": {"samples": 50},
        "first_last_bits": 8,
        "rules": [],
        "packing": "packed",
        "portable": True,
        "equalize": False,
        "bias_correction": False,
        "learn_ranges": False,
    }


def test_what_a_key_hashes_does_not_depend_on_spelling(read):
    short = read(GOOD).variants["int4"].dump()
    long = read(changed("weights: {bits: 4}", "rounding: nearest\n    weights: {bits: 4, observer: minmax}"))
    assert long.variants["int4"].dump() == short
    assert read(GOOD).variants["base"].dump() == {"method": "float32"}


def test_a_baseline_is_added_where_there_is_none(read):
    recipe = read(changed("  base: {}\n", ""))
    assert list(recipe.variants) == ["fp32", "int8", "int4"]
    assert recipe.baseline == "fp32"
    assert list(read(GOOD.split("variants")[0]).variants) == ["fp32"]


def test_a_variant_with_nothing_behind_it_is_float32(read):
    assert read(changed("base: {}", "base:")).baseline == "base"


def test_a_checkpoint_takes_the_place_of_training(read, weights: Path):
    text = changed("width: 8", "checkpoint: weights.pth").replace("train:\n  epochs: 3\n  lr: 1e-3\n", "")
    recipe = read(text)
    assert recipe.train is None
    assert recipe.model.checkpoint == Path("weights.pth")
    assert "checkpoint" not in recipe.model.dump()["arguments"]


def test_paths_are_also_found_from_the_recipe(
    project: Path, weights: Path, tmp_path_factory, monkeypatch: pytest.MonkeyPatch
):
    text = changed("width: 8", "checkpoint: weights.pth").replace("train:\n  epochs: 3\n  lr: 1e-3\n", "")
    (project / "recipes" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    recipe = load(project / "recipes" / "mine.yaml")
    assert recipe.model.checkpoint == project / "weights.pth"
    assert recipe.base == project


def test_a_plugin_of_the_users_own(read, project: Path):
    (project / "bands.py").write_text("from qdeploy.datasets.digits import Dataset")
    assert read(changed("name: digits", "name: ./bands.py")).data.name == "bands.py"


# (the changed part, the new part, what the error says): always with the file, the key, the line, and the nearest name.
WRONG = [
    ("width: 8", "widht: 8", ["model.widht (line 2): unknown key", "'width'"]),
    ("width: 8", "seed: 8", ["model.seed (line 2): qdeploy itself uses this name"]),
    ("width: 8", "width: eight", ["model.width (line 2): 'eight' should be a valid integer"]),
    ("width: 8", "width: true", ["model.width (line 2): True should be a valid integer"]),
    ("width: 8", "names: [a, 1]", ["model.names[1] (line 2): 1 should be a valid string"]),
    ("models/net.py:net", "models/net.py:nett", ["model.factory (line 2): models/net.py defines no 'nett'", "'net'"]),
    ("models/net.py:net", "models/nett.py:net", ["model.factory (line 2): There is no file", "'models/net.py'"]),
    ("models/net.py:net", "net", ["model.factory (line 2): 'net' does not name a model", "models/vgg.py:vgg11"]),
    ("name: digits", "name: digit", ["data.name (line 3): there is no dataset named 'digit'", "'digits'"]),
    ("name: digits", "name: ./no.py", ["data.name (line 3): there is no file ./no.py"]),
    ("calibration: 100", "calibratoin: 100", ["data.calibratoin (line 3): unknown key", "'calibration'"]),
    ("calibration: 100", "calibration: 1.5", ["data.calibration (line 3): 1.5 should be a valid integer"]),
    ("calibration: 100", "calibration: 0", ["data (line 3): data.calibration is 0"]),
    ("calibration: 100", "validation: 1.5", ["data (line 3): data.validation is 1.5"]),
    ("calibration: 100", "root: no/such, download: false", ["data.root (line 3): there is no folder no/such"]),
    ("epochs: 3", "epochs: 0", ["train.epochs (line 5): 0 should be greater than or equal to 1"]),
    ("epochs: 3", "epochs: 3.0", ["train.epochs (line 5): 3.0 should be a valid integer"]),
    ("epochs: 3", "epoch: 3", ["train.epoch (line 5): unknown key", "'epochs'", "train.epochs (line 4): this key is"]),
    ("epochs: 3", "epochs: 3\n  optimizer: adamx", ["train.optimizer (line 6): 'adamx'", "'adamw'"]),
    ("epochs: 3", "epochs: 3\n  device: gpu", ["train.device (line 6): 'gpu' is not one of", "cpu"]),
    ("epochs: 3", "epochs: 3\n  on: 1", ["train.on (line 6): unknown key"]),
    ("lr: 1e-3", "lr: .nan", ["train.lr (line 6): nan should be a finite number"]),
    ("lr: 1e-3", "lr: -1", ["train.lr (line 6): -1 should be greater than 0"]),
    ("lr: 1e-3", "lr: '1e-3'", ["train.lr (line 6): '1e-3' should be a valid number"]),
    ("  int8:\n    method: ptq", "  int8:\n    method: ptqq", ["variants.int8.method (line 10)", "'ptq'"]),
    ("{observer: mse}", "{observer: msee}", ["int8.weights.observer (line 11): 'msee' is not one", "'mse'"]),
    ("{observer: mse}", "{bitz: 4}", ["variants.int8.weights.bitz (line 11): unknown key", "'bits'"]),
    ("{observer: mse}", "{bits: 9}", ["variants.int8.weights.bits (line 11): integer codes have 1 to 8 bits, not 9"]),
    ("{observer: mse}", "{bits: 0}", ["variants.int8.weights.bits (line 11): integer codes have 1 to 8 bits, not 0"]),
    ("{observer: mse}", "{bits: 16}", ["integer codes have 1 to 8 bits, not 16", "method: fp16 or bf16"]),
    ("{observer: mse}", "{bits: 32}", ["integer codes have 1 to 8 bits, not 32", "method: float32"]),
    ("{observer: mse}", "{grid: midrise}", ["int8 (line 9): a midrise grid of 8 bits leaves int8"]),
    ("{observer: mse}", "{observer: output}", ["nearest rounding sees no outputs", "rounding: gptq"]),
    ("method: ptq\n    weights", "method: qat\n    weights", ["a fake quantizer has its own levels and scales"]),
    ("weights: {observer: mse}", "fake_quant: lsq", ["method ptq takes no 'fake_quant'", "Set method: qat"]),
    ("weights: {observer: mse}", "train: {epochs: 2}", ["method ptq takes no 'train'", "Set method: qat"]),
    ("weights: {observer: mse}", "rules: [{match: a}]", ["rules[0]", "a rule sets bits or method: float32"]),
    ("weights: {observer: mse}", "packing: gzip", ["int8.packing (line 11): 'gzip' is not one of"]),
    ("{observer: mse}", "4", ["variants.int8.weights (line 11): expected keys and values, found 4"]),
    ("weights: {observer: mse}", "activations: {bits: 1}", ["bits (line 11): integer codes have 2 to 8 bits, not 1"]),
    ("weights: {observer: mse}", "rounding: nearst", ["variants.int8.rounding.name (line 11)", "'nearest'"]),
    ("weights: {observer: mse}", "wieghts: {}", ["variants.int8.wieghts (line 11): unknown key", "'weights'"]),
    ("samples: 50", "samples: 101", ["int4.calibration.samples (line 15): it asks for 101", "data.calibration: 101"]),
    ("base: {}", "base: {weights: {bits: 4}}", ["variants.base (line 8): the float32 baseline takes", "ptq"]),
    ("base: {}", "base: {}\n  other: {}", ["the variants base and other are float32"]),
    ("base: {}", "fp32: {method: ptq}", ["variants.fp32 (line 8): the float32 baseline is to get this name"]),
    ("base: {}", "../base: {}", ["variants.../base (line 8): '../base' cannot be the name of a file"]),
    ("name: mine", "name: a/b", ["name (line 1): 'a/b' cannot be the name of a file"]),
    ("name: mine", "nam: mine", ["nam (line 1): unknown key", "'name'", "name: this key is missing"]),
    ("bench:", "gird: {method: ptq}\nbench:", ["gird (line 16): unknown key", "'grid'"]),
    ("weights: {observer: mse}", "rules: [{match: a, bist: 4}]", ["rules[0].bist (line 11): unknown key", "Known: "]),
    ("weights: {observer: mse}", "rounding: {name: gptq, seed: 1}", ["rounding.seed (line 11): qdeploy itself gives"]),
    ("weights: {observer: mse}", "rounding: {name: nearest, damp: 1}", ["int8.rounding.damp (line 11): unknown key"]),
    ("threads: [1, 2]", "threads: [1, 0]", ["bench.threads[1] (line 16): 0 should be greater than or equal to 1"]),
    ("threads: [1, 2]", "threads: []", ["bench.threads (line 16): the list is empty"]),
    ("seconds: 1", "seconds: 0", ["bench.seconds (line 16): 0 should be greater than or equal to 0.01"]),
    ("bench:", "input: {shape: [1, 9, 8]}\nbench:", ["input.shape (line 16): data set digits makes", "[1, 8, 8]"]),
    ("bench:", "contrasts: [[int8, int5]]\nbench:", ["contrasts[0] (line 16): there is no variant 'int5'"]),
    ("bench:", "contrasts: [[int8, int8]]\nbench:", ["contrasts[0] (line 16): int8 cannot be compared with itself"]),
    ("bench:", "contrasts: [[int8, base], [base, int8]]\nbench:", ["contrasts[1]", "are compared already"]),
    ("bench:", "contrasts: [[int8]]\nbench:", ["contrasts[0] (line 16): ['int8'] is no pair", "[FIRST, SECOND]"]),
    ("bench:", "contrasts: [int8, int4]\nbench:", ["contrasts[0] (line 16): 'int8' is no pair of variants"]),
    ("bench:", "also_evaluate: [test]\nbench:", ["also_evaluate[0] (line 16): 'test'", "train, validation"]),
    ("train:\n  epochs: 3\n  lr: 1e-3\n", "", ["neither train nor model.checkpoint"]),
    ("width: 8", "checkpoint: a.pth", ["both train and model.checkpoint", "--set train=null"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[new.replace("\n", " ")[:40] for _, new, _ in WRONG])
def test_what_is_wrong_is_one_error(refused, old, new, said):
    error = refused(changed(old, new))
    assert "recipes/mine.yaml" in error
    for part in said:
        assert part in error


PLUGINS = {
    "observer": ("weights: {observer: mse}", "activations: {observer: ./mine.py%s}"),
    "fake quant": ("method: ptq\n    weights: {observer: mse}", "method: qat\n    fake_quant: ./mine.py%s"),
    "rounding": ("weights: {observer: mse}", "rounding: {name: ./mine.py%s}"),
    "dataset": ("name: digits, calibration: 100", "name: ./mine.py%s"),
    "model": ("models/net.py:net", "mine.py:net%s"),
}
OBSERVER = """
class Observer:
    def __init__(self, scheme, share: float = 0.5):
        self.share = 1 / share
    def observe(self, x): ...
    def merge(self, other): ...
"""
DATASET = """
import numpy as np
from qdeploy.datasets.digits import Dataset as Digits
class Dataset(Digits):
    classes = ("a", "b")
"""
# What a file of the user's own holds, and what is said of it before any work.
MINE = [
    ("observer", "", "", ["activations.observer (line 11): mine.py is no observer: it defines no 'Observer'"]),
    ("observer", "def", "", ["activations.observer (line 11): mine.py, line 1: invalid syntax"]),
    ("observer", "nothing", "", ["observer (line 11): NameError: name 'nothing' is not defined", "mine.py, line 1."]),
    ("observer", "class Observer: ...", "", ["activations.scheme (line 11): unknown key"]),
    ("observer", OBSERVER, "", ["activations.observer (line 11): the Observer of mine.py has no range()"]),
    ("observer", OBSERVER, ", share: 0.0", ["int8.activations (line 11): ZeroDivisionError", "mine.py, line 4."]),
    ("observer", OBSERVER, ", shear: 1.0", ["activations.shear (line 11): unknown key", "'share'"]),
    ("observer", "class Observer:\n  def __init__(self, scheme): self.x = y", "", ["NameError: name 'y'", "line 2."]),
    ("fake quant", "", "", ["int8.fake_quant (line 11): mine.py is no fake quant: it defines no 'FakeQuant'"]),
    ("fake quant", "class FakeQuant: Weight = int", "", ["(line 11): the FakeQuant of mine.py has no Activation"]),
    ("rounding", "", "", ["int8.rounding (line 11): mine.py is no rounding: it defines no 'round_weight'"]),
    ("rounding", "def round_weight(weight, scale, scheme, *, damp: float = 0.1): ...", ", damp: x",
     ["int8.rounding.damp (line 11): 'x' should be a valid number"]),
    ("dataset", "class Dataset: ...", "", ["data.name (line 3): the Dataset of mine.py has no name, no classes"]),
    ("dataset", "from qdeploy.datasets._base import ArrayDataset as Dataset", "", ["Can't instantiate abstract class"]),
    ("dataset", DATASET + "    preprocessing = [{'op': 'scael'}]", "",
     ["data.name (line 3): preprocessing[0]: There is no preprocessing op 'scael'. Known: scale"]),
    ("dataset", DATASET + "    preprocessing = [{'op': 'scale'}]", "", ["preprocessing[0].factor is missing"]),
    ("dataset", DATASET + "    preprocessing = [{'op': 'scale', 'factor': np.float32(1)}]", "", ["not JSON serial"]),
    ("dataset", DATASET + "    preprocessing = [{'op': 'layout', 'from': 'HWC', 'to': 'CHW'}]", "", ["no permutation"]),
    ("dataset", DATASET + "    preprocessing = property(lambda self: self.gone)", "", ["AttributeError: 'Dataset'"]),
    ("dataset", DATASET + "    metric = 'top9'", "", ["There is no metric named 'top9'", "'top1'"]),
    ("dataset", DATASET + "    raw_shape = None", "", ["data.name (line 3): TypeError"]),
    ("model", "net = lambda width: 3", "", ["model.factory (line 2): mine.py:net returns int, not a torch.nn.Module"]),
    ("model", "def net(width): return widht", "", ["factory (line 2): NameError: name 'widht'", "mine.py, line 1."]),
    ("model", "def net(width): raise ValueError('odd')", "", ["fails: odd"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "code", "option", "said"), MINE, ids=[f"{k}: {c[-40:]}" for k, c, _, _ in MINE])
def test_a_file_of_the_users_own_is_tried_before_any_work(refused, project: Path, kind, code, option, said):
    (project / "mine.py").write_text(code)
    old, new = PLUGINS[kind]
    error = refused(changed(old, new % option))
    for part in said:
        assert part in error


def test_a_missing_checkpoint_is_found_out_before_any_work(refused):
    text = changed("width: 8", "checkpoint: wieghts.pth").replace("train:\n  epochs: 3\n  lr: 1e-3\n", "")
    Path("weights.pth").touch()
    error = refused(text)
    assert "model.checkpoint (line 2): There is no file wieghts.pth" in error
    assert "'weights.pth'" in error


def test_everything_that_is_wrong_is_said_at_once(refused):
    error = refused(
        changed("epochs: 3", "epochs: x").replace("observer: mse", "observer: nope").replace("seconds: 1", "s: 1")
    )
    assert error.startswith("recipes/mine.yaml has 3 errors.")
    for key in ("train.epochs (line 5)", "variants.int8.weights.observer (line 11)", "bench.s (line 16)"):
        assert key in error


def test_only_keeps_the_baseline(read):
    assert list(read(GOOD, only=("int4",)).variants) == ["base", "int4"]
    assert list(read(GOOD, only=("int4", "int8")).variants) == ["base", "int8", "int4"]
    assert list(read(GOOD, only=("base",)).variants) == ["base"]


def test_a_contrast_of_what_is_left_out_is_left_out(read):
    text = changed("bench:", "contrasts: [[int8, base], [int8, int4]]\nbench:")
    assert read(text).contrasts == (("int8", "base"), ("int8", "int4"))
    assert read(text, only=("int8",)).contrasts == (("int8", "base"),)


def test_a_contrast_may_name_the_baseline_that_is_added(read):
    text = changed("  base: {}\n", "") + "contrasts: [[int8, fp32]]\nalso_evaluate: train\n"
    assert read(text).contrasts == (("int8", "fp32"),)
    assert read(text).also_evaluate == ("train",)


def test_only_suggests_the_nearest(refused):
    error = refused(GOOD, only=("itn4",))
    assert "--only itn4" in error
    assert "'int4'" in error


def test_no_recipe_suggests_the_nearest(project: Path):
    (project / "recipes" / "digits.yaml").touch()
    with pytest.raises(QDeployError, match=r"no recipe file recipes/digit\.yaml") as error:
        load(Path("recipes/digit.yaml"))
    assert "recipes/digits.yaml" in error.value.hint
    with pytest.raises(QDeployError, match="There is no recipe file"):
        load(Path("nowhere/a.yaml"))


def test_a_wrong_name_is_found_without_importing_torch(project: Path):
    (project / "recipes" / "mine.yaml").write_text(changed("epochs: 3", "epochs: x"))
    code = """
import sys
from pathlib import Path
from qdeploy.core.errors import QDeployError
from qdeploy.recipe.load import load
try:
    load(Path("recipes/mine.yaml"))
except QDeployError:
    sys.exit("torch" in sys.modules)
sys.exit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist", "cifar10_resnet20"])
def test_the_recipes_that_ship_are_valid(repository: Path, name: str, tmp_path: Path):
    pretrained = None
    if name == "cifar10_resnet20":  # its weights are somebody else's, and downloaded
        pretrained = tmp_path / "weights.safetensors"
        save(pretrained, load_model("models/resnet_cifar.py:resnet20", base=repository).state_dict())
    recipe = load(repository / "recipes" / f"{name}.yaml", pretrained=pretrained)
    assert recipe.description
    assert any(variant.method == "ptq" for variant in recipe.variants.values())


# ---------------------------------------------------------------------------------------------------- pretrained


def test_pretrained_weights_take_the_place_of_training(read, weights: Path):
    recipe = read(GOOD.replace(", width: 8", ""), pretrained=weights)
    assert (recipe.train, recipe.model.checkpoint) == (None, weights)


def test_pretrained_weights_that_do_not_fit_say_so_before_any_work(refused, weights: Path):
    error = refused(GOOD, pretrained=weights)  # the model is twice as wide
    assert "model.checkpoint (--from-pretrained weights.pth): Checkpoint weights.pth does not fit Linear" in error
    assert "weight is [4, 4], the model's is [8, 8]" in error


def test_pretrained_weights_and_training_exclude_each_other(refused, weights: Path):
    assert "both train and model.checkpoint" in refused(GOOD, "train.epochs=5", pretrained=weights)


def test_pretrained_weights_that_are_missing_suggest_the_nearest(refused, weights: Path):
    error = refused(GOOD, pretrained=Path("wieghts.pth"))
    assert "There is no file wieghts.pth" in error
    assert "'weights.pth'" in error
