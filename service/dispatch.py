"""How a capability server answers: one guard around every method.

Invariants:

* An expected failure is a result: ``error`` is set, every capability in the result is a broken one
  that answers with the same error, and nothing else of the result is filled.
* Nothing else leaves a method.  What is left over after `StorageError` is a bug: the traceback
  goes to the log, the caller gets `internal`.
* A session counts every call under way, for as long as it is.
* Every call of every server passes `answers`, and nowhere else is one observed: whoever observes
  (`Observer`) is told of each that began exactly once, however it ended.
* Who looks on changes no answer: what fails there goes to the log, and the call goes on.  But one
  that is to be held back, and cannot be asked, has not begun, and is `internal`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import capnp

from capstore.schema import wire
from capstore.schema.errors import Code, InternalError, InvalidArgument, StorageError
from capstore.service.grants import Grant
from capstore.service.messages import write_error

log = logging.getLogger("capstore.service")

# The least that RPC adds to the results of a call: segment table, Message, Return, Payload.
_ENVELOPE_BYTES = 64
_BYTES_PER_WORD = 8


# How a call ended that was neither refused nor a failure, and one that its caller took back.
OK: Final = "ok"
CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A method as observers know it: there is one of these for each."""

    interface: str
    name: str

    def __str__(self) -> str:
        return f"{self.interface}.{self.name}"


# What a method tells of a call beside its results: how many bytes of content it moved, or the grant
# that it gave, where the capability it was made on has none.
Told = int | Grant | None


class Observer(Protocol):
    """What is told of calls.  Nothing here waits, but `admitted` and `find_node`."""

    @property
    def holds_back(self) -> bool:
        """Whether a call has to ask `admitted` before it begins."""

    async def admitted(self) -> None:
        """Returns when a call may begin.  Raises what it is refused with."""

    def wants_node(self, server: Answering, method: Method, code: str) -> bool:
        """Whether `find_node` is to be asked behind such a call on `server`."""

    async def find_node(self, server: Answering) -> None:
        """Finds out which node `server` serves; raises nothing of its own."""

    def called(
        self,
        server: Answering,
        method: Method,
        context: Any,
        code: str,
        told: Told,
        nanoseconds: int,
    ) -> None:
        """A call has ended with `code`, so long after it began."""

    def made(self, server: Answering) -> None:
        """A capability was handed out."""

    def dropped(self, server: Answering) -> None:
        """One was dropped."""


class Counted(Protocol):
    """What a session offers to the calls it carries."""

    number: int
    observer: Observer | None

    def call_begins(self) -> None:
        """One more call is under way."""

    def call_ends(self) -> None:
        """One fewer."""

    def answer_queued(self, size: int) -> None:
        """`size` bytes of answers wait to be taken."""

    def capability_made(self) -> None:
        """One more capability is handed out."""

    def capability_dropped(self) -> None:
        """One fewer."""


class Answering:
    """What whoever observes a call knows of the server it was made on."""

    session: Any
    # What it stands under, and the guarded node that it serves.
    grant: Grant | None = None
    guarded: Any = None
    # The node's id and what is known of `grant`, when an observer has found them out.
    node_id: int | None = None
    origin: Any = None


class Server(Answering):
    """What every capability server has: it belongs to a session, which counts it as long as it
    lives."""

    def __init__(self, session: Counted, grant: Grant | None = None, guarded: Any = None) -> None:
        self.session = session
        self.grant = grant
        self.guarded = guarded
        session.capability_made()
        if session.observer is not None:
            try:
                session.observer.made(self)
            except Exception as error:  # noqa: BLE001 - as `harmless`, for less
                _log_fault("made", error)

    def __del__(self) -> None:
        session = self.session
        session.capability_dropped()
        if session.observer is not None:
            try:
                session.observer.dropped(self)
            except Exception as error:  # noqa: BLE001 - as `harmless`, for less
                _log_fault("dropped", error)


