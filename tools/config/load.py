"""``capstore.toml``: what it may say, read and checked as a whole before anything is opened.

Invariants:

* All that is wrong is told at once, each problem with its key and its line.
* Paths are relative to the folder of the file: whoever loads it works in that folder.
* No volume holds the service's own secrets, and none that may be written the file itself: who
  writes there would say what is served at the next start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from capstore.backers.overlay_spec import leaves as composed_of
from capstore.backers.spec_text import Spec
from capstore.schema.errors import Denied, InvalidArgument, StorageError, Unsupported
from capstore.schema.limits import LABEL_BYTES_MAX
from capstore.schema.sizes import parse_duration
from capstore.service.policy import Policy
from capstore.service.shares import StandingShare
from capstore.service.uri import split_path
from capstore.tools.config.document import Document, Problem, Table, hint
from capstore.tools.config.lines import Path as KeyPath
from capstore.tools.config.service import (
    file_at,
    listen_at,
    log_level_at,
    observe_at,
    sandbox_at,
)
from capstore.tools.config.specs import may_write
from capstore.tools.config.volumes import Leaf, Part, Volumes, within
from capstore.tools.confine import Sandbox, reached
from capstore.tools.observing import ObserveOptions
from capstore.tools.serving import VOLUME_NAME, refuse_own_secrets
from capstore.tools.terms import TERMS, TermError, read_terms

__all__ = ["Config", "ConfigError", "load"]

STATE: Final = "capstore-data"
_NOTHING_TYPED: Final = ObserveOptions()


class ConfigError(Exception):
    """A configuration that makes no sense; `problems` are in the order of lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problems")
        self.problems = sorted(problems)


@dataclass(frozen=True, slots=True)
class Config:
    """What a configuration says.

    `volumes` has all volumes by name, `served` the names of those that are served; `lines` tells
    the line of a key.
    """

    file: Path
    state: Path
    listen: Sequence[str]
    uri_file: Path | None
    log_level: str
    observe: ObserveOptions
    sandbox: Sandbox
    volumes: Volumes
    served: Sequence[str]
    shares: Sequence[StandingShare]
    document: Document

    @property
    def served_leaves(self) -> list[Leaf]:
        """The specifications that what is served is made of."""
        found: dict[KeyPath, Leaf] = {}
        for name in self.served:
            if (part := self.volumes.parts.get(name)) is not None:
                found.update((leaf.at, leaf) for leaf in self.volumes.leaves(part))
        return list(found.values())

    @property
    def leaves(self) -> list[Spec]:
        """What the volumes that are served are made of."""
        return [spec for leaf in self.served_leaves for spec in composed_of(leaf.text)]

    def place(self, at: KeyPath) -> str:
        """Where a key stands: the file and the line."""
        return f"{self.file.name}:{self.document.line(at)}"


def load(
    raw: bytes,
    file: Path,
    *,
    state: Path | None = None,
    uri_file: Path | None = None,
    observe: ObserveOptions = _NOTHING_TYPED,
    sandbox: Sandbox = Sandbox.OFF,
) -> Config:
    """The configuration in `raw`, which is what `file` holds; `state`, `uri_file`, `observe` and
    `sandbox` are what was typed, and stand before what it says.  Looks at the disk, opens nothing.

    Raises `ConfigError`.
    """
    document = Document(raw)
    if not document.readable:
        raise ConfigError(document.problems)
    typed = _Typed(state, uri_file, observe, sandbox)
    config = _read(document, file, typed)
    if document.problems:
        raise ConfigError(document.problems)
    return config


class _Typed(NamedTuple):
    """What was typed."""

    state: Path | None
    uri_file: Path | None
    observe: ObserveOptions
    sandbox: Sandbox


def _read(document: Document, file: Path, typed: _Typed) -> Config:
    top = document.top
    state, uri_file = file_at(top, "state", STATE), file_at(top, "uri-file", "")
    listen, log_level = listen_at(top), log_level_at(top)
    observe, sandbox = observe_at(top, typed.observe), sandbox_at(top, typed.sandbox)
    volumes = _volumes(top)
    served = _served(top, volumes)
    shares = [_share(table, served, volumes) for table in top.tables("share")]
    if observe.audit is None:
        _refuse_traced(top.tables("share"))
    _refuse_repeated(top.tables("share"), served)
    top.finish()
    if volumes.sound:
        volumes.check_uses()
    config = Config(
        file,
        typed.state or Path(state),
        listen,
        typed.uri_file or (Path(uri_file) if uri_file else None),
        log_level,
        observe,
        sandbox,
        volumes,
        served,
        shares,
        document,
    )
    _refuse_secrets(config)
    _refuse_in_sandbox(config)
    return config


# What is served ----------------------------------------------------------------------------------


def _volumes(top: Table) -> Volumes:
    top.need("volumes", dict, {})
    if top.value("volumes") == {}:
        top.problem("volumes", "names no volume")
    table = top.table("volumes")
    for name in table.keys:
        if not VOLUME_NAME.fullmatch(name):
            table.problem(name, 'cannot name a volume (letters, digits, ".", "_", "-")')
    return Volumes(table)


