"""Which layer gets how many bits."""

from __future__ import annotations

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.quant.placement import place, weighted_layers
from qdeploy.quant.rules import LayerSchemes, Rule, layer_schemes
from tests.networks import Net, conv, graph_of, samples

NAMES = ["stem", "layer1.a", "layer1.b", "layer2.a", "head"]


def bits(layers: dict[str, LayerSchemes]) -> list[tuple[int, int]]:
    return [(layer.weight.bits, layer.activation.bits) for layer in layers.values()]


def test_the_first_and_the_last_layer_have_8_bits():
    found = layer_schemes(NAMES, weight_bits=4, activation_bits=2)
    assert bits(found) == [(8, 8), (4, 2), (4, 2), (4, 2), (8, 8)]
    assert [layer.exempt for layer in found.values()] == [True, False, False, False, True]


def test_where_all_have_8_bits_none_is_exempt():
    assert not any(layer.exempt for layer in layer_schemes(NAMES).values())


def test_without_an_exemption_all_have_the_same():
    assert bits(layer_schemes(NAMES, weight_bits=4, activation_bits=4, first_last_bits=None)) == [(4, 4)] * 5


def test_one_layer_is_first_and_last():
    assert bits(layer_schemes(["only"], weight_bits=4)) == [(8, 8)]


def test_of_the_rules_that_match_the_last_decides():
    rules = [Rule("layer*", weight_bits=3), Rule("*.b", weight_bits=2, activation_bits=6), Rule("head", weight_bits=4)]
    found = layer_schemes(NAMES, weight_bits=4, rules=rules)
    assert bits(found) == [(8, 8), (3, 8), (2, 6), (3, 8), (4, 8)]
    assert not found["head"].exempt


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(QDeployError, match=r"'layer3\.\*' matches no layer with weights") as caught:
        layer_schemes(NAMES, rules=[Rule("layer3.*", weight_bits=4)])
    assert "layer1.a" in str(caught.value.hint)


def test_one_bit_is_a_sign():
    assert layer_schemes(NAMES, weight_bits=1)["layer1.a"].weight.codebook == (-1, 1)


def residual():
    net = Net(lambda m, x: m.d(m.c(m.b(y := m.a(x).relu()).relu() + y).relu()), a=conv(), b=conv(), c=conv(), d=conv())
    return graph_of(net, samples(2, 8, 6, 6))


def test_a_value_gets_what_the_layers_that_read_it_want_and_8_bits_where_none_does():
    graph = residual()
    placement = place(graph, layers=layer_schemes(weighted_layers(graph), weight_bits=4, activation_bits=4))
    found = {name: quantizer.scheme.bits for name, quantizer in placement.activations.items()}
    assert found == {"x": 8, "relu": 4, "relu_1": 8, "add": 4, "relu_2": 8, "d": 8}
    assert [layer.weight.scheme.bits for layer in placement.layers] == [8, 4, 4, 8]
    assert [layer.exempt for layer in placement.layers] == [True, False, False, True]


def test_layers_kept_in_float32_are_none_of_the_weighted_ones():
    graph = residual()
    assert weighted_layers(graph) == ["a", "b", "c", "d"]
    assert weighted_layers(graph, ["a", "c"]) == ["b", "d"]
    with pytest.raises(QDeployError, match="'e' matches no layer"):
        weighted_layers(graph, ["e"])


def test_a_midrise_grid_is_for_the_layers_of_few_bits():
    found = layer_schemes(NAMES, weight_bits=2, weight_grid="midrise", rules=[Rule("layer2.a", weight_bits=3)])
    assert [layer.weight.codebook for layer in found.values()] == [
        None, (-3, -1, 1, 3), (-3, -1, 1, 3), (-7, -5, -3, -1, 1, 3, 5, 7), None,
    ]  # fmt: skip


def test_a_rule_about_activations_leaves_the_weights_exempt():
    found = layer_schemes(NAMES, weight_bits=4, activation_bits=8, rules=[Rule("*", activation_bits=4)])
    assert bits(found) == [(8, 4), (4, 4), (4, 4), (4, 4), (8, 4)]
    assert [layer.exempt for layer in found.values()] == [True, False, False, False, True]
