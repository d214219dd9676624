"""Put quantizers exactly where onnxruntime fuses them into integer kernels.

The rule, in one sentence: a layer that multiplies by stored weights, a look-up in a stored table and a product of two
activations are always quantized; an elementwise or pooling operator is quantized if integer values reach it *and* it
feeds an integer kernel; operators that only move values pass the quantizer of their input on; a clip (ReLU, ReLU6) is
the range of the quantizer behind it.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from qdeploy.core import saturation
from qdeploy.core import scheme as schemes
from qdeploy.core.scheme import QScheme
from qdeploy.graph.layers import LAYER
from qdeploy.graph.operators import argument, is_operator, is_tensor, operator_name, shape_of, stored
from qdeploy.graph.recurrent import LSTM
from qdeploy.quant.fusion_table import BY_ATEN, Role, reason_without_row
from qdeploy.quant.quantizer import ActivationQuantizer, WeightQuantizer
from qdeploy.quant.rules import LayerSchemes, matching

LOOKUP = "aten.embedding"

# Functions of one element without an integer kernel: a float island of a few elements' work between integer layers.
_ACTIVATIONS = frozenset(
    f"aten.{name}" for name in ("hardswish", "hardsigmoid", "silu", "gelu", "elu", "mish", "softplus", "tanh")
)


# Activations that onnxruntime fuses into a float32 Gemm before them.
_GEMM_ACTIVATIONS = frozenset(
    f"aten.{name}"
    for name in ("relu", "leaky_relu", "sigmoid", "tanh", "elu", "selu", "hardsigmoid", "softplus", "threshold")
)
_NOT_DYNAMIC = "ranges are found at run time, and no convolution of onnxruntime's CPU provider has them fused in"


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """A quantized weight, the operator that reads it, and the quantizer of what it is multiplied with.

    ``weight_call`` is where the graph calls the weight's quantizer. ``input`` is None where nothing that is known
    before the model runs is quantized: activations that the kernel quantizes itself, or rows that are looked up.
    ``table``: rows of the weight are looked up, by this layer or by another one that reads it, so the codes are the
    nearest ones at the scale of least squared error: a row that is looked up meets no weights or inputs, and what a
    rounding plugin trades between its weights would only be an error of the row.
    """

    name: str
    node: fx.Node
    weight: WeightQuantizer
    weight_call: fx.Node
    input: ActivationQuantizer | None
    exempt: bool = False  # kept wider than the other layers by default, so in training it gets a plain fake quantizer
    table: bool = False

    @property
    def layer(self) -> str:
        """The name of the layer that the weight belongs to: an LSTM has two weights, and every other layer one."""
        return str(self.node.meta[LAYER])

    @property
    def recurrent(self) -> bool:
        """Whether it multiplies an LSTM's input or states."""
        return is_operator(self.node, LSTM)

    @property
    def of_states(self) -> bool:
        """Whether it multiplies an LSTM's own hidden states."""
        return self.recurrent and argument(self.node, 2, "weight_hh") is self.weight_call

    @property
    def groups(self) -> int:
        """How many parts of its output channels multiply inputs of their own: the directions of hidden states."""
        if self.recurrent:
            return 2 if self.of_states and argument(self.node, 4, "bidirectional") else 1
        return 1 if operator_name(self.node) == "aten.linear" else int(argument(self.node, 6, "groups", 1))

    @property
    def size(self) -> int:
        """How many weights an output channel has."""
        return math.prod(shape_of(self.weight_call)[1:])

    @property
    def weight_path(self) -> str:
        """Where the float32 weight lies in the graph, until codes take its place."""
        (weight,) = self.weight_call.all_input_nodes
        return str(weight.target)

    @property
    def is_lookup(self) -> bool:
        """Whether the layer picks rows of its weight, and multiplies nothing."""
        return operator_name(self.node) == LOOKUP

    @property
    def pair_limit(self) -> int | None:
        """What pairs of its weights may sum to at most (core/saturation.py); None where its codes cannot reach that."""
        if self.is_lookup:
            return None
        reads, scheme = self.input.scheme if self.input else schemes.activation(), self.weight.scheme
        limit = saturation.pair_limit(reads.qmax)
        shape = shape_of(self.weight_call)
        if saturation.is_depthwise(tuple(shape), self.groups) or 2 * max(scheme.qmax, -scheme.qmin) <= limit:
            return None
        return limit


