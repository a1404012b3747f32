"""`capstore image verify` and `reset` of overlays and of their upper layers."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from capstore.backers.spec import open_volume
from capstore.schema.errors import StorageError
from capstore.tools.image import verifylayers
from capstore.tools.image.reset import content_of, reset
from tests.tools.command import COMMAND, Ran, capstore
from tests.tools.conftest import make_tree

HIDDEN = ".wh..wh.capstore"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A lower layer; what it is made of is beside it as ``tree``."""
    root = tmp_path / "tree"
    root.mkdir()
    make_tree(root)
    image = tmp_path / "base.tar"
    capstore("image", "build", image, "--format", "tar", "--from", root).ok()
    return image


def uppers(folder: Path) -> dict[str, str]:
    (folder / "up").mkdir(exist_ok=True)
    return {
        "wf1": f"wf1:{folder}/up.wf1",
        "memory": f"memory:{folder}/up.memory",
        "dir": f"dir:{folder}/up",
    }


UPPERS = ("wf1", "memory", "dir")


async def _change(overlay: str) -> None:
    volume = await open_volume(overlay)
    root = volume.root
    await root.remove("large")
    for directory in (root, await (await root.sub("deep")).sub("a")):
        new = await directory.create("new")
        await new.write(0, b"x" * 5000)
        await new.close()
    await volume.close()


def changed(upper: str, base: Path) -> str:
    """An overlay that was written; its specification."""
    making = f"{upper},create" if upper.startswith("wf1:") else upper
    asyncio.run(_change(f"overlay:{making}+tar:{base}"))
    return f"overlay:{upper}+tar:{base}"


def verify(*arguments: str | Path) -> Ran:
    return capstore("image", "verify", *arguments)


def state_of(folder: Path) -> list[tuple[str, int, int]]:
    """All files of a folder, when they were changed, and how."""
    found = [*folder.rglob("*"), folder]
    return sorted((str(one), one.lstat().st_mtime_ns, one.lstat().st_size) for one in found)


# Verifying ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UPPERS)
def test_a_sound_overlay_is_not_touched(kind: str, base: Path, tmp_path: Path) -> None:
    overlay = changed(uppers(tmp_path)[kind], base)
    before = state_of(tmp_path)
    assert verify(overlay).ok() == ""
    assert json.loads(verify("--json", overlay).ok()) == {"findings": [], "clean": True}
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("kind", UPPERS)
def test_an_upper_layer_is_mended_for_another_base(kind: str, base: Path, tmp_path: Path) -> None:
    overlay = changed(uppers(tmp_path)[kind], base)
    tree = tmp_path / "tree"
    (tree / "large").unlink()
    other = tmp_path / "other.ro1"
    capstore("image", "build", other, "--format", "ro1", "--from", tree).ok()
    overlay = overlay.replace(f"tar:{base}", f"ro1:{other}")
    before = state_of(tmp_path)
    ran = verify(overlay)
    assert (ran.code, ran.error) == (1, "")
    orphan = "-: /large: a whiteout, and no layer below has the name (--repair removes it)"
    assert orphan in ran.out.splitlines()
    document = json.loads(verify("--json", overlay).out)
    assert document["clean"] is False
    assert {
        "offset": None,
        "where": "/large",
        "message": "a whiteout, and no layer below has the name",
        "repairable": True,
    } in document["findings"]
    assert all(finding["repairable"] for finding in document["findings"])
    assert state_of(tmp_path) == before
    lower = other.read_bytes()
    assert verify("--repair", overlay).ok() == ""
    assert verify(overlay).ok() == ""
    assert other.read_bytes() == lower
    # What users had made is there.
    for directory in (tree, tree / "deep" / "a"):
        (directory / "new").write_bytes(b"x" * 5000)
    assert capstore("image", "diff", "--ignore-times", tree, overlay).ok() == ""


