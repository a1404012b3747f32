"""Where volumes are mounted: the text of ``mounts:``, and the places that it makes.

Invariants:

* A prefix has one spelling: ``/``, or ``/a/b`` of valid names; so equal places are equal texts.
* A `Place` is a mount point or a directory on the way to one, and each of both is a `Place`; so a
  directory without a place has no mount below it, and a place without children neither.
* Places come from the prefixes alone, and never change.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

from capstore.backers.node_ids import VOLUME_NUMBER_MAX
from capstore.schema.errors import InvalidArgument, InvalidName
from capstore.schema.names import check_name
from capstore.schema.nodes import NodeKind, Stat

# The last number is that of directories on the way which no volume has.
ON_THE_WAY: Final = VOLUME_NUMBER_MAX
MOUNTS_MAX: Final = VOLUME_NUMBER_MAX
MOUNT_PREFIX_BYTES_MAX: Final = 4095

TAG_BYTES: Final = 16


class Place:
    """A mount point, or a directory on the way to one.

    `mount` is the mount's number, None on the way; `children` are the places in it, by name, in the
    order of the prefixes that made them; `tag` stands for the path in handles; `stat` tells of a
    directory on the way that no volume has, with an id among those.
    """

    __slots__ = ("children", "mount", "name", "path", "stat", "tag")

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]
        self.mount: int | None = None
        self.children: dict[str, Place] = {}
        self.tag = hashlib.blake2b(path.encode(), digest_size=TAG_BYTES).digest()
        self.stat = Stat(NodeKind.DIRECTORY, size=0, node_id=0, version=0)

    def __repr__(self) -> str:
        what = "on the way" if self.mount is None else f"mount {self.mount}"
        return f"<Place {self.path} {what}>"

    def below(self) -> Iterator[Place]:
        """This place and all below it, each before those in it."""
        waiting = [self]
        while waiting:
            place = waiting.pop()
            yield place
            waiting += reversed(place.children.values())

    def mounts_below(self) -> list[int]:
        """The numbers of the mounts below this place, without its own."""
        return [place.mount for place in self.below() if place.mount is not None and place != self]


def places(prefixes: Iterable[str]) -> Place:
    """The place of the root, with all others.

    Mounts are numbered in the order of their prefixes' bytes, so the root is number 0.  Raises
    `InvalidArgument` for what `parse_mounts` does not give.
    """
    ordered = sorted(prefixes)
    _check_prefixes(ordered)
    root = Place("/")
    for number, prefix in enumerate(ordered):
        place = root
        for name in _segments(prefix):
            path = f"{place.path.rstrip('/')}/{name}"
            place = place.children.setdefault(name, Place(path))
        place.mount = number
    serial = 0
    for place in root.below():
        if place.mount is None:
            place.stat = place.stat._replace(node_id=serial)
            serial += 1
    return root


def _check_prefixes(prefixes: list[str]) -> None:
    """Raises `InvalidArgument` where the root is missing or mounts are too many."""
    if "/" not in prefixes:
        raise InvalidArgument('mounts: nothing is mounted at "/"')
    if len(prefixes) > MOUNTS_MAX:
        raise InvalidArgument(f"mounts: at most {MOUNTS_MAX} volumes make one tree")


def _segments(prefix: str) -> list[str]:
    """The names that lead to `prefix`.  Raises `InvalidArgument`."""
    if not prefix.startswith("/"):
        raise InvalidArgument(f'mounts: the prefix "{prefix}" is no absolute path')
    if prefix == "/":
        return []
    if len(prefix.encode(errors="surrogatepass")) > MOUNT_PREFIX_BYTES_MAX:
        raise InvalidArgument(f"mounts: a prefix has at most {MOUNT_PREFIX_BYTES_MAX} bytes")
    names = prefix.split("/")[1:]
    for name in names:
        try:
            check_name(name)
        except InvalidName as error:
            raise InvalidArgument(f'mounts: in the prefix "{prefix}": {error.message}') from None
    return names


# Items begin at the start and at commas that a slash follows; a backslash takes what is behind it
# with it.
_TOKENS: Final = re.compile(r"(?P<next>,(?=/))|\\.|[^\\,]+|[\\,]", re.DOTALL)
_ITEM: Final = re.compile(r"((?:\\.|[^\\=])*)=(.*)", re.DOTALL)


def parse_mounts(argument: str) -> dict[str, str]:
    r"""Takes ``/=A,/tmp=B`` apart: the specification of a volume for each prefix.

    An item begins where a ``/`` follows a comma, so a specification keeps its own options
    (``/=tar:base.tar,/tmp=memory:,max-bytes=1MiB``).  ``\,`` begins none, and is handed on as it
    stands, as all of a specification is; in a prefix a backslash is dropped, and what is behind it
    stands for itself.  Raises `InvalidArgument` for what is no item, a prefix that is not one or
    comes twice, too many, and where nothing is mounted at ``/``.
    """
    mounts: dict[str, str] = {}
    for number, item in enumerate(_items(argument), start=1):
        match = _ITEM.fullmatch(item)
        # The text is not shown: a specification may hold a password.
        if match is None:
            raise InvalidArgument(f"mounts: number {number} is no mount: /PREFIX=SPECIFICATION")
        prefix = re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)
        _segments(prefix)
        if prefix in mounts:
            raise InvalidArgument(f'mounts: the prefix "{prefix}" comes twice')
        if not match[2]:
            raise InvalidArgument(f'mounts: nothing is said of what is mounted at "{prefix}"')
        mounts[prefix] = match[2]
    _check_prefixes(list(mounts))
    return mounts


def _items(argument: str) -> list[str]:
    items = [""]
    for token in _TOKENS.finditer(argument):
        if token["next"]:
            items.append("")
        else:
            items[-1] += token[0]
    return items
