"""Lines of keys: every key that tomllib finds has one, and the key stands on it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.tools.config.lines import Path, lines_of


def paths_in(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key and every item of an array in what tomllib has read."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, below in items:
        yield (*path, key)
        yield from paths_in(below, (*path, key))


def check(text: str) -> dict[Path, int]:
    """The lines, which are those of just the keys that there are."""
    lines = lines_of(text)
    assert set(lines) == set(paths_in(tomllib.loads(text)))
    return lines


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1", ("a",), 1),
        ("\n\n  a = 1", ("a",), 3),
        ("# a = 1\nb = 2 # a = 3\na = 1", ("a",), 3),
        ("a.b.c = 1\na.b.d = 2", ("a", "b", "d"), 2),
        ("a.b.c = 1\na.b.d = 2", ("a", "b"), 1),
        ("a . b = 1\n a\t.\tc=2", ("a", "c"), 2),
        ('"a.b" = 1\n"c\\"]" = 2', ('c"]',), 2),
        ("'a\\' = 1\n'[b]' = 2", ("[b]",), 2),
        ('"\\u00e4\\t" = 1', ("ä\t",), 1),
        ("3.14 = 1\n1 = 2", ("3", "14"), 1),
        ("[a]\nb = 1\n[a.c]\nd = 2", ("a", "c", "d"), 4),
        ("[a.b]\nc = 1\n[a]\nd = 1", ("a",), 3),
        ('[ "x y" . z ] # [q]\nc = 1', ("x y", "z", "c"), 2),
        ("[[a]]\nb = 1\n[[a]]\nb = 2", ("a", 1, "b"), 4),
        ("[[a]]\nb = 1\n[[a]]\nb = 2", ("a", 1), 3),
        ("[[a]]\n[a.b]\nc = 1\n[[a]]\n[a.b]\nc = 1", ("a", 1, "b", "c"), 6),
        ("[[a]]\n[[a.b]]\n[[a.b]]\nc = 1\n[[a]]\n[[a.b]]", ("a", 0, "b", 1, "c"), 4),
        ("[[a]]\n[[a.b]]\n[[a.b]]\nc = 1\n[[a]]\n[[a.b]]", ("a", 1, "b", 0), 6),
        ("a = [1,\n2, # ]\n[3,\n4],]\nb = 1", ("a", 2, 1), 4),
        ("a = [1,\n2, # ]\n[3,\n4],]\nb = 1", ("b",), 5),
        ("a = [\n\n]\nb = 1", ("b",), 4),
        ("a = {b = 1, c.d = [\n1,\n{e = 2}]}\nf = 3", ("a", "c", "d", 1, "e"), 3),
        ("a = {}\nb = { }\nc = 1", ("c",), 3),
        ('a = """\n[b]\nc = 1\n"""\nd = 1', ("d",), 5),
        ('a = """x""\\""""""\nb = 1', ("b",), 2),
        ('a = """"\n"""""\nb = 1', ("b",), 3),
        ("a = '''\n[b]\n''\\'''\nc = 1", ("c",), 4),
        ("a = ''''x'''''\nc = 1", ("c",), 2),
        ('a = "#"\nb = "\\\\"\nc = "]"\nd = 1', ("d",), 4),
        ("a = '#'\nb = '\\'\nc = 1", ("c",), 3),
        ("a = 1979-05-27 07:32:00 # x\nb = [07:32:00, -1.5e3]\nc = inf", ("b", 1), 2),
        ("a = 1\r\n[b]\r\nc = 2\r\n", ("b", "c"), 3),
    ],
)
def test_a_key_stands_on_its_line(text: str, path: Path, line: int) -> None:
    assert check(text)[path] == line


def test_of_nothing_there_is_nothing() -> None:
    assert check("") == check("# nothing\n\n") == {}


# Documents by chance ------------------------------------------------------------------------------

TRICKY = "ab#'\"\\[]{}=,. \n\té"


def _basic(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return '"' + escaped.replace("\t", "\\t") + '"'


def _literal(text: str) -> str:
    return _basic(text) if "'" in text or "\n" in text else f"'{text}'"


def _long_basic(text: str) -> str:
    return '"""\n' + text.replace("\\", "\\\\").replace('"""', '""\\"') + '\\n"""'


def _long_literal(text: str) -> str:
    return _basic(text) if "''" in text else f"'''\n{text} '''"


texts = st.builds(
    lambda write, text: write(text),
    st.sampled_from([_basic, _literal, _long_basic, _long_literal]),
    st.text(TRICKY, max_size=12),
)
plain = st.sampled_from(["1", "0x1F", "true", "1.5e-3", "1979-05-27 07:32:00Z"])
blanks = st.sampled_from(["", " ", "\n", " # ] } = \" '\n", "\n\n\t"])


def _array(items: list[str], blank: str, comma: bool) -> str:
    return "[" + blank + f"{blank},{blank} ".join(items) + ("," if items and comma else "") + "\n]"


def _inline(items: list[str]) -> str:
    return "{" + ", ".join(f"KEY = {item}" for item in items) + " }"


values = st.recursive(
    st.one_of(texts, plain),
    lambda inner: st.one_of(
        st.builds(_array, st.lists(inner, max_size=3), blanks, st.booleans()),
        st.builds(_inline, st.lists(inner, max_size=3)),
    ),
    max_leaves=8,
)
lines = st.one_of(
    st.tuples(st.just("pair"), values),
    st.tuples(st.just("dotted"), values),
    st.tuples(st.just("table"), st.just("")),
    st.tuples(st.just("nested"), values),
    st.tuples(st.just("items"), values),
    st.tuples(st.just("deep items"), values),
    st.tuples(st.just("comment"), st.just("")),
)
WRITTEN = {
    "pair": "KEY = {}",
    "dotted": " KEY . \"KEY. #\" . 'KEY]'={} # KEY = [",
    "table": "[KEY]",
    "nested": '[ KEY."KEY [x" ]\nKEY = {}',
    "items": "[[many]]\nKEY = {}",
    "deep items": "[[many.deep]]\nKEY = {}\n[many.deep.KEY]",
    "comment": "# KEY = [ {{ ''' \"\"\"",
}


@settings(max_examples=200, deadline=None)
@given(st.lists(lines, max_size=8))
def test_of_any_document_each_key_stands_on_its_line(written: list[tuple[str, str]]) -> None:
    parts = ["[[many]]"]
    parts += [WRITTEN[kind].replace("{}", value) for kind, value in written]
    numbers = count()
    # No two keys are the same, so each is on the one line that has it.
    pieces = "\n".join(parts).split("KEY")
    text = pieces[0] + "".join(f"k{next(numbers)}z{piece}" for piece in pieces[1:])
    rows = text.split("\n")
    for path, line in check(text).items():
        key = path[-1]
        if isinstance(key, str) and key.startswith("k"):
            assert key.split("z")[0] + "z" in rows[line - 1], (path, line)
