"""Specifications of an overlay and of its layers, as ``image verify`` and ``image reset`` take
them.

Invariants: nothing is opened and nothing made; what is to be changed has to be there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from capstore.backers.overlay_spec import OCI
from capstore.backers.spec_text import Spec
from capstore.schema.errors import InvalidArgument, NotFound, ReadOnly
from capstore.tools.console import local

_OVERLAY: Final = "overlay:"
# What a volume is made with, not opened.
_MAKING: Final = ("create", "size")


def overlay_in(text: str) -> str | None:
    """What the overlay that `text` names is made of; None if it names something else.

    A path that is there comes first."""
    if text.startswith(_OVERLAY) and not _is_there(text):
        return text.removeprefix(_OVERLAY)
    return None


def there_to_write(text: str) -> str:
    """The specification of the upper layer `text` without what would make it.

    Raises `ReadOnly` for one that is to be read only, `InvalidArgument` for one that is none, and
    `NotFound`.
    """
    spec = Spec.parse(text)
    if spec.scheme == OCI:
        raise InvalidArgument("oci: is a layer that does not change, and no upper one")
    if "ro" in spec.options:
        raise ReadOnly(f"{spec.scheme}: is to be opened for reading only")
    if spec.scheme in ("wf1", "memory", "dir") and spec.argument and not _is_there(spec.argument):
        raise NotFound(f"{local(spec.argument)}: there is no such file or directory")
    if spec.scheme != "wf1":
        return text
    spec.check_options(_MAKING)
    return f"{spec.scheme}:{escaped(spec.argument)}"


def escaped(argument: str) -> str:
    """An argument as it is written in a specification."""
    return argument.replace("\\", r"\\").replace(",", r"\,")


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        # Opening it says what is wrong.
        return True
