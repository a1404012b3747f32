"""Capability URIs: both forms, paths, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstore.schema.errors import InvalidArgument, InvalidName
from capstore.service.uri import CapabilityURI

TOKEN = "A" * 40 + "_-9"
PRINT = "f" * 43


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"capnp://insecure@/run/s/{TOKEN}", CapabilityURI(TOKEN, socket="/run/s")),
        (
            f"capnp://insecure@/run/a%20b/{TOKEN}/-/x/y",
            CapabilityURI(TOKEN, socket="/run/a b", path=("x", "y")),
        ),
        (
            f"capnp://sha-256:{PRINT}@example.org:7000/{TOKEN}",
            CapabilityURI(TOKEN, host="example.org", port=7000, fingerprint=PRINT),
        ),
        (
            f"capnp://sha-256:{PRINT}@[::1]:7000/{TOKEN}/-/a%2520b",
            CapabilityURI(TOKEN, host="::1", port=7000, fingerprint=PRINT, path=("a%20b",)),
        ),
        (f"capnp://insecure@/s/{TOKEN}/-/", CapabilityURI(TOKEN, socket="/s")),
        (f"capnp://insecure@/s/{TOKEN}/-", CapabilityURI(TOKEN, socket="/s")),
        (f"capnp://insecure@/s/{TOKEN}/", CapabilityURI(TOKEN, socket="/s")),
        (
            f"capnp://insecure@/s/{TOKEN}/-/a/-/{TOKEN}",
            CapabilityURI(TOKEN, socket="/s", path=("a", "-", TOKEN)),
        ),
    ],
)
def test_parse(text: str, expected: CapabilityURI) -> None:
    assert CapabilityURI.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "capnp://",
        f"http://insecure@/s/{TOKEN}",
        f"capnp://insecure@relative/{TOKEN}",
        f"capnp://insecure@/s/{TOKEN[:-1]}",
        f"capnp://insecure@/s/{TOKEN}x",
        f"capnp://sha-256:{PRINT[:-1]}@h:1/{TOKEN}",
        f"capnp://sha-256:{PRINT}@h/{TOKEN}",
        f"capnp://sha-256:{PRINT}@h:0/{TOKEN}",
        f"capnp://sha-256:{PRINT}@h:65536/{TOKEN}",
        f"capnp://sha-256:{PRINT}@/h:1/{TOKEN}",
        f"capnp://insecure@/s/{TOKEN}/a/b",
    ],
)
def test_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        CapabilityURI.parse(text)
    assert TOKEN[:-1] not in str(caught.value)


def test_nothing_leads_upwards() -> None:
    with pytest.raises(InvalidName):
        CapabilityURI.parse(f"capnp://insecure@/s/{TOKEN}/-/a/../b")


def test_repr_keeps_the_secret() -> None:
    uri = CapabilityURI.parse(f"capnp://insecure@/s/{TOKEN}/-/x")
    assert repr(uri) == "<CapabilityURI capnp://insecure@/s/AAAAAA.../-/x>"
    assert f"{uri!r}".count("A") == 6


names = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))


@given(path=st.lists(names, max_size=4), socket=st.lists(names, min_size=1, max_size=3))
def test_what_is_written_is_read(path: list[str], socket: list[str]) -> None:
    uri = CapabilityURI(TOKEN, socket="/" + "/".join(socket), path=tuple(path))
    assert CapabilityURI.parse(str(uri)) == uri
    tcp = CapabilityURI(TOKEN, host="h", port=1, fingerprint=PRINT, path=tuple(path))
    assert CapabilityURI.parse(str(tcp)) == tcp
