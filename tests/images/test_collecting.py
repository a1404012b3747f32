"""Pauses of the collector, one within another, in threads and in children."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import pytest

from capstore.images.collecting import collection_paused, is_collection_wanted


@pytest.fixture(params=[True, False], ids=["on", "off"])
def wanted(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


def test_it_is_as_it_was(wanted: bool) -> None:
    assert is_collection_wanted() == wanted
    with collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            assert is_collection_wanted() == wanted
        assert not gc.isenabled()
    assert gc.isenabled() == wanted
    with pytest.raises(LookupError), collection_paused():
        raise LookupError
    assert gc.isenabled() == wanted


@pytest.mark.usefixtures("wanted")
def test_pauses_that_overlap_in_threads(wanted: bool) -> None:
    begun, go = threading.Event(), threading.Event()

    def other() -> None:
        with collection_paused():
            begun.set()
            go.wait(10)

    thread = threading.Thread(target=other)
    with collection_paused():
        thread.start()
        assert begun.wait(10)
    assert not gc.isenabled(), "the other one goes on"
    go.set()
    thread.join()
    assert gc.isenabled() == wanted


def test_a_child_has_no_pause(wanted: bool) -> None:
    with collection_paused():
        child = os.fork()
        if not child:
            os._exit(0 if gc.isenabled() == wanted else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not gc.isenabled()