@dataclass(slots=True)
class Placement:
    """What placement decided."""

    activations: dict[str, ActivationQuantizer] = field(default_factory=dict)  # by layer name
    layers: list[QuantizedLayer] = field(default_factory=list)
    float_layers: dict[str, str] = field(default_factory=dict)  # layer name -> why it stays in float32

    def deciding(self, layer: QuantizedLayer) -> QuantizedLayer:
        """The layer for which the codes of a layer's weight are chosen: itself, or what multiplies with its table."""
        readers = [other for other in self.layers if other.weight is layer.weight]
        return next((other for other in readers if not other.is_lookup), layer)


def place(
    graph_module: fx.GraphModule, *, weight: QScheme | None = None, activation: QScheme | None = None,
    layers: Mapping[str, LayerSchemes] | None = None, keep_float: Sequence[str] = (), dynamic: bool = False,
) -> Placement:  # fmt: skip
    """Insert quantizers into a captured, folded, normalized graph, in place. They are the identity until calibrated.

    ``weight`` and ``activation`` are the codes of every layer's weights and of what it reads; ``layers`` gives some
    layers their own, by name. A value gets the most bits that a layer with weights wants of it, and 8 where none
    reads it: sums and means are cheap, and what they lose is lost for all that follows.

    A value that a float32 operator computes is quantized for its integer readers only; its float32 readers keep it as
    it is. ``keep_float``: glob patterns of layer names that stay in float32. ``dynamic``: linear layers quantize what
    they read when they run, with its range there; layers that cannot stay in float32.
    """
    weight, activation = weight or schemes.weight(), activation or schemes.activation()
    decision = _decide(graph_module.graph, keep_float, dynamic=dynamic)
    nodes = _weighted(graph_module.graph, decision)
    wanted = {node: LayerSchemes(weight, activation) for node in nodes}
    wanted |= {node: layers[node.meta[LAYER]] for node in nodes if layers and node.meta[LAYER] in layers}
    placement = Placement(float_layers=decision.reasons)
    quantized = _insert_activation_quantizers(graph_module, decision, _demands(wanted, decision), placement)
    tables = {argument(n, 0, "weight").target for n in nodes if decision.has(n, Role.LOOKUP)}
    calls: dict[tuple[Any, QScheme], fx.Node] = {}  # of the quantizers of tables, which all readers share
    for node in nodes:
        for kind, weight_node in _weights(node):
            path, scheme = f"{node.meta[LAYER]}.{kind}", wanted[node].weight
            key, table = (weight_node.target, scheme), weight_node.target in tables
            call = calls.get(key)
            if call is None:
                made = WeightQuantizer(path, scheme)
                call = _insert_module(graph_module, f"{path}_quantizer", made, weight_node, [node])
                if table:
                    calls[key] = call
            node.replace_input_with(weight_node, call)
            quantizer = graph_module.get_submodule(str(call.target))
            assert isinstance(quantizer, WeightQuantizer)
            name = path if is_operator(node, LSTM) else node.meta[LAYER]
            placement.layers.append(
                QuantizedLayer(name, node, quantizer, call, quantized.get(node), wanted[node].exempt, table)
            )
    graph_module.graph.lint()
    graph_module.recompile()
    return placement


def _weights(node: fx.Node) -> list[tuple[str, fx.Node]]:
    """The stored weights of a layer, or the table of a look-up, by what they are called."""
    if is_operator(node, LSTM):
        return [("weight_ih", argument(node, 1, "weight_ih")), ("weight_hh", argument(node, 2, "weight_hh"))]
    return [("weight", argument(node, 0 if operator_name(node) == LOOKUP else 1, "weight"))]


