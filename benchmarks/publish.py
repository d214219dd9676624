"""Results pages: run a recipe from nothing, keep its results as JSON, and make the pages from that JSON.

    python benchmarks/publish.py recipes/digits.yaml [--threads 1] [--out DIR] [--only-page]
    python benchmarks/publish.py recipes/cifar10_portable.yaml --places local,qemu:Haswell,local/ort_web --samples 500

Builds the recipe into an empty folder, times the build, times the bundles, and writes docs/results/NAME.json. With
--out a build that was interrupted goes on where it stood, and the page gives the time of each variant only. Then
every docs/results/*.md and the table in README.md are made from the JSON files: no number is typed by hand, and
tests/test_results_pages.py fails if a page and its JSON differ. ``--only-page`` makes the pages and runs nothing. With
--places, TARGET or TARGET/RUNTIME each, the integer bundles are asked there as well, the first ``--samples`` samples
of the evaluation split, and the page compares their answers.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qdeploy.core import records
from qdeploy.core.files import write_atomic, write_json
from qdeploy.core.records import Answers, Results
from qdeploy.reports.compare.merge import compare
from qdeploy.reports.compare.table import compare_markdown
from qdeploy.reports.terminal import results_markdown
from qdeploy.reports.verdict import verdict
from qdeploy.reports.words import environment_line

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "results"
TABLE = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Run what the command line asks for, then make every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only-page", action="store_true")
    parser.add_argument("--places", default="")
    parser.add_argument("--samples", type=int, default=500)
    arguments = parser.parse_args()
    if not arguments.only_page:
        if arguments.recipe is None:
            parser.error("name a recipe, or give --only-page")
        places = [place for place in arguments.places.split(",") if place]
        run(arguments.recipe, arguments.threads, arguments.out, places, arguments.samples)
    for path, content in pages().items():
        write_atomic(path, content)


def run(recipe: str, threads: str, out: Path | None, places: list[str], samples: int) -> None:
    """Build and bench a recipe, in an empty folder or going on in ``out``, and keep what was measured."""
    build, bench = f"qdeploy build {recipe} --no-bench", f"qdeploy bench runs/NAME --threads {threads} --seconds 5"
    with tempfile.TemporaryDirectory() as folder:
        fresh = out is None or not (out / "stages").exists()
        out, python = out or Path(folder) / "run", [sys.executable, "-m", "qdeploy"]
        started = time.monotonic()
        subprocess.run([*python, "build", recipe, "--no-bench", "--out", str(out)], check=True)
        seconds = time.monotonic() - started if fresh else None
        subprocess.run([*python, "bench", str(out), "--threads", threads, "--seconds", "5"], check=True)
        results = without_histograms(json.loads((out / "results.json").read_text()))
        commands = [build, bench.replace("NAME", results["name"])]
        answers = [ask(out, results, place, samples) for place in places]
    commands += [command.replace(str(out), f"runs/{results['name']}") for command, _ in answers]
    record: dict[str, Any] = {"commands": commands, "build_seconds": seconds, "results": results}
    if answers:
        record["answers"] = [found for _, found in answers]
    write_json(PAGES / f"{Path(recipe).stem}.json", record)


def ask(out: Path, results: dict[str, Any], place: str, samples: int) -> tuple[str, dict[str, Any]]:
    """The command that asks the integer bundles in a place, and the record that it leaves."""
    target, _, runtime = place.partition("/")
    bundles = [str(out / v["bundle"]) for v in results["variants"] if v["integer_mac_share"] > 0]
    words = ["accuracy", *bundles, "--target", target, "--samples", str(samples)]
    words += ["--runtime", runtime] if runtime else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answers.json")
        subprocess.run([sys.executable, "-m", "qdeploy", *words, "--json", str(file)], check=True)
        found: dict[str, Any] = json.loads(file.read_text())
    for row in found["rows"]:
        row["bundle"] = Path(row["bundle"]).name
    return " ".join(["qdeploy", *words]), found


def without_histograms(results: dict[str, Any]) -> dict[str, Any]:
    """The results without what only the pictures of report.html show: most of the bytes of many variants."""
    for variant in results["variants"]:
        for layer in variant["layers"]:
            layer["weights"] = layer["activations"] = None
    return results


def pages() -> dict[Path, str]:
    """Every generated page, and README.md, as they must be for the JSON files that are there."""
    found = {}
    for path in sorted(PAGES.glob("*.json")):
        data = json.loads(path.read_text())
        if "results" in data:
            found[path.with_suffix(".md")] = page(data)
    readme = ROOT / "README.md"
    found[readme] = TABLE.sub(lambda match: match[1] + table(match[2]) + match[3], readme.read_text(encoding="utf-8"))
    return found


def page(data: dict[str, Any]) -> str:
    """A results page: verdict, table, answers elsewhere, commands, build time, machine."""
    results = records.from_json(Results, data["results"])
    answers = [records.from_json(Answers, found) for found in data.get("answers", [])]
    assert results.environment is not None
    elsewhere = []
    if answers:
        compared = compare([(found.target, found) for found in answers])
        elsewhere = ["## The same bundles elsewhere", "", compare_markdown(compared)]
    return "\n".join([
        f"# {results.name}", "", f"{verdict(results)}", "", results_markdown(results), *elsewhere,
        "```sh", *data["commands"], "```", "",
        f"{build_time(data['build_seconds'])}Machine: {environment_line(results.environment)}.",
        f"Made from {results.created_by}'s results by `python benchmarks/publish.py`.", "",
    ])  # fmt: skip


def build_time(seconds: float | None) -> str:
    """How long the whole build took; nothing where it was made in several goes."""
    return "" if seconds is None else f"The build took {seconds:.0f} s. "


def table(name: str) -> str:
    """The table of one results file, with its machine."""
    results = records.from_json(Results, json.loads((PAGES / f"{name}.json").read_text())["results"])
    assert results.environment is not None
    return f"{results_markdown(results)}\nMachine: {environment_line(results.environment)}.\n"


if __name__ == "__main__":
    main()
