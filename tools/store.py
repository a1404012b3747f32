"""``capstore store``: the verbs for stores of objects."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from capstore.tools.parameters import JsonOption, QuietOption, block

if TYPE_CHECKING:
    from capstore.backers.store import Condition

store = typer.Typer(help="Put, get and list the objects of a store, and names for them.")
app = typer.Typer()
app.add_typer(store, name="store")

StoreArgument = Annotated[
    str, typer.Argument(metavar="LOCATION", help="A URI, @FILE or - of a store.")
]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="1 to 1024 bytes.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A name, or a path of names.")]
HexOption = Annotated[bool, typer.Option("--hex", help="Keys are hexadecimal, not text.")]
IfAbsentOption = Annotated[bool, typer.Option("--if-absent", help="Only where there is none.")]
IfVersionOption = Annotated[
    int | None,
    typer.Option(
        "--if-version", metavar="N", min=0, help="Only if it has this version.", show_default=False
    ),
]

_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})*")
_HASH = re.compile(r"[0-9A-Fa-f]{64}")


def _key(text: str, *, hexadecimal: bool) -> bytes:
    """The key that was typed: its very bytes, or what they say."""
    if not hexadecimal:
        return os.fsencode(text)
    if not _HEX.fullmatch(text):
        raise typer.BadParameter("--hex takes keys of pairs of hexadecimal digits")
    return bytes.fromhex(text)


def _condition(version: int | None, *, absent: bool = False) -> Condition:
    from capstore.backers.store import Condition

    if absent and version is not None:
        raise typer.BadParameter("--if-absent and --if-version exclude each other")
    return Condition(absent=absent, version=version)


@store.command(
    epilog=block(
        "Examples",
        "capstore store put @uris#objects models/a.bin a.bin",
        "tar c . | capstore store put @uris#objects backup.tar",
        "capstore store put --content @uris#objects photo.jpg",
    )
)
def put(
    location: StoreArgument,
    key: Annotated[
        str | None,
        typer.Argument(metavar="KEY", help="Not with --content.", show_default=False),
    ] = None,
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="A local file; default: stdin.", show_default=False),
    ] = None,
    content: Annotated[
        bool,
        typer.Option("--content", help="The key is the SHA-256 of the content: print it in hex."),
    ] = False,
    hexadecimal: HexOption = False,
    if_absent: IfAbsentOption = False,
    if_version: IfVersionOption = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Put an object, from a file or stdin.

    It appears, or replaces what was there, when it is complete and durable. A drop box chooses the
    end of the key itself: the key is printed then.

    --json: an object with key (null if it is no UTF-8), hex, size, version.
    """
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    if content:
        if file is not None or hexadecimal:
            raise typer.BadParameter("--content has no KEY: LOCATION [FILE]")
        key, file = None, key
    elif key is None:
        raise typer.BadParameter("KEY is missing; for its hash as the key use --content")
    source = "-" if file is None else file
    if source == location == "-":
        raise typer.BadParameter("stdin is either the content or the location")
    raw = b"" if key is None else _checked(_key(key, hexadecimal=hexadecimal))
    condition = _condition(if_version, absent=if_absent)
    wish = store_objects.Wish(raw, condition, hexadecimal=hexadecimal, json=json)
    run(store_objects.put(locate(location), source, wish, quiet=quiet))


def _checked(key: bytes) -> bytes:
    """A key that is typed is one: none at all would mean the hash of the content."""
    from capstore.backers.store import check_key

    return check_key(key)


@store.command(
    epilog=block(
        "Examples",
        "capstore store get @uris#objects models/a.bin a.bin",
        "capstore store get @uris#objects backup.tar | tar x",
    )
)
def get(
    location: StoreArgument,
    key: KeyArgument,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A local file; - is stdout.")] = "-",
    hexadecimal: HexOption = False,
    quiet: QuietOption = False,
) -> None:
    """Get an object, into a file or to stdout.

    FILE appears, or is replaced, when it is complete. What is written is one version: of an object
    that is replaced meanwhile the new one, or on stdout a failure (conflict).
    """
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    raw = _key(key, hexadecimal=hexadecimal)
    run(store_objects.get(locate(location), raw, file, quiet=quiet))


@store.command()
def has(location: StoreArgument, key: KeyArgument, hexadecimal: HexOption = False) -> None:
    """Succeed if there is such an object; else fail with notFound."""
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(store_objects.has(locate(location), _key(key, hexadecimal=hexadecimal)))


@store.command(epilog=block("Example", "capstore store rm @uris#objects --if-version 12 lock"))
def rm(
    location: StoreArgument,
    keys: Annotated[list[str], typer.Argument(metavar="KEY", help="One or more.")],
    hexadecimal: HexOption = False,
    if_version: IfVersionOption = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="No error if it is not there.")
    ] = False,
) -> None:
    """Remove objects."""
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    raw = [_key(key, hexadecimal=hexadecimal) for key in keys]
    if if_version is not None and len(raw) > 1:
        raise typer.BadParameter("--if-version is about one KEY")
    run(store_objects.rm(locate(location), raw, _condition(if_version), force=force))


