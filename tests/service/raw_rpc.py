"""Messages of RPC made by hand, for peers that no library would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import capnp

from capstore.schema import wire

_STANDARD = Path(capnp.__file__).parent
rpc: Any = capnp.load(str(_STANDARD / "rpc.capnp"), imports=[str(_STANDARD.parent)])


def bootstrap(question: int = 0) -> bytes:
    message = rpc.Message.new_message()
    message.init("bootstrap").questionId = question
    return bytes(message.to_bytes())


def finish(question: int) -> bytes:
    message = rpc.Message.new_message()
    message.init("finish").questionId = question
    return bytes(message.to_bytes())


def call(
    interface: Any,
    method: int,
    params: Any,
    *,
    question: int = 1,
    of: int = 0,
    field: int | None = None,
    capabilities: int = 0,
    silent: bool = False,
) -> bytes:
    """A call of what question `of` is answered with: itself, or its pointer `field`."""
    message = rpc.Message.new_message()
    sent = message.init("call")
    sent.questionId, sent.interfaceId, sent.methodId = question, interface.schema.node.id, method
    target = sent.target.init("promisedAnswer")
    target.questionId = of
    if field is not None:
        target.init("transform", 1)[0].getPointerField = field
    payload = sent.init("params")
    payload.content = params
    if capabilities:
        for index, descriptor in enumerate(payload.init("capTable", capabilities)):
            descriptor.senderHosted = index
    sent.onlyPromisePipeline = silent
    return bytes(message.to_bytes())


def restore(token: str, question: int = 1) -> bytes:
    """``Gate.restore`` of the bootstrap capability."""
    # An Error has a data word and a text; so has, but for the word, what restore takes.
    return call(wire.Gate, 0, wire.Error.new_message(message=token), question=question)
