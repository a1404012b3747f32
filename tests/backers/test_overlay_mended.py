"""Whatever users did and whatever was harmed: nobody sees what is mended."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from capstore.backers.layer import Mark, Upper
from capstore.backers.layers import open_layer, open_upper
from capstore.backers.node import Expect
from capstore.schema.errors import StorageError
from tests.backers.overlay_twin import Twin
from tests.backers.overlays import UPPERS, Stack, ideal, stacked
from tests.backers.test_overlay_model import STEPS, hold_all
from tests.backers.verifying import mended

pytestmark = pytest.mark.anyio

QUICK = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
NAMES = st.sampled_from(["-", "a", "b", "c", "é", "new"])
PATHS = st.lists(NAMES, max_size=2)
HARM = st.one_of(
    st.tuples(st.just("cover"), PATHS, NAMES),
    st.tuples(
        st.just("mark"),
        PATHS,
        st.booleans(),
        st.sampled_from(["", "a", "a/b", "c", "a/a", "no/where"]),
        st.integers(0, 2),
    ),
)


async def _harmed(upper: Upper, harm: Sequence[tuple[object, ...]]) -> None:
    """Whiteouts and marks in the upper layer that no overlay would make."""
    marked: dict[tuple[str, ...], object] = {}
    for what, path, *arguments in harm:
        directory = upper.root
        try:
            for name in path:  # type: ignore[attr-defined]
                directory = await directory.sub(name)
            if what == "cover":
                await upper.cover(directory, str(arguments[0]))
            elif path:
                opaque, redirect, origin = arguments
                if _one_in_another(marked, tuple(path), origin):  # type: ignore[arg-type]
                    continue
                redirect = str(redirect) if upper.redirects else ""
                mark = Mark(bool(opaque), redirect, 1000 * int(str(origin)))
                await upper.set_mark(directory, mark)
                marked[tuple(path)] = origin  # type: ignore[arg-type]
        except StorageError:
            # There is no such directory.
            continue


def _one_in_another(
    marked: dict[tuple[str, ...], object], path: tuple[str, ...], origin: object
) -> bool:
    """Whether `path` would be in a directory of the same origin, or hold one: it is in itself
    then, and whoever goes there is told so.
    """
    return bool(origin) and any(
        other == origin and path != place and place[: len(path)] == path[: len(place)]
        for place, other in marked.items()
    )


@pytest.mark.parametrize("kind", UPPERS)
@QUICK
@given(steps=st.lists(STEPS, max_size=20), harm=st.lists(HARM, max_size=12))
@example(
    # What is below /a by its redirect is shown as /c/b, too: nobody else takes its id.
    steps=[
        ("attributes", 6, "a", 1_700_000_000_000_000_000, True),
        ("remove", 7, "a", Expect.NOT_DIRECTORY),
    ],
    harm=[("mark", ["c"], False, "a", 0), ("mark", ["a"], False, "a/b", 2)],
)
@example(
    # Only when /c is no copy of the same any more can /a be told apart.
    steps=[("attributes", 2, "a", 1_700_000_000_000_000_000, True), ("mkdir", 4, "-")],
    harm=[("mark", ["c"], False, "a/b", 2), ("mark", ["a"], False, "a", 2)],
)
async def test_nobody_sees_what_is_mended(
    kind: str, steps: list[tuple[object, ...]], harm: list[tuple[object, ...]]
) -> None:
    async with stacked(f"{kind} over ro1+tar") as stack:
        await _stepped(stack, steps)
        upper = await open_upper(await stack.open_upper_volume())
        lowers = [open_layer(one) for one in await stack.open_lowers()]
        await _harmed(upper, harm)
        await mended(upper, *lowers)
        for layer in (upper, *lowers):
            await layer.volume.close()


async def _stepped(stack: Stack, steps: list[tuple[object, ...]]) -> None:
    """Has users do things."""
    volume = await stack.open()
    twin = Twin.of(volume.root, ideal(stack.tree))
    await hold_all(twin)
    for name, *arguments in steps:
        if name != "reopen":
            await getattr(twin, str(name))(*arguments)
            await twin.check()
    for handle, _ in [*twin.readers, *twin.files]:
        await handle.close()
    await volume.close()
