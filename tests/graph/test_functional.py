"""In-place operators as functions: the same values, or an error where no local rewrite can give them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from qdeploy.core.errors import QDeployError
from qdeploy.graph.capture import capture
from tests.networks import Net, conv, operators, samples

IMAGES = samples(4, 8, 6, 6)


def residual(m, x):
    h = m.a(x)
    h += x
    return m.b(h.relu_()) + h


def written_twice(m, x):
    h = m.a(x)
    early = h * 2
    h.add_(1).mul_(3)
    late = h * 2
    h.clamp_(0, 1)
    return early + late + h


def view_then_write(m, x):
    h = m.a(x).flatten(1)
    return h.relu_()


def write_then_view(m, x):
    h = m.a(x)
    h.relu_()
    return h.flatten(1) + h.flatten(1)


IN_PLACE = {
    "relu_": lambda m, x: m.b(F.relu(m.a(x), inplace=True)),
    "relu6": lambda m, x: m.b(F.relu6(m.a(x), inplace=True)),
    "hardswish": lambda m, x: F.hardswish(m.a(x), inplace=True),
    "leaky_relu": lambda m, x: F.leaky_relu(m.a(x), 0.2, inplace=True),
    "silu": lambda m, x: F.silu(m.a(x), inplace=True),
    "elu": lambda m, x: F.elu(m.a(x), inplace=True),
    "dropout": lambda m, x: F.dropout(m.a(x), 0.5, False, inplace=True),
    "masked_fill": lambda m, x: m.a(x).masked_fill_(x > 0, 0.5),
    "residual": residual,
    "written twice": written_twice,
    "a view that nobody else sees": view_then_write,
    "views made later": write_then_view,
    "slices made later": lambda m, x: (lambda h: h.mul_(2)[:, :4] + h[:, 4:])(m.a(x)),
    "a copy is no view": lambda m, x: (lambda h: h.clone().mul_(2) + h)(m.a(x)),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_is_what_eager_computes(name):
    model = Net(IN_PLACE[name], a=conv(), b=conv()).eval()
    graph = capture(model, IMAGES)
    x = samples(3, 8, 6, 6, seed=2)
    torch.testing.assert_close(graph(x.clone()), model(x.clone()))
    assert not [name for name in operators(graph) if name.endswith("_")]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: (lambda h: (h[:, :4].relu_(), h)[1])(m.a(x)),
        lambda m, x: (lambda h: (h.flatten(1)[:, 3].mul_(2), h)[1])(m.a(x)),  # through two views
        lambda m, x: (lambda h, v: (h.relu_(), v)[1])(*(lambda h: (h, h.view(-1, 288)))(m.a(x))),  # the view is read
        lambda m, x: (lambda p, q: (p.relu_(), q)[0] + q.sum())(*(lambda h: (h[:, :4], h[:, 2:6]))(m.a(x))),  # siblings
    ],
)
def test_a_write_that_shows_elsewhere_is_refused(run):
    with pytest.raises(QDeployError, match="reads afterwards through another view") as caught:
        capture(Net(run, a=conv()), IMAGES)
    assert "out of place" in caught.value.hint


def test_assignment_into_a_slice_is_refused():
    def assign(m, x):
        h = m.a(x).clone()
        h[:, 0] = 1
        return h

    with pytest.raises(QDeployError, match="writes into memory"):
        capture(Net(assign, a=conv()), IMAGES)


def test_views_become_reshapes():
    graph = capture(Net(lambda m, x: m.a(x).view(-1, 4, 2, 6, 6), a=conv()), IMAGES)
    assert operators(graph)[-1] == "reshape"
