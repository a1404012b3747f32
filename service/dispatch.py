"""How a capability server answers: one guard around every method.

Invariants:

* An expected failure is a result: ``error`` is set, every capability in the result is a broken one
  that answers with the same error, and nothing else of the result is filled.
* Nothing else leaves a method.  What is left over after `StorageError` is a bug: the traceback
  goes to the log, the caller gets `internal`.
* A session counts every call under way, for as long as it is.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from capstore.schema import wire
from capstore.schema.errors import InternalError, StorageError
from capstore.service.messages import write_error

log = logging.getLogger("capstore.service")

# The least that RPC adds to the results of a call: segment table, Message, Return, Payload.
_ENVELOPE_BYTES = 64
_BYTES_PER_WORD = 8


class Counted(Protocol):
    """What a session offers to the calls it carries."""

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


class Server:
    """What every capability server has: it belongs to a session, which counts it as long as it
    lives."""

    def __init__(self, session: Counted) -> None:
        self.session = session
        session.capability_made()

    def __del__(self) -> None:
        self.session.capability_dropped()


class _Answering(Protocol):
    session: Any


S = TypeVar("S", bound=_Answering)


def answers(
    method: Callable[[S, Any, Any], Awaitable[None]],
) -> Callable[[S, Any], Awaitable[None]]:
    """Makes ``async def m(self, params, results)`` the ``m_context`` that pycapnp calls."""

    @functools.wraps(method)
    async def answer(self: S, context: Any) -> None:
        session = self.session
        session.call_begins()
        try:
            try:
                await method(self, context.params, context.results)
            except StorageError as error:
                fail(context.results, error, session)
        except Exception:
            log.exception("a bug in %s.%s", type(self).__name__, method.__name__)
            fail(context.results, InternalError("the service has a bug; see its log"), session)
        finally:
            session.call_ends()
        session.answer_queued(_size_of(context.results))

    return answer


def _size_of(results: Any) -> int:
    """The bytes of an answer on the wire, or a few less: never more, lest the count drift up.

    For what was built here only: with a message that somebody sent, and that contradicts itself,
    pycapnp's `total_size` ends the process instead of raising.
    """
    return int(results.total_size.word_count) * _BYTES_PER_WORD + _ENVELOPE_BYTES


def fail(results: Any, error: StorageError, session: Counted) -> None:
    """Makes `results` the answer of a failed call."""
    schema = results.schema
    for field in _capability_fields(schema.node.id, schema):
        setattr(results, field, BrokenServer(error, session))
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

    def __init__(self, error: StorageError, session: Counted) -> None:
        super().__init__(session)
        # A new one: an error that was raised keeps the frames it passed through, in them the call's
        # context, and that keeps this very capability: a circle through C++ that nobody collects.
        self.error = StorageError.of(error.code, error.message)

    def __getattr__(self, name: str) -> Callable[[Any], Awaitable[None]]:
        # pycapnp looks up NAME_context for each call it dispatches.
        if not name.endswith("_context"):
            raise AttributeError(name)
        return self._refuse

    @answers
    async def _refuse(self, params: Any, results: Any) -> None:
        raise StorageError.of(self.error.code, self.error.message)
