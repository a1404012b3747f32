"""capstore: capability-based storage over Cap'n Proto RPC.

``capstore.connect(uri)`` is the asynchronous face, ``capstore.open_fs(uri)`` the synchronous one
(a PyFilesystem2 filesystem).  What fails raises a `StorageError`, whose `code` says how; what is
wrong with the connection raises a `TransportError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstore.backers.node import (
    Attributes,
    Entry,
    Expect,
    NodeKind,
    OpenFlags,
    Page,
    Provenance,
    RenameMode,
    Stat,
    Usage,
)
from capstore.schema.errors import (
    AlreadyExists,
    Busy,
    Closed,
    Code,
    Conflict,
    Corrupt,
    CrossVolume,
    Denied,
    Disconnected,
    Expired,
    InternalError,
    InvalidArgument,
    InvalidName,
    IsDirectory,
    NoSpace,
    NotDirectory,
    NotEmpty,
    NotFound,
    NotSymlink,
    QuotaExceeded,
    ReadOnly,
    Revoked,
    StorageError,
    StorageIOError,
    TooLarge,
    TransportError,
    Unsupported,
)
from capstore.service.client import Connection, connect, open_connection
from capstore.service.grants import Policy
from capstore.service.remote import Directory, File, ReferenceControl, ReferenceInfo, Revoker
from capstore.service.uri import CapabilityURI

if TYPE_CHECKING:
    from capstore.service.pyfs import CapstoreFS

__all__ = [
    "AlreadyExists",
    "Attributes",
    "Busy",
    "CapabilityURI",
    "Closed",
    "Code",
    "Conflict",
    "Connection",
    "Corrupt",
    "CrossVolume",
    "Denied",
    "Directory",
    "Disconnected",
    "Entry",
    "Expect",
    "Expired",
    "File",
    "InternalError",
    "InvalidArgument",
    "InvalidName",
    "IsDirectory",
    "NoSpace",
    "NodeKind",
    "NotDirectory",
    "NotEmpty",
    "NotFound",
    "NotSymlink",
    "OpenFlags",
    "Page",
    "Policy",
    "Provenance",
    "QuotaExceeded",
    "ReadOnly",
    "ReferenceControl",
    "ReferenceInfo",
    "RenameMode",
    "Revoked",
    "Revoker",
    "Stat",
    "StorageError",
    "StorageIOError",
    "TooLarge",
    "TransportError",
    "Unsupported",
    "Usage",
    "connect",
    "open_connection",
    "open_fs",
]


def open_fs(uri: str | CapabilityURI) -> CapstoreFS:
    """A PyFilesystem2 filesystem over what `uri` stands for; usable from any thread.

    Raises `InvalidArgument` for what is no URI, `Disconnected` where nobody answers, `Denied` for
    a token that gives nothing.
    """
    # PyFilesystem2 takes longer to import than all of capstore, and the asynchronous face has no
    # use for it.
    from capstore.service.pyfs import CapstoreFS

    return CapstoreFS(uri)
