"""Messages that contradict themselves: an answer or the end of that connection, never of the
process.  The service runs in a process of its own: KJ aborts where pycapnp lets it."""

from __future__ import annotations

import asyncio
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import capnp
import pytest

from capstore.schema import wire
from capstore.service.client import connect
from capstore.service.remote import Directory
from capstore.service.uri import CapabilityURI

pytestmark = pytest.mark.anyio

_STANDARD = Path(capnp.__file__).parent
rpc: Any = capnp.load(str(_STANDARD / "rpc.capnp"), imports=[str(_STANDARD.parent)])
TOKEN = b"A" * 43
SERVER = """
import asyncio
from capstore.backers.memory import MemoryVolume
from tests.service.inprocess import serving

async def main():
    async with serving({"m": await MemoryVolume.open()}) as served:
        print(served.unix["m"], flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[CapabilityURI, subprocess.Popen[str]]]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    try:
        yield CapabilityURI.parse(server.stdout.readline()), server
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture
def uri(server: tuple[CapabilityURI, subprocess.Popen[str]]) -> Iterator[CapabilityURI]:
    uri, process = server
    assert process.poll() is None, "the service is gone"
    yield uri
    assert process.poll() is None, "the service is gone"


def bootstrap() -> bytes:
    message = rpc.Message.new_message()
    message.init("bootstrap").questionId = 0
    return bytes(message.to_bytes())


def call(interface: Any, method: int, params: Any) -> bytes:
    """A call of the bootstrap capability."""
    message = rpc.Message.new_message()
    sent = message.init("call")
    sent.questionId, sent.interfaceId, sent.methodId = 1, interface.schema.node.id, method
    sent.target.init("promisedAnswer").questionId = 0
    sent.params.content = params
    return bytes(message.to_bytes())


def restore() -> tuple[bytearray, int]:
    """``Gate.restore``, and where in it the pointer to the token is."""
    # An Error has a data word and a text; so has, but for the word, what restore takes.
    whole = bytearray(call(wire.Gate, 0, wire.Error.new_message(message=TOKEN.decode())))
    token_pointer = 1 | (len(TOKEN) + 1 << 3 | 2) << 32
    for at in range(0, len(whole), 8):
        word = struct.unpack_from("<Q", whole, at)[0]
        if word & ~0xFFFFFFFC == token_pointer & ~0xFFFFFFFC:
            return whole, at
    raise AssertionError("no pointer")


POINTERS = {
    "a list out of bounds": (1 << 20) << 2 | 1 | (44 << 3 | 2) << 32,
    "a far pointer to nowhere": 2 | 5 << 3 | 9 << 32,
    "a reserved tag": 3 | 1 << 2,
    "a list over the message": 1 | ((1 << 29) - 1 << 3 | 2) << 32,
    "a capability": 3,
    "a struct": 1 << 32,
    "a list of structs": 1 | (44 << 3 | 7) << 32,
}


@pytest.mark.parametrize("pointer", POINTERS)
async def test_a_message_that_contradicts_itself(uri: CapabilityURI, pointer: str) -> None:
    message, at = restore()
    struct.pack_into("<Q", message, at, POINTERS[pointer])
    reader, writer = await asyncio.open_unix_connection(uri.socket)
    writer.write(bootstrap() + bytes(message))
    await writer.drain()
    async with asyncio.timeout(5):
        await reader.read(1)
    writer.close()
    async with connect(uri) as root:
        assert isinstance(root, Directory)
        await root.mkdir(f"alive behind {pointer}")