def weighted_layers(
    graph_module: fx.GraphModule, keep_float: Sequence[str] = (), *, dynamic: bool = False
) -> list[str]:
    """The names of the layers that ``place`` would give quantized weights, in the order of the graph.

    QDeployError: a pattern of ``keep_float`` that matches no layer.
    """
    graph = graph_module.graph
    whole = _decide(graph, (), dynamic=dynamic)
    products = [node for node in whole.roles if whole.has(node, Role.PRODUCT)]
    everything = [node.meta[LAYER] for node in (*_weighted(graph, whole), *products)]
    for pattern in keep_float:
        matching(pattern, everything)
    return [node.meta[LAYER] for node in _weighted(graph, _decide(graph, keep_float, dynamic=dynamic))]


def _demands(wanted: Mapping[fx.Node, LayerSchemes], decision: _Decision) -> dict[fx.Node, QScheme]:
    """The codes that layers with weights want of the values that they read, by the value that carries the quantizer."""
    found: dict[fx.Node, QScheme] = {}
    for node, layer in wanted.items():
        if not decision.has(node, Role.WEIGHTED):
            continue
        value = node.args[0]
        while decision.has(value, Role.MOVE):  # type: ignore[arg-type]
            value = _operands(value)[0]  # type: ignore[arg-type]
        assert isinstance(value, fx.Node)
        if value not in found or found[value].bits < layer.activation.bits:
            found[value] = layer.activation
    return found


@dataclass(slots=True)
class _Decision:
    roles: dict[fx.Node, Role] = field(default_factory=dict)  # of every operator on floating-point tensors
    reasons: dict[str, str] = field(default_factory=dict)

    def has(self, node: fx.Node, *roles: Role) -> bool:
        return self.roles.get(node) in roles

    def integer(self, node: fx.Node) -> bool:
        return self.has(node, Role.WEIGHTED, Role.PRODUCT, Role.ARITHMETIC)


def _decide(graph: fx.Graph, keep_float: Sequence[str], *, dynamic: bool) -> _Decision:
    """Which operators become integer kernels: the largest set in which every arithmetic one has integers on both sides.

    Starts with all candidates and removes those that fail until nothing changes.
    """
    decision = _Decision()
    for node in graph.nodes:
        if node.op != "call_function" or not node.all_input_nodes:
            continue
        if not is_tensor(node) and operator_name(node) not in BY_ATEN:
            continue
        decision.roles[node], reason = _role(node, keep_float, dynamic=dynamic)
        if reason:
            decision.reasons[node.meta[LAYER]] = reason
    changed = True
    while changed:
        arithmetic = [node for node in decision.roles if decision.has(node, Role.ARITHMETIC)]
        failing = [n for n in arithmetic if not (_fed_by_integers(n, decision) and _feeds_integers(n, decision))]
        decision.roles.update(dict.fromkeys(failing, Role.FLOAT))
        decision.reasons.update((node.meta[LAYER], "it does not lie between integer layers") for node in failing)
        changed = bool(failing)
    return decision


def _role(node: fx.Node, keep_float: Sequence[str], *, dynamic: bool) -> tuple[Role, str]:
    """The role that the table gives a node, unless its arguments rule it out: then FLOAT, and why."""
    row = BY_ATEN.get(operator_name(node))
    if row is None:
        source = node.args[0] if operator_name(node) == "getitem" else node  # one result of an operator with several
        assert isinstance(source, fx.Node)
        if operator_name(source) in BY_ATEN:
            return Role.FLOAT, ""
        return Role.FLOAT, reason_without_row(operator_name(source))
    if any(fnmatch.fnmatchcase(node.meta[LAYER], pattern) for pattern in keep_float):
        return Role.FLOAT, "kept in float32 by the recipe"
    objection = _objection(node, row.role)
    if objection:
        return Role.FLOAT, objection
    if row.role is Role.WEIGHTED and dynamic:
        return (Role.DYNAMIC, "") if is_operator(node, "aten.linear") else (Role.FLOAT, _NOT_DYNAMIC)
    return row.role, ""


