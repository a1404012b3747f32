"""Workloads on overlays with names: what overlay filesystems are known to get wrong.

Sources: the semantic families of the test suites of overlay filesystems (renames of populated and
recreated directories, over removed ones, back and twice; hard links with removed and renamed names;
copies while something else is done).

Invariants: a scenario is a text; each sync in it is a promise that is held at every later crash.
"""

from __future__ import annotations

from typing import Final

from capstore.tools.prove.workload import Workload, parts_of, steps

_TEXTS: Final = {
    # Copying up: the lower file or all of the copy.
    "copy-then-more": "append a 10 31; sync; append a 5000 32; truncate a 700; sync",
    "copy-of-much": "sync; write b 69000 2000 31; commit; write b 0 10 32; sync",
    "copy-with-holes": "sync; write z 100000 10 31; sync; truncate z 66000; sync",
    "cut-while-copied": "sync; truncate b 66000; commit; append b 5 31; sync",
    "emptied-while-copied": "sync; empty b; commit; append b 5 31; sync",
    "checkpoint-in-the-middle-of-a-copy": "arm checkpoint; append b 10 31; sync; checkpoint;"
    " append b 10 32; sync",
    "two-checkpoints-in-the-middle-of-a-copy": "arm checkpoint; arm checkpoint; append z 10 31;"
    " crash; arm checkpoint; append b 10 32; checkpoint; sync",
    "cleaning-in-the-middle-of-a-copy": "append n 30000 31; append c 30000 32; sync; truncate n 10;"
    " arm clean; append b 10 33; sync",
    "sync-in-the-middle-of-a-copy": "arm sync; append b 10 31; crash; append b 10 32; sync",
    "copy-in-a-deep-directory": "append d/e/f 10 31; commit; append m/n/f 10 32; commit; append"
    " r/n 10 33; times d/e 7000; sync",
    "copy-through-a-descriptor": "hold a; hold d/f; rename d w; commit; poke 200 300 31; sync;"
    " remove a; poke 0 600 32; commit; release; sync",
    "copy-of-what-was-removed": "hold b; remove b; sync; poke 100 5 31; checkpoint; poke 0 5 32;"
    " create b; sync; release; sync",
    "copy-of-what-was-replaced": "hold a; rename c a; sync; poke 0 50 31; commit; append a 5 32;"
    " release; sync",
    # Whiteouts and what takes their place.
    "removed-and-made-again": "remove a; sync; create a; append a 10 31; commit; remove a; commit;"
    " create a; sync",
    "removed-and-made-as-a-directory": "remove a; mkdir a; sync; create a/f; commit; remove a/f;"
    " remove a; sync; mkdir a; sync",
    "directory-emptied-and-removed": "remove d/e/f; remove d/e; commit; remove d/f; remove d/g;"
    " remove d/k; remove d/s; sync; remove d; commit; mkdir d; sync; create d/f; sync",
    "directory-replaced-when-emptied": "remove t; remove p/g; sync; rename d p; commit; mkdir d;"
    " rename p/e d/e; sync",
    "upper-file-over-a-lower-one": "remove c; sync; create c; append c 20 31; sync; rename c w;"
    " commit; remove w; sync",
    "covered-again": "create v; sync; remove v; commit; mkdir v; commit; remove v; sync",
    # Directories that move.
    "rename-a-populated-directory": "rename d w; commit; append w/f 5 31; remove w/e/f; sync;"
    " mkdir d; create d/f; sync",
    "rename-back": "rename d w; sync; rename w d; commit; rename d w; commit; rename w d; sync",
    "rename-twice": "rename d w; rename w o/w; sync; rename o/w/e e; commit; rename o x2; sync",
    "rename-into-one-another": "rename d m/d; commit; rename p m/d/p; sync; rename m/d/e e; commit;"
    " rename m e/m; sync; rename e/m m; sync",
    "rename-over-a-removed-directory": "remove p/g; remove p; rename d p; sync; rename m d; commit;"
    " rename p m; sync",
    "rename-over-an-empty-directory": "rename d g; sync; rename m h; remove h/f; rename m h; sync",
    "rename-a-recreated-directory": "remove p/g; remove p; mkdir p; create p/x; sync; rename p w;"
    " commit; mkdir p; rename w p/w; sync",
    "rename-a-directory-made-over-another": "rename h w; sync; mkdir h; commit; rename w d/w; sync",
    "circular-renames": "rename d w; rename m d; rename p m; rename w p; sync; rename p w; rename m"
    " p; rename d m; rename w d; sync",
    "exchanged-directories": "exchange d m; sync; exchange d/n m/e; commit; exchange d/n/f m/e/f;"
    " sync; exchange d m; sync",
    "exchange-with-a-file": "exchange d a; sync; exchange a/f d; commit; exchange h g; sync",
    "a-moved-directory-is-emptied": "rename d w; remove w/e/f; remove w/e; remove w/f; remove w/g;"
    " remove w/k; remove w/s; sync; remove w; commit; create w; sync",
    # Without redirects all in a directory is copied up before it moves.
    "rename-without-a-redirect": "flat; sync; rename d w; sync; mkdir d; commit; rename w/e d/e;"
    " sync",
    "exchange-without-redirects": "flat; sync; exchange d m; commit; exchange p r; sync",
    "rename-twice-without-a-redirect": "flat; rename m o/m; sync; rename o/m/n n2; commit;"
    " rename r q; sync; rename q d/q; sync",
    "checkpoint-in-the-middle-of-a-rename": "flat; append d/f 66000 31; sync; arm checkpoint;"
    " rename d g; sync; crash; arm clean; rename d w; sync",
    # Nodes of several names.
    "one-of-three-names-removed": "remove k; sync; append l 10 31; commit; remove l; commit; append"
    " d/k 10 32; remove d/k; sync",
    "names-are-renamed": "rename k w; commit; rename l o/l; sync; append d/k 10 31; rename d d2;"
    " commit; rename d2/k k; sync",
    "names-are-linked": "link k w; sync; link i d/i; commit; append w 10 31; commit; remove k;"
    " sync; chmod l 1; sync",
    "names-are-replaced": "rename a k; sync; rename l d/k; commit; append l 10 31; sync",
    "names-of-one-node-over-each-other": "rename k l; rename i j; sync; exchange k i; commit;"
    " exchange l d/k; sync",
    "names-of-links": "rename s w; sync; remove d/s; commit; link w s; times s 7000; sync",
    "names-and-a-checkpoint-in-the-middle": "arm checkpoint; append k 10 31; commit; arm clean;"
    " remove i; sync; checkpoint; remove l; sync",
    "a-held-name-is-removed": "hold k; remove l; commit; poke 0 20 31; sync; remove k; poke 20 20"
    " 32; sync; release; sync",
    # Resets.
    "reset-of-everything": "append a 10 31; rename d w; sync; reset; append a 10 32; sync; reset;"
    " sync",
    "reset-of-what-is-not-durable": "append a 10 31; remove k; rename d w; reset; rename d w; sync",
    "reset-twice": "reset; reset; create w; crash; reset; remove a; sync",
    "crashed-resets": "append b 10 31; sync; reset; crash; reset; crash; append b 10 32; reset;"
    " crash; sync",
    "reset-and-the-same-again": "remove a; create a; append a 700 31; sync; reset; remove a; create"
    " a; append a 700 31; sync",
    # Several crashes in a row.
    "renames-and-crashes": "rename d w; commit; rename m d; commit; crash; mkdir m; commit; rename"
    " d/n m/n; commit; crash; rename w e; commit; crash; sync",
    "copies-and-crashes": "append a 10 31; append b 10 32; commit; crash; append b 10 33; append k"
    " 10 34; commit; crash; remove l; commit; crash; sync",
}

# How many segments a volume has beside those it needs, where the rule is not enough; 0 for one that
# grows.
_ROOM: Final = {"copy-of-much": 0, "cleaning-in-the-middle-of-a-copy": 0}


def scenario(name: str) -> Workload:
    """The workload ``scenario-NAME``; raises KeyError."""
    return Workload(f"scenario-{name}", parts_of(steps(_TEXTS[name])), _ROOM.get(name, 8))


SCENARIOS: Final = tuple(_TEXTS)
