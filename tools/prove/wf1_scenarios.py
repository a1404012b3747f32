"""Workloads with names: what other filesystems were once found to lose.

Sources: Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI
2018), whose appendix lists the bugs of btrfs, F2FS and FSCQ that CrashMonkey and ACE found again or
anew; the generic crash tests of xfstests; Pillai et al. (OSDI 2014) for replacing by renaming.

Invariants: a scenario is a text; each sync in it is a promise that is held at every later crash.
"""

from __future__ import annotations

from typing import Final

from capstore.tools.prove.workload import Workload, parts_of, steps

_TEXTS: Final = {
    # Replacing a file by renaming a new one onto it: one of them has to be there.
    "rename-onto-synced": "write a 0 3000 1; sync; create t; append t 3000 2; rename t a; commit;"
    " sync",
    "rename-onto-synced-unsynced-data": "sync; create t; append t 70000 2; commit; rename t a;"
    " commit; append a 10 3; sync",
    # A file that was renamed is in one of the directories, not in both and not in none.
    "in-both-directories": "create d/x; sync; rename d/x e/x; commit; create d/y; commit; sync",
    "directory-in-both": "mkdir d/x; create d/x/f; sync; rename d/x e/x; commit; create e/x/g;"
    " commit; sync",
    # A directory whose count of entries was wrong could not be removed.
    "unremovable-directory": "create e/x; sync; remove e/x; commit; create e/y; commit; remove e/y;"
    " commit; remove e; commit; sync",
    "unremovable-after-links": "link a e/x; sync; remove e/x; commit; link a e/x; commit; remove"
    " e/x; sync",
    # The name of what was renamed, given to something new.
    "renamed-name-reused": "rename a b; commit; create a; append a 100 5; commit; sync",
    "renamed-name-reused-twice": "sync; rename a b; create a; commit; rename a d/b; create a;"
    " append a 600 5; commit; sync",
    "renamed-directory-name-reused": "create e/x; sync; rename e f; commit; mkdir e; create e/x;"
    " append e/x 10 6; commit; sync",
    # Links: the count, and the file when one of its names goes.
    "link-count-after-replay": "link a b; sync; link a e/c; commit; remove b; commit; remove a;"
    " commit; sync",
    "link-then-unlink-same-name": "link a b; sync; remove b; commit; create b; commit; link d/a"
    " e/b; commit; sync",
    "rename-between-links": "link a b; sync; rename a b; commit; remove a; commit; sync",
    "replace-one-of-two-names": "link a b; sync; create t; rename t b; commit; append a 5 7; sync",
    # Appending, and cutting off.
    "append-after-truncate": "append a 5000 1; sync; truncate a 200; commit; append a 3000 2;"
    " commit; sync",
    "append-lost-after-truncate": "truncate a 0; sync; append a 4096 3; commit; truncate a 4096;"
    " commit; append a 1 4; sync",
    "zeros-behind-truncate": "write a 0 4000 1; sync; truncate a 100; commit; truncate a 4000;"
    " commit; sync",
    "hole-then-data": "write a 9000 10 1; sync; write a 5000 10 2; commit; truncate a 7000; commit;"
    " truncate a 9100; sync",
    "overwritten-in-place": "write a 0 4096 1; sync; write a 0 4096 2; commit; write a 512 512 3;"
    " commit; sync",
    # A chain: everything in it depends on the one before.
    "chain-of-renames": "create x; append x 10 1; sync; rename x y; commit; rename y d/y; commit;"
    " rename d e/d; commit; rename e/d/y x; commit; sync",
    "exchange-directories": "create e/x; sync; exchange d e; commit; exchange d/x e/a; commit;"
    " remove d/a; commit; sync",
    "exchange-twice": "sync; exchange a d/a; commit; append a 10 1; commit; exchange a d/a; sync",
    # Removed and made again as something else.
    "file-becomes-directory": "sync; remove a; commit; mkdir a; commit; create a/a; append a/a 9 1;"
    " commit; sync",
    "directory-becomes-link": "sync; remove e; commit; symlink e d; commit; remove s; commit; sync",
    # Moments around a checkpoint.
    "between-checkpoints": "create x; checkpoint; append x 700 1; commit; checkpoint; remove x;"
    " commit; checkpoint; create x; sync",
    "renamed-over-checkpoint": "rename a b; commit; checkpoint; create a; append a 70000 1; commit;"
    " checkpoint; remove b; sync",
    "space-reused": "append a 60000 1; sync; remove a; commit; create a; append a 60000 2; commit;"
    " checkpoint; append a 60000 3; sync; remove a; create a; append a 60000 4; sync",
    "segments-reused-before-checkpoint": "append a 60000 1; append a 60000 2; sync; truncate a 0;"
    " append a 60000 3; append a 60000 4; append a 60000 5; commit; append a 60000 6; sync",
    "cleaned-then-written": "append a 30000 1; append d/a 30000 2; append a 30000 3; append d/a"
    " 30000 4; sync; truncate a 0; clean; commit; checkpoint; append a 60000 5; append a 60000 6;"
    " sync",
    # Two crashes in a row: what the first cut off must not come back behind the second.
    "old-frames-behind-new": "create x; commit; append x 700 1; commit; remove d/a; commit; crash;"
    " create y; commit; append y 700 2; commit; crash; create w; sync",
    "old-frames-same-place": "rename a b; commit; rename b a; commit; rename a e/a; commit; crash;"
    " rename d/a b; commit; crash; sync",
    "data-torn-then-again": "append a 5000 1; commit; append a 5000 2; commit; crash; append a 5000"
    " 3; commit; append d/a 600 4; commit; crash; sync",
    "checkpoint-torn-then-again": "create x; checkpoint; create y; crash; create z; checkpoint;"
    " create x; crash; checkpoint",
    "cleaning-torn-then-again": "append a 60000 1; append d/a 30000 2; append a 60000 3; sync;"
    " truncate a 10; clean; crash; clean; checkpoint; append a 60000 4; crash; clean; sync",
    # A frame is torn, and where its end should be there are records of one that was cut off, each
    # with a seal that fits.
    "torn-frame-beside-old-records": "create e/b; append e/b 512 102; sync; create d/b; checkpoint;"
    " rename d/b e/c; rename e/c d/c; sync; exchange e/b d/c; mkdir b; sync; rename d/c e/c; write"
    " e/b 512 512 121; write e/c 512 70000 122; create d/c; symlink b/c b; sync; crash; symlink z"
    " z; commit; clean; sync",
    # Behind the log there are frames of the volume that was here before: the next ones, but for
    # their key.
    "log-of-another-volume": "create x; sync; append x 700 1; commit; rename x a; sync; checkpoint;"
    " create y; sync",
    # A volume that grows: the file's new length is as little durable as what was written there.
    "growth-lost": "append a 330000 1; sync; append d/a 400000 2; sync",
    "growth-of-the-log-lost": "append a 60000 1; append d/a 60000 2; sync; append a 60000 3;"
    " checkpoint; append a 60000 4; checkpoint; append a 60000 5; commit; checkpoint; create x;"
    " sync",
    # Each of these takes room, and gives it back only when it is through.
    "crashed-checkpoints-in-a-row": "append a 60000 1; sync; checkpoint; crash; checkpoint; crash;"
    " checkpoint; crash; checkpoint; crash; checkpoint; crash; checkpoint; crash; create x; sync",
    "crashed-checkpoints-of-a-full-volume": "append a 60000 1; append a 60000 2; append a 60000 3;"
    " append d/a 60000 4; sync; checkpoint; crash; checkpoint; crash; checkpoint; crash; remove a;"
    " checkpoint; crash; create x; checkpoint; crash; checkpoint; crash; sync",
}

# Which are of volumes that were made where others were.
_OVER_ANOTHER: Final = frozenset(("log-of-another-volume",))
# How many segments a volume has beside those it needs, where the rule is not enough; 0 for one that
# grows.
_ROOM: Final = {
    "growth-lost": 0,
    "growth-of-the-log-lost": 0,
    "crashed-checkpoints-in-a-row": 2,
    "crashed-checkpoints-of-a-full-volume": 2,
}


def scenario(name: str) -> Workload:
    """The workload ``scenario-NAME``; raises KeyError."""
    parts = parts_of(steps(_TEXTS[name]))
    room = _ROOM.get(name, 4)
    return Workload(f"scenario-{name}", parts, room, over_another=name in _OVER_ANOTHER)


SCENARIOS: Final = tuple(_TEXTS)
