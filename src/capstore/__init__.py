"""capstore: capability-based storage over Cap'n Proto RPC.

``capstore.connect(uri)`` is the asynchronous face.  ``capstore.open_fs(uri)`` (a PyFilesystem2
filesystem) and ``capstore.open_store(uri)`` (a mapping) are the synchronous ones.  What fails
raises a `StorageError`, whose `code` says how; what is wrong with the connection raises a
`TransportError`.
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
from capstore.backers.store import (
    Binding,
    Collected,
    Condition,
    Delete,
    ObjectPage,
    ObjectRange,
    ObjectStat,
    Put,
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
from capstore.schema.nodes import Change, ChangeKind
from capstore.service.client import Connection, connect, open_connection
from capstore.service.grants import Policy
from capstore.service.remote import Directory, File, ReferenceControl, ReferenceInfo, Revoker
from capstore.service.remote_store import RemoteNamespace, RemoteStore
from capstore.service.remote_watch import Watching
from capstore.service.uri import CapabilityURI

if TYPE_CHECKING:
    from capstore.service.mapping import ObjectMapping
    from capstore.service.pyfs import CapstoreFS
    from capstore.service.zarr_store import ZarrStore

__all__ = [
    "AlreadyExists",
    "Attributes",
    "Binding",
    "Busy",
    "CapabilityURI",
    "Change",
    "ChangeKind",
    "Closed",
    "Code",
    "Collected",
    "Condition",
    "Conflict",
    "Connection",
    "Corrupt",
    "CrossVolume",
    "Delete",
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
    "ObjectPage",
    "ObjectRange",
    "ObjectStat",
    "OpenFlags",
    "Page",
    "Policy",
    "Provenance",
    "Put",
    "QuotaExceeded",
    "ReadOnly",
    "ReferenceControl",
    "ReferenceInfo",
    "RemoteNamespace",
    "RemoteStore",
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
    "Watching",
    "connect",
    "open_connection",
    "open_fs",
    "open_store",
    "open_zarr",
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


def open_store(uri: str | CapabilityURI) -> ObjectMapping:
    """The store that `uri` stands for as a ``MutableMapping[bytes, bytes]``.

    Usable from any thread.  Raises as `open_fs`, and `InvalidArgument` for what is no store.
    """
    from capstore.service.mapping import ObjectMapping
    from capstore.service.store_session import StoreAt

    return ObjectMapping(StoreAt(_parsed(uri)))


def open_zarr(uri: str | CapabilityURI, *, read_only: bool = False) -> ZarrStore:
    """The store that `uri` stands for as a ``zarr.abc.store.Store``, which connects when it is
    used.

    Raises `InvalidArgument` for what is no URI, ImportError without the extra ``capstore[zarr]``.
    """
    from capstore.service.store_session import StoreAt

    try:
        from capstore.service.zarr_store import ZarrStore
    except ModuleNotFoundError as error:
        raise ImportError('arrays of zarr need it: pip install "capstore[zarr]"') from error
    return ZarrStore(StoreAt(_parsed(uri)), read_only=read_only)


def _parsed(uri: str | CapabilityURI) -> CapabilityURI:
    return CapabilityURI.parse(uri) if isinstance(uri, str) else uri
