"""Workloads on stores with names: what logs and their compaction were found to lose elsewhere.

Sources: the record cases of log formats (LevelDB's log tests), tombstones that compaction drops too
early or too late (LSM trees), O'Neil et al. (1996); Zheng et al., "Torturing Databases for Fun and
Profit" (OSDI 2014) for batches that come back in part.

Invariants: a scenario is a text; each sync in it is a promise that is held at every later crash.
"""

from __future__ import annotations

from typing import Final

from capstore.tools.prove.st1_start import SMALLEST
from capstore.tools.prove.workload import Workload, parts_of, steps

_FIVE_STEPS: Final = " step; step; step; step; step;"
_TEXTS: Final = {
    # What was removed does not come back from the table below, or from the log before.
    "tombstone-and-compaction": "delete a; delete b; sync; compact; put c 5 1; commit; compact;"
    " sync",
    "tombstone-under-a-shadow": "step; delete a; delete b; commit; step; step; step; step; step;"
    " step; step; sync; compact; sync",
    "removed-and-put-again": "delete b; sync; put b 20 1; commit; compact; delete b; commit; put b"
    " 5000 2; compact; sync",
    "removed-while-compacted": f"step; step; delete b; sync;{_FIVE_STEPS}{_FIVE_STEPS} sync",
    # What is put while a shadow is made is in the result.
    "replaced-while-compacted": f"step; put a 400 1; commit; step; put b 6000 2; sync;{_FIVE_STEPS}"
    f" put a 50 3;{_FIVE_STEPS} sync; compact; sync",
    "batch-while-compacted": "step; batch a b -e c 60 1 5000 2 7 3; sync;"
    f"{_FIVE_STEPS}{_FIVE_STEPS} batch -a -b -c; sync",
    "same-content-while-moved": f"put x 900 1; put y 900 2; sync; delete x; step; step; hashed 700"
    f" 3; hashed 300 4; sync;{_FIVE_STEPS}{_FIVE_STEPS} sync; collect; sync",
    "sink-while-compacted": f"begin b; piece 5000 1; step; step; piece 5000 2;{_FIVE_STEPS} finish;"
    f" sync;{_FIVE_STEPS} compact; sync",
    # A batch is all or nothing, however many frames it takes.
    "batch-across-frames": "batch a b c d f g h 650 1 650 2 650 3 650 4 650 5 650 6 650 7; commit;"
    " batch -a -b -c -d -f -g -h; sync",
    "batch-across-segments": "put x 660 1; put y 660 2; put z 660 3; sync; batch a b c d 660 1 660"
    " 2 660 3 660 4; sync; batch a b # 5000 5 9000 6 700 7; commit; sync",
    "batch-torn-then-again": "batch a b c d f 650 1 650 2 650 3 650 4 650 5; commit; crash; batch a"
    " b c d f 650 6 650 7 650 8 650 9 650 10; commit; crash; sync",
    # A value moves, and a crash comes.
    "moved-and-crash": "put x 900 1; put y 900 2; put z 900 3; sync; delete x; delete z; sync;"
    " compact; crash; put w 900 4; sync; compact; crash; compact",
    "moved-twice": "put x 660 1; put y 660 2; sync; put x 1 3; compact; put y 660 4; sync; compact;"
    " put z 900 5; sync",
    # What is free is used again, and what led there does not any more.
    "freed-segments-reused": "put x 9000 1; sync; put x 9000 2; sync; put x 9000 3; sync; compact;"
    " put x 9000 4; put y 9000 5; sync; compact; put z 9000 6; sync",
    "freed-before-superblock": "put x 4000 1; put y 4000 2; sync; delete x; sync; compact; put z"
    " 4000 3; commit; put w 4000 4; commit; sync",
    "overwritten-then-reused": "put x 4000 1; sync; put x 4000 2; commit; put x 4000 3; commit; put"
    " y 4000 4; commit; put x 4000 5; commit; sync",
    # A region that is full, and is emptied.
    "full-region-emptied": "put x 20000 1; put y 20000 2; put z 9000 3; put w 9000 4; put v 4000 5;"
    " put u 4000 6; sync; delete x; commit; delete y; delete z; delete w; delete v; delete u; sync;"
    " put x 20000 7; sync",
    "full-of-small-ones": "; ".join(f"put k{n} 660 {n}" for n in range(30))
    + "; sync; "
    + "; ".join(f"delete k{n}" for n in range(20))
    + "; compact; put z 4000 1; sync",
    "log-is-long": "; ".join(f"put a 600 {n}; commit; put a 610 {n}; sync" for n in range(12)),
    # Frames up to the last block but one of a segment, which is kept for where the log goes on; and
    # to the one before that, so that nothing fits there.
    "log-fills-its-segment": "compact; "
    + "; ".join(f"put a {20 + n} 1; commit" for n in range(16))
    + "; sync; crash; put b 20 1; commit; put b 21 1; commit; sync",
    "log-leaves-a-block": "compact; "
    + "; ".join(f"put a {600 + n} 1; commit; put b {20 + n} 1; commit" for n in range(8))
    + "; sync; crash; put b 600 1; commit; put b 601 1; commit; sync",
    # Two crashes in a row: what the first cut off must not come back behind the second.
    "old-frames-behind-new": "put x 20 1; commit; put y 20 2; commit; delete e; commit; crash; put"
    " z 20 3; commit; put w 20 4; commit; crash; put v 20 5; sync",
    "old-frames-same-place": "put x 20 1; commit; put x 20 2; commit; put x 20 3; commit; crash;"
    " put x 20 4; commit; crash; sync",
    "compaction-torn-then-again": "put x 900 1; compact; put y 5 2; crash; put z 900 3; compact;"
    " delete x; crash; compact",
    # Behind the log there are frames of the store that was here before: the next ones, but for
    # their key.
    "log-of-another-store": "put x 40 1; sync; put y 5 2; sync; put z 9 3; sync; compact; put w 2"
    " 4; sync",
    # A frame is torn, and where its end should be there are records of one that was cut off.
    "torn-frame-beside-old-records": "batch f g h 300 1 300 2 300 3; commit; crash; batch f g h 300"
    " 4 300 5 300 6; commit; crash; batch x y z 300 7 300 8 300 9; commit; sync",
    # Names, and what no name stands for.
    "bound-and-collected": "bind n h-700-3; sync; collect; commit; hashed 300 4; commit; bind m/o"
    " h-300-4; commit; unbind n; commit; collect; sync",
    "bound-while-collected": "sweep; bind m h-700-3; sweep; hashed 20 5; sweep; sweep; commit;"
    " sweep; sweep; sweep; sweep; sweep; sync; compact; sync",
    "names-moved-while-collected": "bind m h-700-3; bind m/o h-20-5; commit; sweep; compact; sweep;"
    " sweep; sweep; sync",
    "collected-while-compacted": "step; sweep; step; sweep; step; sweep; sync; step; sweep; step;"
    " sweep; step; sweep; step; step; step; sync; compact; sync",
    # A store that grows: the file's new length is as little durable as what was written there.
    "growth-lost": "put x 20000 1; sync; put y 30000 2; sync",
    "growth-of-the-log-lost": "; ".join(f"put k{n} 660 {n}" for n in range(9))
    + "; sync; compact; put x 660 1; put y 660 2; commit; compact; sync",
    "shortened": "put x 30000 1; put y 9000 2; sync; delete x; sync; compact; put z 9000 3; sync;"
    " delete y; compact; sync",
    # Each of these takes room, and gives it back only when it is through.
    "crashed-compactions-in-a-row": "put x 4000 1; sync; compact; crash; compact; crash; compact;"
    " crash; compact; crash; compact; crash; put y 4 1; sync",
    "crashed-compactions-of-a-full-region": "put x 20000 1; put y 20000 2; put z 4000 3; put w 4000"
    " 4; sync; compact; crash; compact; crash; compact; crash; delete x; compact; crash; put x 9 5;"
    " compact; crash; compact; crash; sync",
    # A put in pieces leaves nothing before its end.
    "sink-vanishes": "begin x; piece 5000 1; commit; crash; begin x; piece 5000 2; piece 5000 3;"
    " finish; commit; crash; put y 4000 4; sync",
}
# Which are of stores that were made where others were.
_OVER_ANOTHER: Final = frozenset(("log-of-another-store",))
# How many segments a store has, where the rule is not enough.
_ROOM: Final = {
    "growth-lost": 0,
    "growth-of-the-log-lost": 0,
    "shortened": 0,
    "freed-segments-reused": SMALLEST,
    "full-region-emptied": SMALLEST,
    "full-of-small-ones": SMALLEST,
    "log-is-long": SMALLEST,
    "crashed-compactions-of-a-full-region": SMALLEST,
    "crashed-compactions-in-a-row": 2,
}


def scenario(name: str) -> Workload:
    """The workload ``scenario-NAME``; raises KeyError."""
    parts = parts_of(steps(_TEXTS[name]))
    return Workload(
        f"scenario-{name}", parts, _ROOM.get(name, 4), over_another=name in _OVER_ANOTHER
    )


SCENARIOS: Final = tuple(_TEXTS)
