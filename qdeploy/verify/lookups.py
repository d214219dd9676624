"""Look-ups in tables of integer codes, as export/passes/lookups.py writes them: codes times scales of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from qdeploy.verify.constants import Constants
from qdeploy.verify.quantized import Quantized

LOOKUP = "Gather"  # the operator that a look-up counts as


def lookup(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], constants: Constants
) -> tuple[Quantized, Quantized] | None:
    """The indices and the table of the look-up whose last operator is ``node``; None if it is none's.

    Indices are taken for codes that mean themselves. The table's scales lie along its axis 0.
    """
    if node.op_type != "Mul":
        return None
    rows = _behind(node.input[0], ("Cast", "Gather"), producers)
    picked = _behind(node.input[1], ("Unsqueeze", "Gather"), producers)
    if rows is None or picked is None:
        return None
    codes, scale = constants.get(rows.input[0]), constants.get(picked.input[0])
    if codes is None or scale is None or codes.dtype not in (np.int8, np.uint8) or rows.input[1] != picked.input[1]:
        return None
    container = np.iinfo(codes.dtype)
    table = Quantized(
        rows.input[0], scale, scale, np.zeros(scale.shape, codes.dtype), (int(container.min), int(container.max)), 0,
        codes, constants.stored_bytes(rows.input[0]),
    )  # fmt: skip
    name, one = rows.input[1], np.asarray(np.float32(1))
    indices = Quantized(name, one, one, np.zeros((), np.int64), (0, len(codes) - 1), constant=constants.get(name))
    return indices, table


def _behind(name: str, operators: Sequence[str], producers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The node at the end of a chain of ``operators`` that leads back from the value ``name``."""
    found = None
    for operator in operators:
        found = producers.get(name)
        if found is None or found.op_type != operator:
            return None
        name = found.input[0]
    return found