def _objection(node: fx.Node, role: Role) -> str:
    name = operator_name(node)
    if role is Role.WEIGHTED:
        bias = argument(node, 2, "bias")
        if not stored(argument(node, 1, "weight")) or not (bias is None or stored(bias)):
            return "its weight is computed, not stored"
    if role is Role.LOOKUP and not stored(argument(node, 0, "weight")):
        return "its table is computed, not stored"
    if role in (Role.ARITHMETIC, Role.PRODUCT) and any(stored(n) or not is_tensor(n) for n in _operands(node)):
        return "an operand is a constant, not a quantized activation"
    if role is Role.PRODUCT and not _stays_in_int32(node):
        return "its sums of products may leave int32"
    if name in ("aten.add", "aten.mul") and len(_operands(node)) != 2:
        return "an operand is a Python number, which has no quantizer"
    if name == "aten.add" and argument(node, 2, "alpha", 1) != 1:
        return "a scaled addition is not one Add"
    if name.startswith("aten.adaptive_avg_pool") and any(size != 1 for size in shape_of(node)[2:]):
        return "an adaptive pool with unequal windows has no ONNX operator"
    if name == "aten.pad" and argument(node, 2, "mode", "constant") == "constant" and argument(node, 3, "value"):
        return "it pads with another value than 0"
    if role is Role.CLIP and not is_clip(node):
        return "its limits are tensors"
    return ""


def _stays_in_int32(node: fx.Node) -> bool:
    """Whether no sum of products of two 8-bit codes leaves int32: that of zero points, which kernels add, included."""
    terms = shape_of(_operands(node)[0])[-1]
    return isinstance(terms, int) and terms * 255**2 < 2**31


def _operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that an arithmetic or moving operator reads."""
    first = node.args[0]
    if isinstance(first, list | tuple):
        return [n for n in first if isinstance(n, fx.Node)]
    count = 2 if operator_name(node) in ("aten.add", "aten.mul", "aten.matmul") else 1
    return [n for n in node.args[:count] if isinstance(n, fx.Node)]


def _fed_by_integers(node: fx.Node, decision: _Decision) -> bool:
    for source in _operands(node):
        while decision.has(source, Role.MOVE, Role.CLIP) or operator_name(source) in _ACTIVATIONS:
            source = _operands(source)[0]
        if decision.integer(source) or source.op == "placeholder":
            return True
    return False


def _feeds_integers(node: fx.Node, decision: _Decision) -> bool:
    return any(
        decision.integer(user) or (decision.has(user, Role.MOVE, Role.CLIP) and _feeds_integers(user, decision))
        for user in node.users
    )


def _insert_activation_quantizers(
    graph_module: fx.GraphModule, decision: _Decision, demands: Mapping[fx.Node, QScheme], placement: Placement
) -> dict[fx.Node, ActivationQuantizer]:
    """Quantize every value that an integer kernel reads or writes; returns each reader's (first) input quantizer."""
    graph = graph_module.graph
    values, computed = _values_to_quantize(graph, decision)
    quantizer_of: dict[fx.Node, ActivationQuantizer] = {}
    for value in [node for node in graph.nodes if node in values]:
        # What an integer kernel computed exists as codes only; of another value each reader takes what it wants.
        moves = [user for user in value.users if user in values and decision.has(user, Role.MOVE)]
        integer = [user for user in value.users if decision.integer(user)]
        users = list(value.users) if value in computed else [*moves, *integer]
        if decision.has(value, Role.MOVE):
            # A moved value has the codes of what was moved: the same module a second time.
            quantizer = quantizer_of[_operands(value)[0]]
            with graph.inserting_after(value):
                call = graph.call_module(_path(quantizer.name), (value,), {"moved": True})
        else:
            quantizer = ActivationQuantizer(value.meta[LAYER], demands.get(value) or schemes.activation())
            placement.activations[quantizer.name] = quantizer
            call = _insert_module(graph_module, _path(quantizer.name), quantizer, value, [])
        call.meta["val"] = value.meta.get("val")
        for user in users:
            user.replace_input_with(value, call)
        quantizer_of[value] = quantizer_of[call] = quantizer
    return {node: quantizer_of[node.args[0]] for node in graph.nodes if decision.has(node, Role.WEIGHTED)}


