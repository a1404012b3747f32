"""What a user would take instead: SFTP, by asyncssh on both sides (the extra ``bench``).

Invariants: keys are made for one run and never leave it; the server listens on 127.0.0.1 only and
serves the corpus, contained, to the one key it knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from capstore.tools.bench.contestants import Contestant, server_process
from capstore.tools.bench.corpus import LARGE, Corpus

_KEY = "ssh-ed25519"


def absent() -> str | None:
    """Why SFTP does not take part, or None if it does."""
    if find_spec("asyncssh") is None:
        return "asyncssh is not installed (pip install 'capstore[bench]')"
    return None


@asynccontextmanager
async def serve(config: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """Serves the directory ``root`` to the public key ``client``, on a free port."""
    import asyncssh

    host_key = asyncssh.generate_private_key(_KEY)
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(config["client"]),
        sftp_factory=lambda channel: asyncssh.SFTPServer(channel, chroot=config["root"].encode()),
    )
    try:
        yield {"port": server.get_port(), "key": host_key.export_public_key().decode()}
    finally:
        server.close()


class Sftp(Contestant):
    """An SFTP client."""

    name = "sftp"

    def __init__(self, corpus: Corpus, client: Any, large: Any) -> None:
        self._corpus = corpus
        self._client = client
        self._large = large

    async def open_and_read(self, name: str, length: int) -> int:
        async with self._client.open(f"small/{name}", "rb") as file:
            return len(await file.read(length))

    async def read_open(self, offset: int, length: int) -> int:
        return len(await self._large.read(length, offset))

    async def read_large(self, block: int, in_flight: int) -> int:
        size = self._corpus.parameters.large_bytes
        opened = self._client.open(LARGE, "rb", block_size=block, max_requests=in_flight)
        async with opened as file:
            return sum([len(data) async for _, data in await file.read_parallel(size, 0)])

    async def write_large(self, data: bytes, block: int, in_flight: int) -> int:
        opened = self._client.open(LARGE, "r+b", block_size=block, max_requests=in_flight)
        async with opened as file:
            return int(await file.write(data, 0))

    async def list_names(self) -> int:
        return _without_dots(await self._client.listdir("many"))

    async def list_stats(self) -> int:
        entries = await self._client.readdir("many")
        return _without_dots([entry.filename for entry in entries if entry.attrs is not None])

    async def get_tree(self, target: Path) -> None:
        await self._client.get("tree", str(target), recurse=True)


def _without_dots(names: list[str]) -> int:
    return len(names) - names.count(".") - names.count("..")


@asynccontextmanager
async def contestant(corpus: Corpus, folder: Path) -> AsyncIterator[Sftp]:
    """SFTP over `corpus`; it needs nothing in `folder`."""
    import asyncssh

    key = asyncssh.generate_private_key(_KEY)
    config = {"root": str(corpus.root), "client": key.export_public_key().decode()}
    async with server_process("sftp", config) as ready:
        known = asyncssh.import_known_hosts(f"[127.0.0.1]:{ready['port']} {ready['key']}")
        async with (
            asyncssh.connect(
                "127.0.0.1",
                ready["port"],
                username="bench",
                client_keys=[key],
                known_hosts=known,
                # Nothing of the user's own set-up: no agent, no configuration files.
                agent_path=None,
                config=None,
            ) as connection,
            connection.start_sftp_client() as client,
            client.open(LARGE, "rb") as large,
        ):
            yield Sftp(corpus, client, large)
