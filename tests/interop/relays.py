"""What may stand between a client and a service."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

Accepted = Callable[[socket.socket], None]


def to(address: str | tuple[str, int], may_answer: threading.Event | None = None) -> Accepted:
    """Carries a connection to `address`; nothing comes back before `may_answer` is set, and if
    that takes too long, nothing ever."""

    def accepted(client: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as service:
            service.connect(address)
            back = threading.Thread(target=_carry, args=(service, client, may_answer))
            back.start()
            _carry(client, service)
            back.join()

    return accepted


def _carry(
    source: socket.socket, target: socket.socket, may_begin: threading.Event | None = None
) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            if may_begin is not None and not may_begin.wait(10):
                break
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def relaying(listener: socket.socket, connections: Sequence[Accepted]) -> Iterator[None]:
    """Meanwhile the first connections to `listener` are given to `connections`, one after the
    other; leaving waits for their end."""

    def serve() -> None:
        for accepted in connections:
            client, _ = listener.accept()
            with client:
                accepted(client)

    thread = threading.Thread(target=serve, name="relay")
    with listener:
        listener.settimeout(20)
        listener.listen()
        thread.start()
        yield
        thread.join(20)
    assert not thread.is_alive(), "the relay does not end"
