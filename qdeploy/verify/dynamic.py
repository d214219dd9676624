"""Layers that quantize what they read when they run, and what they must answer: float32 in, integers, float32 out.

Codes do not leave such a kernel, so its values are compared. A last bit of a float32 sum may become another code of
what is read next, and no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from qdeploy.verify.constants import Constants

Float32 = NDArray[np.float32]

_INPUTS = {
    "DynamicQuantizeMatMul": ("x", "w", "w_scale", "w_zero", "bias"),
    "DynamicQuantizeLSTM": (
        *("x", "w", "r", "bias", "lengths", "h", "c", "peepholes"), "w_scale", "w_zero", "r_scale", "r_zero"
    ),
}  # fmt: skip
_STORED = ("w", "r", "w_scale", "r_scale", "w_zero", "r_zero", "bias")
STATE_STEP = 2 / 255  # between two codes of hidden states, which lie in -1..1, at most


@dataclass(frozen=True, slots=True)
class DynamicLayer:
    """A DynamicQuantizeMatMul or DynamicQuantizeLSTM: the values that it reads and gives, and what it has stored.

    ``stored`` has "w" and "w_scale", an LSTM's "r" and "r_scale", and "bias", each where it is given; the LSTM's two
    directions are the first axis of each. ``bytes`` is what its codes take in the file.
    """

    name: str
    op: str
    input: str
    output: str
    stored: dict[str, NDArray[Any]]
    bytes: int
    reverse: bool = False

    def answer(self, x: Float32) -> Float32:
        """What it gives for all of ``x``: [N, M], or the hidden states [T, D, N, H] of [T, N, I]."""
        return _linear(self, x) if self.op == "DynamicQuantizeMatMul" else _lstm(self, x)

    def step(self, x: Float32) -> float:
        """How much one code of what is read may change a value."""
        if self.op == "DynamicQuantizeLSTM":
            return STATE_STEP
        scale, _ = _range(x)
        return float(scale * np.max(np.abs(self.stored["w"].astype(np.float32)) * self.stored["w_scale"], initial=0.0))


def dynamic_layers(model: onnx.ModelProto) -> list[DynamicLayer]:
    """Every such layer whose weights are stored and that starts from zeros, in graph order."""
    constants, found = Constants(model), []
    for node in model.graph.node:
        if node.op_type not in _INPUTS:
            continue
        inputs = {key: name for key, name in zip(_INPUTS[node.op_type], node.input, strict=False) if name}
        others = set(inputs) - set(_STORED) - {"x"}
        arrays = {key: constants.get(inputs[key]) for key in _STORED if key in inputs}
        stored = {key: array for key, array in arrays.items() if array is not None}
        plain = not any(np.any(stored[key]) for key in ("w_zero", "r_zero") if key in stored)
        if others or not plain or len(stored) < len(arrays):
            continue
        direction = next((a.s for a in node.attribute if a.name == "direction"), b"forward")
        size = sum(constants.stored_bytes(inputs[key]) for key in ("w", "r") if key in inputs)
        found.append(
            DynamicLayer(node.name, node.op_type, inputs["x"], node.output[0], stored, size, direction == b"reverse")
        )
    return found


def _linear(layer: DynamicLayer, x: Float32) -> Float32:
    stored = layer.stored
    return np.asarray(_product(x, stored["w"], stored["w_scale"]) + stored.get("bias", np.float32(0)), np.float32)


def _lstm(layer: DynamicLayer, x: Float32) -> Float32:
    """From zero states, gates i, o, f, c; all of ``x`` is quantized at once, the states of each step by themselves."""
    stored, found = layer.stored, []
    for d in range(len(stored["w"])):
        backwards = layer.reverse or d == 1
        w, r = (stored[key][d] for key in ("w", "r"))
        w_scale, r_scale = (np.broadcast_to(stored[key][d], w.shape[1:]) for key in ("w_scale", "r_scale"))
        gates = _product(x.reshape(-1, x.shape[-1]), w, w_scale).reshape(*x.shape[:2], -1)
        if "bias" in stored:
            gates = gates + stored["bias"][d].reshape(2, -1).sum(axis=0)
        h = c = np.zeros((x.shape[1], len(r)), np.float32)
        states = []
        for step in gates[::-1] if backwards else gates:
            i, o, f, g = np.split(step + _product(h, r, r_scale), 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = _sigmoid(o) * np.tanh(c)
            states.append(h)
        found.append(np.stack(states[::-1] if backwards else states))
    return np.stack(found, axis=1)


def _product(x: Float32, codes: NDArray[np.int8], scale: Float32) -> Float32:
    """``x`` [N, K], quantized to uint8 with its own range, times ``codes`` [K, M] with ``scale`` [M] (or one)."""
    step, zero_point = _range(x)
    codes_x = np.clip(np.rint(x / step) + zero_point, 0, 255) - zero_point
    sums = codes_x.astype(np.float64) @ codes.astype(np.float64)  # exact
    return np.asarray(sums.astype(np.float32) * (step * scale), np.float32)


def _range(x: Float32) -> tuple[np.float32, np.float32]:
    """Scale and zero point of the codes of ``x``, as DynamicQuantizeLinear has them."""
    low, high = np.float32(min(x.min(initial=0.0), 0.0)), np.float32(max(x.max(initial=0.0), 0.0))
    step = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    return step, np.float32(np.clip(np.rint(-low / step), 0, 255))


def _sigmoid(x: Float32) -> Float32:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)
