"""Results pages: run a recipe from nothing, keep its results as JSON, and make the pages from that JSON.

    python benchmarks/publish.py recipes/digits.yaml [--threads 1] [--out DIR] [--only-page]
        [--set KEY=VALUE ...] [--only VARIANT ...]
    python benchmarks/publish.py recipes/cifar10_portable.yaml --places local,qemu:Haswell,local/ort_web --samples 500
    python benchmarks/publish.py recipes/qat_eval/lstm.yaml --page qat_eval --part lstm
    python benchmarks/publish.py --page eurosat --reference reference.json

Builds the recipe into an empty folder, times the build, times the bundles, and writes docs/results/NAME.json. With
--out a build that was interrupted goes on where it stood, and the page gives the time of each variant only. Then
every docs/results/*.md, its pictures, the index and the table in README.md are made from the JSON files: no number is
typed by hand, and tests/test_results_pages.py fails if a page and its JSON differ. Pictures of no page are removed.
``--only-page``, alone, makes the pages and runs nothing. With --places, TARGET or TARGET/RUNTIME each, the integer
bundles are asked there as well, the first ``--samples`` samples of the evaluation split, and the page compares their
answers.

``--page`` names the page, ``--part`` what was built as one of several results on it: each is put in its place and the
others stay. ``--title`` and ``--about`` (a paragraph, for what was reduced and why) and ``--reference`` (a file with
numbers of somebody else, see qdeploy/reports/reference.py) become part of the page's JSON, and stay in it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results_pages

import qdeploy
from qdeploy.core.errors import QDeployError
from qdeploy.core.files import write_atomic, write_json

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "results"


def main() -> None:
    """Run what the command line asks for, then make every page."""
    arguments = _parser().parse_args()
    file = _file(arguments)
    if file is None:
        make_pages()
        return
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    data: dict[str, Any] = json.loads(before) if before is not None else {}
    said = {key: getattr(arguments, key) for key in ("title", "about") if getattr(arguments, key)}
    if arguments.reference:
        said["reference"] = json.loads(arguments.reference.read_text(encoding="utf-8"))
    # What is wrong with the page is found before hours of work, where it can be: with what is there already.
    if before is not None:
        keep_or_restore(file, {**data, **said}, before)
    if arguments.recipe:
        keep_or_restore(file, {**placed(data, run(arguments), arguments.part), **said}, before)


def _file(arguments: argparse.Namespace) -> Path | None:
    """The page's JSON file, or None for all pages as they are. Exits with 2 where the command line makes no sense."""
    refuse = _parser().error
    if arguments.only_page:
        if len(sys.argv) > 2:
            refuse("--only-page makes the pages from the JSON files as they are: give nothing else")
        return None
    name = arguments.page or (Path(arguments.recipe).stem if arguments.recipe else "")
    if not name or Path(name).name != name:
        refuse("name a recipe or a page, or give --only-page; a page is a plain name")
    file = PAGES / f"{name}.json"
    if not arguments.recipe and (arguments.part or not file.is_file()):
        refuse(f"without a recipe there is nothing to put on the page {name!r}: give one")
    if arguments.reference and not arguments.reference.is_file():
        refuse(f"there is no file {arguments.reference}")
    if not arguments.threads.isdecimal() or arguments.samples < 1:
        refuse("--threads and --samples are numbers, 1 or more")
    if arguments.recipe and file.is_file() and ("parts" in json.loads(file.read_text())) != bool(arguments.part):
        refuse(f"the page {name!r} has {'one result' if arguments.part else 'parts: name one, --part'}")
    return file


def keep_or_restore(file: Path, data: dict[str, Any], before: str | None) -> None:
    """Write the JSON and make the pages; where one cannot be made, the JSON is as it was ``before``."""
    write_json(file, data)
    try:
        make_pages()
    except BaseException:
        file.unlink() if before is None else write_atomic(file, before)
        raise


def make_pages() -> None:
    """Every page, its pictures, the index and README's table; pictures of no page are removed."""
    pages = results_pages.every_page(PAGES, ROOT / "README.md")
    for path, content in pages.items():
        write_atomic(path, content)
    for path in set(PAGES.glob("*.svg")) - set(pages):  # of a page that had one result and now has parts
        path.unlink()


def placed(data: dict[str, Any], record: dict[str, Any], part: str) -> dict[str, Any]:
    """A page's data with what was run in its place: the whole result, or one of its parts."""
    if not part:
        kept = {key: value for key, value in data.items() if key in ("title", "about", "reference")}
        return {**kept, **record}
    parts = {one["part"]: one for one in data.get("parts", [])}
    parts[part] = {"part": part, **record}
    return {**{key: value for key, value in data.items() if key in ("title", "about", "reference")},
            "parts": list(parts.values())}  # fmt: skip


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Build and bench a recipe, in an empty folder or going on in ``out``, and keep what was measured."""
    recipe, out, threads, sources = arguments.recipe, arguments.out, arguments.threads, commit()
    options = [word for text in arguments.set for word in ("--set", text)]
    options += [word for name in arguments.only for word in ("--only", name)]
    options += ["--profile", arguments.profile] if arguments.profile else []
    build = ["build", recipe, *options, "--no-bench"]
    bench = ["--threads", threads, "--seconds", arguments.seconds]
    with tempfile.TemporaryDirectory() as folder:
        fresh = out is None or not (out / "stages").exists()
        out, python = out or Path(folder) / "run", [sys.executable, "-m", "qdeploy"]
        started = time.monotonic()
        subprocess.run([*python, *build, "--out", str(out)], check=True)
        seconds = time.monotonic() - started if fresh else None
        subprocess.run([*python, "bench", str(out), *bench], check=True)
        results = without_histograms(json.loads((out / "results.json").read_text()))
        place = f"runs/{results['name']}" + (f"-{arguments.profile}" if arguments.profile else "")
        commands = [shlex.join(["qdeploy", *words]) for words in (build, ["bench", place, *bench])]
        asked = [where for where in arguments.places.split(",") if where]
        answers = [ask(out, results, where, arguments.samples) for where in asked]
    commands += [command.replace(str(out), place) for command, _ in answers]
    record: dict[str, Any] = {
        "commands": commands, "commit": sources, "build_seconds": seconds, "results": results,
    }  # fmt: skip
    if answers:
        record["answers"] = [found for _, found in answers]
    return record


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


def commit() -> str:
    """The commit of the sources that ran, with "-dirty" behind it where they were changed."""
    place = ["git", "-C", str(Path(qdeploy.__file__).parent)]
    words = [*place, "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def without_histograms(results: dict[str, Any]) -> dict[str, Any]:
    """The results without what only the pictures of report.html show: most of the bytes of many variants."""
    for variant in results["variants"]:
        for layer in variant["layers"]:
            layer["weights"] = layer["activations"] = None
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--seconds", default="5")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--only", action="append", default=[], metavar="VARIANT")
    parser.add_argument("--profile", default="")
    parser.add_argument("--only-page", action="store_true")
    parser.add_argument("--places", default="")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--page", default="")
    parser.add_argument("--part", default="")
    parser.add_argument("--title", default="")
    parser.add_argument("--about", default="")
    parser.add_argument("--reference", type=Path)
    return parser


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:  # which has said what is wrong
        raise SystemExit(error.returncode) from None
    except (QDeployError, ValueError) as error:
        _parser().exit(2, f"{error}\n")
