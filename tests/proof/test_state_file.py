"""The state directory after a crash at any point, and after somebody has changed it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from capstore.backers.memory import MemoryVolume
from capstore.images import durable
from capstore.images.durable import HeldFile
from capstore.schema.errors import Corrupt, Denied, StorageError
from capstore.service import references
from capstore.service.authority import Authority
from capstore.service.grants import Policy
from capstore.service.references import ReferenceTable, digest_of
from capstore.service.state import StateDirectory
from capstore.service.tls import ServiceKeys
from tests.proof.statefiles import Files, FolderLog, states_after
from tests.service.authorities import KEY, Clock, authority_over, owner_of

pytestmark = pytest.mark.anyio

HOUR = 3600 * 10**9

# Crashes ------------------------------------------------------------------------------------------


@dataclass
class Promise:
    """What holds from when `since` things were done until `until` were."""

    what: str
    check: Callable[[StateDirectory], bool]
    since: int
    until: int | None = None


@dataclass
class Promises:
    """What was acknowledged, and when."""

    log: FolderLog
    made: list[Promise] = field(default_factory=list)

    def make(self, what: str, check: Callable[[StateDirectory], bool]) -> Promise:
        self.made.append(Promise(what, check, len(self.log.done)))
        return self.made[-1]

    def end(self, promise: Promise) -> None:
        """What changes it is about to be asked for."""
        promise.until = len(self.log.done)

    def token(self, token: str) -> Promise:
        return self.make(token[:6], lambda state: state.references.find(token) is not None)

    def dead(self, token: str) -> Promise:
        return self.make(f"no {token[:6]}", lambda state: state.references.find(token) is None)

    def expiry(self, token: str, ends: int) -> Promise:
        def check(state: StateDirectory) -> bool:
            reference = state.references.find(token)
            return reference is not None and reference.policy.expires_at == ends

        return self.make(f"{token[:6]} until {ends}", check)

    def at(self, count: int) -> list[Promise]:
        return [
            each
            for each in self.made
            if each.since <= count and (each.until is None or count <= each.until)
        ]


async def _work(promises: Promises) -> None:
    """The life of a state directory: its first start, and everything that changes it."""
    state = StateDirectory.open(promises.log.folder)
    key = state.owner_key
    promises.make("the owner key", lambda state: state.owner_key == key)
    first = state.service_keys().current.fingerprint
    pinned = promises.make(
        "the service key", lambda state: state.service_keys().current.fingerprint == first
    )
    clock = Clock()
    authority = Authority(
        {"m": await MemoryVolume.open()}, state.references, state.owner_key, clock=clock
    )
    await authority.ensure_owners()
    owner = authority.owner_token("m")
    owned = promises.token(owner)
    root = await owner_of(authority)
    # Saves that come together share a flush.
    narrowed = root.narrowed(Policy(expires_at=HOUR))
    tokens = await asyncio.gather(*(authority.save(narrowed, f"save {n}") for n in range(3)))
    held = [promises.token(token) for token in tokens]

    lasts = promises.expiry(tokens[0], HOUR)
    reference = authority.controlled_by(tokens[0])
    promises.end(lasts)
    await authority.exchanges.renew(reference.id, 2 * HOUR)
    promises.expiry(tokens[0], 2 * HOUR)

    promises.end(held[1])
    _, rotated = await authority.exchanges.rotate(authority.controlled_by(tokens[1]).id)
    promises.token(rotated)
    promises.dead(tokens[1])

    below = await authority.save(await authority.restore(tokens[2]), "below")
    both = [held[2], promises.token(below)]
    for promise in both:
        promises.end(promise)
    await authority.revoke_reference(authority.controlled_by(tokens[2]).id)
    promises.dead(tokens[2])
    promises.dead(below)

    promises.end(owned)
    _, again = await authority.exchanges.rotate(authority.controlled_by(owner).id)
    promises.token(again)
    promises.dead(owner)
    epochs = dict(state.references.epochs)
    promises.make("the epoch", lambda state: state.references.epochs == epochs)

    promises.end(pinned)
    keys = state.rotate_service_key(4_000_000_000 * 10**9)
    promises.make("both keys", lambda state: state.service_keys() == keys)
    state.close()


async def _recorded(folder: Path, monkeypatch: pytest.MonkeyPatch, **flushes: bool) -> Promises:
    folder.mkdir(mode=0o700)
    log = FolderLog(folder, **flushes)
    promises = Promises(log)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", log)
        await _work(promises)
    return promises


def _broken(promises: Promises, folder: Path, tally: Counter[str] | None = None) -> Iterator[str]:
    """What was promised and is not there, or why it does not open, for each state after a crash."""
    tally = Counter() if tally is None else tally
    seen: dict[tuple[tuple[str, bytes], ...], set[str]] = {}
    for count in range(len(promises.log.done) + 1):
        wanted = promises.at(count)
        for files in states_after(promises.log.done[:count]):
            checked = seen.setdefault(tuple(sorted(files.items())), set())
            missing = [each for each in wanted if each.what not in checked]
            tally.update(["states", *(["different"] if not checked else [])])
            if missing or not checked:
                checked.update(["opened", *(each.what for each in missing)])
                for broken in _missing(files, missing, folder):
                    yield f"after {count}, of {sorted(files)}: {broken}"


def _missing(files: Files, wanted: list[Promise], folder: Path) -> Iterator[str]:
    _fill(folder, files)
    try:
        state = StateDirectory.open(folder)
    except StorageError as error:
        yield str(error)
        return
    with contextlib.closing(state):
        if leftovers := list(folder.glob(".*.new")):
            yield f"left over: {leftovers}"
        yield from (each.what for each in wanted if not each.check(state))


def _fill(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)


async def test_after_a_crash_at_any_point_what_was_acknowledged_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promises = await _recorded(tmp_path / "state", monkeypatch)
    assert len(promises.made) > 10
    tally: Counter[str] = Counter()
    assert list(_broken(promises, tmp_path / "after", tally)) == []
    assert tally["different"] > 50
    print(f"{len(promises.log.done)} cuts, {dict(tally)}")


async def test_after_a_crash_the_table_is_an_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, bytes]] = []
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    log = FolderLog(folder)

    def noted(path: HeldFile, content: bytes) -> None:
        durable.replace_file(path, content)
        written.append((len(log.done), content))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", log)
        patch.setattr(references, "replace_file", noted)
        await _work(Promises(log))
    contents = [content for _, content in written]
    assert len(set(contents)) == len(contents) > 5
    for count in range(len(log.done) + 1):
        acknowledged = sum(at <= count for at, _ in written)
        for files in states_after(log.done[:count]):
            found = files.get("references.json")
            index = contents.index(found) + 1 if found is not None else 0
            assert acknowledged <= index <= acknowledged + 1


@pytest.mark.parametrize("missing", ["file_flushes", "folder_flushes"])
async def test_a_flush_that_is_missing_is_noticed(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promises = await _recorded(tmp_path / "state", monkeypatch, **{missing: False})
    assert next(_broken(promises, tmp_path / "after"))


# Changes by others --------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The file of a table that holds some of everything."""
    asyncio.run(_some_of_everything(tmp_path))
    return tmp_path / "references.json"


