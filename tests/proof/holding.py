"""What searches for what must not be found are held to."""

from __future__ import annotations

from capstore.tools.prove.explore import Tally


def assert_holds(tally: Tally) -> None:
    shown = [f"{f.outcome}: {f.detail}\n{f.state}\n{f.steps}" for f in tally.failures]
    assert not shown, "\n\n".join(shown)
    assert tally.states


def assert_each_holds(tally: Tally) -> None:
    """As `assert_holds`, with a state of each workload at least."""
    assert_holds(tally)
    assert tally.states >= tally.workloads > 0
