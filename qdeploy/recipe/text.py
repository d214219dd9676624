"""Recipe text: YAML without its traps, and where each key was written.

YAML 1.1, which PyYAML reads, takes ``1e-3`` for a text, ``on``, ``off``, ``yes`` and ``no`` for booleans, and ``010``
for eight. Here scalars mean what they mean in YAML 1.2's core schema. A key that is written twice is an error, the keys
of a mapping are texts, and nothing but plain data is ever constructed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from qdeploy.core.errors import QDeployError

Location = tuple[str, ...]
Origins = dict[Location, str]

_TAG = "tag:yaml.org,2002:"
# Far more than a recipe needs, and read within a second or two. An alias counts as often as it is used: nine lines of
# aliases of aliases stand for a billion values.
MOST_BYTES, MOST_VALUES = 1 << 18, 10_000


class _Loader(yaml.SafeLoader):
    """Composes nodes with the scalar types of YAML 1.2's core schema, and the merge key."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way to drop the inherited ones)


def _resolve(kind: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(_TAG + kind, re.compile(pattern), list(first))


_resolve("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolve("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")
_resolve("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+.")
_resolve("merge", r"^<<$", "<")
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"^$"), [""])

_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def read(path: Path) -> tuple[dict[str, Any], Origins]:
    """The recipe in ``path`` as plain data, and for each key where it stands ("line 7").

    Raises QDeployError with the file and the line for what is not YAML, and for what YAML allows and a recipe does not.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_BYTES + 1)
    except UnicodeDecodeError as error:
        raise QDeployError(f"{path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    except OSError as error:
        raise QDeployError(f"{path} cannot be read: {error.strerror}.") from error
    if len(text) > MOST_BYTES:
        raise QDeployError(f"{path} is larger than {MOST_BYTES >> 10} KiB.", "A recipe is a page of text.")
    origins: Origins = {}
    data = _Reader(str(path), origins).parse(text)
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds a {_kind(data)}"
        raise QDeployError(f"{path} {found}.", "A recipe is a mapping; recipes/digits.yaml shows one.")
    return data, origins


def value(text: str, where: str) -> Any:
    """The value that ``text`` has in YAML. ``where`` says in an error where it was written."""
    return _Reader(where, {}).parse(text)


class _Reader:
    """Turns YAML nodes into plain data and notes the line of each key in ``origins``."""

    def __init__(self, name: str, origins: Origins) -> None:
        self.name = name
        self.origins = origins
        self.open: list[yaml.Node] = []
        self.values = 0

    def parse(self, text: str) -> Any:
        try:
            node = yaml.compose(text, Loader=_Loader)
            return None if node is None else self._plain(node, ())
        except yaml.YAMLError as error:
            raise self._syntax_error(error) from error
        except RecursionError:
            raise QDeployError(f"{self.name}: it is nested too deeply.", "A recipe needs a few levels.") from None

    def _plain(self, node: yaml.Node, at: Location) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            what = f"more than {MOST_VALUES:,} values, with every alias written out"
            raise self._error(node, what, "Write fewer values, or fewer aliases (*name).")
        if any(node is parent for parent in self.open):
            raise self._error(node, "an alias refers to what contains it", "Write the values out.")
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self._mapping(node, at)
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self._plain(item, (*at, str(i))) for i, item in enumerate(node.value)]
            return self._scalar(node)
        finally:
            self.open.pop()

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                # What stands first wins among merged mappings, and the mapping's own keys win over all of them.
                merged = {**self._merge(value_node, at), **merged}
                continue
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _TAG + "null":
                raise self._error(key_node, "a key has to be a text", "Write NAME: VALUE.")
            if key in own:
                raise self._error(key_node, f"the key {key!r} is written twice", "Keep one of them.")
            own[key] = self._plain(value_node, (*at, key))
            self.origins[(*at, key)] = f"line {key_node.start_mark.line + 1}"
        return {**merged, **own}

    def _merge(self, node: yaml.Node, at: Location) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise self._error(part, "<< merges mappings only", "Give it an alias of a mapping: <<: *name.")
            merged = {**self._plain(part, at), **merged}
        return merged

    def _scalar(self, node: yaml.Node) -> Any:
        text, kind = node.value, node.tag.removeprefix(_TAG)
        convert = _SCALARS.get(kind)
        if convert is None or not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"the tag {node.tag} is not plain data", "Leave the tag out.")
        try:
            return convert(text)
        except (ValueError, KeyError):  # only behind a tag of the writer's, such as !!int
            raise self._error(node, f"{text!r} is no {kind}", "Leave the tag out.") from None

    def _error(self, node: yaml.Node, what: str, hint: str) -> QDeployError:
        return QDeployError(f"{self.name}, line {node.start_mark.line + 1}: {what}.", hint)

    def _syntax_error(self, error: yaml.YAMLError) -> QDeployError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        where = f"{self.name}, line {mark.line + 1}" if mark is not None else self.name
        if "\\t" in problem:
            return QDeployError(f"{where}: a tab where YAML wants spaces.", "Indent with two spaces a level.")
        hint = "Look for a missing colon, quote or bracket, there or just before."
        return QDeployError(f"{where}: this is not valid YAML: {problem}.", hint)


def _kind(data: Any) -> str:
    return "list" if isinstance(data, list) else "single value"