@store.command(epilog=block("Examples", "capstore store ls -l @uris#objects models/"))
def ls(
    location: StoreArgument,
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Of the keys.", show_default=False)
    ] = "",
    long: Annotated[bool, typer.Option("--long", "-l", help="Size, version, time.")] = False,
    human: Annotated[bool, typer.Option("--human", help="Sizes with units.")] = False,
    hexadecimal: HexOption = False,
    json: JsonOption = False,
) -> None:
    """List objects, in the order of the keys' bytes.

    Bytes of keys that are no printable UTF-8 are escaped; --hex shows all keys in hexadecimal.

    --json: an array with key (null if it is no UTF-8), hex, size, version, created (ISO 8601 in
    UTC, null if not recorded), provenance.
    """
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    style = store_objects.Style(long=long, human=human, hexadecimal=hexadecimal, json=json)
    raw = _key(prefix, hexadecimal=hexadecimal)
    run(store_objects.ls(locate(location), raw, style))


@store.command()
def stats(location: StoreArgument, json: JsonOption = False) -> None:
    """Show how much is stored.

    --json: an object with objects, usedBytes, freeBytes, totalBytes (null if there is no bound),
    label.
    """
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(store_objects.stats(locate(location), json=json))


@store.command()
def compact(location: StoreArgument) -> None:
    """Give back the space of what was replaced or removed, while the store is in use."""
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(store_objects.compact(locate(location)))


@store.command(epilog=block("Example", "capstore store gc @uris#objects --older-than 7d"))
def gc(
    location: StoreArgument,
    older_than: Annotated[
        str, typer.Option(metavar="DURATION", help="Put last before that: 30m, 1h, 7d.")
    ] = "1h",
    json: JsonOption = False,
) -> None:
    """Remove objects that were put without a key and that no name stands for.

    Objects of the last hour are kept unless --older-than says otherwise: somebody may be about to
    bind a name to them. Objects with keys of their own always stay.

    --json: an object with objects, bytes.
    """
    from capstore.schema.errors import InvalidArgument
    from capstore.schema.sizes import parse_duration
    from capstore.tools import store_objects
    from capstore.tools.console import run
    from capstore.tools.location import locate

    try:
        seconds = parse_duration(older_than)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message) from error
    run(store_objects.gc(locate(location), seconds, json=json))


# Names -------------------------------------------------------------------------------------------


@store.command(
    epilog=block(
        "Examples",
        "hash=$(capstore store put --content @uris#objects app.img)",
        "capstore store bind @uris#objects releases/current $hash",
        "capstore store bind @uris#objects inbox --shared @inbox.uri",
    )
)
def bind(
    location: StoreArgument,
    name: NameArgument,
    digest: Annotated[
        str | None,
        typer.Argument(metavar="HASH", help="Of a content, in hexadecimal.", show_default=False),
    ] = None,
    reference: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="The id of a saved reference.", show_default=False),
    ] = None,
    shared: Annotated[
        str | None,
        typer.Option(metavar="LOCATION", help="A URI of the same service.", show_default=False),
    ] = None,
    if_absent: IfAbsentOption = False,
    if_version: IfVersionOption = None,
    json: JsonOption = False,
) -> None:
    """Have a name stand for a content, or for what a URI stands for.

    A content that has a name is not garbage (see gc). Whoever may resolve a name that stands for a
    URI gets what that gives.

    --json: an object with name and version.
    """
    from capstore.tools import store_names
    from capstore.tools.console import run
    from capstore.tools.location import locate

    if digest is not None and not _HASH.fullmatch(digest):
        raise typer.BadParameter("HASH has 64 hexadecimal digits")
    targets: list[store_names.Target | None] = [
        bytes.fromhex(digest) if digest is not None else None,
        reference,
        locate(shared) if shared is not None else None,
    ]
    given = [target for target in targets if target is not None]
    if len(given) != 1:
        raise typer.BadParameter("a name stands for one thing: HASH, --reference or --shared")
    condition = _condition(if_version, absent=if_absent)
    run(store_names.bind(locate(location), name, given[0], condition, json=json))


@store.command()
def unbind(location: StoreArgument, name: NameArgument, if_version: IfVersionOption = None) -> None:
    """Remove a name; what it stands for stays."""
    from capstore.tools import store_names
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(store_names.unbind(locate(location), name, _condition(if_version)))


@store.command(
    epilog=block(
        "Example",
        "capstore store get --hex @uris#objects $(capstore store resolve @uris#objects current)",
    )
)
def resolve(location: StoreArgument, name: NameArgument, json: JsonOption = False) -> None:
    """Print what a name stands for: a hash in hexadecimal, or "reference N".

    --json: an object as in names.
    """
    from capstore.tools import store_names
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(store_names.resolve(locate(location), name, json=json))


@store.command()
def names(
    location: StoreArgument,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Below these names.", show_default=False)
    ] = "",
    json: JsonOption = False,
) -> None:
    """List names and what they stand for, in the order of their bytes.

    --json: an array with name, version, and hash (hexadecimal) or reference (the other is null).
    """
    from capstore.tools import store_names
    from capstore.tools.console import run
    from capstore.tools.location import locate

    run(store_names.names(locate(location), path, json=json))
