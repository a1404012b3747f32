"""What PyFilesystem2's own tests do not ask of a filesystem: opening, errors, content."""

from __future__ import annotations

import errno
import io
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fs.copy
import pytest
from fs import errors
from fs.memoryfs import MemoryFS
from fs.subfs import SubFS

import capstore
from capstore.service.client import connect
from capstore.service.pyfs import CapstoreFS
from tests.service.relay import delayed
from tests.service.support import ServiceUnderTest, running_service

MIB = 1024 * 1024


# Opening and closing ---------------------------------------------------------------------------


def test_what_is_no_directory_is_refused(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.writebytes("file", b"x")
    with pytest.raises(errors.DirectoryExpected) as caught:
        CapstoreFS(service.uri("m").below(("file",)))
    assert caught.value.__cause__.code is capstore.Code.NOT_DIRECTORY
    with pytest.raises(capstore.NotFound):
        CapstoreFS(service.uri("m").below(("nothing",)))
    with pytest.raises(capstore.Denied):
        CapstoreFS(service.uri("m").with_token("A" * 43))
    with pytest.raises(capstore.InvalidArgument):
        CapstoreFS("capnp://nonsense")


def test_a_uri_may_have_a_path_with_links(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.makedirs("real/inner")
    tree.symlink("link", "real")
    with CapstoreFS(service.uri("m").below(("link", "inner"))) as below:
        below.writetext("x", "1")
    assert tree.readtext("real/inner/x") == "1"


def test_the_token_is_never_shown(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    token = service.uri("m").token
    sub = tree.makedir("d")
    shown = [repr(tree), str(tree), repr(sub), str(sub), tree.desc("d")]
    with pytest.raises(errors.ResourceNotFound) as caught:
        tree.readbytes("nothing")
    shown.append(repr(caught.value))
    assert not any(token in text for text in shown)


def test_after_close_everything_is_closed(service: ServiceUnderTest) -> None:
    tree = CapstoreFS(service.uri("m"))
    tree.close()
    tree.close()
    assert tree.isclosed()
    for use in (tree.listdir, tree.scandir, tree.getinfo, tree.readbytes, tree.removetree):
        with pytest.raises(errors.FilesystemClosed):
            use("/")
    assert "closed" in repr(tree)


def test_the_connection_ends_with_its_last_user() -> None:
    with running_service({"m": "memory:"}) as service:
        _connection_ends(service)


def _connection_ends(service: ServiceUnderTest) -> None:
    def sessions() -> int:
        async def count() -> int:
            assert service.service is not None
            return len(service.service.sessions)

        return service.call(count())

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 5
        while sessions() != count and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sessions() == count

    before = 0
    tree = CapstoreFS(service.uri("m"))
    file = tree.open("kept", "w")
    tree.close()
    file.write("written after the filesystem was closed")
    assert sessions() == before + 1
    file.close()
    wait_for(before)
    tree = CapstoreFS(service.uri("m"))
    assert tree.readtext("kept").startswith("written after")
    del tree
    wait_for(before)


def test_metadata_is_honest(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    meta = tree.getmeta()
    assert meta["read_only"] is False
    assert meta["network"] is meta["thread_safe"] is meta["unicode_paths"] is True
    assert meta["case_insensitive"] is meta["supports_rename"] is False
    with CapstoreFS(service.uri("m"), read_only=True) as weak:
        assert weak.getmeta()["read_only"] is True
        with pytest.raises(errors.ResourceReadOnly):
            weak.writebytes("x", b"")

    async def share() -> str:
        async with connect(service.uri("m")) as root:
            assert isinstance(root, capstore.Directory)
            return await (await root.read_only()).save()

    with CapstoreFS(service.uri("m").with_token(service.call(share()))) as weak:
        assert weak.getmeta()["read_only"] is True


# Errors ------------------------------------------------------------------------------------------


def test_errors_keep_their_cause(tree: CapstoreFS) -> None:
    tree.makedirs("d/e")
    tree.writebytes("f", b"x")
    cases = [
        (errors.ResourceNotFound, capstore.Code.NOT_FOUND, lambda: tree.readbytes("no")),
        (errors.ResourceNotFound, capstore.Code.NOT_DIRECTORY, lambda: tree.readbytes("f/x")),
        (errors.DirectoryExpected, capstore.Code.NOT_DIRECTORY, lambda: tree.listdir("f")),
        (errors.FileExpected, capstore.Code.IS_DIRECTORY, lambda: tree.readbytes("d")),
        (errors.FileExpected, capstore.Code.IS_DIRECTORY, lambda: tree.remove("d")),
        (errors.DirectoryNotEmpty, capstore.Code.NOT_EMPTY, lambda: tree.removedir("d")),
        (errors.DirectoryExists, capstore.Code.ALREADY_EXISTS, lambda: tree.makedir("d")),
        (errors.FileExists, capstore.Code.ALREADY_EXISTS, lambda: tree.openbin("f", "x")),
        (errors.InvalidPath, capstore.Code.INVALID_NAME, lambda: tree.getinfo("x" * 256)),
        (errors.InsufficientStorage, capstore.Code.TOO_LARGE, lambda: _too_large(tree)),
    ]
    for kind, code, action in cases:
        with pytest.raises(kind) as caught:
            action()
        assert isinstance(caught.value.__cause__, capstore.StorageError)
        assert caught.value.__cause__.code is code
        assert str(caught.value)


def _too_large(tree: CapstoreFS) -> None:
    with tree.openbin("large", "w") as file:
        file.truncate(2**40)


def test_braces_in_paths_and_messages_are_data(tree: CapstoreFS) -> None:
    with pytest.raises(errors.ResourceNotFound, match=r"\{x\}"):
        tree.readbytes("{x}")
    tree.writebytes("{details}", b"{}")
    assert tree.readbytes("{details}") == b"{}"


def test_what_is_revoked_is_denied(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.writebytes("f", b"x" * MIB)
    uri = service.uri("m")

    async def share() -> str:
        async with connect(uri) as root:
            assert isinstance(root, capstore.Directory)
            return await root.save("to be revoked")

    async def revoke() -> None:
        async with capstore.open_connection(uri) as connection:
            control = await connection.reference(uri.token)
            for info in await control.list():
                await control.revoke(info.id)

    with CapstoreFS(uri.with_token(service.call(share()))) as shared:
        file = shared.openbin("f", buffering=0)
        service.call(revoke())
        for action in (lambda: shared.listdir("/"), lambda: file.read(1)):
            with pytest.raises(errors.PermissionDenied, match="revoked") as caught:
                action()
            assert isinstance(caught.value.__cause__, capstore.Revoked)
        file.close()


def test_after_the_service_stopped(tmp_path: object) -> None:
    with running_service({"m": "memory:"}) as service:
        tree = CapstoreFS(service.uri("m"))
        tree.writebytes("f", b"x" * MIB)
        file = tree.openbin("f")
        service.stop()
        begin = time.monotonic()
        for action in (
            lambda: tree.readbytes("f"),
            lambda: tree.listdir("/"),
            lambda: file.read(10),
            lambda: tree.writebytes("f", b""),
        ):
            with pytest.raises(errors.RemoteConnectionError):
                action()
        with pytest.raises(capstore.Disconnected):
            CapstoreFS(service.uri("m"))
        file.close()
        tree.close()
        assert time.monotonic() - begin < 5


def test_a_timeout_bounds_each_operation(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    tree.writebytes("f", b"x")
    with delayed(service.uri("m"), service.folder, 0.2) as slow:
        with pytest.raises(TimeoutError):
            CapstoreFS(slow, timeout=0.05)
        hasty = CapstoreFS(slow, timeout=3)
        hasty._session._timeout = 0.05
        with pytest.raises(errors.OperationTimeout):
            hasty.readbytes("f")
        hasty.close()


# Content -----------------------------------------------------------------------------------------


def test_every_way_of_reading_and_writing(tree: CapstoreFS) -> None:
    data = random.Random(2).randbytes(3 * MIB + 17)
    tree.writebytes("a", data)
    tree.upload("b", io.BytesIO(data))
    tree.upload("c", io.BytesIO(data), chunk_size=100_000)
    with tree.openbin("d", "w") as file:
        for start in range(0, len(data), 99_999):
            file.write(data[start : start + 99_999])
    with tree.openbin("e", "w", buffering=0) as file:
        assert file.write(data) == len(data)
    for name in "abcde":
        assert tree.readbytes(name) == data
        got = io.BytesIO()
        tree.download(name, got)
        assert got.getvalue() == data
    for size in (-1, 1000, 100_000, MIB, 5 * MIB):
        with tree.openbin("a") as file:
            assert b"".join(iter(partial(file.read, size), b"")) == data
    other = MemoryFS()
    fs.copy.copy_fs(tree, other, workers=4)
    assert other.readbytes("c") == data


@pytest.mark.parametrize("buffering", [-1, 0, 1000])
def test_random_access_is_like_a_local_file(
    tree: CapstoreFS, buffering: int, tmp_path: object
) -> None:
    rng = random.Random(f"access {buffering}")
    local = open(f"{tmp_path}/f", "w+b")  # noqa: SIM115
    with tree.openbin("f", "w+", buffering) as remote, local:
        for _ in range(300):
            action, where, size = rng.randrange(6), rng.randrange(600_000), rng.randrange(200_000)
            if action == 0:
                data = rng.randbytes(size)
                remote.write(data)
                local.write(data)
            elif action == 1 and rng.random() < 0.2:
                assert remote.truncate(where) == local.truncate(where)
            elif action in (2, 3):
                wanted = local.read(size)
                got = b""
                while len(got) < len(wanted):
                    got += remote.read(size - len(got))
                assert got == wanted
            elif action == 4:
                assert remote.seek(where) == local.seek(where)
            else:
                assert remote.seek(0, os.SEEK_END) == local.seek(0, os.SEEK_END)
            assert remote.tell() == local.tell()


def test_appending_really_appends(tree: CapstoreFS) -> None:
    tree.writebytes("log", b"0")
    with tree.openbin("log", "a", 0) as one, tree.openbin("log", "a", 0) as two:
        assert one.tell() == 1
        for number in range(5):
            one.write(b"a%d" % number)
            two.seek(0)
            two.write(b"b%d" % number)
    assert tree.readbytes("log") == b"0a0b0a1b1a2b2a3b3a4b4"
    with tree.open("log", "a+") as text:
        text.write("end")
        text.seek(0)
        assert text.read() == "0a0b0a1b1a2b2a3b3a4b4end"


def test_a_write_is_seen_by_the_next_read(tree: CapstoreFS) -> None:
    tree.writebytes("f", b"a" * 4 * MIB)
    with tree.openbin("f", buffering=0) as reader, tree.openbin("f", "r+", 0) as writer:
        position = 0
        while data := reader.read(100_000):
            assert set(data) == {ord("b") if position else ord("a")}
            if not position:
                writer.write(b"b" * 4 * MIB)
            position += len(data)
    assert position == 4 * MIB


def test_reading_behind_the_end_goes_on_when_the_file_grows(tree: CapstoreFS) -> None:
    tree.writebytes("f", b"one")
    with tree.openbin("f") as reader:
        assert reader.read() == b"one"
        assert reader.read(5) == b""
        tree.appendbytes("f", b"two")
        assert reader.read(5) == b"two"


def test_files_refuse_what_their_mode_does_not_allow(tree: CapstoreFS) -> None:
    tree.writebytes("f", b"x")
    with tree.openbin("f", "r", 0) as file:
        for action in (lambda: file.write(b"y"), lambda: file.truncate(0)):
            with pytest.raises(io.UnsupportedOperation):
                action()
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
    with tree.openbin("f", "a", 0) as file, pytest.raises(io.UnsupportedOperation):
        file.read(1)
    assert "closed" in repr(file)


def test_large_directories_are_paged(service: ServiceUnderTest, tree: CapstoreFS) -> None:
    names = [f"{number:05}" for number in range(2300)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: tree.create(f"d{name}"), names))
    assert tree.listdir("/") == [f"d{name}" for name in names]
    assert [info.name for info in tree.scandir("/")] == tree.listdir("/")
    assert [info.name for info in tree.scandir("/", page=(998, 1003))] == [
        f"d{name}" for name in names[998:1003]
    ]
    assert len(service.calls_while(lambda: next(iter(tree.scandir("/"))))) == 1


def test_directories_are_filesystems_of_their_own(tree: CapstoreFS) -> None:
    sub = tree.makedirs("a/b")
    assert isinstance(sub, SubFS)
    sub.writetext("x", "1")
    sub.copy("x", "y")
    sub.move("y", "z")
    sub.makedir("d")
    sub.movedir("d", "e", create=True)
    assert sorted(sub.listdir("/")) == ["e", "x", "z"]
    with pytest.raises(errors.ResourceNotFound) as caught:
        sub.copy("none", "q")
    assert caught.value.path == "none"
