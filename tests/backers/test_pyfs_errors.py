"""What a filesystem raises becomes a `StorageError` that tells no secret."""

from __future__ import annotations

import errno
import inspect
import io
import lzma
import ssl
import tarfile
import zipfile
import zlib

import pytest
from fs import errors
from fs.memoryfs import MemoryFS
from fs.opener import errors as opening

from capstore.backers.node import OpenFlags
from capstore.backers.pyfs import PyfsVolume
from capstore.backers.pyfs_errors import fs_errors, storage_error
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Closed,
    Corrupt,
    Denied,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    ReadOnly,
    StorageError,
    StorageIOError,
    Unsupported,
)

PATH = "/srv/secret/{path}"
NOTED = OSError(errno.EROFS, "no", PATH)


class Foreign(Exception):
    """Of a library that nobody heard of."""

    def __str__(self) -> str:
        return PATH


TABLE: list[tuple[Exception, type[StorageError]]] = [
    (errors.ResourceNotFound(PATH), NotFound),
    (errors.DirectoryExists(PATH), AlreadyExists),
    (errors.FileExists(PATH), AlreadyExists),
    (errors.DestinationExists(PATH), AlreadyExists),
    (errors.DirectoryExpected(PATH), NotDirectory),
    (errors.FileExpected(PATH), IsDirectory),
    (errors.ResourceInvalid(PATH), Unsupported),
    (errors.DirectoryNotEmpty(PATH), NotEmpty),
    (errors.ResourceLocked(PATH), Busy),
    (errors.ResourceReadOnly(PATH), ReadOnly),
    (errors.ResourceError(PATH), StorageIOError),
    (errors.ResourceError(PATH, exc=NOTED), ReadOnly),
    (errors.InsufficientStorage(PATH), NoSpace),
    (errors.PermissionDenied(PATH), Denied),
    (errors.RemoveRootError(PATH), Denied),
    (errors.RemoteConnectionError(PATH), StorageIOError),
    (errors.OperationTimeout(PATH), StorageIOError),
    (errors.Unsupported(PATH), Unsupported),
    (errors.OperationFailed(PATH, msg=PATH), StorageIOError),
    (errors.OperationFailed(PATH, exc=OSError(errno.EBUSY, "no")), Busy),
    (errors.OperationFailed(PATH, exc=Foreign()), StorageIOError),
    (errors.PathError(PATH), InvalidName),
    (errors.InvalidPath(PATH), InvalidName),
    (errors.InvalidCharsInPath(PATH), InvalidName),
    (errors.NoSysPath(PATH), Unsupported),
    (errors.NoURL(PATH, "fs"), Unsupported),
    (errors.IllegalBackReference(PATH), InvalidName),
    (errors.UnsupportedHash(PATH), Unsupported),
    (errors.FilesystemClosed(PATH), Closed),
    (errors.BulkCopyFailed([Foreign()]), StorageIOError),
    (errors.MissingInfoNamespace(PATH), StorageIOError),
    (errors.FSError(PATH), StorageIOError),
    (errors.CreateFailed(PATH), NotFound),
    (errors.CreateFailed(PATH, exc=errors.PermissionDenied(PATH)), Denied),
    (errors.CreateFailed(exc=FileNotFoundError(errno.ENOENT, "no", PATH)), NotFound),
    (errors.CreateFailed(exc=errors.CreateFailed(exc=zipfile.BadZipFile(PATH))), Corrupt),
    # The host's own error is more exact than what is made of it.
    (errors.ResourceNotFound(PATH, exc=NotADirectoryError(errno.ENOTDIR, "no")), NotDirectory),
    (opening.ParseError(PATH), InvalidArgument),
    (opening.NotWriteable(PATH), ReadOnly),
    (opening.UnsupportedProtocol(PATH), Unsupported),
    (opening.EntryPointError(PATH), Unsupported),
    (opening.OpenerError(PATH), Unsupported),
    (OSError(errno.ENOSPC, "no", PATH), NoSpace),
    (FileNotFoundError(errno.ENOENT, "no", PATH), NotFound),
    (ConnectionResetError(errno.ECONNRESET, "no", PATH), StorageIOError),
    (TimeoutError(PATH), StorageIOError),
    (OSError(PATH), StorageIOError),
    # Its number is EPERM's, and of another list.
    (ssl.SSLError(1, PATH), StorageIOError),
    (io.UnsupportedOperation(PATH), Unsupported),
    (NotImplementedError(PATH), Unsupported),
    (zipfile.BadZipFile(PATH), Corrupt),
    (tarfile.ReadError(PATH), Corrupt),
    (zlib.error(PATH), Corrupt),
    (lzma.LZMAError(PATH), Corrupt),
    (EOFError(PATH), Corrupt),
    (MemoryError(PATH), NoSpace),
    (ValueError(PATH), StorageIOError),
    (KeyError(PATH), StorageIOError),
    (RecursionError(PATH), StorageIOError),
    (Foreign(), StorageIOError),
]
IDS = [f"{type(error).__name__} {number}" for number, (error, _) in enumerate(TABLE)]