def test_damage_of_a_layer_is_told_with_the_layer(base: Path, tmp_path: Path) -> None:
    overlay = changed(uppers(tmp_path)["wf1"], base)
    lower = tmp_path / "lower.ro1"
    capstore("image", "build", lower, "--format", "ro1", "--from", tmp_path / "tree").ok()
    raw = lower.read_bytes()
    at = raw.index(b"#!/bin/sh")
    lower.write_bytes(raw[:at] + b"X" + raw[at + 1 :])
    overlay += f"+ro1:{lower}"
    ran = verify(overlay)
    assert ran.code == 1
    (line,) = ran.out.splitlines()
    assert f": ro1:{lower} /run: " in line
    again = verify("--repair", overlay)
    assert (again.code, again.out) == (1, ran.out)


def test_a_torn_tail_of_the_upper_layer_is_repaired(base: Path, tmp_path: Path) -> None:
    overlay = changed(uppers(tmp_path)["wf1"], base)
    # The same content as a lower layer stays as it is: only the upper one is repaired.
    lower = tmp_path / "lower.wf1"
    for image in (tmp_path / "up.wf1", lower):
        if not image.exists():
            capstore("image", "build", image, "--format", "wf1").ok()
        _torn(image)
    both = overlay.replace("+tar:", f"+wf1:{lower}+tar:")
    ran = verify(both)
    assert ran.code == 1
    own, other = ran.out.splitlines()
    assert f"wf1:{tmp_path}/up.wf1 log: " in own
    assert own.endswith("(--repair removes it)")
    assert f"wf1:{lower} log: " in other
    assert not other.endswith("(--repair removes it)")
    torn = lower.read_bytes()
    ran = verify("--repair", both)
    assert (ran.code, ran.out.splitlines()) == (1, [other])
    assert lower.read_bytes() == torn
    assert verify("--repair", overlay).ok() == ""


def _torn(image: Path) -> None:
    """Leaves a frame in the log whose data is not there."""
    from capstore.images import wf1
    from capstore.images.devices import FileDevice
    from capstore.images.wf1_open import open_wf1

    device = FileDevice.open(image)
    engine = open_wf1(device)
    engine.write(engine.create(wf1.ROOT, "late"), 0, b"content of what is late")
    engine.sync()
    device.close()
    raw = image.read_bytes()
    assert raw.count(b"content of what is late") == 1
    image.write_bytes(raw.replace(b"content of what is late", bytes(23)))


def test_layers_that_cannot_be_opened(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "up").mkdir()
    for overlay, code in (
        (f"overlay:wf1:{tmp_path}/no.wf1+tar:{base}", "notFound"),
        (f"overlay:memory:{tmp_path}/no+tar:{base}", "notFound"),
        (f"overlay:dir:{tmp_path}/no+tar:{base}", "notFound"),
        (f"overlay:dir:{tmp_path}/up+tar:{tmp_path}/no.tar", "notFound"),
        (f"overlay:dir:{tmp_path}/up", "invalidArgument"),
        (f"overlay:dir:{tmp_path}/up+dir:{tmp_path}/up", "invalidArgument"),
        (f"overlay:oci:{tmp_path}/up+tar:{base}", "invalidArgument"),
    ):
        for repair in (False, True):
            ran = asyncio.run(verifylayers.verify(overlay, json=True, quiet=True, repair=repair))
            assert ran == 2, overlay
            said = capsys.readouterr()
            assert said.err.startswith(f"capstore: {code}: "), said.err
            assert said.out in ("", '{"findings": []\n, "clean": false}\n')
    assert not (tmp_path / "no").exists()
    assert list((tmp_path / "up").iterdir()) == []


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["wf1", "memory"])
async def test_served_layers_are_busy(kind: str, base: Path, tmp_path: Path) -> None:
    upper = uppers(tmp_path)[kind]
    making = f"{upper},create" if kind == "wf1" else upper
    volume = await open_volume(f"overlay:{making}+tar:{base}")
    try:
        ran = verify(f"overlay:{upper}+tar:{base}")
        assert (ran.code, ran.out) == (2, "")
        assert "busy" in ran.error
        assert capstore("image", "reset", f"overlay:{upper}+tar:{base}").failed("busy")
    finally:
        await volume.close()


