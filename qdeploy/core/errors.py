"""The one exception that qdeploy raises on purpose.

The command line prints it as a panel and exits with code 2; a library user catches it. Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class QDeployError(Exception):
    """What is wrong and where (``message``), and what to do about it (``hint``)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class RefusedError(QDeployError):
    """A method that a variant asks for and cannot have: reported in the place of a number, in the words of ``kind``."""

    kind: ClassVar[str]


class NotRepresentableError(RefusedError):
    """A method that has no exact integer form at the width that was asked for: refused, never approximated."""

    kind = "not representable"


class NotApplicableError(RefusedError):
    """A method that finds nothing in the model to work on."""

    kind = "not applicable"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the closest valid names, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "Known: " + ", ".join(names) + "." if names else "None is known here."