def _served(top: Table, volumes: Volumes) -> list[str]:
    """The names of the volumes that are served."""
    serve = top.table("serve")
    texts = serve.strings("volumes")
    serve.finish()
    if "volumes" not in serve:
        return volumes.tops
    if serve.value("volumes") == []:
        serve.problem("volumes", "names no volume")
    served: list[str] = []
    for path, name in texts:
        if name in served:
            top.document.problem(path, f'"{name}" is there already')
        elif volumes.use(name, path):
            served.append(name)
    return served


# What is shared ----------------------------------------------------------------------------------


def _share(table: Table, served: Sequence[str], volumes: Volumes) -> StandingShare:
    share = StandingShare(
        label=_label(table),
        volume=_shared_volume(table, served),
        path=_path(table),
        read_only=table.get("read-only", bool, False),
        lifetime=_lifetime(table),
        more=_more(table),
    )
    table.finish()
    part = volumes.parts.get(share.volume)
    if share.path and isinstance(part, Leaf) and part.is_store:
        table.problem("path", "leads nowhere: a store of objects is shared as a whole")
    return share


def _label(table: Table) -> str:
    label = table.need("label", str, "")
    if "label" in table and not label:
        table.problem("label", "is empty")
    if len(label.encode()) > LABEL_BYTES_MAX or not label.isprintable():
        table.problem("label", f"is at most {LABEL_BYTES_MAX} bytes of printable text")
    return label


def _shared_volume(table: Table, served: Sequence[str]) -> str:
    name = table.need("volume", str, "")
    if name and name not in served:
        table.problem("volume", f'"{name}" is not served: {hint(name, served)}')
    return name


def _path(table: Table) -> tuple[str, ...]:
    text = table.get("path", str, "/")
    if not text.startswith("/"):
        table.problem("path", f'"{text}" is no path from the root: it begins with "/"')
        return ()
    try:
        return split_path(text)
    except StorageError as error:
        table.problem("path", f"is no path: {error.message}")
        return ()


def _lifetime(table: Table) -> int:
    """In ns; 0 for ever."""
    text = table.get("expires", str, "")
    if "expires" not in table or not isinstance(table.value("expires"), str):
        return 0
    try:
        lifetime = int(parse_duration(text) * 1e9)
    except InvalidArgument as error:
        table.problem("expires", error.message)
        return 0
    if not lifetime:
        table.problem("expires", "it would expire at once")
    if time.time_ns() + lifetime >= 2**63:
        table.problem("expires", "that is too far in the future")
    return lifetime


def _more(table: Table) -> Policy:
    """What else is taken away, under the names of the options of ``capstore share``."""
    typed: dict[str, str | Sequence[str] | bool | None] = {}
    for term in TERMS:
        value = table.value(term.key)
        if term.key == "hide":
            typed["hide"] = [text for _, text in table.strings("hide")]
        elif term.parse is None:
            typed[term.key] = table.get(term.key, bool, False)
        elif isinstance(value, int) and not isinstance(value, bool):
            # A bound may be written as a number, and a size as `share` takes it.
            typed[term.key] = str(value)
        else:
            typed[term.key] = table.get(term.key, str, "") or None
    try:
        return read_terms(typed)
    except TermError as error:
        table.problem(error.key, error.message)
        return Policy()


def _refuse_traced(tables: Sequence[Table]) -> None:
    """Without an audit nothing would be traced."""
    for table in tables:
        if table.value("traced") is True:
            table.problem("traced", "nothing is recorded without audit")


def _refuse_repeated(tables: Sequence[Table], served: Sequence[str]) -> None:
    """Labels tell URIs apart, as the names of volumes do."""
    lines: dict[str, int] = {}
    for table in tables:
        label = table.value("label")
        if not isinstance(label, str):
            continue
        if label in served:
            table.problem("label", f'"{label}" is what a volume is called')
        if label in lines:
            table.problem("label", f'"{label}" is on line {lines[label]} already')
        lines.setdefault(label, table.document.line(table.at("label")))


# What must not be served -------------------------------------------------------------------------


def _refuse_secrets(config: Config) -> None:
    own = (config.state, config.uri_file, config.observe.file)
    secrets = [path for path in own if path is not None]
    for part in config.volumes.parts.values():
        for leaf in _written_leaves(part):
            try:
                refuse_own_secrets(leaf.text, secrets)
            except Denied as error:
                config.document.problem(leaf.at, error.message)
            if may_write(leaf.spec) and _holds(leaf.text, config.file):
                config.document.problem(
                    leaf.at, f'"{leaf.text}" would hold this file itself: ",ro", or elsewhere'
                )


def _holds(spec_text: str, file: Path) -> bool:
    """Whether the file is within the volume, or a link on the way to it is."""
    try:
        refuse_own_secrets(spec_text, [file, *file.parents])
    except Denied:
        return True
    return False


def _refuse_in_sandbox(config: Config) -> None:
    """Complains of what cannot be in the sandbox, where there is one."""
    if config.sandbox is Sandbox.OFF or not config.volumes.sound:
        return
    for leaf in config.served_leaves:
        try:
            reached(composed_of(leaf.text))
        except Unsupported as error:
            config.document.problem(leaf.at, error.message)


def _written_leaves(part: Part) -> list[Leaf]:
    """The specifications that are written within a part, none of those that it names."""
    if isinstance(part, Leaf):
        return [part]
    return [leaf for below in within(part) for leaf in _written_leaves(below)]
