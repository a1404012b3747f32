"""Walking a `CapstoreFS`, and its directories as filesystems of their own.

Invariants: a walk ends, whatever links there are.  What `CapstoreFS` does better than the functions
of PyFilesystem2, its directories do by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from fs.base import FS
from fs.error_tools import unwrap_errors
from fs.info import Info
from fs.path import normpath
from fs.subfs import SubFS
from fs.walk import BoundWalker, Walker

if TYPE_CHECKING:
    from capstore.service.pyfs import CapstoreFS

F = TypeVar("F", bound=FS)


class CapstoreWalker(Walker):
    """Walks a tree without descending into links: a link may lead to what contains it."""

    @classmethod
    def bind(cls, fs: F) -> BoundWalker[F]:
        # The base class binds itself, whatever it is called on.
        return BoundWalker(fs, walker_class=cls)

    def check_scan_dir(self, fs: FS, path: str, info: Info) -> bool:
        return info.get("link", "target") is None


class CapstoreSubFS(SubFS["CapstoreFS"]):
    """A directory of a `CapstoreFS`; copies and moves in it are its parent's."""

    walker_class = CapstoreWalker

    @contextmanager
    def _both(self, src_path: str, dst_path: str) -> Iterator[tuple[CapstoreFS, str, str]]:
        self.check()
        parent, source = self.delegate_path(src_path)
        _, target = self.delegate_path(dst_path)
        with unwrap_errors({source: src_path, target: dst_path}):
            yield parent, source, target

    def copy(
        self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False
    ) -> None:
        with self._both(src_path, dst_path) as (parent, source, target):
            parent.copy(source, target, overwrite=overwrite, preserve_time=preserve_time)

    def move(
        self, src_path: str, dst_path: str, overwrite: bool = False, preserve_time: bool = False
    ) -> None:
        with self._both(src_path, dst_path) as (parent, source, target):
            parent.move(source, target, overwrite=overwrite, preserve_time=preserve_time)

    def copydir(
        self, src_path: str, dst_path: str, create: bool = False, preserve_time: bool = False
    ) -> None:
        with self._both(src_path, dst_path) as (parent, source, target):
            parent.copydir(source, target, create=create, preserve_time=preserve_time)

    def movedir(
        self, src_path: str, dst_path: str, create: bool = False, preserve_time: bool = False
    ) -> None:
        with self._both(src_path, dst_path) as (parent, source, target):
            parent.movedir(source, target, create=create, preserve_time=preserve_time)

    def removetree(self, dir_path: str) -> None:
        self.check()
        parent, path = self.delegate_path(dir_path)
        with unwrap_errors(dir_path):
            if normpath(dir_path) in ("", "/"):
                parent.cleartree(path)
            else:
                parent.removetree(path)
