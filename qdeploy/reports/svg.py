"""Inline SVG, element by element. Text and attributes are escaped; colours are left to the page's style sheet."""

from __future__ import annotations

from markupsafe import Markup, escape

from qdeploy.reports.words import fixed


def number(value: float) -> str:
    """A coordinate with at most two decimals, as short as it can be written."""
    text = fixed(value, 2).replace(",", "")
    return text.rstrip("0").rstrip(".") if "." in text else text


def element(tag: str, *children: str | Markup, **attributes: object) -> Markup:
    """``<tag attributes>children</tag>``. Attributes: None is left out, ``class_`` is class, ``_`` becomes ``-``."""
    written = "".join(
        Markup(' {}="{}"').format(Markup(key.rstrip("_").replace("_", "-")), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{tag}{written}>") + inner + Markup(f"</{tag}>") if children else Markup(f"<{tag}{written}/>")


def percent(value: float) -> str:
    """A coordinate as a share of the drawing's width, which lets it stretch without distorting marks and text."""
    return f"{number(value * 100)}%"


def picture(*children: Markup, title: str, **attributes: object) -> Markup:
    """A drawing that assistive technology reads as one image with ``title`` as its text."""
    return element("svg", *children, role="img", aria_label=title, **attributes)


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
