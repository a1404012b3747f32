"""Pauses of the collector, one within another, in threads and in children.

In processes of their own: another test's service may have paused the collector of this one, for as
long as it lives.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

NESTED = """
assert is_collection_wanted() == wanted
with collection_paused():
    assert not gc.isenabled()
    assert is_collection_wanted() == wanted
    with collection_paused():
        assert not gc.isenabled()
    assert not gc.isenabled()
assert gc.isenabled() == wanted
try:
    with collection_paused():
        raise LookupError
except LookupError:
    pass
assert gc.isenabled() == wanted
"""
IN_THREADS = """
begun, go = threading.Event(), threading.Event()

def other():
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
"""
IN_A_CHILD = """
with collection_paused():
    child = os.fork()
    if not child:
        os._exit(0 if gc.isenabled() == wanted else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not gc.isenabled()
assert gc.isenabled() == wanted
"""


@pytest.mark.parametrize("wanted", [True, False], ids=["on", "off"])
@pytest.mark.parametrize(
    "script", [NESTED, IN_THREADS, IN_A_CHILD], ids=["nested", "in threads", "in a child"]
)
def test_it_is_as_it_was(script: str, wanted: bool) -> None:
    begin = (
        "import gc, os, threading\n"
        "from capstore.images.collecting import collection_paused, is_collection_wanted\n"
        f"wanted = {wanted}\n"
        f"gc.{'enable' if wanted else 'disable'}()\n"
    )
    subprocess.run([sys.executable, "-c", begin + script], check=True)
