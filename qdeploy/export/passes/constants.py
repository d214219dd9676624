"""Compute what does not depend on the input, make every constant an initializer, drop what nobody reads.

Contract: in, a valid model; out, the same function. Quantizers are left alone: the codes of a weight are what ships.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

_LARGEST = 1024  # elements; larger results would only blow the file up


def fold(model: ir.Model) -> None:
    """Fold small constant expressions into initializers, in place."""
    optimizer.fold_constants(
        model,
        onnx_shape_inference=False,
        output_size_limit=_LARGEST,
        should_fold=lambda node: None if node.op_type not in ("QuantizeLinear", "DequantizeLinear") else False,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def clean(model: ir.Model) -> None:
    """Remove identities, repeated computations and unused nodes and initializers, in place."""
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )(model)
