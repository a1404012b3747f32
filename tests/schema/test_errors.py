"""The vocabulary in Python and in the schema is one."""

from __future__ import annotations

import enum
import errno
import inspect
import os

import pytest

from capstore.backers.node import Expect, NodeKind, OpenFlags, Provenance, RenameMode
from capstore.schema import errors, limits, wire
from capstore.schema.errors import Code, StorageError, from_os_error


@pytest.mark.parametrize(
    ("python", "schema"),
    [
        (Code, wire.ErrorCode),
        (NodeKind, wire.NodeKind),
        (Provenance, wire.Provenance),
        (RenameMode, wire.RenameMode),
        (Expect, wire.Expect),
    ],
)
def test_enumerants(python: type[enum.Enum], schema: object) -> None:
    enumerants = schema.schema.enumerants  # type: ignore[attr-defined]
    assert [member.value for member in python] == sorted(enumerants, key=enumerants.get)


def test_open_flags() -> None:
    assert {flag.name: flag.value for flag in OpenFlags if flag.value} == {
        "WRITE": wire.openWrite,
        "CREATE": wire.openCreate,
        "EXCLUSIVE": wire.openExclusive,
        "TRUNCATE": wire.openTruncate,
    }


@pytest.mark.parametrize("code", Code)
def test_each_code_has_one_exception(code: Code) -> None:
    error = StorageError.of(code, "what happened")
    assert error.code is code
    assert error.message == "what happened"
    assert str(error) == f"{code.value}: what happened"
    assert str(StorageError.of(code)) == code.value
    family = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, StorageError) and kind is not StorageError and kind.code is code
    ]
    assert family == [type(error)]


def test_messages_of_the_host_hold_no_path() -> None:
    for number in errno.errorcode:
        error = from_os_error(OSError(number, "text", "/secret/path", None, "/other"), "reading")
        assert error.message == f"reading: {os.strerror(number)}"
    assert isinstance(from_os_error(OSError("no number")), errors.StorageIOError)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, errors.NotFound),
        (errno.EEXIST, errors.AlreadyExists),
        (errno.ENOTDIR, errors.NotDirectory),
        (errno.EISDIR, errors.IsDirectory),
        (errno.ENOTEMPTY, errors.NotEmpty),
        (errno.EROFS, errors.ReadOnly),
        (errno.ENOSPC, errors.NoSpace),
        (errno.EFBIG, errors.TooLarge),
        (errno.EXDEV, errors.CrossVolume),
        (errno.EIO, errors.StorageIOError),
        (0, errors.StorageIOError),
    ],
)
def test_errno(number: int, kind: type[StorageError]) -> None:
    assert type(from_os_error(OSError(number, "x"))) is kind


def test_limits_are_named_once() -> None:
    names = [limit.name for limit in limits.LIMITS]
    assert len(set(names)) == len(names)
    assert all(limit.value > 0 for limit in limits.LIMITS)
    shown = {limit.value for limit in limits.LIMITS}
    constants = {
        name for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)
    }
    units = {"KIB", "MIB"}
    assert {name for name in constants - units if getattr(limits, name) not in shown} == set()
