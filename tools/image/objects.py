"""Files of a tree as objects of a CAPOSST1 image in the making.

Invariants:

* A file's key is its path, "/" between names, as bytes; content-addressed, its key is the SHA-256
  of what is in it, and its path is a name for that.
* The same calls give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from capstore.images import st1
from capstore.images.builder import Facts, Path, TreeBuilder, check_named
from capstore.images.device import BlockDevice
from capstore.images.st1_build import St1Builder
from capstore.images.st1_names import bind, resolve
from capstore.images.st1_sink import Writing
from capstore.schema.errors import InvalidArgument, Unsupported
from capstore.schema.limits import KEY_BYTES_MAX, TRANSFER_BYTES_MAX
from capstore.schema.names import to_bytes
from capstore.schema.nodes import Buffer
from capstore.schema.objects import Binding
from capstore.tools.image.storekeys import text_of


class ObjectBuilder(TreeBuilder):
    """Makes a store on `device` and puts the files of a tree into it, content-addressed if they are
    to be `hashed`; `size` and `built` as `St1Builder`.

    A directory is where keys begin alike, and nothing by itself; a symbolic link is `Unsupported`.
    """

    def __init__(
        self, device: BlockDevice, *, hashed: bool, size: int | None = None, built: int = 0
    ) -> None:
        self._builder = St1Builder(device, size=size, built=built)
        self._hashed = hashed
        # The file that was begun: its path, what takes its content, and how much is to come.
        self._file: tuple[Path, Writing, int] | None = None

    def directory(self, path: Path, facts: Facts) -> None:
        self._check_whole()

    def begin_file(self, path: Path, facts: Facts, size: int) -> None:
        self._check_whole()
        key = key_of(path)
        self._file = (path, self._builder.begin(b"" if self._hashed else key), size)

    def write(self, data: Buffer) -> None:
        path, writing, left = self._begun()
        left -= memoryview(data).nbytes
        if left < 0:
            raise InvalidArgument("the file is longer than it was to be")
        writing.write(data)
        self._file = (path, writing, left)

    def end_file(self) -> None:
        path, writing, left = self._begun()
        if left:
            raise InvalidArgument("the file is shorter than it was to be")
        self._file = None
        self._name(path, writing.commit().key)

    def symlink(self, path: Path, facts: Facts, target: str) -> None:
        raise Unsupported(f'"{path[-1]}" is a symbolic link: a store has none')

    def link(self, path: Path, original: Path) -> None:
        self._check_whole()
        engine, key = self._builder.engine, key_of(path)
        if self._hashed:
            self._name(path, resolve(engine, original[:-1], original[-1]).hash or b"")
            return
        first, writing = key_of(original), self._builder.begin(key)
        for at in range(0, engine.stat(first).size, TRANSFER_BYTES_MAX):
            writing.write(engine.read(first, at, TRANSFER_BYTES_MAX)[0])
        writing.commit()

    def _name(self, path: Path, key: bytes) -> None:
        if self._hashed:
            bind(self._builder.engine, path[:-1], Binding(path[-1], hash=key))

    def _check_whole(self) -> None:
        if self._file is not None:
            raise InvalidArgument("the file before is not whole")

    def _begun(self) -> tuple[Path, Writing, int]:
        if self._file is None:
            raise InvalidArgument("no file was begun")
        return self._file

    def finish(self) -> None:
        self._check_whole()
        self._builder.finish()

    def abort(self) -> None:
        """Nothing to do: what was made is at no place of its own."""

    def named(self) -> Iterator[str]:
        """A line ``PATH<TAB>HASH`` for each name, in the order of their bytes."""
        engine = self._builder.engine
        for stored, _ in engine.entries(st1.NAMES):
            *above, name = stored[len(st1.NAMES) :].decode().split("/")
            digest = resolve(engine, above, name).hash or b""
            yield f"{text_of(stored, hashed=False)}\t{digest.hex()}"


def key_of(path: Path) -> bytes:
    """The key of the file at `path`.  Raises `InvalidArgument` for one that is too long."""
    check_named(path)
    key = b"/".join(to_bytes(name) for name in path)
    if len(key) > KEY_BYTES_MAX:
        raise InvalidArgument(f"its path is to be a key, which has at most {KEY_BYTES_MAX} bytes")
    return key
