"""``fs.open_fs`` with capability URIs."""

from __future__ import annotations

from collections.abc import Iterator

import fs
import fs.memoryfs
import pytest
from fs import opener
from fs.opener.errors import NotWriteable, OpenerError

import capstore
from capstore.service import opener as module
from capstore.service.pyfs import CapstoreFS
from capstore.service.uri import CapabilityURI
from tests.service.support import ServiceUnderTest, running_service

TOKEN = "t" * 43
KEY = "k" * 43


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceUnderTest]:
    with running_service({"m": "memory:"}, tls=True) as service:
        yield service


@pytest.mark.parametrize(
    "uri",
    [
        CapabilityURI(TOKEN, socket="/run/capstore/socket"),
        CapabilityURI(TOKEN, socket="/run/a b/50%/x@y?z!#/söcket:1"),
        CapabilityURI(TOKEN, socket="/s", path=("a", "b c", "50%", "why?", "now!", "@home", "ü")),
        CapabilityURI(TOKEN, host="example.org", port=4000, fingerprint=KEY),
        CapabilityURI(TOKEN, host="::1", port=4000, fingerprint=KEY, path=("a",)),
        CapabilityURI(TOKEN, host="127.0.0.1", port=1, fingerprint=KEY, path=("a", "-", "b")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("inner", ["", "!", "!some/path"])
def test_every_form_arrives_as_it_is(
    monkeypatch: pytest.MonkeyPatch, uri: CapabilityURI, inner: str
) -> None:
    seen: list[CapabilityURI] = []

    class Stub(MemoryStub):
        def __init__(self, uri: CapabilityURI, **options: object) -> None:
            super().__init__()
            seen.append(uri)

    monkeypatch.setattr(module, "CapstoreFS", Stub)
    _, path = opener.open(f"{uri}{inner}")
    assert seen == [uri]
    assert (path or "") == inner[1:]


class MemoryStub(fs.memoryfs.MemoryFS):
    pass


def test_both_transports_read_and_write(service: ServiceUnderTest) -> None:
    for uri in (service.uri("m"), service.tls_uri("m")):
        with fs.open_fs(str(uri), writeable=True) as tree:
            assert isinstance(tree, CapstoreFS)
            tree.writetext("x", str(uri.host))
        with fs.open_fs(str(uri)) as tree:
            assert tree.readtext("x") == str(uri.host)
            tree.writetext("x", "")
            assert tree.getmeta()["read_only"] is False
        with capstore.open_fs(uri) as tree:
            tree.writetext("x", "y")


def test_create_makes_the_path(service: ServiceUnderTest) -> None:
    uri = str(service.uri("m").below(("new", "inner")))
    with pytest.raises(OpenerError, match="notFound"):
        fs.open_fs(uri, writeable=True)
    with fs.open_fs(uri, writeable=True, create=True) as tree:
        tree.writetext("x", "1")
    with fs.open_fs(uri, create=True) as tree:
        assert tree.readtext("x") == "1"


def test_what_cannot_be_opened_is_an_opener_error(service: ServiceUnderTest) -> None:
    uri = service.uri("m")
    with capstore.open_fs(uri) as tree:
        tree.writetext("file", "")
    wrong = [
        "capnp://nonsense",
        f"{uri}?x=y",
        str(uri.with_token(TOKEN)),
        str(CapabilityURI(TOKEN, socket="/nowhere")),
        str(uri.below(("file",))),
    ]
    for url in wrong:
        with pytest.raises(OpenerError) as caught:
            fs.open_fs(url)
        assert uri.token not in str(caught.value)
        assert TOKEN not in str(caught.value)


def test_a_read_only_capability_is_not_writeable(service: ServiceUnderTest) -> None:
    async def share() -> str:
        async with capstore.connect(service.uri("m")) as root:
            assert isinstance(root, capstore.Directory)
            return await (await root.read_only()).save()

    uri = service.uri("m").with_token(service.call(share()))
    with pytest.raises(NotWriteable):
        fs.open_fs(str(uri), writeable=True)
    with fs.open_fs(str(uri)) as tree:
        assert tree.listdir("/") is not None
