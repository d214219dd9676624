from __future__ import annotations

import math
from pathlib import Path

import pytest

from qdeploy.core.errors import QDeployError
from qdeploy.recipe import text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 1e-3), ("1E5", 1e5), ("2.5e+2", 250.0), (".5", 0.5), ("5.", 5.0), ("-.inf", -math.inf),
        ("7", 7), ("+3", 3), ("-2", -2), ("010", 10), ("0x10", "0x10"), ("1_000", "1_000"), ("1:30", "1:30"),
        ("on", "on"), ("off", "off"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("N", "N"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), ("'1e-3'", "1e-3"), ('"true"', "true"), ("e", "e"),
        (".", "."), ("[1, 2.5, off]", [1, 2.5, "off"]), ("{on: 1, no: {yes: 2}}", {"on": 1, "no": {"yes": 2}}),
        ("{1: a}", {"1": "a"}),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_say(written, meant):
    found = text.value(written, "here")
    assert found == meant
    assert type(found) is type(meant)


def test_not_a_number():
    assert math.isnan(text.value(".nan", "here"))


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_key_has_its_line(tmp_path):
    data, origins = text.read(write(tmp_path, "# first\na: 1\nb:\n  c: {d: 2}\n  e: [{f: 3}]\n"))
    assert data == {"a": 1, "b": {"c": {"d": 2}, "e": [{"f": 3}]}}
    assert origins == {
        ("a",): "line 2",
        ("b",): "line 3",
        ("b", "c"): "line 4",
        ("b", "c", "d"): "line 4",
        ("b", "e"): "line 5",
        ("b", "e", "0", "f"): "line 5",
    }


def test_anchors_and_merges(tmp_path):
    data, origins = text.read(
        write(tmp_path, "a: &x {p: 1, q: {r: 2}}\nb:\n  <<: *x\n  p: 3\nc: *x\nd: {<<: [*x, {s: 4, p: 5}]}")
    )
    assert data["b"] == {"p": 3, "q": {"r": 2}}
    assert data["c"] == {"p": 1, "q": {"r": 2}}
    assert data["d"] == {"p": 1, "q": {"r": 2}, "s": 4}
    assert origins[("b", "p")] == "line 4"


def test_a_byte_order_mark_is_no_key(tmp_path):
    assert text.read(write(tmp_path, b"\xef\xbb\xbfa: 1"))[0] == {"a": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\nb: 2\na: 3", r"line 3: the key 'a' is written twice"),
        ("a: {b: 1, b: 2}", r"line 1: the key 'b' is written twice"),
        ("a:\n\tb: 1", r"line 2: a tab where YAML wants spaces"),
        ("a: [1, 2\nb: 3", r"line 2: this is not valid YAML"),
        ("a: 1\n b: 2", r"line 2: this is not valid YAML"),
        ("a: *nothing", r"line 1: this is not valid YAML: found undefined alias"),
        ("a: &x [*x]", r"line 1: an alias refers to what contains it"),
        ("a: !!python/object/apply:os.system ['true']", r"line 1: the tag"),
        ("a: !!set {b, c}", r"line 1: the tag"),
        ("a: !!str [b]", r"line 1: the tag"),
        ("a: !!python/name:os.system x", r"the tag .* is not plain data"),
        ("a: !!int three", r"'three' is no int"),
        ("? [a]\n: 1", r"line 1: a key has to be a text"),
        ("a: {<<: 3}", r"line 1: << merges mappings only"),
        ("[" * 50_000, r"it is nested too deeply"),
        ("a: " * 1 + "{b: " * 5_000 + "}" * 5_000, r"it is nested too deeply"),
        ("a: " + "x" * text.MOST_BYTES, r"is larger than 256 KiB"),
        ("a: [" + "1," * text.MOST_VALUES + "]", r"line 1: more than 10,000 values"),
        ("a: 1\n---\nb: 2", r"line 2: this is not valid YAML: but found another document"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("- a\n- b", "holds a list"),
        ("just text", "holds a single value"),
        (b"a: \xff", "is not UTF-8"),
        (b"a: \x00", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_is_refused_says_where(tmp_path, content, said):
    with pytest.raises(QDeployError, match=said) as error:
        text.read(write(tmp_path, content))
    assert str(tmp_path / "a.yaml") in error.value.message


def test_tags_construct_nothing(tmp_path):
    with pytest.raises(QDeployError):
        text.read(write(tmp_path, f"a: !!python/object/apply:pathlib.Path.touch [{tmp_path}/owned]"))
    assert not (tmp_path / "owned").exists()


BOMBS = {
    "lists": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 12)),
    "mappings": "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{{', '.join(f'k{k}: *a{i - 1}' for k in range(9))}}}\n" for i in range(1, 12)
    ),
    "merges": "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{f'*a{i - 1},' * 9}]}}\n" for i in range(1, 12)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_aliases_of_aliases_are_refused_before_they_are_written_out(tmp_path, kind):
    """Each line stands for nine times the values of the one before: 9**11 in all, of which 10,000 are looked at."""
    reader = text._Reader("a.yaml", {})
    with pytest.raises(QDeployError, match=r"a.yaml, line \d+: more than 10,000 values, with every alias written out"):
        reader.parse(BOMBS[kind])
    assert reader.values == text.MOST_VALUES + 1
