"""The contracts, in Cap'n Proto's own language, and the vocabulary that goes with them.

Invariants: this is the lowest room; it imports nothing of capstore outside itself.  `wire` is the
compiled ``capstore.capnp`` (what goes over the wire), `layout` the compiled ``layout.capnp`` (what
is on disk).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import capnp

_HERE = Path(__file__).resolve().parent
# The wheel of pycapnp ships /capnp/*.capnp beside the module; without it on the import path a
# schema that uses them aborts the process instead of raising.
_STANDARD = Path(capnp.__file__).resolve().parent.parent

wire: Any = capnp.load(str(_HERE / "capstore.capnp"), imports=[str(_STANDARD)])
layout: Any = capnp.load(str(_HERE / "layout.capnp"), imports=[str(_STANDARD)])
