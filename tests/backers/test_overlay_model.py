"""Sequences of operations on every overlay, compared with a model after each.

Structure, link targets, executable bits, numbers of links, node ids and times are compared after
each step, contents at the end and where a handle is read; `tests.backers.overlay_twin` says how.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from capstore.backers.layers import open_layer, open_upper
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Volume
from capstore.backers.overlay import OverlayVolume
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import BASE, LOWERS, STACKS, UPPERS, Stack, ideal, stacked
from tests.contract.test_model import INDEX, NAMES, OPERATIONS
from tests.images.trees import without_hard_links

# A failing sequence may be long to print.
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning"),
]

TIMES = st.sampled_from([0, 1_234_567_890_123_456_700, 1_700_000_000_000_000_000])
STEPS = st.one_of(
    OPERATIONS,
    OPERATIONS,
    st.tuples(st.just("attributes"), INDEX, NAMES, TIMES, st.booleans()),
    st.tuples(st.just("read"), INDEX),
    st.tuples(st.just("page"), INDEX, NAMES, st.integers(1, 3)),
    st.tuples(st.just("reopen")),
)
# Layers of names cannot say which names of lower layers are those of a file that they have.
SINGLE = without_hard_links(BASE)
Steps = list[tuple[object, ...]]

# To see what a failure is made of, shrinking has to be quick.
COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
QUICK = settings(COMMON, max_examples=3, phases=[Phase.explicit, Phase.reuse, Phase.generate])
LONG = settings(COMMON, max_examples=300)


async def run(stack: Stack, steps: Steps) -> None:
    """Does `steps` to the overlay and to the model."""
    twin = Twin.of((volume := await stack.open()).root, ideal(stack.tree))
    volume = await take(twin, volume, steps, stack.open)
    await twin.close()
    await volume.close()
    volume = await stack.open()
    twin.reopened(volume.root)
    await twin.close()
    await volume.close()


async def take(
    twin: Twin, volume: Volume, steps: Steps, opened: Callable[[], Awaitable[Volume]]
) -> Volume:
    """Takes `steps`; returns the volume, which may have been opened again."""
    await hold_all(twin)
    for name, *arguments in steps:
        if name == "reopen":
            await twin.close()
            await volume.close()
            volume = await opened()
            twin.reopened(volume.root)
            await hold_all(twin)
        else:
            await getattr(twin, str(name))(*arguments)
        await twin.check()
    return volume


async def run_below(stack: Stack, before: Steps, after: Steps) -> None:
    """Does `before` to an overlay, puts a new upper layer on top of what that made, and does
    `after`."""
    twin = Twin.of((volume := await stack.open()).root, ideal(stack.tree))
    volume = await take(twin, volume, before, stack.open)
    await twin.close()
    await volume.close()

    opened = partial(_on_top, stack)
    # Node ids tell layers apart, so they are others from now on.
    twin = Twin.of((volume := await opened()).root, twin.ideal)
    await twin.check_all()
    volume = await take(twin, volume, after, opened)
    await twin.close()
    await volume.close()


async def _on_top(stack: Stack) -> Volume:
    top = await MemoryVolume.open(file=str(stack.place / "top.memory"))
    middle = open_layer(await stack.open_upper_volume(), named=stack.names_only)
    lowers = [open_layer(volume) for volume in await stack.open_lowers()]
    return await OverlayVolume.over(await open_upper(top), [middle, *lowers])


async def hold_all(twin: Twin) -> None:
    """A handle of each directory, for steps to choose from."""
    await twin.check()
    for path in ("a", "c", "a/b", "a/é"):
        real, known = twin.directories[0]
        for name in path.split("/"):
            node = known.entries.get(name)
            if not hasattr(node, "entries"):
                break
            real, known = await real.sub(name), node
        else:
            twin.directories.append((real, known))


@pytest.mark.parametrize("name", [*STACKS, "memory alone"])
@QUICK
@given(steps=st.lists(STEPS, min_size=15, max_size=30))
async def test_a_sequence_of_steps(name: str, steps: Steps) -> None:
    async with stacked(name) as stack:
        await run(stack, steps)


@pytest.mark.long
@pytest.mark.parametrize("name", [*STACKS, "memory alone", "wf1 alone", "dir alone"])
@LONG
@given(steps=st.lists(STEPS, min_size=10, max_size=60))
async def test_long_sequences_of_steps(name: str, steps: Steps) -> None:
    async with stacked(name) as stack:
        await run(stack, steps)


@pytest.mark.parametrize("upper", UPPERS)
@settings(QUICK, max_examples=3)
@given(steps=st.lists(STEPS, min_size=15, max_size=30))
async def test_a_sequence_of_steps_with_writable_files_below(upper: str, steps: Steps) -> None:
    async with stacked(f"{upper} over memory", writable_files=True) as stack:
        await run(stack, steps)


@pytest.mark.long
@pytest.mark.parametrize("upper", UPPERS)
@LONG
@given(steps=st.lists(STEPS, min_size=10, max_size=60))
async def test_long_sequences_with_writable_files_below(upper: str, steps: Steps) -> None:
    async with stacked(f"{upper} over memory", writable_files=True) as stack:
        await run(stack, steps)


@pytest.mark.parametrize("upper", UPPERS)
@settings(QUICK, max_examples=3)
@given(st.lists(STEPS, min_size=15, max_size=30), st.lists(STEPS, min_size=10, max_size=20))
async def test_an_upper_layer_is_put_below_another(upper: str, before: Steps, after: Steps) -> None:
    async with stacked(f"{upper} over ro1", SINGLE) as stack:
        await run_below(stack, before, after)


@pytest.mark.long
@pytest.mark.parametrize("upper", UPPERS)
@pytest.mark.parametrize("lower", ["memory", "ro1+tar"])
@LONG
@given(st.lists(STEPS, min_size=15, max_size=60), st.lists(STEPS, min_size=10, max_size=40))
async def test_upper_layers_are_put_below_others(
    upper: str, lower: str, before: Steps, after: Steps
) -> None:
    async with stacked(f"{upper} over {lower}", SINGLE) as stack:
        await run_below(stack, before, after)


@pytest.mark.parametrize("lower", LOWERS)
async def test_an_overlay_shows_what_is_below(lower: str) -> None:
    """Before anything is changed, with the times and executable bits of the layers."""
    async with stacked(f"memory over {lower}".replace(" over alone", " alone")) as stack:
        volume = await stack.open()
        twin = Twin.of(volume.root, ideal(stack.tree))
        await twin.check_all()
        entry = await volume.root.lookup("é")
        assert entry.stat.modified == 1_600_000_024_000_000_000
        a = await volume.root.sub("a")
        assert (await a.lookup("c")).stat.executable == (lower not in ("fat", "memory+fat"))
        await twin.close()
        await volume.close()
