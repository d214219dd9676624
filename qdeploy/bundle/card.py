"""README.md of a bundle: a model card, every word of it from the manifest."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2

from qdeploy.bundle.manifest import Manifest

_SPECIAL = str.maketrans({character: "\\" + character for character in "\\`*_[]<>|#"} | {"\n": " ", "\r": " "})


def render(manifest: Manifest) -> str:
    """The card in Markdown. It does not read ``manifest.files``: the card is itself one of them."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qdeploy.bundle", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,  # it is Markdown; the filter "text" escapes what may hold anything
    )
    environment.filters.update(shape=_shape, settings=_settings, text=_text, percent=_percent)
    # The template's parts come and go, each with blank lines around it.
    return re.sub(r"\n{3,}", "\n\n", environment.get_template("card.md.j2").render(m=manifest)).strip() + "\n"


def _shape(dimensions: Sequence[int | str]) -> str:
    return " x ".join(str(dimension) for dimension in dimensions) or "scalar"


def _percent(share: float) -> str:
    """A share as a percentage that is never rounded up: "100%" means all of it."""
    return f"{math.floor(share * 10000) / 100:g}%"


def _settings(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as ("weights.bits", "8") rows."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _settings(value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _text(value: str | Sequence[str]) -> Any:
    """Text that may hold anything, so that Markdown shows it as it is."""
    return value.translate(_SPECIAL) if isinstance(value, str) else [_text(item) for item in value]
