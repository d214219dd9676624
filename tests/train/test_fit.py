from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qdeploy.core.errors import QDeployError
from qdeploy.datasets.digits import Dataset
from qdeploy.runner import preprocess
from qdeploy.train.fit import Progress, fit


class Tiny:
    """Four classes, the class is the brightest of four pixels. Evaluation data does not exist."""

    name, task, metric = "tiny", "classification", "top1"
    preprocessing = [{"op": "scale", "factor": 1 / 16}]  # noqa: RUF012

    def split(self, name):
        size, seed = {"train": (70, 0), "validation": (40, 1)}[name]
        generator = np.random.default_rng(seed)
        targets = generator.integers(0, 4, size)
        raw = generator.integers(0, 8, (size, 4), dtype=np.uint8)
        raw[np.arange(size), targets] = 16
        return raw, targets


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


class Drifting(nn.Module):
    """Right in its first two epochs, surer in the second, wrong afterwards. Its buffer counts training batches."""

    LOGITS = (1.0, 5.0, -1.0, -5.0)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        epoch = min(int(self.batches) // 7, 3) if self.training else (int(self.batches) - 1) // 7
        if self.training:
            self.batches += 1
        return self.LOGITS[epoch] * (x == 1).float() + 0 * self.weight


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_two_fits_are_identical_whatever_the_global_random_state():
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        random.seed(noise)
        results.append(fit(network(), Tiny(), epochs=3, lr=0.01, batch_size=16, seed=5, device="cpu"))
    assert same(results[0].state_dict, results[1].state_dict)
    assert results[0].history == results[1].history


def test_the_seed_decides_the_order():
    results = [fit(network(), Tiny(), epochs=1, lr=0.01, batch_size=16, seed=seed, device="cpu") for seed in (0, 1)]
    assert not same(results[0].state_dict, results[1].state_dict)


def test_the_global_random_state_is_left_as_it_was():
    before = torch.get_rng_state()
    fit(network(), Tiny(), epochs=1, lr=0.01, device="cpu")
    assert torch.equal(before, torch.get_rng_state())


def test_the_best_checkpoint_is_kept_and_not_the_last():
    model = Drifting()
    result = fit(model, Tiny(), epochs=4, lr=0.1, batch_size=10, device="cpu")
    assert [line["validation_metric"] for line in result.history[:2]] == [1.0, 1.0]
    assert [line["validation_metric"] < 1 for line in result.history[2:]] == [True, True]
    # Epochs 1 and 2 are equally right; 2 has the lower loss. Each has 7 batches.
    assert result.epoch == 2
    assert result.state_dict["batches"] == 14
    assert model.batches == 14
    assert not model.training


def test_what_is_returned_is_not_the_models_own_memory():
    model = network()
    result = fit(model, Tiny(), epochs=1, lr=0.01, device="cpu")
    before = {name: tensor.clone() for name, tensor in result.state_dict.items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert same(before, result.state_dict)


def test_the_history_says_what_the_best_weights_do():
    data, model = Tiny(), network()
    result = fit(model, data, epochs=6, lr=0.05, batch_size=16, device="cpu")
    raw, targets = data.split("validation")
    restored = network(seed=9)
    restored.load_state_dict(result.state_dict)
    outputs = restored.eval()(torch.from_numpy(preprocess(raw, data.preprocessing))).argmax(1).numpy()
    best = result.history[result.epoch - 1]
    assert best["validation_metric"] == pytest.approx((outputs == targets).mean())
    assert best["validation_metric"] == max(line["validation_metric"] for line in result.history)
    assert [line["epoch"] for line in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.metric == "top1"


def test_evaluation_and_calibration_are_not_asked_for():
    data = Dataset()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    result = fit(model, data, epochs=3, lr=0.01, device="cpu")
    assert sorted(data.accessed) == ["train", "validation"]
    assert max(line["validation_metric"] for line in result.history) > 0.85


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_every_optimizer_and_schedule_learns(optimizer, schedule):
    lr = 0.2 if optimizer == "sgd" else 0.02
    result = fit(network(), Tiny(), epochs=12, lr=lr, batch_size=16, optimizer=optimizer, schedule=schedule,
                 label_smoothing=0.05, device="cpu")  # fmt: skip
    assert result.history[-1]["train_loss"] < 0.6 * result.history[0]["train_loss"]
    assert result.history[result.epoch - 1]["validation_metric"] > 0.8


def test_the_cosine_falls_from_lr_to_zero():
    rates = [line["lr"] for line in fit(network(), Tiny(), epochs=10, lr=0.5, batch_size=70, device="cpu").history]
    assert rates[0] == 0.5
    assert rates[5] == pytest.approx(0.25)
    assert 0 < rates[-1] < 0.02
    assert rates == sorted(rates, reverse=True)
    constant = fit(network(), Tiny(), epochs=2, lr=0.5, batch_size=70, schedule="constant", device="cpu").history
    assert [line["lr"] for line in constant] == [0.5, 0.5]


def test_weight_decay_shrinks_weights_and_spares_biases_and_batch_norm():
    """With nothing to learn from (one class), only decay moves what does not reach the output."""
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, Tiny(), epochs=1, lr=1e-6, weight_decay=1e5, batch_size=70, optimizer="adamw", device="cpu")
    for name, parameter in model.named_parameters():
        shrunk = parameter.detach().norm() < 0.95 * before[name].norm()
        assert shrunk == (parameter.ndim > 1), name


def test_progress_is_told_of_every_batch_and_fit_itself_prints_nothing(capfd):
    steps: list[Progress] = []
    result = fit(network(), Tiny(), epochs=2, lr=0.01, batch_size=30, device="cpu", progress=steps.append)
    assert [(s.epoch, s.batch) for s in steps] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert {(s.epochs, s.batches) for s in steps} == {(2, 2)}
    assert [s.record for s in steps] == [None, result.history[0], None, result.history[1]]
    assert capfd.readouterr() == ("", "")


def test_a_batch_larger_than_the_data_is_the_data():
    steps: list[Progress] = []
    fit(network(), Tiny(), epochs=1, lr=0.01, batch_size=1000, device="cpu", progress=steps.append)
    assert len(steps) == 1


def test_a_loss_that_is_not_finite_stops_with_its_place():
    with pytest.raises(QDeployError, match=r"training loss in epoch \d+, batch \d+ is (nan|inf)") as error:
        fit(network(), Tiny(), epochs=9, lr=1e30, batch_size=16, optimizer="sgd", device="cpu")
    assert "train.lr" in error.value.hint


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({"optimizer": "adamW"}, "no optimizer named 'adamW'", "'adamw'"),
        ({"schedule": "cosin"}, "no schedule named 'cosin'", "'cosine'"),
        ({"device": "gpu"}, "no device named 'gpu'", "cpu"),
        ({"epochs": 0}, "Cannot train 0 epochs", "1 or more"),
        ({"batch_size": 0}, "batches of 0", "1 or more"),
    ],
)
def test_wrong_arguments(options, said, hint):
    with pytest.raises(QDeployError, match=said) as error:
        fit(network(), Tiny(), **{"epochs": 1, "lr": 0.1, **options})
    assert hint in error.value.hint


