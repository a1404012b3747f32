"""What the documents show works, and what they restate is so."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.service.references import Reference
from tests.contract.store_model import ModelStore
from tests.service.inprocess import serving

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def uris(tmp_path: Path) -> Iterator[dict[str, object]]:
    """URIs of a service on a thread of its own: some examples are synchronous."""
    found: dict[str, object] = {}
    ready, done = threading.Event(), threading.Event()

    async def main() -> None:
        volumes = {"m": await MemoryVolume.open(), "o": ModelStore()}
        async with serving(volumes, folder=tmp_path) as served:
            found.update(uri=str(served.unix["m"]), store_uri=str(served.unix["o"]))
            ready.set()
            while not done.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    yield found
    done.set()
    thread.join(10)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_examples_of_the_guide_run(
    example: str, uris: dict[str, object], tmp_path: Path
) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile("import capstore\n" + example, "docs/guide.md", "exec", flags)
    namespace = dict(uris)
    result = eval(code, namespace)
    if asyncio.iscoroutine(result):
        asyncio.run(result)
    if "serve" in namespace:
        folder = tmp_path / "served"
        folder.mkdir()
        asyncio.run(namespace["serve"](folder))  # type: ignore[operator]


def test_the_state_page_names_every_field_of_a_reference() -> None:
    page = (ROOT / "docs" / "spec" / "state.md").read_text()
    rows = set(re.findall(r"`(\w+)`", page.split("| `id` |")[1].join(["`id`", ""])))
    for field in dataclasses.fields(Reference):
        assert field.name in rows, field.name
