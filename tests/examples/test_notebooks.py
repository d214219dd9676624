"""The notebooks run from top to bottom, and are committed as they were written: without outputs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy.core import records
from qdeploy.core.records import Results

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NEEDS = ("nbclient", "ipykernel", "pandas", "matplotlib")


def run(folder: Path, files: list[Path] | None = None) -> list[Any]:
    """The outputs of every cell of analyze_results.ipynb, run in a kernel of its own, on its own files or on others."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'not installed: {", ".join(missing)} (the extra "examples")')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("MPLCONFIGDIR", str(folder))
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.read(EXAMPLES / "analyze_results.ipynb", as_version=4)
        if files is not None:
            (first, *_) = (cell for cell in notebook.cells if cell.cell_type == "code")
            first.source += f"\nFILES = [Path(name) for name in {[str(file) for file in files]!r}]\n"
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run(tmp_path_factory.mktemp("matplotlib"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert not [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.slow
def test_the_tables_show_every_variant_of_the_published_results(executed: list[Any], repository: Path) -> None:
    shown = "".join(output["data"]["text/html"] for output in executed if "text/html" in output.get("data", {}))
    for name in ("digits_quantizers", "cifar10_resnet20"):
        data = json.loads((repository / "docs" / "results" / f"{name}.json").read_text())["results"]
        results = records.from_json(Results, data)
        assert results.name in shown
        for variant in results.variants:
            assert f">{variant.name}<" in shown
            assert f">{variant.metric.value:.3f}<" in shown


@pytest.mark.slow
def test_the_pictures_are_drawn_and_nothing_is_complained_about(executed: list[Any]) -> None:
    assert len([output for output in executed if "image/png" in output.get("data", {})]) == 4
    assert not [output for output in executed if output.get("name") == "stderr"]


@pytest.mark.slow
def test_other_files_are_read_as_well(repository: Path, tmp_path: Path) -> None:
    """A page of several results, and a build of float32 alone that was not timed."""
    data = json.loads((repository / "docs" / "results" / "digits.json").read_text())["results"]
    data["variants"] = [{**data["variants"][0], "latency": None}]
    (tmp_path / "results.json").write_text(json.dumps({**data, "name": "untimed", "contrasts": []}))
    outputs = run(tmp_path, [tmp_path / "results.json", repository / "docs" / "results" / "qat_eval.json"])
    shown = "".join(output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {}))
    assert "untimed" in shown
    assert "qat-eval-sasrec" in shown
    assert not [output for output in outputs if output.get("name") == "stderr"]
    alone = run(tmp_path, [tmp_path / "results.json"])
    assert len([output for output in alone if "image/png" in output.get("data", {})]) == 1
