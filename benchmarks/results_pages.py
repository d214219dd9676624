"""Results pages from their JSON: sections, pictures, the index. Reads files and runs nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qdeploy.core import records
from qdeploy.core.records import Answers, Results
from qdeploy.reports import comparison, contrasts, figures, half_precision, matrix, reference, scaling, terminal, words
from qdeploy.reports.compare.merge import compare
from qdeploy.reports.compare.table import compare_markdown
from qdeploy.reports.comparison import scores
from qdeploy.reports.conclusions import conclusions
from qdeploy.reports.figures import Figure
from qdeploy.reports.verdict import verdict

TABLE = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
Parts = Sequence[tuple[str, Results]]


def every_page(folder: Path, readme: Path) -> dict[Path, str]:
    """Every generated page and picture in ``folder``, its index, and the README, as the JSON files want them."""
    found: dict[Path, str] = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if "results" in data or "parts" in data:
            drawn = list(pictures(data))
            found[path.with_suffix(".md")] = page(path.stem, data, drawn)
            found |= {folder / file_name(path.stem, figure): figures.file(figure) for figure in drawn}
    found[folder / "README.md"] = index(folder)
    text = readme.read_text(encoding="utf-8")
    found[readme] = TABLE.sub(lambda match: match[1] + table(folder / f"{match[2]}.json") + match[3], text)
    return found


def page(name: str, data: dict[str, Any], drawn: Sequence[Figure]) -> str:
    """The page of one JSON file; ``drawn`` are its pictures."""
    parts = parts_of(data)
    sections = [f"# {title(name, data)}\n"]
    if "about" in data:
        sections.append(f"{data['about']}\n")
    if len(parts) > 1:
        sections += [*across(parts), *(shown(name, figure) for figure in drawn if is_joint(figure))]
        sections += compared(data, parts)
        for one, (part, results) in zip(data["parts"], parts, strict=True):
            own = [figure for figure in drawn if figure.key.endswith(f".{part}")]
            sections += [f"## {part}\n", *single(name, one, results, own, "###")]
    else:
        one = data["parts"][0] if "parts" in data else data
        sections += [*single(name, one, parts[0][1], drawn, "##", compared(data, parts))]
    made_by = parts[0][1].created_by
    sections.append(f"Made from {made_by}'s results by `python benchmarks/publish.py`.\n")
    return "\n".join(sections)


def single(
    name: str, data: dict[str, Any], results: Results, drawn: Sequence[Figure], mark: str, extra: Iterable[str] = ()
) -> Iterator[str]:
    """The sections of one result: verdict, table, conclusions, pictures, head to head, commands, times, machine."""
    said = [conclusion.text for conclusion in conclusions(results)]
    yield f"{said[0]}\n"
    yield terminal.markdown_table(comparison.columns(results))
    if said[1:]:
        yield f"{mark} What it shows\n\n{terminal.markdown_list(said[1:])}"
    yield from extra
    yield from (shown(name, figure) for figure in drawn)
    yield from head_to_head(results, mark)
    yield from halves(results, mark)
    yield f"{mark} What the columns say\n\n{terminal.markdown_list(terminal.explained(results))}"
    yield from elsewhere(data, mark)
    yield "\n".join([f"{mark} How it was made\n", "```sh", *data["commands"], "```\n"])
    if "commit" in data:
        yield f"The sources were those of commit {data['commit']}.\n"
    yield f"{times(data, results)}\n"


def across(parts: Parts) -> Iterator[str]:
    """What several results say together: methods beside models, or one model in several sizes."""
    if len({results.dataset for _, results in parts}) > 1:
        yield terminal.markdown_list(matrix.sentences(parts))
        for found in matrix.tables(parts):
            yield f"## {words.plural(found.bits, 'bit')}\n\n{terminal.markdown_table(found.absolute)}"
            yield f"Per cent of no quantization:\n\n{terminal.markdown_table(found.relative)}"
        yield terminal.markdown_list([matrix.note(parts), *matrix.reasons(parts)])
        return
    laws = scaling.scaling(parts)
    if laws:
        yield "## Loss against bits and parameters\n"
    for law in laws:
        style = scores(parts[0][1])
        yield terminal.markdown_list(scaling.sentences(law, style))
        yield terminal.markdown_table(scaling.columns(law, style))
    if laws:
        yield f"{scaling.note()}\n"


def head_to_head(results: Results, mark: str) -> Iterator[str]:
    """The contrasts of a build, and in how many epochs training matches what needs none."""
    columns = contrasts.columns(results)
    if not columns:
        return
    said = [contrasts.sentence(contrast, results) for contrast in results.contrasts]
    yield f"{mark} Head to head\n\n{terminal.markdown_list(said)}"
    yield terminal.markdown_table(columns)
    yield f"{contrasts.note(results)}\n"
    style, studies = scores(results), contrasts.studies(results)
    for study in studies:
        yield f"{contrasts.study_sentence(study, style)}\n"
        yield terminal.markdown_table(contrasts.study_columns(study, results))
    if studies:
        yield f"{contrasts.study_note(style)}\n"


def halves(results: Results, mark: str) -> Iterator[str]:
    """fp16 against bf16, where both are there."""
    columns = half_precision.columns(results, most=half_precision.WORST)
    if columns:
        yield f"{mark} Weights in 16 bits\n\n{terminal.markdown_list(half_precision.sentences(results))}"
        yield terminal.markdown_table(columns)
        shown = len(columns[0].cells) - 1
        yield f"The {words.plural(shown, 'weight')} with the largest relative error. {half_precision.NOTE}\n"


def compared(data: dict[str, Any], parts: Parts) -> list[str]:
    """Our numbers beside those of somebody else, where the page has some."""
    if "reference" not in data:
        return []
    columns = reference.columns(data["reference"], parts)
    return [
        f"## Beside the reference\n\n{terminal.markdown_table(columns)}",
        f"Reference: {data['reference']['source']}\n",
    ]


def elsewhere(data: dict[str, Any], mark: str) -> Iterator[str]:
    """The answers of the same bundles in other places."""
    answers = [records.from_json(Answers, found) for found in data.get("answers", [])]
    if answers:
        yield f"{mark} The same bundles elsewhere\n"
        yield compare_markdown(compare([(found.target, found) for found in answers]))


def pictures(data: dict[str, Any]) -> Iterator[Figure]:
    """The pictures of a page: those of each result, and those of all together."""
    parts = parts_of(data)
    if len(parts) > 1:
        laws = scaling.scaling(parts) if len({results.dataset for _, results in parts}) == 1 else []
        drawn = [scaling.figure(law, scores(parts[0][1])) for law in laws]
        for number, figure in enumerate(figure for figure in drawn if figure is not None):
            yield Figure(f"scaling.{number + 1}", figure.title, figure.drawing)
    for part, results in parts:
        for figure in figures.figures(results):
            yield Figure(f"{figure.key}.{part}" if len(parts) > 1 else figure.key, figure.title, figure.drawing)


def is_joint(figure: Figure) -> bool:
    """Whether a picture is of all results together."""
    return figure.key.startswith("scaling.")


def file_name(name: str, figure: Figure) -> str:
    """The file of a picture of the page ``name``."""
    return f"{name}.{figure.key}.svg"


def shown(name: str, figure: Figure) -> str:
    """A picture in a page, with its words for who does not see it."""
    said = re.search(r'aria-label="([^"]*)"', str(figure.drawing))
    return f'![{figure.title}]({file_name(name, figure)} "{said[1] if said else figure.title}")\n'


def times(data: dict[str, Any], results: Results) -> str:
    """How long the whole build took, where it was made in one go, and each part of it; then the machine."""
    assert results.environment is not None
    took = f"The build took {words.seconds(data['build_seconds'])}. " if data["build_seconds"] is not None else ""
    trained = results.training_seconds
    took += f"Training {results.baseline}: {words.seconds(trained)}. " if trained is not None else ""
    known = [(v.name, v.seconds) for v in results.variants if v.seconds is not None]
    took += f"Then: {', '.join(f'{name} {words.seconds(seconds)}' for name, seconds in known)}. " if known else ""
    return f"{took}Machine: {words.environment_line(results.environment)}."


def index(folder: Path) -> str:
    """The list of all pages, each with what it found in one sentence."""
    lines = [
        "# Results",
        "",
        "Each page is made from the JSON file beside it by `python benchmarks/publish.py --only-page`.",
        "",
    ]
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if "results" in data or "parts" in data:
            parts = parts_of(data)
            found = str(verdict(parts[0][1])) if len(parts) == 1 else f"{words.listed([part for part, _ in parts])}."
            lines.append(f"- [{title(path.stem, data)}]({path.stem}.md): {terminal.escape(found)}")
        else:
            heading = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            lines.append(f"- [{heading}]({path.stem}.md)")
    return "\n".join([*lines, ""])


def table(path: Path) -> str:
    """The table of one results file, with its machine."""
    results = records.from_json(Results, json.loads(path.read_text(encoding="utf-8"))["results"])
    assert results.environment is not None
    return f"{terminal.results_markdown(results)}\nMachine: {words.environment_line(results.environment)}.\n"


def parts_of(data: dict[str, Any]) -> Parts:
    """The results of a page by their names; a page of one result has one without a name."""
    if "results" in data:
        return [("", records.from_json(Results, data["results"]))]
    return [(one["part"], records.from_json(Results, one["results"], one["part"])) for one in data["parts"]]


def title(name: str, data: dict[str, Any]) -> str:
    """The page's heading."""
    return str(data.get("title") or (data["results"]["name"] if "results" in data else name.replace("_", " ")))
