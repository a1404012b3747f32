"""Tar archives with something bad in them, as they are served."""

from __future__ import annotations

from capstore.images.device import BlockDevice
from capstore.images.tar import index_tar
from tests.images.archives import END, Served, member, serve


def tar(raw: bytes | BlockDevice) -> Served:
    return serve(raw, index_tar)


def reasons(served: Served) -> list[str]:
    return [finding.message for finding in served.findings]


BEFORE = member(b"before", name=b"before")
AFTER = member(b"after", name=b"after") + END


def between(raw: bytes) -> Served:
    """What becomes of `raw` between two good members, which must be served."""
    served = tar(BEFORE + raw + AFTER)
    paths = served.paths()
    assert paths["before"] == b"before"
    assert paths["after"] == b"after"
    return served


def rest(served: Served) -> dict[str, object]:
    return {path: what for path, what in served.paths().items() if path not in ("before", "after")}
