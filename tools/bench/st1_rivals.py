"""What a user would take instead of a CAPOSST1 store: rivals of the st1 cases, in process.

Invariants: each by its own public interface, made durable by its own means, and imported only if it
takes part.

* **SQLite** has one connection behind a lock: as fast as it gets, since only one transaction writes
  at a time whoever waits for it.
* **LMDB** flushes with every transaction (``sync``, ``metasync``), maps nothing for writing, and
  has a transaction for each get, as whoever wants to see the latest has.
* **ZODB** is the third, rather than diskcache: it is kept up (diskcache's last release is of 2023),
  and its FileStorage is another design, an append-only log with an index in memory that flushes
  with every commit, where diskcache is SQLite once more, by default without a flush at commit.  Its
  objects are in an OOBTree, longer ones by themselves, or every commit would write those beside
  them too; one connection behind a lock, as threads that share a bucket would only conflict.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Final

from capstore.tools.bench.machine import version_of
from capstore.tools.bench.st1_stores import LMDB, SQLITE, ZODB, Objects, Pair
from capstore.tools.bench.workers import Worker, in_threads

# It only takes room in the address space.
_LMDB_BYTES_MAX: Final = 1 << 36
_LMDB_READERS_MAX: Final = 256
# What a connection keeps of its objects; by default it is 400.
_ZODB_CACHED_OBJECTS: Final = 50_000
# Longer values are objects of their own.
_ZODB_INLINE_BYTES_MAX: Final = 512


def missing(distribution: str) -> Callable[[], str | None]:
    """Says why whoever needs `distribution` does not take part, or None if it does."""

    def why() -> str | None:
        if version_of(distribution) is None:
            return f"{distribution} is not installed (pip install 'capstore[bench]')"
        return None

    return why


# By contestant: why it does not take part, if it does not.
ABSENT: Final[Mapping[str, Callable[[], str | None]]] = {
    LMDB: missing("lmdb"),
    ZODB: missing("ZODB"),
}


class _Blocking(Objects):
    def run(self, workers: Sequence[Worker]) -> int:
        return in_threads(workers)


class Sqlite(_Blocking):
    """A table without row ids, in WAL mode, flushed with every transaction."""

    name = SQLITE

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "objects.sqlite", isolation_level=None, check_same_thread=False
        )
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = FULL")
        self._execute(
            "CREATE TABLE IF NOT EXISTS objects"
            " (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
        )

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._execute("BEGIN IMMEDIATE")
            yield
            self._execute("COMMIT")

    def _length(self, key: bytes) -> int:
        row = self._execute("SELECT value FROM objects WHERE key = ?", key).fetchone()
        return 0 if row is None else len(row[0])

    async def get(self, key: bytes) -> int:
        with self._lock:
            return self._length(key)

    async def put(self, key: bytes, value: bytes) -> None:
        with self._lock:
            self._execute("REPLACE INTO objects VALUES (?, ?)", key, value)

    async def put_all(self, pairs: Sequence[Pair]) -> None:
        with self._transaction():
            self._connection.executemany("REPLACE INTO objects VALUES (?, ?)", pairs)

    async def delete_all(self, keys: Sequence[bytes]) -> None:
        with self._transaction():
            rows = [(key,) for key in keys]
            self._connection.executemany("DELETE FROM objects WHERE key = ?", rows)

    async def scan(self, key: bytes, count: int) -> int:
        query = "SELECT value FROM objects WHERE key >= ? ORDER BY key LIMIT ?"
        with self._lock:
            return sum(len(value) for (value,) in self._execute(query, key, count))

    async def modify(self, key: bytes, value: bytes) -> int:
        with self._transaction():
            got = self._length(key)
            self._execute("UPDATE objects SET value = ? WHERE key = ?", value, key)
        return got

    def close(self) -> None:
        self._connection.close()


class Lmdb(_Blocking):
    """The binding that PyPI calls lmdb."""

    name = LMDB

    def __init__(self, folder: Path) -> None:
        self._environment: Any = import_module("lmdb").open(
            str(folder / "objects.lmdb"),
            map_size=_LMDB_BYTES_MAX,
            sync=True,
            metasync=True,
            max_readers=_LMDB_READERS_MAX,
        )

    async def get(self, key: bytes) -> int:
        with self._environment.begin() as transaction:
            return len(transaction.get(key, b""))

    async def put(self, key: bytes, value: bytes) -> None:
        with self._environment.begin(write=True) as transaction:
            transaction.put(key, value)

    async def put_all(self, pairs: Sequence[Pair]) -> None:
        with self._environment.begin(write=True) as transaction:
            for key, value in pairs:
                transaction.put(key, value)

    async def delete_all(self, keys: Sequence[bytes]) -> None:
        with self._environment.begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key)

    async def scan(self, key: bytes, count: int) -> int:
        with self._environment.begin() as transaction, transaction.cursor() as cursor:
            if not cursor.set_range(key):
                return 0
            return sum(len(value) for value in islice(cursor.iternext(keys=False), count))

    async def modify(self, key: bytes, value: bytes) -> int:
        with self._environment.begin(write=True) as transaction:
            got = len(transaction.get(key, b""))
            transaction.put(key, value)
        return got

    def close(self) -> None:
        self._environment.close()


class Zodb(_Blocking):
    """A BTree in a FileStorage."""

    name = ZODB

    def __init__(self, folder: Path) -> None:
        storage = import_module("ZODB.FileStorage").FileStorage(str(folder / "objects.fs"))
        self._database: Any = import_module("ZODB").DB(storage, cache_size=_ZODB_CACHED_OBJECTS)
        self._transactions: Any = import_module("transaction").TransactionManager()
        self._alone: Any = import_module("persistent.list").PersistentList
        self._connection: Any = self._database.open(transaction_manager=self._transactions)
        self._lock = threading.Lock()
        root = self._connection.root()
        if "objects" not in root:
            root["objects"] = import_module("BTrees.OOBTree").OOBTree()
            self._transactions.commit()
        self._tree: Any = root["objects"]

    def _stored(self, value: bytes) -> object:
        return value if len(value) <= _ZODB_INLINE_BYTES_MAX else self._alone([value])

    @staticmethod
    def _length(stored: Any) -> int:
        if stored is None:
            return 0
        return len(stored if isinstance(stored, bytes) else stored[0])

    async def get(self, key: bytes) -> int:
        with self._lock:
            return self._length(self._tree.get(key))

    async def put(self, key: bytes, value: bytes) -> None:
        with self._lock:
            self._tree[key] = self._stored(value)
            self._transactions.commit()

    async def put_all(self, pairs: Sequence[Pair]) -> None:
        with self._lock:
            self._tree.update([(key, self._stored(value)) for key, value in pairs])
            self._transactions.commit()

    async def delete_all(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            for key in keys:
                del self._tree[key]
            self._transactions.commit()

    async def scan(self, key: bytes, count: int) -> int:
        with self._lock:
            return sum(map(self._length, islice(self._tree.values(key), count)))

    async def modify(self, key: bytes, value: bytes) -> int:
        with self._lock:
            got = self._length(self._tree.get(key))
            self._tree[key] = self._stored(value)
            self._transactions.commit()
        return got

    def close(self) -> None:
        self._transactions.abort()
        self._connection.close()
        self._database.close()
