"""Operations with marks on CAPOSWF1 beside a model in dicts, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from capstore.images import wf1, wf1_engine, wf1_marks
from capstore.images.wf1_marks import Mark, mark_of
from capstore.images.wf1_state import Node
from capstore.schema.errors import (
    AlreadyExists,
    InvalidArgument,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    NotFound,
    StorageError,
)
from tests.images.wf1marks import LIKE, again, opened
from tests.images.wf1model import new_device, read

NO_MARK = Mark()


@dataclass(eq=False)
class Model:
    """A node; `kind` is one of file, link, directory, whiteout."""

    kind: str
    content: bytes = b""
    mark: Mark = NO_MARK
    entries: dict[str, Model] = field(default_factory=dict)
    # How often it changed: silent operations leave that.
    changes: int = 0


class Refused(Exception):
    """What the model says to an operation."""

    def __init__(self, error: type[StorageError]) -> None:
        super().__init__(error)
        self.error = error


KINDS = {
    wf1.FILE: "file",
    wf1.SYMLINK: "link",
    wf1.DIRECTORY: "directory",
    wf1.WHITEOUT: "whiteout",
}
NAMES = st.sampled_from("abc")
PATHS = st.sampled_from(["", "", "a", "b", "a/b"])
REDIRECTS = st.sampled_from(["", "x", "x/ä"])
MARKS = st.builds(Mark, st.booleans(), REDIRECTS, st.integers(0, 3), st.just(0))
COPIES = st.builds(Mark, st.just(False), st.just(""), st.integers(1, 1 << 63), st.integers(0, 2))


class Marks(RuleBasedStateMachine):
    """An engine and its model."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = opened(new_device(None))
        self.root = Model("directory")
        # How often directories had changed when they had which version.
        self.versions: dict[Model, tuple[int, int]] = {}

    # Both ----------------------------------------------------------------------------------------

    def both(self, real: Callable[[], object], model: Callable[[], None]) -> None:
        wanted: type[StorageError] | None = None
        try:
            model()
        except Refused as refused:
            wanted = refused.error
        if wanted is None:
            real()
        else:
            with pytest.raises(wanted):
                real()

    def at(self, path: str) -> tuple[int, Model] | None:
        number, model = wf1.ROOT, self.root
        for name in path.split("/") if path else ():
            below = model.entries.get(name)
            if below is None or below.kind != "directory":
                return None
            number, model = self.engine.state.child(number, name), below
        return number, model

    def entry(self, model: Model, name: str) -> Model:
        found = model.entries.get(name)
        if found is None or found.kind == "whiteout":
            raise Refused(NotFound)
        return found

    def free(self, model: Model, name: str, *, silent: bool = False) -> None:
        found = model.entries.get(name)
        if found is not None and (silent or found.kind != "whiteout"):
            raise Refused(AlreadyExists)

    def put(self, model: Model, name: str, node: Model | None, *, silent: bool = False) -> None:
        if node is None:
            del model.entries[name]
        else:
            model.entries[name] = node
        model.changes += not silent

    # Names ---------------------------------------------------------------------------------------

    @rule(path=PATHS, name=NAMES, kind=st.sampled_from(["file", "link", "directory", "whiteout"]))
    def make(self, path: str, name: str, kind: str) -> None:
        if (found := self.at(path)) is None:
            return
        number, model = found
        engine = self.engine
        real: dict[str, Callable[[], object]] = {
            "file": lambda: engine.create(number, name),
            "link": lambda: engine.symlink(number, name, "target"),
            "directory": lambda: engine.mkdir(number, name),
            "whiteout": lambda: engine.cover(number, name),
        }

        def made() -> None:
            self.free(model, name)
            mark = Mark(opaque=kind == "directory" and name in model.entries)
            self.put(model, name, Model(kind, b"target" if kind == "link" else b"", mark))

        self.both(real[kind], made)

    @rule(path=PATHS, name=NAMES, to=PATHS, new_name=NAMES)
    def link(self, path: str, name: str, to: str, new_name: str) -> None:
        found, goal = self.at(path), self.at(to)
        if found is None or goal is None:
            return

        def linked() -> None:
            node = self.entry(found[1], name)
            if node.kind == "directory":
                raise Refused(IsDirectory)
            self.free(goal[1], new_name)
            self.put(goal[1], new_name, node)

        self.both(lambda: self.engine.link(found[0], name, goal[0], new_name), linked)

    @rule(path=PATHS, name=NAMES, cover=st.booleans())
    def remove(self, path: str, name: str, *, cover: bool) -> None:
        if (found := self.at(path)) is None:
            return
        number, model = found

        def removed() -> None:
            self.check_empty(self.entry(model, name))
            self.put(model, name, Model("whiteout") if cover else None)

        self.both(lambda: self.engine.remove(number, name, cover=cover), removed)

    def check_empty(self, node: Model) -> None:
        if any(inside.kind != "whiteout" for inside in node.entries.values()):
            raise Refused(NotEmpty)

    @rule(
        path=PATHS,
        name=NAMES,
        to=PATHS,
        new_name=NAMES,
        cover=st.booleans(),
        mark=st.none() | MARKS,
    )
    def rename(
        self, path: str, name: str, to: str, new_name: str, *, cover: bool, mark: Mark | None
    ) -> None:
        found, goal = self.at(path), self.at(to)
        if found is None or goal is None:
            return

        def renamed() -> None:
            node = self.entry(found[1], name)
            there = goal[1].entries.get(new_name)
            if there is node:
                return
            self.check_outside(goal[1], node)
            if there is not None and there.kind != "whiteout":
                if node.kind == "directory" and there.kind != "directory":
                    raise Refused(NotDirectory)
                if node.kind != "directory" and there.kind == "directory":
                    raise Refused(IsDirectory)
                self.check_empty(there)
            self.put(found[1], name, Model("whiteout") if cover else None)
            self.put(goal[1], new_name, node, silent=found[1] is goal[1])
            self.moved(node, mark)

        self.both(
            lambda: self.engine.rename(found[0], name, goal[0], new_name, cover=cover, mark=mark),
            renamed,
        )

    def moved(self, node: Model, mark: Mark | None) -> None:
        if node.kind == "directory" and mark is not None:
            node.mark = mark

    def check_outside(self, goal: Model, node: Model) -> None:
        if node is goal or goal in list(below(node)):
            raise Refused(InvalidArgument)

    @rule(
        path=PATHS,
        name=NAMES,
        to=PATHS,
        new_name=NAMES,
        mark=st.none() | MARKS,
        new_mark=st.none() | MARKS,
    )
    def exchange(
        self,
        path: str,
        name: str,
        to: str,
        new_name: str,
        mark: Mark | None,
        new_mark: Mark | None,
    ) -> None:
        found, goal = self.at(path), self.at(to)
        if found is None or goal is None:
            return

        def exchanged() -> None:
            node, other = self.entry(found[1], name), self.entry(goal[1], new_name)
            if node is other:
                return
            self.check_outside(goal[1], node)
            self.check_outside(found[1], other)
            self.put(found[1], name, other)
            self.put(goal[1], new_name, node, silent=found[1] is goal[1])
            self.moved(node, mark)
            self.moved(other, new_mark)

        self.both(
            lambda: self.engine.exchange(
                found[0], name, goal[0], new_name, mark=mark, new_mark=new_mark
            ),
            exchanged,
        )

    # Copies --------------------------------------------------------------------------------------

    @rule(path=PATHS, name=NAMES, mark=COPIES, checkpoint=st.booleans())
    def copy_file(self, path: str, name: str, mark: Mark, *, checkpoint: bool) -> None:
        if (found := self.at(path)) is None:
            return
        number, model = found
        engine, content = self.engine, name.encode() * 70_000
        file = engine.copy_up.unnamed()
        engine.hold(file)
        engine.write(file, 0, content)
        if checkpoint:
            engine.checkpoint()

        def copied() -> None:
            self.free(model, name, silent=True)
            self.put(model, name, Model("file", content, mark), silent=True)

        self.both(lambda: engine.copy_up.name(file, number, name, LIKE, mark), copied)
        engine.release(file)

    @rule(path=PATHS, name=NAMES, mark=COPIES)
    def copy_link(self, path: str, name: str, mark: Mark) -> None:
        if (found := self.at(path)) is None:
            return
        number, model = found

        def copied() -> None:
            self.free(model, name, silent=True)
            self.put(model, name, Model("link", b"t", mark), silent=True)

        self.both(lambda: self.engine.copy_up.symlink(number, name, "t", LIKE, mark), copied)

    @rule(path=PATHS, name=NAMES, mark=MARKS)
    def copy_directory(self, path: str, name: str, mark: Mark) -> None:
        if (found := self.at(path)) is None:
            return
        number, model = found

        def copied() -> None:
            self.free(model, name, silent=True)
            self.put(model, name, Model("directory", mark=mark), silent=True)

        self.both(lambda: self.engine.copy_up.directory(number, name, LIKE, mark), copied)

    @rule(path=PATHS, name=NAMES, to=PATHS, new_name=NAMES)
    def adopt(self, path: str, name: str, to: str, new_name: str) -> None:
        found, goal = self.at(path), self.at(to)
        node = found and found[1].entries.get(name)
        if found is None or goal is None or not node:
            return

        def adopted() -> None:
            if not node.mark.below:
                raise Refused(NotFound)
            self.free(goal[1], new_name, silent=True)
            self.put(goal[1], new_name, node, silent=True)
            node.mark = node.mark._replace(below=node.mark.below - 1)

        number = self.engine.state.child(found[0], name)
        self.both(lambda: self.engine.copy_up.adopt(number, goal[0], new_name), adopted)

    @rule(path=PATHS, mark=MARKS)
    def set_mark(self, path: str, mark: Mark) -> None:
        if (found := self.at(path)) is not None:
            self.engine.copy_up.set_mark(found[0], mark)
            found[1].mark = mark

    # Beside them ---------------------------------------------------------------------------------

    @rule()
    def checkpoint(self) -> None:
        self.engine.checkpoint()

    @rule()
    def reopen(self) -> None:
        self.engine.sync()
        self.engine = again(self.engine)

    @rule()
    def reset(self) -> None:
        self.engine.reset()
        self.root = Model("directory", changes=self.root.changes + 1)

    @invariant()
    def same(self) -> None:
        numbers: dict[Model, int] = {}
        self.compare(self.root, wf1.ROOT, numbers)
        names: dict[Model, int] = {}
        for node in below(self.root):
            names[node] = names.get(node, 0) + 1
        for node, count in names.items():
            found = self.node(numbers[node])
            assert found.names == count
            assert found.links == count + bool(node.mark.below)

    def node(self, number: int) -> Node:
        found = self.engine.state.node(number)
        assert found is not None
        return found

    def compare(self, model: Model, number: int, numbers: dict[Model, int]) -> None:
        assert numbers.setdefault(model, number) == number
        node = self.node(number)
        assert KINDS[node.kind] == model.kind
        assert mark_of(node) == model.mark
        if model.kind == "file":
            assert read(self.engine, self.engine.state, number) == model.content
        elif model.kind == "link":
            assert node.target.encode() == model.content
        elif model.kind == "directory":
            changes, version = self.versions.get(model, (-1, -1))
            assert (changes == model.changes) == (version == node.version)
            self.versions[model] = (model.changes, node.version)
        names = dict(self.engine.state.names_behind(number)) if node.is_directory else {}
        assert names.keys() == model.entries.keys()
        for name, child in names.items():
            self.compare(model.entries[name], child, numbers)


def below(node: Model) -> list[Model]:
    """Everything below it, as often as it has names there."""
    found = list(node.entries.values())
    for entry in node.entries.values():
        found += below(entry)
    return found


@pytest.mark.parametrize("at_once", [1, wf1_marks.WHITEOUTS_AT_ONCE_MAX])
def test_operations_in_any_order(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    for module in (wf1_marks, wf1_engine):
        monkeypatch.setattr(module, "WHITEOUTS_AT_ONCE_MAX", at_once)
    # A workload of its own each time: what fails is printed, and fails again.
    run_state_machine_as_test(
        Marks, settings=settings(max_examples=40, stateful_step_count=30, deadline=None)
    )
