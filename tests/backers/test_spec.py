"""Specifications of volumes: how they are taken apart, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstore.backers.spec import open_volume
from capstore.backers.spec_text import Spec
from capstore.schema.errors import InvalidArgument, NotFound, StorageError


@pytest.mark.parametrize(
    ("text", "argument", "options"),
    [
        ("dir:/a", "/a", {}),
        ("dir:/a,ro", "/a", {"ro": None}),
        ("dir:/a,x=1,y=", "/a", {"x": "1", "y": ""}),
        (r"dir:/a\,b,ro", "/a,b", {"ro": None}),
        (r"dir:/a\\,ro", "/a\\", {"ro": None}),
        (r"dir:/a\\\,ro", "/a\\,ro", {}),
        ("dir:/a\\", "/a\\", {}),
        ("dir:/a\n\\\nb", "/a\n\nb", {}),
        ("dir:,ro", "", {"ro": None}),
        ("dir:", "", {}),
        ("pyfs:ftp://h/a=b", "ftp://h/a=b", {}),
    ],
)
def test_taking_apart(text: str, argument: str, options: dict[str, str | None]) -> None:
    assert Spec.parse(text) == Spec("dir" if text.startswith("dir") else "pyfs", argument, options)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text",
    [
        "",
        "/a",
        "DIR:/a",
        "zip:/a",
        "ro1:",
        "tar:/a,part=1",
        "fat:/a,part",
        "fat:/a,part=0",
        "fat:/a,part=1x",
        "fat:/a,part=-1",
        "ro1:/a,ro",
        "dir:/a,ro=1",
        "dir:",
    ],
)
async def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        await open_volume(text)


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["ro1", "tar", "cpio", "fat"])
async def test_paths_that_lead_to_no_image(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotFound) as missing:
        await open_volume(f"{scheme}:{tmp_path / 'missing'}", cache=tmp_path)
    assert str(tmp_path) not in str(missing.value)
    for name in (".", "loop", "nul\0", "x" * 300):
        with pytest.raises(StorageError) as caught:
            await open_volume(f"{scheme}:{tmp_path / name}", cache=tmp_path)
        assert str(tmp_path) not in str(caught.value)
