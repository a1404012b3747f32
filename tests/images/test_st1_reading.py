"""CAPOSST1: the values that are kept for those who ask again."""

from __future__ import annotations

import pytest

from capstore.images import st1_reading
from capstore.schema.objects import Delete, Put
from tests.images.st1model import KIB, new_store


def test_what_is_gone_is_not_kept() -> None:
    engine = new_store()
    for number in range(50):
        key = b"%d" % number
        engine.put(key, b"value")
        assert engine.get(key) == b"value"
        if number % 2:
            engine.delete(key)
        else:
            engine.batch([Delete(key)])
    assert not engine._values
    assert engine._values_bytes == 0


def test_what_is_replaced_is_counted_once() -> None:
    engine = new_store()
    for number in range(50):
        value = b"%d" % number * 10
        engine.batch([Put(b"key", value)])
        assert engine.get(b"key") == engine.get(b"key") == value
    assert engine._values_bytes == len(value)


def test_no_more_is_kept_than_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st1_reading, "CACHED_VALUES_BYTES_MAX", 8 * KIB)
    engine = new_store()
    for number in range(40):
        engine.put(b"%d" % number, bytes([number]) * KIB)
        engine.get(b"%d" % number)
        kept = sum(len(value) for _, value in engine._values.values())
        assert kept == engine._values_bytes <= 9 * KIB
