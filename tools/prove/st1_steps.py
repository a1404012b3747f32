"""The steps of CAPOSST1 workloads, done by the model and by the engine.

Keys are words: `a`, `b/c`; `long` is one of 1,024 bytes, and `h-300-4` the SHA-256 of 300 bytes
with the number 4.  Values are a length and a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from capstore.images import st1_names
from capstore.images.st1_collect import Collecting
from capstore.images.st1_engine import St1Engine
from capstore.images.st1_sink import Writing
from capstore.schema.errors import NotFound, StorageError
from capstore.schema.limits import KEY_BYTES_MAX
from capstore.schema.objects import ANY, Binding, Change, Condition, Delete, Put
from capstore.tools.prove.st1_model import Model, Sink
from capstore.tools.prove.subject import Refused
from capstore.tools.prove.workload import Step, content

LONG: Final = "long"
# No store of a workload has given it.
NO_VERSION: Final = 10**9
_ABSENT: Final = Condition(absent=True)
# In a batch: a key that is to go, and content that is put under its hash.
_GOES: Final = "-"
_HASHED: Final = "#"

# Steps that change nothing to see: those of compaction among them.
KEEPING: Final = frozenset(("sync", "commit", "compact", "step", "work", "begin", "piece", "abort"))
# Those behind which everything before them is durable.
DURABLE: Final = frozenset(("sync", "compact"))


def key_of(word: str) -> bytes:
    """The key that a word stands for."""
    head, *numbers = word.split("-")
    if head == "h" and len(numbers) == 2:
        return hashlib.sha256(content(int(numbers[1]), int(numbers[0]))).digest()
    return word.encode().ljust(KEY_BYTES_MAX, b".") if word.startswith(LONG) else word.encode()


def value_of(step: Step, at: int = 0) -> bytes:
    """What a step puts; the numbers of it begin `at`."""
    size, number = step.numbers[at : at + 2]
    return content(number, size)


def _changes(step: Step) -> Iterator[tuple[str, bytes | None]]:
    """The changes of a batch: words, with values for what is put."""
    at = 0
    for word in step.paths:
        if word.startswith(_GOES):
            yield word[1:], None
        else:
            yield word, value_of(step, at)
            at += 2


def changes_of(step: Step) -> list[Change]:
    """The changes of a batch, for a store."""
    return [
        Delete(key_of(word))
        if value is None
        else Put(b"" if word == _HASHED else key_of(word), value)
        for word, value in _changes(step)
    ]


# On the model ------------------------------------------------------------------------------------


def _batch(model: Model, step: Step) -> None:
    after = model.copy()
    for word, value in _changes(step):
        if value is None:
            after.delete(key_of(word))
        else:
            after.put(b"" if word == _HASHED else key_of(word), value)
    model.objects, model.version = after.objects, after.version


def _version(model: Model, word: str) -> int:
    found = model.objects.get(key_of(word))
    return NO_VERSION if found is None else found.version


def _begin(model: Model, step: Step) -> None:
    key = key_of(step.paths[0]) if step.paths else b""
    absent = bool(step.numbers)
    if absent and key in model.objects:
        raise Refused(step.paths[0])
    model.sinks += (Sink(key, absent),)


def _last(model: Model) -> Sink:
    if not model.sinks:
        raise Refused("no put has begun")
    return model.sinks[-1]


def _piece(model: Model, step: Step) -> None:
    last = _last(model)
    more = Sink(last.key, last.absent, last.value + value_of(step))
    model.sinks = (*model.sinks[:-1], more)


def _finish(model: Model, _: Step) -> None:
    last = _last(model)
    model.put(last.key, last.value, absent=last.absent)
    model.sinks = model.sinks[:-1]


def _abort(model: Model, _: Step) -> None:
    _last(model)
    model.sinks = model.sinks[:-1]


_MODEL: Final[dict[str, Callable[[Model, Step], object]]] = {
    "put": lambda m, s: m.put(key_of(s.paths[0]), value_of(s)),
    "hashed": lambda m, s: m.put(b"", value_of(s)),
    "create": lambda m, s: m.put(key_of(s.paths[0]), value_of(s), absent=True),
    "update": lambda m, s: m.put(key_of(s.paths[0]), value_of(s), version=_version(m, s.paths[0])),
    "stale": lambda m, s: m.put(key_of(s.paths[0]), value_of(s), version=NO_VERSION),
    "delete": lambda m, s: m.delete(key_of(s.paths[0])),
    "delete-at": lambda m, s: m.delete(key_of(s.paths[0]), version=_version(m, s.paths[0])),
    "delete-stale": lambda m, s: m.delete(key_of(s.paths[0]), version=NO_VERSION),
    "batch": _batch,
    "begin": _begin,
    "piece": _piece,
    "finish": _finish,
    "abort": _abort,
    "bind": lambda m, s: m.bind(s.paths[0], key_of(s.paths[1]), absent=bool(s.numbers)),
    "refer": lambda m, s: m.bind(s.paths[0], s.numbers[0]),
    "unbind": lambda m, s: m.unbind(s.paths[0]),
    "sweep": lambda m, s: m.sweep(),
}
_NOTHING: Final = frozenset(("sync", "commit", "compact", "step", "work"))


def to_model(model: Model, step: Step) -> Sequence[Model]:
    """Does the step on a model; what there was in between.  Raises `Refused`."""
    if step.op == "collect":
        if model.collection is not None:
            raise Refused("there is another")
        between = []
        while model.sweep():
            between.append(model.copy())
        return between
    if step.op not in _NOTHING:
        _MODEL[step.op](model, step)
    return ()


# On the engine -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Held:
    """What goes on in a process: puts in pieces, a compaction and a collection in steps."""

    sinks: list[Writing] = field(default_factory=list)
    compacting: Iterator[None] | None = None
    collecting: Iterator[None] | None = None


_HELD: Final[WeakKeyDictionary[St1Engine, Held]] = WeakKeyDictionary()


def held(engine: St1Engine) -> Held:
    """What steps on `engine` have begun."""
    return _HELD.setdefault(engine, Held())


def _now() -> int:
    """Later than anything was put."""
    return 1 << 62


def _sink(engine: St1Engine) -> Writing:
    sinks = held(engine).sinks
    if not sinks:
        raise NotFound("no put has begun")
    return sinks[-1]


def _begin_put(engine: St1Engine, step: Step) -> None:
    key = key_of(step.paths[0]) if step.paths else b""
    held(engine).sinks.append(engine.begin(key, _ABSENT if step.numbers else ANY))


def _finish_put(engine: St1Engine) -> None:
    _sink(engine).commit()
    held(engine).sinks.pop()


def _abort_put(engine: St1Engine) -> None:
    _sink(engine).abort()
    held(engine).sinks.pop()


def _at(engine: St1Engine, word: str) -> Condition:
    try:
        return Condition(version=engine.stat(key_of(word)).version)
    except NotFound:
        return Condition(version=NO_VERSION)


def _compaction_step(engine: St1Engine) -> None:
    mine = held(engine)
    steps = mine.compacting or engine.compact_steps()
    try:
        mine.compacting = steps if _goes_on(steps) else None
    except StorageError:
        mine.compacting = None
        raise


def _collection_step(engine: St1Engine) -> None:
    mine = held(engine)
    steps = mine.collecting or Collecting(engine, 0, _now).steps()
    try:
        mine.collecting = steps if _goes_on(steps) else None
    except StorageError:
        mine.collecting = None
        raise


def _collect(engine: St1Engine) -> None:
    for _ in Collecting(engine, 0, _now).steps():
        continue


def _goes_on(steps: Iterator[None]) -> bool:
    for _ in steps:
        return True
    return False


def _place(word: str) -> tuple[list[str], str]:
    *above, name = word.split("/")
    return above, name


def _bind(engine: St1Engine, step: Step) -> None:
    above, name = _place(step.paths[0])
    if step.op == "refer":
        binding = Binding(name, reference=step.numbers[0])
        condition = ANY
    else:
        binding = Binding(name, hash=key_of(step.paths[1]))
        condition = _ABSENT if step.numbers else ANY
    st1_names.bind(engine, above, binding, condition)


_NEVER: Final = Condition(version=NO_VERSION)
_ENGINE: Final[dict[str, Callable[[St1Engine, Step], object]]] = {
    "put": lambda e, s: e.put(key_of(s.paths[0]), value_of(s)),
    "hashed": lambda e, s: e.put(b"", value_of(s)),
    "create": lambda e, s: e.put(key_of(s.paths[0]), value_of(s), _ABSENT),
    "update": lambda e, s: e.put(key_of(s.paths[0]), value_of(s), _at(e, s.paths[0])),
    "stale": lambda e, s: e.put(key_of(s.paths[0]), value_of(s), _NEVER),
    "delete": lambda e, s: e.delete(key_of(s.paths[0])),
    "delete-at": lambda e, s: e.delete(key_of(s.paths[0]), _at(e, s.paths[0])),
    "delete-stale": lambda e, s: e.delete(key_of(s.paths[0]), _NEVER),
    "batch": lambda e, s: e.batch(changes_of(s)),
    "begin": _begin_put,
    "piece": lambda e, s: _sink(e).write(value_of(s)),
    "finish": lambda e, _: _finish_put(e),
    "abort": lambda e, _: _abort_put(e),
    "bind": _bind,
    "refer": _bind,
    "unbind": lambda e, s: st1_names.unbind(e, *_place(s.paths[0])),
    "compact": lambda e, _: e.compact(),
    "step": lambda e, _: _compaction_step(e),
    "collect": lambda e, _: _collect(e),
    "sweep": lambda e, _: _collection_step(e),
    "work": lambda e, _: e.work(),
    "sync": lambda e, _: e.sync(),
    "commit": lambda e, _: e.commit(),
}


def to_engine(engine: St1Engine, step: Step) -> None:
    """Does the step on an engine; raises as that does."""
    _ENGINE[step.op](engine, step)
