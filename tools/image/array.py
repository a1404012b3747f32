"""A JSON array that is written item by item.

Invariants: what is written is one valid array, laid out as `out_json_list` does, once `finish` has
returned; nothing of it is kept.
"""

from __future__ import annotations

import json
import sys
from typing import Any


class ArrayWriter:
    """Writes items to stdout as they come, indented by `margin` behind what is there already."""

    def __init__(self, margin: str = "") -> None:
        self._margin = margin
        self._begun = False

    def add(self, item: Any) -> None:
        """One more item."""
        sys.stdout.write(f",\n{self._margin} " if self._begun else "[")
        sys.stdout.write(json.dumps(item))
        self._begun = True

    def finish(self) -> None:
        """The end of the array and of its line."""
        sys.stdout.write("]\n" if self._begun else "[]\n")