def test_overlays_in_overlays(base: Path, tmp_path: Path) -> None:
    overlay = changed(uppers(tmp_path)["wf1"], base)
    inner = overlay.replace("+", r"\+")
    nested = f"overlay:dir:{tmp_path}/up+{inner}"
    before = state_of(tmp_path)
    assert verify(nested).ok() == ""
    assert state_of(tmp_path) == before
    (tmp_path / "up" / ".wh.new").touch()
    (tmp_path / "up" / ".wh.large").touch()
    ran = verify(nested)
    assert ran.out.splitlines() == [
        "-: /large: a whiteout, and no layer below has the name (--repair removes it)"
    ]
    assert verify("--repair", nested).ok() == ""
    assert (tmp_path / "up" / ".wh.new").exists()
    assert not (tmp_path / "up" / ".wh.large").exists()


# Resetting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "alone"), [("wf1", True), ("memory", False), ("dir", False)])
def test_a_reset_brings_the_base_back(
    kind: str, base: Path, tmp_path: Path, *, alone: bool
) -> None:
    upper = uppers(tmp_path)[kind]
    overlay = changed(upper, base)
    assert capstore("image", "diff", "--ignore-times", tmp_path / "tree", overlay).code == 1
    raw = base.read_bytes()
    said = capstore("image", "reset", upper if alone else overlay).ok()
    # Two files, the directories above one, and the whiteout.
    assert said == "dropped 5 nodes, 9.8 KiB\n"
    assert base.read_bytes() == raw
    assert verify(overlay).ok() == ""
    # The root is the upper layer's own, and was changed just now.
    assert capstore("image", "diff", tmp_path / "tree", overlay).out == "M . (time)\n"
    assert capstore("image", "reset", "--quiet", overlay).ok() == ""


def test_what_cannot_be_reset(base: Path, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    for spec, code in (
        (f"tar:{base}", "unsupported"),
        (f"overlay:tar:{base}+dir:{tmp_path}/up", "unsupported"),
        ("memory:", "invalidArgument"),
        ("dir:", "invalidArgument"),
        (str(base), "invalidArgument"),
        (f"wf1:{tmp_path}/no.wf1,create", "notFound"),
        (f"memory:{tmp_path}/no", "notFound"),
        (f"dir:{tmp_path}/no", "notFound"),
        (f"dir:{base}", "notDirectory"),
        (f"dir:{tmp_path}/up,ro", "readOnly"),
        (f"overlay:dir:{tmp_path}/up+dir:{tmp_path}", "invalidArgument"),
        ("dir:/proc", "unsupported"),
        ("dir:/", "unsupported"),
    ):
        for work in (content_of(spec), reset(spec, quiet=True)):
            with pytest.raises(StorageError) as caught:
                asyncio.run(work)
            assert caught.value.code.value == code, spec
    assert not (tmp_path / "no").exists()
    assert not (tmp_path / "no.wf1").exists()


def _asked(answer: bytes, *arguments: str) -> tuple[int, bytes]:
    """Runs the command on a terminal, on which `answer` is typed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.write(ours, answer)
    out, error = process.communicate(timeout=30)
    os.close(ours)
    return process.returncode, out + error


def test_a_terminal_is_asked_unless_yes(tmp_path: Path) -> None:
    up = tmp_path / "up"
    up.mkdir()
    (up / "file").write_bytes(b"1")
    code, said = _asked(b"n\n", "image", "reset", f"dir:{up}")
    assert code == 1
    assert b"Drop 1 node, 1 B?" in said
    assert (up / "file").exists()
    code, said = _asked(b"", "image", "reset", "--yes", f"dir:{up}")
    assert (code, list(up.iterdir())) == (0, [])
    assert said == b"dropped 1 node, 1 B\n"
