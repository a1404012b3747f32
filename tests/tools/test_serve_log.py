"""What `capstore serve` makes of what Python can raise nowhere."""

from __future__ import annotations

import asyncio
import logging
import ssl
import sys

import pytest

from capstore.service.tls import ServiceKey, ServiceKeys
from capstore.tools import serving
from capstore.tools.fuzz.wire_records import extensions_of, with_extensions


@pytest.fixture(autouse=True)
def hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", serving._log_ignored)


def hello(name: bytes) -> bytes:
    """A ClientHello that asks for a service of this name."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x" * len(name))
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    data = outgoing.read()
    begin = extensions_of(data)[0][0]
    return with_extensions(data, data[begin:].replace(b"x" * len(name), name))


def test_a_name_that_is_none_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """Anybody may ask a service with old keys for any name, as often as he likes."""
    caplog.set_level(logging.INFO)
    pem = [ServiceKey.from_pem(ServiceKey.generate_pem(), until) for until in (0, 1 << 62)]
    context = ServiceKeys(pem[0], (pem[1],)).server_context()
    incoming = ssl.MemoryBIO()
    server = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    incoming.write(hello(b"\xff\xfename\xff"))
    with pytest.raises(ssl.SSLError):
        server.do_handshake()
    assert [(each.levelname, each.exc_info) for each in caplog.records] == [("INFO", None)]


def test_what_a_finalizer_raises_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("a bug")

    failing = Failing()
    del failing
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_what_asyncio_warns_of_is_for_peers_to_cause(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogger("asyncio").level, logging.getLogger("capstore").level
    handlers = list(logging.getLogger().handlers)
    try:
        serving._log_to_stderr("info")
        assert not asyncio.log.logger.isEnabledFor(logging.WARNING)
        assert asyncio.log.logger.isEnabledFor(logging.ERROR)
    finally:
        logging.getLogger("asyncio").setLevel(before[0])
        logging.getLogger("capstore").setLevel(before[1])
        logging.getLogger().handlers[:] = handlers
