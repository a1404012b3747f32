"""Trees as values: pushed into a builder, and read back out of an open image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import strategies as st

from capstore.images.builder import Facts, TreeBuilder
from capstore.images.tree import Content, ImageTree
from capstore.schema.errors import InvalidName
from capstore.schema.names import check_name
from capstore.schema.nodes import NodeKind, Provenance

PLAIN = Facts()


@dataclass(frozen=True)
class File:
    """A file; `content` may also be given as its pieces."""

    content: bytes = b""
    facts: Facts = PLAIN


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str
    facts: Facts = PLAIN


@dataclass(frozen=True)
class Hard:
    """Another name of the file at `path`, which comes before in a walk."""

    path: tuple[str, ...]


@dataclass(frozen=True)
class Folder:
    """A directory."""

    entries: Mapping[str, File | Link | Hard | Folder] = field(default_factory=dict)
    facts: Facts = PLAIN


def push(builder: TreeBuilder, tree: Folder) -> None:
    """Builds the image of `tree`, whose order is that of the names' bytes."""
    _push(builder, (), tree)
    builder.finish()


def _push(builder: TreeBuilder, path: tuple[str, ...], node: File | Link | Hard | Folder) -> None:
    if isinstance(node, Folder):
        builder.directory(path, node.facts)
        for name in sorted(node.entries, key=str.encode):
            _push(builder, (*path, name), node.entries[name])
    elif isinstance(node, File):
        builder.begin_file(path, node.facts, len(node.content))
        half = len(node.content) // 2
        builder.write(node.content[:half])
        builder.write(node.content[half:])
        builder.end_file()
    elif isinstance(node, Link):
        builder.symlink(path, node.facts, node.target)
    else:
        builder.link(path, node.path)


def read_all(content: Content, step: int = 1 << 20) -> bytes:
    """The whole of a file."""
    data = bytearray(content.size)
    offset = 0
    while offset < content.size:
        view = memoryview(data)[offset : offset + step]
        got = content.read_into(offset, view)
        assert got == len(view)
        offset += got
    return bytes(data)


def shown(tree: ImageTree, directory: int | None = None) -> Folder:
    """What an open image shows, with hard links as files of their own."""
    directory = tree.root if directory is None else directory
    entries: dict[str, File | Link | Hard | Folder] = {}
    after, more = "", True
    while more:
        page = tree.list(directory, after, 3)
        for entry in page.entries:
            assert tree.lookup(directory, entry.name) == entry
            entries[entry.name] = _shown_entry(tree, entry.stat.node_id, entry.target)
        more = page.more
        after = page.entries[-1].name if page.entries else ""
    return Folder(entries, facts_of(tree, directory))


def _shown_entry(tree: ImageTree, node: int, target: str | None) -> File | Link | Hard | Folder:
    stat = tree.stat(node)
    if stat.kind is NodeKind.DIRECTORY:
        return shown(tree, node)
    if stat.kind is NodeKind.SYMLINK:
        assert target is not None
        return Link(target, facts_of(tree, node))
    content = read_all(tree.content(node))
    assert len(content) == stat.size
    return File(content, facts_of(tree, node))


def facts_of(tree: ImageTree, node: int) -> Facts:
    stat = tree.stat(node)
    return Facts(stat.modified, stat.created, stat.provenance, stat.executable)


def without_hard_links(tree: Folder) -> Folder:
    """`tree` with a file of its own for each name."""

    def resolve(node: File | Link | Hard | Folder) -> File | Link | Folder:
        if isinstance(node, Hard):
            at: File | Link | Hard | Folder = tree
            for name in node.path:
                assert isinstance(at, Folder)
                at = at.entries[name]
            return resolve(at)
        if isinstance(node, Folder):
            return Folder({name: resolve(n) for name, n in node.entries.items()}, node.facts)
        return node

    found = resolve(tree)
    assert isinstance(found, Folder)
    return found


# Strategies --------------------------------------------------------------------------------------


def _is_name(name: str) -> bool:
    try:
        return bool(check_name(name))
    except InvalidName:
        return False


NAMES = st.text(min_size=1, max_size=12).filter(_is_name) | st.sampled_from(
    ["a", "b", "ab", "abc", "abcd", "abcde", "abcdf", "ä", "z" * 255]
)
TIMES = st.integers(-(2**62), 2**62)


@st.composite
def _facts(draw: st.DrawFn) -> Facts:
    provenance = draw(st.sampled_from(Provenance))
    if provenance is Provenance.UNKNOWN:
        return Facts(executable=draw(st.booleans()))
    return Facts(draw(TIMES), draw(TIMES), provenance, draw(st.booleans()))


FACTS = _facts()
_CONTENTS = st.binary(max_size=100) | st.builds(
    lambda piece, times, zeros: piece * times + bytes(zeros),
    st.binary(min_size=1, max_size=3),
    st.integers(0, 70_000),
    st.sampled_from([0, 1, 65_536, 200_000]),
)
_LEAVES = st.builds(File, _CONTENTS, FACTS) | st.builds(
    Link,
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1),
    FACTS,
)
TREES = st.recursive(
    st.builds(Folder, st.just({}), FACTS),
    lambda children: st.builds(
        Folder, st.dictionaries(NAMES, children | _LEAVES, max_size=6), FACTS
    ),
    max_leaves=12,
)
