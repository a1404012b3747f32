"""Who may be connected, ask and hold, where others are, too: without a service."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import pytest

from capstore.schema.limits import (
    TURN_CALLS_ALONE_MAX,
    TURN_CALLS_FRESH_MAX,
    TURN_CALLS_HURRIED_MAX,
    TURN_CALLS_MAX,
)
from capstore.service import admission as admission_module
from capstore.service import questions as questions_module
from capstore.service.admission import Admission, peer_of
from capstore.service.commons import CALL_COST, Totals, Turns
from capstore.service.frames import CALL, Frame, Refused
from capstore.service.questions import Questions

pytestmark = pytest.mark.anyio


class Guest:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_gone = False
        self.on_proved: Callable[[], None] | None = None

    def make_room(self) -> None:
        self.is_gone = True

    def prove(self) -> None:
        assert self.on_proved is not None
        self.on_proved()


def in_all(admission: Admission, peer: int | str, count: int) -> list[Guest]:
    guests = [Guest(f"{peer}-{index}") for index in range(count)]
    assert all(admission.admits(guest, peer) for guest in guests)
    return guests


def gone(guests: list[Guest]) -> list[int]:
    return [index for index, guest in enumerate(guests) if guest.is_gone]


def test_strangers_displace_the_oldest_of_whom_there_are_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "STRANGERS_MAX", 6)
    displaced: list[None] = []
    admission = Admission(lambda: displaced.append(None))
    few = in_all(admission, "few", 2)
    many = in_all(admission, "many", 10)
    assert gone(few) == []
    assert gone(many) == [0, 1, 2, 3, 4, 5]
    assert admission.count == 6
    many[6].prove()
    many += in_all(admission, "many", 20)
    assert gone(few) == []
    assert not many[6].is_gone
    assert len(displaced) == len(gone(many))


def test_who_has_shown_a_token_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "CONNECTIONS_MAX", 6)
    monkeypatch.setattr(admission_module, "CONNECTIONS_OF_PEER_MAX", 4)
    admission = Admission(lambda: None)
    guests = in_all(admission, 0, 4)
    for guest in guests[1:]:
        guest.prove()
    assert in_all(admission, 0, 1)
    assert gone(guests) == [0]
    last = admission._guests
    for guest in list(last):
        guest.prove()  # type: ignore[attr-defined]
    assert not admission.admits(Guest("fifth"), 0)
    others = in_all(admission, 1, 2)
    others[0].prove()
    others += in_all(admission, 2, 1)
    assert gone(others) == [1]
    others[2].prove()
    assert not admission.admits(Guest("seventh"), 3)
    assert not admission.make_room()
    admission.leaves(others[0])
    admission.leaves(others[0])
    assert admission.admits(Guest("eighth"), 3)


class Far:
    """A connection from an address."""

    def __init__(self, host: str, family: socket.AddressFamily = socket.AF_INET6) -> None:
        self.family = family
        self._host = host

    def getpeername(self) -> tuple[str, int]:
        return self._host, 1


def peer(host: str, family: socket.AddressFamily = socket.AF_INET6) -> object:
    return peer_of(cast("socket.socket", Far(host, family)))


def test_who_has_one_address_of_a_network_has_them_all() -> None:
    assert peer("2001:db8:1:2::9") == peer("2001:db8:1:2:ffff::") != peer("2001:db8:1:3::9")
    assert peer("::ffff:192.0.2.1") == peer("192.0.2.1", socket.AF_INET)
    assert peer("192.0.2.1", socket.AF_INET) != peer("192.0.2.2", socket.AF_INET)
    assert peer("fe80::1%eth0") == peer("fe80::2%eth0")


def test_a_share_is_never_held_up() -> None:
    totals = Totals(connections=10, calls=100)
    assert totals.over_share(totals.calls, 100, own=10)
    assert not totals.over_share(totals.calls, 100, own=9)
    assert not totals.over_share(99, 100, own=50)


def question(number: int, size: int = 100, *, ends: bool = False) -> Frame:
    return Frame(size, CALL, number, ends)


def test_questions_are_on_the_books_until_they_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions_module, "QUESTIONS_MAX", 3)
    questions = Questions()
    questions.ask(question(1))
    questions.ask(question(2))
    assert (questions.open, questions.open_bytes, questions.kept) == (2, 200, 0)
    with pytest.raises(Refused, match="twice"):
        questions.ask(question(1))
    assert questions.answer(1, ends=False) == 100
    assert (questions.open, questions.open_bytes, questions.kept) == (1, 100, 1)
    with pytest.raises(Refused, match="twice"):
        questions.ask(question(1))
    questions.end(1)
    questions.end(2)  # before it is answered
    assert (questions.open, questions.kept) == (1, 0)
    assert questions.answer(2, ends=False) == 100
    assert (questions.open, questions.open_bytes, questions.kept) == (0, 0, 0)
    questions.ask(question(3))
    questions.answer(3, ends=True)
    assert questions.kept == 0
    assert questions.answer(77, ends=True) == 0
    questions.end(77)
    for number in range(3):
        questions.ask(question(10 + number, ends=True))
    with pytest.raises(Refused, match="ends none"):
        questions.ask(question(20))


class Asking:
    """A connection with messages to pass on, each of which costs `cost`."""

    def __init__(self, number: int, messages: int, *, fresh: bool = False, cost: int = 1) -> None:
        self.number = number
        self.is_queued = False
        self.messages = messages
        self.is_fresh = fresh
        self.cost = cost * CALL_COST
        self.passed: list[int] = []

    @property
    def is_ready(self) -> bool:
        return self.messages > 0

    def pass_on(self, cost_max: int) -> int:
        cost = 0
        while self.messages and cost < cost_max:
            self.messages -= 1
            cost += self.cost
        self.passed.append(cost // CALL_COST)
        return cost


async def test_one_that_asks_alone_has_large_turns() -> None:
    turns, one = Turns(), Asking(1, 1000)
    turns.ask(one)
    assert one.passed == [TURN_CALLS_ALONE_MAX]
    turns.ask(one)
    assert len(one.passed) == 1, "it waits for its turn"
    while one.messages:
        await asyncio.sleep(0)
    assert max(one.passed) == TURN_CALLS_ALONE_MAX


async def test_several_have_small_turns_one_after_the_other() -> None:
    turns = Turns()
    asking = [Asking(number, 400, cost=cost) for number, cost in ((1, 1), (2, 1), (3, 30))]
    for each in asking:
        turns.ask(each)
    rounds = 0
    while any(each.messages for each in asking[:2]):
        before = sum(sum(each.passed) for each in asking[:2])
        await asyncio.sleep(0)
        rounds += 1
        for each in asking:
            turns.ask(each)
        done = [sum(each.passed) for each in asking[:2]]
        if rounds > 2:
            assert sum(done) - before <= TURN_CALLS_MAX
        assert abs(done[0] - done[1]) <= TURN_CALLS_ALONE_MAX + 2 * TURN_CALLS_MAX
    assert rounds > 5
    assert asking[2].messages < 400, "what costs much has its turn, too"


async def test_who_has_nothing_under_way_does_not_wait_for_who_has() -> None:
    turns = Turns()
    flooding = [Asking(number, 10_000) for number in range(5)]
    for each in flooding:
        turns.ask(each)
    quiet = Asking(9, 1, fresh=True)
    turns.ask(quiet)
    assert quiet.passed == [1], "at once"
    many = [Asking(10 + number, 1, fresh=True) for number in range(3 * TURN_CALLS_FRESH_MAX)]
    for each in many:
        turns.ask(each)
    for _ in range(4):
        await asyncio.sleep(0)
    assert all(each.passed == [1] for each in many)


async def test_turns_are_short_beside_one_that_asks_one_by_one() -> None:
    turns, flooding, quiet = Turns(), Asking(1, 10_000), Asking(2, 0, fresh=True)
    turns.ask(flooding)
    for _ in range(3):
        quiet.messages = 1
        turns.ask(quiet)
        await asyncio.sleep(0)
    del flooding.passed[:]
    for _ in range(5):
        await asyncio.sleep(0)
    assert flooding.passed == [TURN_CALLS_HURRIED_MAX] * 5


async def test_the_window_is_shared_by_those_that_asked_of_late() -> None:
    turns = Turns()
    alone = turns.window
    for number in range(4):
        turns.ask(Asking(number, 1))
    shared = turns.window
    assert shared < alone
    turns.look()
    assert turns.window == shared
    turns.look()
    assert turns.window == alone