def _values_to_quantize(graph: fx.Graph, decision: _Decision) -> tuple[set[fx.Node], set[fx.Node]]:
    """The values that carry quantizers, and those among them that integer kernels compute or move."""
    values: set[fx.Node] = set()
    computed: set[fx.Node] = set()

    def need(value: fx.Node) -> None:
        values.add(value)
        if decision.has(value, Role.MOVE):
            need(_operands(value)[0])

    for node in graph.nodes:
        if not decision.integer(node):
            continue
        for source in [node.args[0]] if decision.has(node, Role.WEIGHTED) else _operands(node):
            need(source)
        if _writes_codes(node, decision):
            need(_behind_clips(node, decision))
            computed.add(_behind_clips(node, decision))
    for node in graph.nodes:
        if node in values and decision.has(node, Role.MOVE) and _operands(node)[0] in computed:
            computed.add(node)
    return values, computed


def _writes_codes(node: fx.Node, decision: _Decision) -> bool:
    """Whether an integer kernel's output is quantized.

    A linear layer and a product may leave their accumulator as float32, so theirs is only where a reader wants codes.
    Or where an activation follows that onnxruntime would fuse into a float32 FusedGemm, unless the model ends there.
    """
    if operator_name(node) not in ("aten.linear", "aten.matmul") or _feeds_integers(node, decision):
        return True
    if decision.has(node, Role.PRODUCT):
        return False
    users = list(node.users)
    return len(users) == 1 and operator_name(users[0]) in _GEMM_ACTIVATIONS and not _is_returned(users[0])


def _is_returned(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _behind_clips(node: fx.Node, decision: _Decision) -> fx.Node:
    """The value that leaves the kernel: behind the clips that the quantizer absorbs, if there are any."""
    while len(node.users) == 1 and decision.has(next(iter(node.users)), Role.CLIP):
        node = next(iter(node.users))
    return node


def _weighted(graph: fx.Graph, decision: _Decision) -> list[fx.Node]:
    return [node for node in graph.nodes if decision.has(node, Role.WEIGHTED, Role.LOOKUP, Role.DYNAMIC)]


def is_clip(node: fx.Node) -> bool:
    """Whether a node is a clip with limits that are numbers."""
    row = BY_ATEN.get(operator_name(node)) if node.op == "call_function" else None
    return row is not None and row.role is Role.CLIP and all(isinstance(v, int | float) for v in clip_range(node))


def clip_range(node: fx.Node) -> tuple[Any, Any]:
    """The limits of a clip operator; infinite where it has none."""
    name = operator_name(node)
    if name == "aten.relu":
        return 0.0, math.inf
    if name == "aten.relu6":
        return 0.0, 6.0
    defaults = (-1.0, 1.0) if name == "aten.hardtanh" else (None, None)
    low, high = argument(node, 1, "min_val", defaults[0]), argument(node, 2, "max_val", defaults[1])
    if name == "aten.clamp":
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _insert_module(
    graph_module: fx.GraphModule, path: str, module: Any, value: fx.Node, users: Sequence[fx.Node]
) -> fx.Node:
    graph_module.add_submodule(path, module)
    with graph_module.graph.inserting_after(value):
        call = graph_module.graph.call_module(path, (value,))
    call.meta["val"] = value.meta.get("val")
    for user in users:
        user.replace_input_with(value, call)
    return call


def _path(name: str) -> str:
    return f"{name}.output_quantizer"
