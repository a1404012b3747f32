"""SOURCE_DATE_EPOCH: the time after which nothing in a reproducible image is.

Source: https://reproducible-builds.org/specs/source-date-epoch/.  Invariants: no other clock has a
say in what is built.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Final

from capstore.images.builder import Facts
from capstore.schema.errors import InvalidArgument
from capstore.schema.nodes import Provenance, Stat

_NAME: Final = "SOURCE_DATE_EPOCH"
_SECOND: Final = 10**9
# What 64 bits hold in nanoseconds, as everywhere here.
_SECONDS_MAX: Final = (2**63 - 1) // _SECOND


def source_date_epoch() -> int | None:
    """What the environment says, in ns since 1970.  Raises `InvalidArgument` for no time."""
    text = os.environ.get(_NAME)
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > _SECONDS_MAX:
        raise InvalidArgument(f"{_NAME} is to be a number of seconds since 1970")
    return int(text) * _SECOND


def facts_of(stat: Stat, epoch: int | None, *, needs_time: bool) -> Facts:
    """What an image is to keep of a node.

    Times later than `epoch` become `epoch`.  A node without a recorded time has none in the image
    either, or, where the format `needs_time`, that of `epoch`.
    """
    facts = Facts(stat.modified, stat.created, stat.provenance, stat.executable)
    if stat.provenance is Provenance.UNKNOWN:
        facts = replace(facts, modified=0, created=0)
        if needs_time and epoch is not None:
            facts = replace(facts, modified=epoch, provenance=Provenance.WALL_CLOCK)
        return facts
    if epoch is None:
        return facts
    return replace(facts, modified=min(facts.modified, epoch), created=min(facts.created, epoch))
