"""Make every constant an initializer, and drop what nobody reads.

Contract: in, a valid model; out, the same function.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


def lift(model: ir.Model) -> None:
    """Turn Constant nodes into initializers, in place."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def clean(model: ir.Model) -> None:
    """Remove identities, repeated computations and unused nodes and initializers, in place."""
    ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.TopologicalSortPass(),
    )(model)