def test_a_device_that_is_not_here():
    absent = [
        name
        for name, here in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        if not here
    ]
    for name in absent:
        with pytest.raises(QDeployError, match=f"no {name} device") as error:
            fit(network(), Tiny(), epochs=1, lr=0.1, device=name)
        assert "cpu" in error.value.hint


def test_a_task_without_a_loss():
    class Other(Tiny):
        task = "classifcation"

    with pytest.raises(QDeployError, match="no loss for the task 'classifcation'") as error:
        fit(network(), Other(), epochs=1, lr=0.1)
    assert "'classification'" in error.value.hint


class _Answers(nn.Module):
    """A model that answers in a way of its own."""

    def __init__(self, answer):
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.layer(x.flatten(1)))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda y: (y, y), "returns a tuple"),
        (lambda y: y, r"\[2, 3\] for 2 samples of 10 classes"),
        (lambda y: y.reshape(-1, 7), "fails on a batch"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_before_the_first_step(answer, said):
    from qdeploy.datasets.digits import Dataset

    with pytest.raises(QDeployError, match=said):
        fit(_Answers(answer), Dataset(), epochs=1, lr=1e-3)


@pytest.mark.parametrize("distillation", [0.0, 0.5, 1.0])
def test_what_a_loss_cannot_do_is_refused_whoever_teaches(distillation):
    class Values(Tiny):
        task = "regression"
        metric = "psnr"

        def split(self, name):
            raw, targets = super().split(name)
            return raw, np.repeat(targets[:, None], 4, axis=1).astype(np.float32)

    with pytest.raises(QDeployError, match="Label smoothing is for classes"):
        fit(
            network(), Values(), epochs=1, lr=0.1, label_smoothing=0.1, device="cpu", teacher=network(1),
            distillation=distillation,
        )  # fmt: skip


def test_the_last_epoch_is_kept_where_that_is_asked_for():
    result = fit(Drifting(), Tiny(), epochs=4, lr=0.01, batch_size=10, device="cpu", keep="last")
    assert result.epoch == 4
    assert int(result.state_dict["batches"]) == 28


def test_every_epoch_is_announced_before_it_starts():
    seen = []
    fit(
        network(), Tiny(), epochs=3, lr=0.01, batch_size=70, device="cpu",
        before_epoch=lambda epoch, epochs: seen.append((epoch, epochs)), progress=lambda p: seen.append(p.epoch),
    )  # fmt: skip
    assert seen == [(1, 3), 1, (2, 3), 2, (3, 3), 3]


def test_a_teacher_alone_teaches_its_answers_and_not_the_targets():
    """This one says the opposite of the targets: the darkest pixel."""

    class Contrary(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -20 * x

    result = fit(
        network(), Tiny(), epochs=30, lr=0.02, batch_size=10, weight_decay=0.0, device="cpu", teacher=Contrary(),
        distillation=1.0, keep="last",
    )  # fmt: skip
    assert result.history[-1]["validation_metric"] < 0.25
    model = network()
    model.load_state_dict(result.state_dict)
    raw, _ = Tiny().split("validation")
    inputs = torch.from_numpy(preprocess(raw, Tiny.preprocessing))
    agreed = model.eval()(inputs).argmax(1) == Contrary()(inputs).argmax(1)
    assert agreed.float().mean() > 0.6


def test_a_teacher_that_counts_for_nothing_changes_nothing():
    plain = fit(network(), Tiny(), epochs=2, lr=0.01, batch_size=16, device="cpu")
    taught = fit(network(), Tiny(), epochs=2, lr=0.01, batch_size=16, device="cpu", teacher=network(1))
    assert same(plain.state_dict, taught.state_dict)


class Level(nn.Module):
    """Adds nothing, with a parameter that has a gradient of 0."""

    def __init__(self, decays: bool) -> None:
        super().__init__()
        self.decays, self.level = decays, nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * self.level.sum()


def test_a_module_that_decays_has_its_vectors_decayed_and_no_other_has():
    model = nn.Sequential(network(), Level(True), Level(False))
    result = fit(model, Tiny(), epochs=1, lr=0.1, weight_decay=0.5, batch_size=10, optimizer="sgd", device="cpu")
    assert all(result.state_dict["1.level"] < 1)
    assert all(result.state_dict["2.level"] == 1)
