"""The house stands: pins, licence, versions, CI, and documents that tell the truth about the command line."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import qdeploy
from qdeploy.recipe.load import load
from tests.commands import calls, commands, options, shown_options

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "docker/README.md", "docker/Dockerfile"),
    *("docker/runner.Dockerfile", "qdeploy/bundle/card.md.j2"),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]
COMMANDS = sorted(commands())


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def pyproject() -> dict[str, Any]:
    return tomllib.loads(text("pyproject.toml"))


def pins() -> dict[str, str]:
    lines = [line for line in text("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {_normal(name): version for name, version in (line.split("==") for line in lines)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ------------------------------------------------------------------------------------------------- dependencies


def test_what_ci_installs_is_pinned() -> None:
    found = pins()
    assert found["torch"] == "2.13.0"
    assert found["torchvision"] == "0.28.0"
    project = pyproject()["project"]
    declared = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    unpinned = [d for d in declared if _normal(re.split(r"[<>=!~ \[;]", d)[0]) not in found]
    assert not unpinned


def test_pins_name_a_public_version_and_nothing_of_a_machine() -> None:
    for line in text("constraints.txt").splitlines():
        assert re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line), line


def test_measuring_needs_no_torch() -> None:
    plain = " ".join(pyproject()["project"]["dependencies"])
    assert "torch" not in plain
    assert "lightning" not in plain


# ------------------------------------------------------------------------------------------------------- house


def test_the_licence_is_apache_2() -> None:
    assert "Apache License" in text("LICENSE")
    assert "Version 2.0, January 2004" in text("LICENSE")
    assert pyproject()["project"]["license"] == "Apache-2.0"


def test_versions_agree() -> None:
    assert re.search(rf"^## \[{re.escape(qdeploy.__version__)}\]", text("CHANGELOG.md"), re.MULTILINE)
    assert pyproject()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "qdeploy.__version__"}


def test_ci_runs_make_test_and_nothing_else() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "exec make --no-print-directory test",
    ]


def planned(*goals: str) -> str:
    """What make would run. Settings of a make that runs these tests are not those of this one."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "GNUMAKE"))}
    command = ["make", "-n", *goals]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout


def test_make_test_runs_every_check(tmp_path: Path) -> None:
    """In this order, so that the last line is pytest's; with nothing installed, all of it after the set-up."""
    lines = planned("test", f"VENV={tmp_path / 'venv'}").strip().splitlines()
    steps = ["-m venv", "pip install", "ruff check", "ruff format --check", "mypy", "lint-imports", "bin/pytest"]
    at = [next(i for i, line in enumerate(lines) if step in line) for step in steps]
    assert at == sorted(at)
    assert at[-1] == len(lines) - 1


def test_make_sets_up_again_only_when_the_dependencies_change(tmp_path: Path) -> None:
    stamps = [tmp_path / name for name in (".created", ".installed", ".installed-dev")]
    for stamp in stamps:
        stamp.touch()
    assert "pip install" not in planned("demo", "test", f"VENV={tmp_path}")
    for stamp in stamps:
        os.utime(stamp, (0, 0))
    again = planned("demo", "test", f"VENV={tmp_path}")
    assert "pip install" in again
    assert "-m venv" not in again


def test_pre_commit_fetches_nothing() -> None:
    repositories = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert {repository["repo"] for repository in repositories} == {"local"}
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_hosted_ci_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load(text(".github/workflows/ci.yml"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert set(job["strategy"]["matrix"]["os"]) == {"ubuntu-latest", "ubuntu-24.04-arm", "macos-latest"}


# ---------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = commands()[name]
    examples = re.findall(rf"qdeploy {name}\b.*", f"{command.help or ''}\n{command.epilog or ''}")
    assert examples, f"`qdeploy {name} --help` shows no example"
    for example in examples:
        assert shown_options(example) <= options(command), example


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_show_only_what_exists(name: str) -> None:
    known = commands()
    for command, used in calls(ROOT / name):
        assert command in known, f"{name} shows `qdeploy {command}`, which does not exist"
        unknown = used - options(known[command])
        assert not unknown, f"{name} shows `qdeploy {command}` with {sorted(unknown)}, which does not exist"


def test_the_documents_do_show_commands() -> None:
    """The test above sees the calls that are there."""
    assert {"build", "bench"} <= {command for command, _ in calls(ROOT / "README.md")}
    assert [command for command, _ in calls(ROOT / "Makefile")] == ["build", "bench"]
    assert {"verify", "inspect"} == {command for command, _ in calls(ROOT / "qdeploy/bundle/card.md.j2")}


def test_the_recipe_that_the_readme_explains_is_the_one_that_runs() -> None:
    shown, _ = re.findall(r"^```yaml\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load(text("recipes/digits.yaml"))


def test_the_variants_that_the_readme_shows_are_variants(tmp_path: Path) -> None:
    _, shown = re.findall(r"^```yaml\n(.*?)^```", text("README.md"), re.MULTILINE | re.DOTALL)
    path = tmp_path / "shown.yaml"
    path.write_text(text("recipes/digits.yaml").partition("variants:")[0] + shown)
    assert {"fp16", "int8", "w4", "w2", "w4a4", "mixed"} < set(load(path).variants)


def test_the_readme_is_one_screen_and_finished() -> None:
    assert len(text("README.md").splitlines()) < 120
    unfinished = [name for name in DOCUMENTS if "<!-- LEAD" in text(name)]
    assert not unfinished


LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_links_between_documents_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    broken = [target for target in LINK.findall(text(name)) if not (folder / target).exists()]
    assert not broken


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda path: path.stem)
def test_decisions_are_short_and_numbered(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    number = path.name[:3]
    assert re.match(rf"# {number}\. \S", content)
    assert re.search(r"^Status: (accepted|superseded by \d{3})$", content, re.MULTILINE)
    assert len([line for line in content.splitlines() if line.strip()]) <= 12


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:3]) for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
