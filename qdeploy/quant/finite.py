"""Refusing NaN and infinity where numbers enter the quantizer."""

from __future__ import annotations

from qdeploy.core.errors import QDeployError


def refusal(nan: int, infinite: int, where: str) -> QDeployError:
    """The error for ``nan`` NaN and ``infinite`` infinite values found ``where`` ("in the observed tensor")."""
    return QDeployError(
        f"{nan} NaN and {infinite} infinite values {where}.",
        "A range cannot be chosen for them. Look for a diverged checkpoint, a division by zero, or damaged input data.",
    )
