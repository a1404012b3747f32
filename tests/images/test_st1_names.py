"""Names over a CAPOSST1 store, and garbage collection from them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstore.images.st1_collect import Collecting, collect
from capstore.images.st1_names import bind, list_names, resolve, unbind
from capstore.schema.errors import (
    Busy,
    Conflict,
    Corrupt,
    InvalidArgument,
    InvalidName,
    NotFound,
    StorageError,
)
from capstore.schema.objects import Binding, Condition
from tests.images.st1model import KIB, Clock, content_of, new_store, reopened

HOUR = 3_600_000_000_000


def test_a_name_stands_for_a_hash_or_a_reference() -> None:
    engine = new_store(None, 64 * KIB)
    key = engine.put(b"", b"content").key
    assert bind(engine, (), Binding("one", hash=key)) == 2
    assert bind(engine, (), Binding("two", reference=7)) == 3
    assert resolve(engine, (), "one") == Binding("one", 2, hash=key)
    assert resolve(engine, (), "two") == Binding("two", 3, reference=7)
    engine.sync()
    engine = reopened(engine.device)
    assert resolve(engine, (), "one") == Binding("one", 2, hash=key)
    engine.compact()
    assert resolve(engine, (), "two") == Binding("two", 3, reference=7)
    assert engine.counts.names == 2
    assert content_of(engine) == {key: b"content"}
    unbind(engine, (), "one")
    with pytest.raises(NotFound):
        resolve(engine, (), "one")


def test_binding_is_compare_and_set() -> None:
    engine = new_store(None, 64 * KIB)
    first = bind(engine, ("a",), Binding("x", reference=1), Condition(absent=True))
    with pytest.raises(Conflict):
        bind(engine, ("a",), Binding("x", reference=2), Condition(absent=True))
    second = bind(engine, ("a",), Binding("x", reference=2), Condition(version=first))
    with pytest.raises(Conflict):
        unbind(engine, ("a",), "x", Condition(version=first))
    assert resolve(engine, ("a",), "x").version == second


def test_what_cannot_be_bound() -> None:
    engine = new_store(None, 64 * KIB)
    engine.put(b"k" * 32, b"not hashed")
    wrong: list[tuple[Binding, type[StorageError]]] = [
        (Binding("x"), InvalidArgument),
        (Binding("x", hash=b"k" * 32, reference=1), InvalidArgument),
        (Binding("x", hash=b"short"), InvalidArgument),
        (Binding("x", reference=-1), InvalidArgument),
        (Binding("x", reference=1 << 64), InvalidArgument),
        (Binding("x", hash=b"k" * 32), NotFound),
        (Binding("x", hash=b"h" * 32), NotFound),
        (Binding("a/b", reference=1), InvalidName),
        (Binding("", reference=1), InvalidName),
    ]
    for binding, error in wrong:
        with pytest.raises(error):
            bind(engine, (), binding)
    with pytest.raises(InvalidArgument):
        bind(engine, ["n" * 250] * 4, Binding("n" * 250, reference=1))
    assert list_names(engine, ()) == ([], False)


def test_namespaces_below_are_passed_over() -> None:
    engine = new_store(None, 64 * KIB)
    names = ["a", "a-", "a0", "b", "\u00ff", "zz"]
    for name in names:
        bind(engine, (), Binding(name, reference=1))
    for number in range(50):
        bind(engine, ("a",), Binding(f"{number}", reference=2))
        bind(engine, ("a", "b"), Binding(f"{number}", reference=3))
        bind(engine, ("\u00fe",), Binding(f"\U0010ffff{number}", reference=4))
    found, more = list_names(engine, ())
    assert [binding.name for binding in found] == sorted(names, key=str.encode)
    assert not more
    found, more = list_names(engine, (), after="a", limit=2)
    assert [binding.name for binding in found] == ["a-", "a0"]
    assert more
    found, more = list_names(engine, ("a",), limit=100)
    assert len(found) == 50
    assert not more
    assert list_names(engine, ("a",), after="9") == ([], False)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.text("ab0-\u00ff", min_size=1, max_size=2), min_size=1, max_size=3), max_size=30
    ),
    st.integers(1, 5),
)
def test_listing_gives_each_name_once(paths: list[list[str]], limit: int) -> None:
    engine = new_store(None, 64 * KIB)
    for path in paths:
        bind(engine, path[:-1], Binding(path[-1], reference=0))
    for above in {tuple(path[:-1]) for path in paths}:
        wanted = sorted({path[-1] for path in paths if tuple(path[:-1]) == above}, key=str.encode)
        got: list[str] = []
        more = True
        while more:
            page, more = list_names(engine, above, got[-1] if got else "", limit)
            got += [binding.name for binding in page]
        assert got == wanted


def test_what_no_name_stands_for_is_collected() -> None:
    engine = new_store(None, 64 * KIB)
    kept = engine.put(b"", b"kept").key
    gone = engine.put(b"", b"gone" * 100).key
    engine.put(b"by key", b"stays")
    bind(engine, ("deep", "er"), Binding("x", hash=kept))
    assert collect(engine, HOUR, Clock(2 * HOUR)).objects == 2 - 1
    assert content_of(engine) == {kept: b"kept", b"by key": b"stays"}
    with pytest.raises(NotFound):
        engine.get(gone)
    assert collect(engine, 0, Clock(2 * HOUR)).objects == 0


def test_what_is_young_is_kept() -> None:
    engine = new_store(None, 64 * KIB)
    engine.put(b"", b"young")
    assert collect(engine, HOUR, Clock()).objects == 0
    assert collect(engine, 0, Clock(HOUR)).objects == 1


def test_what_is_put_or_bound_meanwhile_is_kept() -> None:
    engine = new_store(None, 64 * KIB)
    keys = [engine.put(b"", b"%d" % number).key for number in range(2000)]
    collecting = Collecting(engine, 0, Clock(HOUR))
    with pytest.raises(Busy):
        Collecting(engine, 0, Clock(HOUR))
    steps = collecting.steps()
    next(steps)
    ordered = sorted(keys)
    # One that comes late in the order is bound and unbound; others are put again, or are new.
    bind(engine, (), Binding("x", hash=ordered[-1]))
    unbind(engine, (), "x")
    again = engine.put(b"", b"%d" % keys.index(ordered[-2])).key
    assert again == ordered[-2]
    new = engine.put(b"", b"new").key
    engine.compact()
    for _ in steps:
        continue
    assert set(content_of(engine)) == {ordered[-1], again, new}
    assert collecting.collected.objects == 1998
    assert engine.marking is None


def test_names_that_cannot_be_read_keep_everything() -> None:
    engine = new_store(None, 64 * KIB)
    engine.put(b"", b"content")
    bind(engine, (), Binding("x", reference=1))
    engine.put_stored(b"\1y", b"no record at all")
    with pytest.raises(Corrupt):
        collect(engine, 0, Clock(HOUR))
    assert content_of(engine) == {hashlib.sha256(b"content").digest(): b"content"}
    assert engine.marking is None
