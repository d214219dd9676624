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


def standalone(drawing: Markup, style: str) -> str:
    """A drawing as a file of its own, on a card, with the style sheet ``style`` in it: light and dark."""
    head, _, rest = str(drawing).partition(">")
    box = head.partition('viewBox="')[2].partition('"')[0]
    left, top, width, height = (float(part) for part in box.split())
    card = element("rect", x=left, y=top, width=width, height=height, class_="card")
    size = f'xmlns="http://www.w3.org/2000/svg" width="{number(1.5 * width)}" height="{number(1.5 * height)}"'
    return f"{head} {size}><style>\n{style}.card {{ fill: var(--card); }}\n</style>{card}{rest}\n"


def _value(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)
