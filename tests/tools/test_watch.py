from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fs.subfs import SubFS

from capstore.service.pyfs import CapstoreFS
from capstore.tools.location import locate
from tests.tools.command import COMMAND, Served, capstore

SECONDS = 20


class Watching:
    """A ``capstore watch`` that is told of something."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._seen = b""

    def line(self, seconds: float = SECONDS) -> str:
        """The next line; empty when there is none for so long."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while b"\n" not in self._seen:
            left = end - time.monotonic()
            if left < 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return ""
            # Not by the stream's own buffer, which select does not see.
            self._seen += self.process.stdout.read1(65536)  # type: ignore[attr-defined]
        line, _, self._seen = self._seen.partition(b"\n")
        return line.decode()

    def ended(self) -> tuple[int, str]:
        """Its exit code, and what it said."""
        _, error = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, error.decode()


@contextmanager
def watching(*arguments: str, folder: SubFS[CapstoreFS]) -> Iterator[Watching]:
    """One that watches `folder` already: a name is made there until it is told."""
    process = subprocess.Popen(
        [*COMMAND, "watch", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    watching = Watching(process)
    try:
        is_told = ""
        for number in range(200):
            folder.makedir(f"touch{number}")
            is_told = watching.line(0.1)
            if is_told:
                break
        assert is_told
        folder.makedir("ready")
        while "ready" not in watching.line():
            pass
        yield watching
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def tree(served: Served) -> Iterator[CapstoreFS]:
    with CapstoreFS(locate(served.at("m"))) as tree:
        yield tree


def test_a_line_for_each_change(served: Served, tree: CapstoreFS) -> None:
    folder = tree.makedir("w")
    with watching(served.at("m", "w"), folder=folder) as told:
        folder.makedirs("d/below")
        assert told.line() == "created  d"
        tree.movedir("w/d", "w/new\nline", create=True)
        lines = [told.line(), told.line()]
        assert sorted(lines) == ["created  new\\nline", "removed  d"]
        folder.writetext("f", "12345")
        assert told.line() == "created  f"
        told.process.send_signal(signal.SIGINT)
        code, error = told.ended()
        assert (code, error) == (130, "")


def test_json_and_the_end_of_a_share(served: Served, tree: CapstoreFS) -> None:
    folder = tree.makedir("j")
    lent = capstore("share", served.at("m", "j"), "--read-only").ok().strip()
    with watching("--json", lent, folder=folder) as told:
        folder.makedir("f")
        change = json.loads(told.line())
        assert (change["kind"], change["name"]) == ("created", "f")
        assert change["nodeId"] > 0
        capstore("revoke", lent).ok()
        code, error = told.ended()
        assert code == 1
        assert error.startswith("capstore: revoked: ")


def test_a_directory_that_is_removed(served: Served, tree: CapstoreFS) -> None:
    with watching(served.at("m", "r"), folder=tree.makedir("r")) as told:
        tree.removetree("r")
        code, error = told.ended()
        assert code == 1
        assert error == 'capstore: notFound: "/r": the directory was removed\n'


def test_what_is_no_directory(served: Served, tree: CapstoreFS) -> None:
    tree.writetext("file", "x")
    capstore("watch", served.at("m", "file")).failed("notDirectory")
    capstore("watch", served.at("m", "nothing")).failed("notFound")
