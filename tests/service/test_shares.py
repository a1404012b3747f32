"""Standing shares: found again at each start, made anew on other terms, else ended."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from capstore.backers.hostdir import HostVolume
from capstore.backers.memory import MemoryVolume
from capstore.backers.node import Volume
from capstore.backers.spec import open_volume
from capstore.backers.store import ObjectStore
from capstore.backers.workers import renew_workers
from capstore.schema.errors import Denied, ReadOnly, StorageIOError
from capstore.service import references
from capstore.service.authority import Authority, Guarded
from capstore.service.client import connect, open_connection
from capstore.service.guard import GuardedDirectory, GuardedFile
from capstore.service.references import ReferenceTable, digest_of
from capstore.service.remote import Directory
from capstore.service.server import start
from capstore.service.shares import Kept, StandingShare, keep_shares
from capstore.service.state import StateDirectory
from capstore.service.store_guard import GuardedStore
from tests.contract.store_model import ModelStore
from tests.service.authorities import KEY, Clock

pytestmark = pytest.mark.anyio

HOUR = 3600 * 10**9

CI = StandingShare("ci", "m", ("src",), read_only=True)


class Starts:
    """A service's authority, started again and again on one state."""

    def __init__(self, folder: Path, volumes: Mapping[str, Volume | ObjectStore]) -> None:
        self.folder = folder
        self.volumes = volumes
        self.clock = Clock()
        self.authority: Authority

    async def start(self, *shares: StandingShare, without: str = "") -> list[Kept]:
        table = ReferenceTable.load(self.folder / "references.json", KEY)
        volumes = {name: each for name, each in self.volumes.items() if name != without}
        self.authority = Authority(volumes, table, KEY, clock=self.clock)
        await self.authority.ensure_owners()
        return await keep_shares(self.authority, shares)

    async def tokens(self, *shares: StandingShare) -> list[str]:
        kept = await self.start(*shares)
        assert [each.share for each in kept] == list(shares)
        assert all(each.error is None and each.token for each in kept)
        return [each.token or "" for each in kept]

    async def restored(self, token: str) -> Guarded:
        return await self.authority.restore(token)

    @property
    def tree(self) -> Volume:
        tree = self.volumes["m"]
        assert isinstance(tree, Volume)
        return tree

    async def token(self, share: StandingShare) -> str:
        (token,) = await self.tokens(share)
        return token

    def saved(self) -> int:
        return len(ReferenceTable.load(self.folder / "references.json", KEY))


@pytest.fixture
async def starts(tmp_path: Path) -> Starts:
    volume = await MemoryVolume.open()
    src = await volume.root.mkdir("src")
    await (await src.create("f")).write(0, b"content")
    await volume.root.symlink("link", "src")
    await volume.root.mkdir("other")
    return Starts(tmp_path, {"m": volume, "n": await MemoryVolume.open(), "o": ModelStore()})


async def test_it_gives_the_node_on_its_terms(starts: Starts) -> None:
    directory = await starts.restored(await starts.token(CI))
    assert isinstance(directory, GuardedDirectory)
    assert [entry.name for entry in (await directory.list()).entries] == ["f"]
    with pytest.raises(ReadOnly):
        await directory.mkdir("x")


async def test_a_restart_gives_the_same_token_and_adds_nothing(starts: Starts) -> None:
    shares = (CI, StandingShare("all", "m"), StandingShare("file", "m", ("src", "f")))
    tokens = await starts.tokens(*shares)
    assert len(set(tokens)) == 3
    saved = starts.saved()
    for _ in range(3):
        starts.clock.now += HOUR
        assert await starts.tokens(*reversed(shares)) == tokens[::-1]
    assert starts.saved() == saved


async def test_a_file_a_root_and_a_store_are_shared(starts: Starts) -> None:
    file = StandingShare("file", "m", ("src", "f"))
    root = StandingShare("root", "m")
    store = StandingShare("store", "o", read_only=True)
    tokens = await starts.tokens(file, root, store)
    kinds = [type(await starts.restored(token)) for token in tokens]
    assert kinds == [GuardedFile, GuardedDirectory, GuardedStore]
    shared = await starts.restored(tokens[0])
    assert isinstance(shared, GuardedFile)
    await shared.write(0, b"C")
    assert await shared.read(0, 100) == b"Content"
    objects = await starts.restored(tokens[2])
    assert isinstance(objects, GuardedStore)
    with pytest.raises(ReadOnly):
        await objects.put(b"x")