@pytest.mark.parametrize(("foreign", "kind"), TABLE, ids=IDS)
def test_the_table(foreign: Exception, kind: type[StorageError]) -> None:
    with pytest.raises(StorageError) as caught, fs_errors("look"):
        raise foreign
    assert type(caught.value) is kind
    assert "srv" not in str(caught.value)
    assert caught.value.message.startswith("look: ")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_every_class_of_pyfilesystem_is_in_the_table() -> None:
    listed = {type(error) for error, _ in TABLE}
    for module in (errors, opening):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == module.__name__:
                assert kind in listed


def test_what_is_ours_already_stays() -> None:
    ours = NotEmpty("has entries")
    with pytest.raises(NotEmpty) as caught, fs_errors("look"):
        raise ours
    assert caught.value is ours


def test_what_is_no_failure_passes() -> None:
    with pytest.raises(KeyboardInterrupt), fs_errors("look"):
        raise KeyboardInterrupt


def test_exceptions_that_wrap_themselves() -> None:
    knot = errors.OperationFailed(PATH)
    knot.exc = knot
    assert type(storage_error(knot, "look")) is StorageIOError


class Failing(MemoryFS):
    """Raises `failure` from every method, when it is set."""

    failure: Exception | None = None

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def getinfo(self, path, namespaces=None):  # type: ignore[no-untyped-def]
        self._fail()
        return super().getinfo(path, namespaces)

    def scandir(self, path, namespaces=None, page=None):  # type: ignore[no-untyped-def]
        self._fail()
        return super().scandir(path, namespaces, page)

    def openbin(self, path, mode="r", buffering=-1, **options):  # type: ignore[no-untyped-def]
        self._fail()
        return super().openbin(path, mode, buffering, **options)


@pytest.mark.anyio
@pytest.mark.parametrize(("foreign", "kind"), TABLE, ids=IDS)
async def test_every_method_maps(foreign: Exception, kind: type[StorageError]) -> None:
    filesystem = Failing()
    volume = await PyfsVolume.open(filesystem)
    root = volume.root
    await (await root.create("f")).close()
    directory = await root.mkdir("d")
    filesystem.failure = foreign
    for call in (
        root.lookup("f"),
        root.open("f"),
        root.open("f", OpenFlags.WRITE),
        root.sub("d"),
        root.remove("f"),
        root.rename("f", directory, "f"),
    ):
        with pytest.raises(StorageError) as caught:
            await call
        assert type(caught.value) is kind
        assert "srv" not in str(caught.value)
    # These say "not there", which is an answer here.
    if kind is not NotFound:
        for call in (root.create("new"), root.mkdir("new"), directory.list(), directory.stat()):
            with pytest.raises(kind):
                await call
    filesystem.failure = None
    await volume.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("ftp://user:secret@127.0.0.1:1/", StorageIOError),
        ("ftp://user:secret@127.0.0.1:1/deep/er", StorageIOError),
        ("ftp://user:secret@[::bad/", StorageIOError),
        ("osfs:///no/secret/here", NotFound),
        ("zip:///no/secret/here.zip", NotFound),
        ("tar:///no/secret/here.tar", NotFound),
        ("nothing-like-it://user:secret@host", Unsupported),
        ("://secret", InvalidArgument),
        ("secret", InvalidArgument),
        ("", InvalidArgument),
    ],
)
async def test_an_url_that_does_not_open_stays_secret(url: str, kind: type[StorageError]) -> None:
    with pytest.raises(kind) as caught:
        await PyfsVolume.open(url)
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
