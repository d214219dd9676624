"""Look-ups in tables of integer codes, as export/passes/lookups.py writes them: codes times scales of rows."""

from __future__ import annotations

from collections.abc import Mapping

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
    real, scales = (producers.get(name) for name in (*node.input, "", "")[:2])
    if (
        node.op_type != "Mul"
        or real is None
        or scales is None
        or (real.op_type, scales.op_type) != ("Cast", "Unsqueeze")
    ):
        return None
    rows, picked = producers.get(real.input[0]), producers.get(scales.input[0])
    if rows is None or picked is None or (rows.op_type, picked.op_type) != ("Gather", "Gather"):
        return None
    codes, scale = constants.get(rows.input[0]), constants.get(picked.input[0])
    if codes is None or scale is None or codes.dtype not in (np.int8, np.uint8) or rows.input[1] != picked.input[1]:
        return None
    container, one = np.iinfo(codes.dtype), np.float32(1)
    table = Quantized(
        rows.input[0], scale, scale, np.zeros(scale.shape, codes.dtype), (int(container.min), int(container.max)), 0,
        codes, constants.stored_bytes(rows.input[0]),
    )  # fmt: skip
    name = rows.input[1]
    known = constants.get(name)
    indices = Quantized(name, np.asarray(one), np.asarray(one), np.zeros((), np.int64), (0, len(codes) - 1),
                        constant=known)  # fmt: skip
    return indices, table