@contextmanager
def harmless(hook: str) -> Iterator[None]:
    """Around what tells an observer something: what goes wrong there goes to the log."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a bug, whichever it is
        _log_fault(hook, error)


def _log_fault(hook: str, error: Exception) -> None:
    """A line each time, and where it was the first time: a peer may cause it as often as it
    likes."""
    kind = hook, type(error).__name__
    log.error("a bug in who looks on (%s): %s", *kind, exc_info=kind not in _faults and error)
    _faults.add(kind)


# What has gone wrong so far, at which hook.
_faults: Final[set[tuple[str, str]]] = set()


S = TypeVar("S", bound=Answering)


def answers(
    method: Callable[[S, Any, Any], Awaitable[Told]],
) -> Callable[[S, Any], Awaitable[None]]:
    """Makes ``async def m(self, params, results)`` the ``m_context`` that pycapnp calls."""
    server, _, name = method.__qualname__.rpartition(".")
    interface = server.rpartition(".")[2].removesuffix("Server")
    return answering(method, Method(interface, name.removesuffix("_context")))


def answering(
    method: Callable[[S, Any, Any], Awaitable[Told]], named: Method
) -> Callable[[S, Any], Awaitable[None]]:
    """As `answers`, for the method that is `named` so."""

    @functools.wraps(method)
    async def answer(self: S, context: Any) -> None:
        session = self.session
        observer: Observer | None = session.observer
        begun = 0 if observer is None else time.perf_counter_ns()
        code = CANCELLED
        told: Told = None
        session.call_begins()
        try:
            try:
                if observer is not None and observer.holds_back:
                    await observer.admitted()
                # Before the method: behind its last look at authority nothing is waited for.
                if observer is not None and _wants_node(observer, self, named, OK):
                    await _find_node(observer, self)
                told = await method(self, context.params, context.results)
                code = OK
            except StorageError as error:
                code = error.code.value
                fail(context.results, error, session, self.grant)
                if observer is not None and _wants_node(observer, self, named, code):
                    await _find_node(observer, self)
        except capnp.KjException as error:
            code = _fail_of_message(error, named, context.results, session, self.grant)
        except Exception:
            log.exception("a bug in %s", named)
            code = Code.INTERNAL.value
            bug = InternalError("the service has a bug; see its log")
            fail(context.results, bug, session, self.grant)
        finally:
            session.call_ends()
            if observer is not None:
                took = time.perf_counter_ns() - begun
                try:
                    observer.called(self, named, context, code, told, took)
                except Exception as error:  # noqa: BLE001 - as `harmless`, for less
                    _log_fault("called", error)
        session.answer_queued(_size_of(context.results))

    return answer


def _wants_node(observer: Observer, server: Answering, method: Method, code: str) -> bool:
    try:
        return observer.wants_node(server, method, code)
    except Exception as error:  # noqa: BLE001 - as `harmless`, for less
        _log_fault("wants_node", error)
        return False


async def _find_node(observer: Observer, server: Answering) -> None:
    try:
        await observer.find_node(server)
    except Exception as error:  # noqa: BLE001 - as `harmless`, for less
        _log_fault("find_node", error)


# Where Cap'n Proto finds that a message contradicts itself or its schema.
_LAYOUT: Final = "capnp/layout.c++"


def _fail_of_message(
    error: capnp.KjException, named: Method, results: Any, session: Counted, grant: Grant | None
) -> str:
    """Answers a call at which Cap'n Proto failed; returns the code.

    What a peer can cause as often as it likes is worth a line of the log, not a traceback.
    """
    failure: StorageError
    if _LAYOUT in str(error):
        log.info("malformed parameters of %s", named)
        failure = InvalidArgument("the parameters are malformed")
    else:
        log.error("a bug in %s", named, exc_info=error)
        failure = InternalError("the service has a bug; see its log")
    fail(results, failure, session, grant)
    return failure.code.value


def _size_of(results: Any) -> int:
    """The bytes of an answer on the wire, or a few less: never more, lest the count drift up.

    For what was built here only: with a message that somebody sent, and that contradicts itself,
    pycapnp's `total_size` ends the process instead of raising.
    """
    return int(results.total_size.word_count) * _BYTES_PER_WORD + _ENVELOPE_BYTES


def fail(results: Any, error: StorageError, session: Counted, grant: Grant | None = None) -> None:
    """Makes `results` the answer of a failed call, made under `grant`."""
    schema = results.schema
    for field in _capability_fields(schema.node.id, schema):
        setattr(results, field, BrokenServer(error, session, grant))
    write_error(results.init("error"), error)


_fields_by_schema: dict[int, tuple[str, ...]] = {}


def _capability_fields(schema_id: int, schema: Any) -> tuple[str, ...]:
    """The fields of a result struct that hold a capability."""
    fields = _fields_by_schema.get(schema_id)
    if fields is None:
        fields = tuple(
            name
            for name, field in schema.fields.items()
            if field.proto.slot.type.which() in ("interface", "anyPointer")
        )
        _fields_by_schema[schema_id] = fields
    return fields


class BrokenServer(Server, wire.Broken.Server):  # type: ignore[misc]
    """Stands where a capability should be: answers every method of every interface with `error`."""

    def __init__(self, error: StorageError, session: Counted, grant: Grant | None = None) -> None:
        super().__init__(session, grant)
        # A new one: an error that was raised keeps the frames it passed through, in them the call's
        # context, and that keeps this very capability: a circle through C++ that nobody collects.
        self.error = StorageError.of(error.code, error.message)

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[None]]:
        # pycapnp looks up NAME_context for each call it dispatches.
        if not name.endswith("_context"):
            raise AttributeError(name)
        return functools.partial(_refusal(name.removesuffix("_context")), self)


@functools.cache
def _refusal(name: str) -> Callable[[BrokenServer, Any], Awaitable[None]]:
    """The method of this name, of a broken capability."""

    async def refuse(self: BrokenServer, params: Any, results: Any) -> None:
        raise StorageError.of(self.error.code, self.error.message)

    return answering(refuse, Method("Broken", name))
