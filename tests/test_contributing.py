"""The observer that CONTRIBUTING.md shows is a real one: it loads as a plugin and keeps an observer's promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from qdeploy.core import plugins, scheme
from qdeploy.core.affine import qparams
from qdeploy.core.errors import QDeployError


@pytest.fixture(scope="module")
def shown(repository: Path) -> str:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture(scope="module")
def observer_class(shown: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Loaded by its path, as a user's own file is."""
    path = tmp_path_factory.mktemp("mine") / "deviations.py"
    path.write_text(shown, encoding="utf-8")
    return plugins.load("observer", str(path))


def observed(observer_class: Any, *batches: torch.Tensor) -> Any:
    observer = observer_class(scheme.activation())
    for batch in batches:
        observer.observe(batch)
    return observer


def test_it_would_lie_where_plugins_are_found(shown: str) -> None:
    place = shown.splitlines()[0].removeprefix("# ")
    assert Path(place).parent.as_posix() == plugins.KINDS["observer"].package.replace(".", "/")
    assert Path(place).stem not in plugins.names("observer")


def test_it_clips_outliers_and_nothing_else(observer_class: Any) -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    spread = float(x.std())
    low, high = observed(observer_class, x, torch.tensor([100.0])).range()
    assert -5.5 * spread < low < -3 * spread
    assert 3 * spread < high < 5.5 * spread
    assert observed(observer_class, torch.linspace(-1, 1, 1000)).range() == (-1.0, 1.0)
    scale, zero_point = qparams(low, high, scheme.activation())
    assert 0 < scale < 0.1
    assert 100 < zero_point < 156


def test_batches_merging_and_all_at_once_agree(observer_class: Any) -> None:
    a, b = torch.randn(2, 3, 500, generator=torch.Generator().manual_seed(1)).mul(7).unbind()
    merged = observed(observer_class, a)
    merged.merge(observed(observer_class, b))
    together = observed(observer_class, torch.cat([a, b])).range()
    assert observed(observer_class, a, b).range() == merged.range() == together


def test_it_refuses_what_an_observer_refuses(observer_class: Any) -> None:
    with pytest.raises(QDeployError, match="seen no values"):
        observed(observer_class).range()
    with pytest.raises(QDeployError, match="1 NaN"):
        observed(observer_class, torch.tensor([1.0, float("nan")]))
    with pytest.raises(QDeployError, match="hold nothing"):
        observer_class(scheme.activation(), deviations=0)
