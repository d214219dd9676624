"""Proper signs for numbers that ``words`` wrote in ASCII."""

from __future__ import annotations

import re


def typeset(text: str) -> str:
    """Minus, multiplication and dash signs in the place of "-", "x" and "-"."""
    if text == "-":
        return "–"
    return re.sub(r"(?<=\d)x(?!\w)", "×", re.sub(r"(?<!\w)-(?=\d)", "−", text))
