"""``capstore bench``: what it prints and what it writes.

Invariants: the table goes to standard output; progress goes to standard error, and only if that is
a terminal.  A report that cannot be written is found out before anything is measured.  Importing
this costs nothing: what measures is imported when it is asked for.

``--json FILE`` writes one object:

* ``format``: 1, the version of this description.
* ``parameters``: the fields of `capstore.tools.bench.parameters.Parameters`.
* ``machine``: the facts of `capstore.tools.bench.machine.facts`; null for what is not installed.
* ``absent``: by name, contestants that did not take part and cases that were not run, and why.
* ``cases``: a list, in the order of the table, of objects with

  * ``name``, ``what`` (a line for people) and ``unit``: what is counted, and ``/s``, so that more
    is always faster (``calls``, ``bytes``, ``entries``, ``files``, ``members``, ``reads``,
    ``lookups``, ``opens``, ``writes``, ``rounds``, ``gets``, ``operations``, ``listings``,
    ``renames``);
  * ``figures``: by contestant a spread, in ``unit``: ``capstore`` is in all, beside ``floor`` and
    ``sftp``, or in image cases the rivals of each (``tarfile``; ``ratarmount`` with its defaults,
    ``ratarmount-dense`` with seek points as near to each other as capstore's; ``pyfatfs``;
    ``sqlite``; ``10 entries`` is capstore with an image of so many; in wf1 cases ``engine`` is
    capstore's without an event loop, ``local`` a directory whose files and names are flushed,
    ``local-file-only`` one whose names are not, ``alone`` a reader beside whom nothing is done; in
    st1 cases ``rpc`` is capstore over a unix socket, ``sqlite``, ``lmdb`` and ``zodb`` are others
    in process, ``alone`` is who gets and puts beside nothing else; in overlay cases capstore is the
    overlay, ``upper`` and ``lower`` are its layers alone, ``layer`` the lowest one, ``one lower``
    an overlay of fewer layers, ``twice as many`` a layer with all that both have, ``copy`` a plain
    copy; in authority cases capstore is what is done under policies, over TLS, or beside others on
    the same service, ``unwrapped`` the same without policies, ``unix`` over a unix socket,
    ``alone`` without the others);
  * ``ratios``: by contestant other than capstore a spread of capstore's figure over that one's, of
    the same round: more than 1 is faster;
  * ``goal``: null, also where the one to compare with took no part, or what the design asks: of
    the median ratio to ``rival``, ``ratio`` and whether it is ``met``, ``milestone`` (or null) and
    ``milestone_met``; or of capstore alone, ``ms_max``, the milliseconds ``ms`` that one unit took,
    and whether it is ``met``;
  * ``details``: by contestant, where there are any, by name a spread of what else was measured;
    the name ends in the unit (``peak_mib``, ``p99_ms``; ``server_us`` is how long the service had a
    processor for a call, ``idle_kib`` the memory that each idle connection takes of it,
    ``p99_ratio`` the 99th percentile over that of the same client alone);
  * ``ceilings``: of which ``measure`` among capstore's details it is asked to be at most ``most``,
    the ``greatest`` of all rounds, and whether that is ``met``;
  * ``floors``: of which other ``contestant`` (capstore in another way) the ratio to ``rival`` is
    asked to be at least ``ratio``, the ``median`` of it, and whether that is ``met``.

  A spread is an object with ``median``, ``min``, ``max`` and the list ``rounds``.
"""

from __future__ import annotations

import json as json_format
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from capstore.tools.bench import parameters
from capstore.tools.parameters import block

app = typer.Typer()


@app.command(
    epilog=block(
        "Examples",
        "capstore bench --quick",
        "capstore bench --only 'read-*' --json report.json",
        "capstore bench --only 'image-*'",
        "capstore bench --only 'wf1-*'",
        "capstore bench --only 'st1-*'",
        "capstore bench --only 'overlay-*'",
        "capstore bench --only 'authority-*'",
        "capstore bench --volume memory:",
    )
)
def bench(
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write everything to FILE, as JSON.")
    ] = None,
    only: Annotated[
        str, typer.Option(metavar="GLOB", help="Only the cases whose names match.")
    ] = "*",
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, sooner, less exact.")] = False,
    seed: Annotated[int, typer.Option(help="Of the files and of the order of calls.")] = 1,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How often each contestant has its turn.")
    ] = None,
    volume: Annotated[
        str, typer.Option(metavar="SPEC", help="What the service serves; it is filled.")
    ] = "dir:",
) -> None:
    """Measure the service beside a bare Cap'n Proto server (the floor) and beside SFTP.

    Each server has a process of its own, on this machine. The image cases compare with other
    libraries in this process, and the wf1 cases with the local filesystem and SQLite, on the disk
    that temporary files are on; the st1 cases, there too, with SQLite, LMDB and ZODB; the overlay
    cases with the layers that the overlay is made of; the authority cases what is
    done under a policy, over TLS or in a crowd with the same done without. Figures are medians over
    rounds in which all take turns; ratios compare within a round, and are shown with the least and
    the greatest.
    """
    from capstore.tools.bench import running
    from capstore.tools.bench.kinds import Chosen

    chosen = Chosen.of(only)
    if not chosen.cases:
        known = ", ".join(case.name for case in Chosen.of("*").cases)
        raise typer.BadParameter(f'no case matches "{only}" (there are: {known})')
    plan = parameters.QUICK if quick else parameters.FULL
    plan = replace(plan, seed=seed, volume=volume, rounds=rounds or plan.rounds)
    with ExitStack() as stack:
        output = None
        if json is not None:
            try:
                output = stack.enter_context(json.open("w"))
            except OSError as error:
                raise typer.BadParameter(f"{json}: {error.strerror}") from error
        document = running.run(plan, chosen)
        if output is not None:
            json_format.dump(document, output, indent=2)
            output.write("\n")
