"""What can be said of a specification in a configuration before anything is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from capstore.backers.spec_text import Spec
from capstore.schema.errors import InvalidArgument

__all__ = ["COMPOSED", "OPTIONS", "check_spec", "is_store", "may_write"]

# What puts others together.
COMPOSED: Final = ("overlay", "mounts")


def _flag(spec: Spec, name: str) -> None:
    spec.flag(name)


def _size(spec: Spec, name: str) -> None:
    spec.size(name, 0)


def _part(spec: Spec, name: str) -> None:
    if not re.fullmatch(r"[1-9][0-9]{0,3}", spec.options[name] or ""):
        raise InvalidArgument(f'{spec.scheme}: the option "{name}" is the number of a partition')


_Options = Mapping[str, Callable[[Spec, str], None]]

_RO: Final[_Options] = {"ro": _flag}
_IMAGE: Final[_Options] = {"create": _flag, "size": _size, "ro": _flag}

# The options of each scheme, and what their values are checked with.
OPTIONS: Final[Mapping[str, _Options]] = {
    "memory": dict.fromkeys(("max-bytes", "max-file-bytes", "max-nodes"), _size),
    "dir": _RO,
    "ro1": {},
    "tar": {},
    "cpio": {},
    "fat": {"part": _part},
    "oci": {},
    "wf1": _IMAGE,
    "st1": _IMAGE,
    "pyfs": _RO,
}
_STORES: Final = frozenset({"st1"})
_NEVER_WRITE: Final = frozenset({"ro1", "tar", "cpio", "fat", "oci"})
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def check_spec(text: str) -> Spec:
    """The specification that `text` is; not one that puts others together.

    Raises `InvalidArgument` for what opening it would refuse without looking at anything.
    """
    spec = Spec.parse(text)
    options = OPTIONS.get(spec.scheme)
    if options is None:
        known = ", ".join(f"{scheme}:" for scheme in (*OPTIONS, *COMPOSED))
        raise InvalidArgument(f'no backer is called "{spec.scheme}:" (there are: {known})')
    spec.check_options(options)
    if not spec.argument and spec.scheme != "memory":
        raise InvalidArgument(f"{spec.scheme}: needs a path")
    if spec.scheme == "pyfs" and not _URL.match(spec.argument):
        raise InvalidArgument("a filesystem URL begins with its kind: zip://, osfs://")
    for name in spec.options:
        options[name](spec, name)
    if "create" in spec.options and "ro" in spec.options:
        raise InvalidArgument(f"{spec.scheme}: what is made is not for reading only")
    if "size" in spec.options and ("create" not in spec.options or not spec.size("size", 0)):
        raise InvalidArgument(
            f"{spec.scheme}: a size is what an image is made with: create,size=64MiB"
        )
    return spec


def is_store(spec: Spec) -> bool:
    """Whether it is a store of objects, and no tree."""
    return spec.scheme in _STORES


def may_write(spec: Spec) -> bool:
    """Whether the volume may be one that can be changed."""
    return spec.scheme not in _NEVER_WRITE and "ro" not in spec.options