@pytest.mark.parametrize(
    "other",
    [
        replace(CI, read_only=False),
        replace(CI, lifetime=HOUR),
        replace(CI, path=("other",)),
        replace(CI, path=()),
        replace(CI, volume="n", path=()),
        replace(CI, label="CI"),
    ],
)
async def test_on_other_terms_it_ends_and_another_one_is_made(
    starts: Starts, other: StandingShare
) -> None:
    first = await starts.token(CI)
    below = await starts.authority.save(await starts.restored(first), "below")
    second = await starts.token(other)
    assert second != first
    await starts.restored(second)
    for ended in (first, below):
        with pytest.raises(Denied):
            await starts.restored(ended)
    # Going back is no way back for who had the first one.
    third = await starts.token(CI)
    assert third not in (first, second)
    for ended in (first, second):
        with pytest.raises(Denied):
            await starts.restored(ended)


async def test_what_is_not_asked_for_ends_and_nothing_else_does(starts: Starts) -> None:
    gone, stays = await starts.tokens(CI, StandingShare("all", "m"))
    root = await starts.restored(starts.authority.owner_token("m"))
    # What somebody saved is nobody's business, whatever it is called.
    saved = await starts.authority.save(root, "ci")
    assert await starts.tokens(StandingShare("all", "m")) == [stays]
    with pytest.raises(Denied):
        await starts.restored(gone)
    await starts.restored(stays)
    await starts.restored(saved)


async def test_a_share_of_a_volume_that_is_not_served_ends_too(starts: Starts) -> None:
    token = await starts.token(CI)
    saved = starts.saved()
    assert await starts.start(without="m") == []
    assert starts.saved() == saved - 1
    await starts.start()
    with pytest.raises(Denied):
        await starts.restored(token)


async def test_time_counts_from_when_it_was_made(starts: Starts) -> None:
    share = replace(CI, lifetime=HOUR)
    token = await starts.token(share)
    starts.clock.now += HOUR - 1
    assert await starts.token(share) == token
    await starts.restored(token)
    starts.clock.now += 1
    with pytest.raises(Denied):
        await starts.restored(token)
    again = await starts.token(share)
    assert again != token
    await starts.restored(again)
    with pytest.raises(Denied):
        await starts.restored(token)


async def test_one_that_was_revoked_comes_back_with_another_token(starts: Starts) -> None:
    token = await starts.token(CI)
    await starts.authority.revoke_reference(starts.authority.controlled_by(token).id)
    again = await starts.token(CI)
    assert again != token
    with pytest.raises(Denied):
        await starts.restored(token)


async def test_revoking_the_owner_ends_its_shares(starts: Starts) -> None:
    token = await starts.token(CI)
    owner = starts.authority.controlled_by(starts.authority.owner_token("m"))
    await starts.authority.revoke_reference(owner.id)
    assert await starts.token(CI) != token
    with pytest.raises(Denied):
        await starts.restored(token)


async def test_another_node_at_the_path_is_another_share(starts: Starts) -> None:
    token = await starts.token(CI)
    root = starts.tree.root
    await root.rename("src", root, "elsewhere")
    await root.mkdir("src")
    again = await starts.token(CI)
    assert again != token
    with pytest.raises(Denied):
        await starts.restored(token)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (("missing",), "notFound"),
        (("missing", "f"), "notFound"),
        (("src", "f", "x"), "notDirectory"),
        (("link",), "invalidArgument"),
        (("link", "f"), "notDirectory"),
    ],
)
async def test_a_path_that_leads_nowhere_keeps_nothing_else_from_being_shared(
    starts: Starts, path: tuple[str, ...], code: str
) -> None:
    first = await starts.token(CI)
    broken = replace(CI, path=path)
    bad, good = await starts.start(broken, StandingShare("all", "m"))
    assert bad.token is None
    assert bad.error is not None
    assert bad.error.code.value == code
    assert bad.error.message.startswith(f'"/{"/".join(path)}": ')
    assert good.token is not None
    with pytest.raises(Denied):
        await starts.restored(first)


