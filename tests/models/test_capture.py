"""The networks of the experiments: what they return, and that they are captured as graphs with a dynamic batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qdeploy.core.errors import QDeployError
from qdeploy.graph.capture import capture
from qdeploy.train.reference import load_model


def token_ids(samples: int, length: int, highest: int) -> torch.Tensor:
    """Random ids behind paddings of 0, 1, 2, ... zeros."""
    ids = torch.randint(1, highest + 1, (samples, length), generator=torch.Generator().manual_seed(0))
    return ids * (torch.arange(length) >= torch.arange(samples)[:, None])


CASES = {
    "mlp": ("mlp.py:MLP", {"features": 7, "classes": 3}, lambda n: torch.randn(n, 7), (3,)),
    "eurosat": ("eurosat_cnn.py:EuroSatCNN", {"channels": 4}, lambda n: torch.randn(n, 3, 64, 64), (10,)),
    "lstm": ("lstm_text.py:LSTMText", {"vocabulary": 50, "hidden": 8}, lambda n: token_ids(n, 9, 49), (2,)),
    "lstm-last": (
        "lstm_text.py:LSTMText", {"vocabulary": 50, "hidden": 8, "layers": 2, "bidirectional": False, "pool": "last"},
        lambda n: token_ids(n, 9, 49), (2,),
    ),
    "sasrec": (
        "sasrec.py:SASRec", {"items": 30, "length": 8, "channels": 16, "heads": 2}, lambda n: token_ids(n, 8, 30), (31,)
    ),
    "sasrec-untied": (
        "sasrec.py:SASRec", {"items": 30, "length": 8, "channels": 16, "tied": False}, lambda n: token_ids(n, 8, 30),
        (31,),
    ),
    "espcn": ("espcn.py:ESPCN", {"channels": 8}, lambda n: torch.randn(n, 1, 10, 6), (1, 30, 18)),
    "espcn-tanh": ("espcn.py:ESPCN", {"activation": "tanh"}, lambda n: torch.randn(n, 1, 10, 6), (1, 30, 18)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_captured_with_a_dynamic_batch(repository: Path, case):
    factory, arguments, samples, shape = CASES[case]
    model = load_model(f"models/{factory}", base=repository, **arguments).eval()
    graph = capture(model, samples(2))
    for batch in (1, 5):
        x = samples(batch)
        with torch.no_grad():
            outputs = model(x)
            assert outputs.shape == (batch, *shape)
            assert torch.allclose(graph(x), outputs, atol=1e-5)


def sasrec(repository: Path, **arguments) -> torch.nn.Module:
    return load_model("models/sasrec.py:SASRec", base=repository, items=30, length=8, channels=16, **arguments).eval()


def test_sasrec_ignores_what_stands_in_padding(repository: Path):
    """What a padded position would hold changes no score: only the items themselves count."""
    model = sasrec(repository)
    history = token_ids(6, 8, 30)[3:]
    with torch.no_grad():
        before = model(history)
        model.items.weight[0] += 3.0  # the padding's row: an input of every padded position
        after = model(history)
    assert torch.allclose(before[:, 1:], after[:, 1:], atol=1e-5)


def test_sasrec_is_causal(repository: Path):
    model = sasrec(repository)
    states = []
    model.norm.register_forward_hook(lambda *call: states.append(call[2]))
    history = token_ids(1, 8, 30)
    changed = history.clone()
    changed[0, -1] = changed[0, -1] % 30 + 1
    with torch.no_grad():
        model(history), model(changed)
    assert torch.allclose(states[0][:, :-1], states[1][:, :-1], atol=1e-6)
    assert not torch.allclose(states[0][:, -1], states[1][:, -1], atol=1e-2)


def test_sasrec_recommends_nothing_that_is_there_already(repository: Path):
    """A tied table would have the last item on top: its state is near its own row."""
    history = token_ids(6, 8, 30)
    with torch.no_grad():
        scores = sasrec(repository)(history)
    there = torch.zeros_like(scores, dtype=torch.bool).scatter(1, history, value=True)
    assert (scores[there] == scores.min()).all()
    assert (scores[~there] > scores.min()).all()


def test_sasrec_recommends_again_where_that_is_asked_for(repository: Path):
    history = token_ids(6, 8, 30)
    model = sasrec(repository, repeats=True)
    with torch.no_grad():
        scores = model(history)
        model.repeats = False
        hidden = model(history)
    assert scores.min() > -100
    there = torch.zeros_like(scores, dtype=torch.bool).scatter(1, history, value=True)
    assert torch.equal(hidden[~there], scores[~there])


def test_sasrec_shares_its_table_where_tied(repository: Path):
    model = sasrec(repository)
    assert model.scores.weight is model.items.weight
    other = sasrec(repository, tied=False)
    assert other.scores.weight is not other.items.weight


def test_the_mean_over_words_is_that_of_a_text_without_padding(repository: Path):
    """One direction reads zeros first; its embedding of them is zero, so a bias alone moves the state."""
    model = load_model("models/lstm_text.py:LSTMText", base=repository, vocabulary=50, hidden=8, bidirectional=False)
    model.eval()
    model.lstm.bias_ih_l0.data.zero_()
    model.lstm.bias_hh_l0.data.zero_()
    text = torch.randint(1, 50, (2, 5))
    padded = torch.cat([torch.zeros(2, 4, dtype=torch.int64), text], dim=1)
    with torch.no_grad():
        assert torch.allclose(model(text), model(padded), atol=1e-6)


def test_espcn_shuffles_channels_to_pixels(repository: Path):
    model = load_model("models/espcn.py:ESPCN", base=repository, channels=8)
    with torch.no_grad():
        model.conv3.weight.zero_()
        model.conv3.bias.copy_(torch.arange(9.0))
        image = model(torch.randn(1, 1, 2, 2))
    assert image[0, 0, :3, :3].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert image[0, 0, 3:, 3:].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize(
    ("factory", "arguments", "said"),
    [
        ("espcn.py:ESPCN", {"activation": "gelu"}, "not relu or tanh"),
        ("lstm_text.py:LSTMText", {"pool": "max"}, "not mean or last"),
        ("sasrec.py:SASRec", {"items": 9, "channels": 10, "heads": 3}, "shared by 3 heads"),
    ],
)
def test_arguments_that_do_not_fit(repository: Path, factory, arguments, said):
    with pytest.raises(QDeployError, match=said):
        load_model(f"models/{factory}", base=repository, **arguments)


def test_espcn_is_captured_at_one_size_and_runs_at_another(repository: Path):
    """It is deployed for whole images, and calibrated and trained on patches of them."""
    model = load_model("models/espcn.py:ESPCN", base=repository, channels=8).eval()
    graph = capture(model, torch.randn(2, 1, 20, 24))
    patches = torch.randn(3, 1, 7, 7)
    with torch.no_grad():
        assert torch.allclose(graph(patches), model(patches), atol=1e-5)