async def _some_of_everything(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    root = await owner_of(authority)
    token = await authority.save(root.narrowed(Policy(read_only=True)), "first")
    await authority.save(await authority.restore(token), "below")
    await authority.save(root, "second")


@dataclass(frozen=True)
class Held(HeldFile):
    """A file with this content, on no disk: there are tens of thousands."""

    content: bytes = b""

    def read_bytes(self) -> bytes:
        return self.content


def _loads(content: bytes) -> bool:
    try:
        ReferenceTable.load(Held(-1, "", content), KEY)
    except Corrupt:
        return False
    return True


def test_a_byte_that_was_changed_is_refused(table: Path) -> None:
    content = table.read_bytes()
    assert _loads(content)
    for index, byte in enumerate(content):
        # Every bit, and what JSON takes for the same: white space, another case.
        for other in {*(byte ^ 1 << bit for bit in range(8)), 0x20, 0x09, 0x0A, 0x0D} - {byte}:
            changed = content[:index] + bytes([other]) + content[index + 1 :]
            assert not _loads(changed), (index, other)


def test_a_truncation_or_an_extension_is_refused(table: Path) -> None:
    content = table.read_bytes()
    for length in range(len(content)):
        assert not _loads(content[:length]), length
    for more in (b"\n", b" ", b"\0", b"{}", content):
        assert not _loads(content + more)
        assert not _loads(more + content)


def _rearranged(content: bytes) -> Iterator[tuple[str, object]]:
    """The same rows, differently."""
    for name, change in {
        "swapped": lambda rows: rows.reverse(),
        "removed": lambda rows: rows.pop(),
        "one removed": lambda rows: rows.pop(1),
        "again": lambda rows: rows.append(rows[1]),
        "digests": lambda rows: _exchange(rows, "digest"),
        "policies": lambda rows: _exchange(rows, "policy"),
        "parents": lambda rows: _exchange(rows, "parent"),
    }.items():
        document = json.loads(content)
        change(document["body"]["references"])
        yield name, document
    for key, value in (("next_id", 2), ("epochs", {"m": 1}), ("version", 2), ("format", "x")):
        document = json.loads(content)
        document["body"][key] = value
        yield key, document
    body = json.loads(content)["body"]
    yield "unsealed", {"body": body}
    yield "sealed with nothing", {"body": body, "hmac": ""}
    yield "something more", json.loads(content) | {"more": 1}
    yield "another order", dict(reversed(json.loads(content).items()))


def _exchange(rows: list[dict[str, object]], key: str) -> None:
    rows[1][key], rows[2][key] = rows[2][key], rows[1][key]


def test_rows_that_were_rearranged_are_refused(table: Path) -> None:
    content = table.read_bytes()
    for name, document in _rearranged(content):
        assert not _loads(json.dumps(document).encode() + b"\n"), name
    assert not _loads(json.dumps(json.loads(content), indent=1).encode() + b"\n")
    twice = content.replace(b'{"body"', b'{"body": {}, "body"', 1)
    assert not _loads(twice)


def test_a_table_of_another_service_is_refused(table: Path) -> None:
    with pytest.raises(Corrupt):
        ReferenceTable.load(table, b"x" * 32)


async def test_an_old_copy_is_not_noticed_and_brings_back_what_was_in_it(tmp_path: Path) -> None:
    """What docs/spec/state.md says of it: only somebody who remembers more could notice."""
    authority, volume = await authority_over(tmp_path)
    token = await authority.save(await owner_of(authority), "x")
    old = (tmp_path / "references.json").read_bytes()
    await authority.revoke_reference(authority.controlled_by(token).id)
    again, _ = await authority_over(tmp_path, volume=volume)
    with pytest.raises(Denied):
        await again.restore(token)
    (tmp_path / "references.json").write_bytes(old)
    again, _ = await authority_over(tmp_path, volume=volume)
    await again.restore(token)


@pytest.mark.parametrize("lost", ["references.json", "owner.key"])
async def test_a_file_that_is_lost_is_noticed(lost: str, tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    await Authority({"m": await MemoryVolume.open()}, state.references, b"").ensure_owners()
    state.close()
    (tmp_path / "state" / lost).unlink()
    with pytest.raises(Corrupt, match=f"{lost} is missing"):
        StateDirectory.open(tmp_path / "state")


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_a_damaged_service_key_is_refused_or_is_the_same_key(tmp_path: Path) -> None:
    state = StateDirectory.open(tmp_path / "state")
    state.rotate_service_key(4_000_000_000 * 10**9)
    keys = state.service_keys()
    state.close()
    content = keys.to_pem()
    assert ServiceKeys.from_pem(content) == keys
    fingerprints = [key.fingerprint for key in (keys.current, *keys.old)]
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1 << index % 8
        with contextlib.suppress(Corrupt):
            found = ServiceKeys.from_pem(bytes(changed))
            if [key.fingerprint for key in (found.current, *found.old)] != fingerprints:
                # TLS would notice that the private key is another one.
                with pytest.raises(Corrupt):
                    found.server_context()
    for length in range(len(content)):
        with contextlib.suppress(Corrupt):
            assert len(ServiceKeys.from_pem(content[:length]).old) < len(keys.old)


async def test_no_digest_but_of_what_can_be_restored_is_kept(tmp_path: Path) -> None:
    authority, _ = await authority_over(tmp_path)
    token = await authority.save(await owner_of(authority), "x")
    reference = authority.controlled_by(token)
    _, new = await authority.exchanges.rotate(reference.id)
    stored = (tmp_path / "references.json").read_text()
    assert digest_of(new) in stored
    for gone in (digest_of(token), token, new):
        assert gone not in stored