async def test_more_references_than_there_may_be_keep_no_share_that_was_there(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await starts.token(CI)
    monkeypatch.setattr(references, "REFERENCES_MAX", starts.saved())
    old, new = await starts.start(CI, StandingShare("all", "m"))
    assert old.token == token
    assert new.error is not None
    assert new.error.code.value == "tooLarge"


async def test_an_end_that_cannot_be_written_is_no_start(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await starts.token(CI)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(references, "replace_file", full)
    with pytest.raises(StorageIOError):
        await starts.start()


async def test_no_token_is_on_disk(starts: Starts) -> None:
    token = await starts.token(CI)
    stored = (starts.folder / "references.json").read_text()
    assert token not in stored
    assert digest_of(token) in stored


async def test_another_owner_key_gives_another_token(starts: Starts, tmp_path: Path) -> None:
    token = await starts.token(CI)
    reference = starts.authority.controlled_by(token)
    table = ReferenceTable(tmp_path / "none", b"x" * 32)
    other = Authority(starts.volumes, table, b"x" * 32)
    assert other.standing_token(reference) != token


# On volumes that go on, over a restart -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["dir", "wf1", "pyfs"])
async def test_a_directory_and_a_file_are_known_again_when_the_volume_is_opened_anew(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    text = {
        "dir": f"dir:{tmp_path}/d",
        "wf1": f"wf1:{tmp_path}/i.wf1,create",
        "pyfs": f"pyfs:osfs://{tmp_path}/d",
    }[kind]
    shares = (CI, StandingShare("file", "m", ("src", "f"), lifetime=HOUR))
    seen = []
    for number in range(3):
        volume = await open_volume(text)
        if not number:
            src = await volume.root.mkdir("src")
            await (await src.create("f")).close()
        starts = Starts(tmp_path, {"m": volume})
        seen.append(await starts.tokens(*shares))
        for token in seen[-1]:
            await starts.restored(token)
        await volume.close()
    assert seen[0] == seen[1] == seen[2]


def opened_below(folder: Path) -> list[str]:
    """What is open below `folder`, when no worker holds on to a call that it has answered."""
    renew_workers()
    gc.collect()
    found = []
    for each in Path("/proc/self/fd").iterdir():
        # One of them is that of this listing.
        with suppress(FileNotFoundError):
            found.append(str(each.readlink()))
    return sorted(name for name in found if name.startswith(f"{folder}/"))


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "d" / "src").mkdir(parents=True)
    (tmp_path / "d" / "src" / "f").write_bytes(b"")
    volume = await HostVolume.open(str(tmp_path / "d"))
    before = opened_below(tmp_path)
    assert before == [str(tmp_path / "d")]
    starts = Starts(tmp_path, {"m": volume})
    shares = (CI, StandingShare("file", "m", ("src", "f")))
    for _ in range(2):
        await starts.tokens(*shares)
        assert opened_below(tmp_path) == before
    await volume.close()
    assert opened_below(tmp_path) == []


# By a service ------------------------------------------------------------------------------------


async def test_a_service_gives_it_at_every_address(tmp_path: Path) -> None:
    volume = await MemoryVolume.open()
    await (await volume.root.mkdir("src")).create("f")
    state = StateDirectory.open(tmp_path / "state")
    async with start({"m": volume}, state) as service:
        (kept,) = await service.keep_shares([CI])
        await service.listen_unix(tmp_path / "one")
        await service.listen_unix(tmp_path / "two")
        assert kept.token is not None
        for uri in service.uris(kept.token):
            async with connect(uri) as shared:
                assert isinstance(shared, Directory)
                assert [entry.name for entry in (await shared.list()).entries] == ["f"]
        async with open_connection(service.owner_uris()[0][1]) as connection:
            control = await connection.reference(connection.uri.token)
            assert [each.label for each in await control.list()] == ["ci"]
