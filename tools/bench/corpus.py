"""What the contestants serve: the same bytes for all, from a seed.

Invariants: the corpus is a host directory that nobody but the bench changes; a name says which
case uses it: ``small``, ``large``, ``many``, ``tree``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from capstore.schema.limits import MIB
from capstore.tools.bench.parameters import TREE_FILE_BYTES_MAX, Parameters

LARGE = "large"


def small_name(index: int) -> str:
    """The file `index` of ``small``."""
    return f"file-{index:06}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """The served directory; made by `make`."""

    root: Path
    parameters: Parameters

    @staticmethod
    def make(root: Path, parameters: Parameters) -> Corpus:
        """Writes the corpus into the new directory `root`."""
        rng = random.Random(parameters.seed)  # noqa: S311 - a workload, no secret
        corpus = Corpus(root, parameters)
        for name in ("small", "many", "tree"):
            (root / name).mkdir(parents=True)
        for index in range(parameters.small_files):
            path = root / "small" / small_name(index)
            path.write_bytes(rng.randbytes(parameters.small_bytes))
        for index in range(parameters.list_entries):
            (root / "many" / f"entry-{index:06}").touch()
        for directory, name in corpus.tree():
            (root / "tree" / directory).mkdir(exist_ok=True)
            content = rng.randbytes(rng.randrange(TREE_FILE_BYTES_MAX + 1))
            (root / "tree" / directory / name).write_bytes(content)
        corpus._write_large(rng)
        return corpus

    def _write_large(self, rng: random.Random) -> None:
        piece = rng.randbytes(MIB)
        with (self.root / LARGE).open("wb") as file:
            for start in range(0, self.parameters.large_bytes, MIB):
                file.write(piece[: self.parameters.large_bytes - start])

    def tree(self) -> Iterator[tuple[str, str]]:
        """Directory and name of each file in ``tree``."""
        for index in range(self.parameters.tree_files):
            yield f"dir-{index % self.parameters.tree_directories:04}", f"file-{index:06}"
