"""The random search: runs of many steps, in portions that leave nothing behind.

Hypothesis keeps all that it has drawn until a search ends, which for some thousands of runs is
hundreds of MiB.  So a long search is several short ones, each with a seed of its own.
"""

from __future__ import annotations

import secrets

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from capstore.backers.node import DirectoryNode
from capstore.service.policy import Policy
from tests.contract import model
from tests.service.confinement.machine import POLICIES, Machine
from tests.service.confinement.using import UsingStores, UsingTrees

__all__ = ["Everything", "Trees", "play", "told"]

PORTION = 100


class Trees(UsingTrees):
    """Trees alone, for steps that meet more often."""

    @initialize(policies=st.lists(POLICIES, min_size=2, max_size=3), ends=st.sampled_from([0, 30]))
    def plant(self, policies: list[Policy], ends: int) -> None:
        """Something of everything, made by the owner, and what the owner gives away."""
        self.step(self._plant_tree())
        for policy in policies:
            limited = policy.under(Policy(expires_at=self.clock() + ends)) if ends else policy
            self.step(self._attenuate(self.held[0], limited, revocable=True))
            ends = 0

    async def _plant_tree(self) -> None:
        root: DirectoryNode = self.held[0].real
        await self._plant(root, self.world.root)
        for name in ("d", "h-d"):
            below = self.world.root.entries[name] = model.Directory()
            await self._plant(await root.mkdir(name), below)

    async def _plant(self, directory: DirectoryNode, node: model.Directory) -> None:
        for name in ("a", "h-a"):
            data = self.data(5)
            file = await directory.create(name)
            await file.write(0, data)
            await file.close()
            node.entries[name] = model.File(bytearray(data))


class Everything(Trees, UsingStores):
    """Trees, stores, and names for both."""


def play(machine: type[Machine], runs: int, steps: int, *, shrinks: bool = True) -> None:
    """Searches for a fault; raises AssertionError with the steps that show one."""
    phases = [Phase.generate, Phase.shrink] if shrinks else [Phase.generate]
    for first in range(0, runs, PORTION):
        number = secrets.randbits(32)
        Machine.counts["last seed"] = number
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            seed(number)(machine),
            settings=settings(
                max_examples=min(PORTION, runs - first),
                stateful_step_count=steps,
                deadline=None,
                database=None,
                print_blob=True,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )


def told() -> str:
    """What the searches since the last call did, and forgets it."""
    lines = []
    for what, counter in (("done", Machine.counts), ("moves", Machine.moves)):
        each = ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))
        lines.append(f"{what}: {each}")
        counter.clear()
    return "\n".join(lines)
