"""Moves on stores: objects, and parts of a store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from capstore.backers.store import ANY, Condition, Delete, ObjectStat, Put
from capstore.backers.store import Change as StoreChange
from capstore.schema.errors import Code
from capstore.service.decisions import Effect
from capstore.service.policy import Policy
from capstore.service.remote import answer_of
from capstore.service.store_messages import read_objects
from tests.service.confinement.machine import INDEX, NAMES, POLICIES, SIZES, fake_of, move
from tests.service.confinement.rights import Verb
from tests.service.confinement.saving import Saving
from tests.service.confinement.world import Held, hash_of

CONTENT = b"content"
KEYS = st.sampled_from(
    [b"a", b"d", b"h-a", b"in/a", b"in/h-a", b"in/in/a", b"n/a", b"out", hash_of(CONTENT)]
)
PREFIXES = st.sampled_from([b"", b"i", b"in/", b"in/", b"h-", b"o"])
CONDITIONS = st.sampled_from([ANY, ANY, ANY, Condition(absent=True), Condition(version=2**40)])
PARTS = st.sampled_from(["get_only", "put_only", "sub_store", "sub_store"])
PLANTED = (b"a", b"h-a", b"in/a", b"in/h-a", b"in/in/a", b"out")


class Stores(Saving):
    """What is done with objects."""

    def store_at(self, index: int) -> Held:
        return self.any_of([each for each in self.held if each.is_store], index)

    @initialize(policies=st.lists(POLICIES, min_size=1, max_size=2), prefix=PREFIXES)
    def plant_objects(self, policies: list[Policy], prefix: bytes) -> None:
        """Some objects, put by the owner, and what the owner gives away."""
        self.step(self._plant_objects(self.held[1].real))
        for policy in policies:
            self.step(self._attenuate(self.held[1], policy, revocable=True))
        self.step(self._part(self.held[1], "sub_store", prefix))

    async def _plant_objects(self, owner: Any) -> None:
        objects = self.world.store.objects
        for key in PLANTED:
            objects[key] = self.data(5)
        objects[hash_of(CONTENT)] = CONTENT
        await owner.batch([Put(key, objects[key]) for key in PLANTED] + [Put(b"", CONTENT)])

    # What a key is ---------------------------------------------------------------------------

    def hidden(self, held: Held, key: bytes) -> set[Code]:
        """Why a key of this part is none."""
        return {Code.NOT_FOUND} if held.right.hides_key(held.right.base + key) else set()

    def target(
        self, held: Held, key: bytes, condition: Condition, data: bytes
    ) -> tuple[bytes, Condition, set[Code]]:
        """Where a put goes, what it demands, and why it may not; of a drop box only what its key
        begins with."""
        right = held.right
        codes = set()
        if not right.may_have(len(data)):
            codes.add(Code.TOO_LARGE)
        if right.drops:
            # Which digits follow is not known; no pattern asks for some.
            if right.hides_key(right.base + key + bytes(32)):
                codes.add(Code.NOT_FOUND)
            if condition != ANY:
                codes.add(Code.DENIED)
            return right.base + key, Condition(absent=True), codes
        if not key and right.base:
            codes.add(Code.INVALID_ARGUMENT)
        full = right.base + key if key else b""
        if right.hides_key(full or hash_of(data)):
            codes.add(Code.NOT_FOUND)
        if right.adds_only:
            if condition.version is not None:
                codes.add(Code.DENIED)
            condition = Condition(absent=True) if full else condition
        return full, condition, codes

    def put_verb(self, held: Held) -> Verb:
        return Verb.DROP if held.right.drops else Verb.PUT

    def is_put(self, held: Held, stat: ObjectStat, full: bytes, data: bytes) -> bytes:
        """What is told of a put; the key that it has in the whole store."""
        right, key = held.right, stat.key
        if right.drops:
            assert stat.version == 0, "a drop box tells a version"
            given = full[len(right.base) :]
            assert key.startswith(given), "it is not the key that was given"
            assert len(key) == len(given) + 32, "a drop box has a key of its own for each put"
            assert right.base + key not in self.world.store.objects, (
                "a drop box meets what is there"
            )
        else:
            assert right.base + key == (full or hash_of(data))
        if right.dry is not None:
            right.dry.keys.add(right.base + key)
        return right.base + key

    # Putting ---------------------------------------------------------------------------------

    @move(at=INDEX, key=st.one_of(KEYS, st.just(b"")), condition=CONDITIONS, size=SIZES)
    def put(self, at: int, key: bytes, condition: Condition, size: int) -> None:
        held = self.store_at(at)
        # What is content-addressed is the same again and again.
        data = self.data(size, held) if key or size else CONTENT
        if held.right.dry is not None:
            held.right.dry.shown.update(data)
        self.step(self._put(held, data, key, condition))

    async def _put(self, held: Held, data: bytes, key: bytes, condition: Condition = ANY) -> None:
        full, demands, codes = self.target(held, key, condition, data)
        told: list[ObjectStat] = []

        async def call() -> ObjectStat:
            told.append(await held.real.put(data, key, condition))
            return told[0]

        def does() -> bytes:
            place = self.is_put(held, told[0], full, data) if told else full
            return self.world.store.put(data, place, demands)

        await self.attempt(call(), held, Effect.ADD, does, verb=self.put_verb(held), refusals=codes)
        if told and held.right.dry is not None:
            self.is_put(held, told[0], full, data)

    @move(at=INDEX, key=KEYS, condition=CONDITIONS)
    def delete(self, at: int, key: bytes, condition: Condition) -> None:
        held = self.store_at(at)
        full = held.right.base + key
        self.step(
            self.attempt(
                held.real.delete(key, condition),
                held,
                Effect.CHANGE,
                lambda: self.world.store.delete(full, condition),
                verb=Verb.DELETE,
                refusals=self.hidden(held, key),
            )
        )

    @move(
        at=INDEX,
        items=st.lists(st.tuples(KEYS, CONDITIONS, st.one_of(st.none(), SIZES)), max_size=3),
    )
    def batch(self, at: int, items: list[tuple[bytes, Condition, int | None]]) -> None:
        held = self.store_at(at)
        changes: list[StoreChange] = []
        real: list[StoreChange] = []
        codes: set[Code] = set()
        needs = {Verb.PUT} if not items else set()
        for key, condition, size in items:
            if size is None:
                needs.add(Verb.DELETE)
                codes |= self.hidden(held, key)
                real.append(Delete(key, condition))
                changes.append(Delete(held.right.base + key, condition))
            else:
                needs.add(Verb.PUT)
                data = self.data(size, held)
                full, demands, why = self.target(held, key, condition, data)
                codes |= why
                real.append(Put(key, data, condition))
                changes.append(Put(full, data, demands))
        if not all(map(held.right.allows, needs)):
            codes.add(Code.DENIED)
        if held.right.dry is not None:
            held.right.dry.keys.update(change.key for change in changes)
        only_puts = all(isinstance(change, Put) for change in changes)
        self.step(
            self.attempt(
                held.real.batch(real),
                held,
                Effect.ADD if only_puts else Effect.CHANGE,
                lambda: self.world.store.batch(changes),
                refusals=codes,
            )
        )

    # Looking ---------------------------------------------------------------------------------

    def _is_shown(self, held: Held, full: bytes, data: bytes, expected: bytes | None) -> None:
        """What was read is what is there, or in a dry run what it may show."""
        if expected is not None:
            assert data == expected
        else:
            assert set(data) <= held.right.may_show, "a dry run shows what is out of reach"
            assert any(full in run.keys for run in held.right.runs), "it tells a key out of reach"

    @move(at=INDEX, key=KEYS)
    def get(self, at: int, key: bytes) -> None:
        held = self.store_at(at)
        full = held.right.base + key

        async def run() -> None:
            found = await self.attempt(
                held.real.get(key),
                held,
                Effect.OBSERVE,
                lambda: self.world.store.get(full),
                verb=Verb.GET,
                refusals=self.hidden(held, key),
            )
            if found is not None:
                self._is_shown(held, full, *found)

        self.step(run())

    @move(at=INDEX, key=KEYS, offset=st.sampled_from([0, 2, 40]))
    def read_range(self, at: int, key: bytes, offset: int) -> None:
        held = self.store_at(at)
        full = held.right.base + key

        async def run() -> None:
            found = await self.attempt(
                held.real.read(key, offset, 1000),
                held,
                Effect.OBSERVE,
                lambda: self.world.store.get(full),
                verb=Verb.GET,
                refusals=self.hidden(held, key),
            )
            if found is not None:
                there = found[1]
                self._is_shown(held, full, found[0].data, there and there[offset:])
                assert there is None or found[0].stat.size == len(there)

        self.step(run())

    @move(at=INDEX, key=KEYS)
    def stat_of(self, at: int, key: bytes) -> None:
        held = self.store_at(at)
        full = held.right.base + key

        async def run() -> None:
            found = await self.attempt(
                held.real.stat(key),
                held,
                Effect.OBSERVE,
                lambda: self.world.store.get(full),
                verb=Verb.GET,
                refusals=self.hidden(held, key),
            )
            if found is not None and found[1] is not None:
                assert found[0].size == len(found[1])

        self.step(run())

    @move(at=INDEX, key=KEYS)
    def has(self, at: int, key: bytes) -> None:
        held = self.store_at(at)
        full = held.right.base + key

        async def run() -> None:
            found = await self.attempt(
                held.real.has(key),
                held,
                Effect.OBSERVE,
                lambda: full in self.world.store.shown(held.right),
                verb=Verb.GET,
            )
            if found is not None and found[1] is not None:
                assert found[0] == found[1], "it tells of what is hidden"
            elif found is not None:
                assert not (found[0] and held.right.hides_key(full)), "it tells of what is hidden"

        self.step(run())

    @move(at=INDEX, prefix=PREFIXES, after=st.one_of(st.just(b""), KEYS))
    def list_keys(self, at: int, prefix: bytes, after: bytes) -> None:
        held = self.store_at(at)
        self.step(self._lists(held, held.real.list(prefix, after), prefix, after))

    async def _lists(
        self,
        held: Held,
        call: Awaitable[Any],
        prefix: bytes,
        after: bytes,
        refusals: Sequence[Code] = (),
        limit: int = 1000,
    ) -> None:
        right = held.right

        def does() -> list[tuple[bytes, int]]:
            shown = self.world.store.shown(right)
            below = [(full[len(right.base) :], len(data)) for full, data in shown.items()]
            return [each for each in below if each[0].startswith(prefix) and each[0] > after]

        found = await self.attempt(
            call, held, Effect.OBSERVE, does, verb=Verb.LIST, refusals=refusals
        )
        if found is None:
            return
        page, shown = found
        told = [(stat.key, stat.size) for stat in page.objects]
        if shown is not None:
            assert told == shown[:limit], "a listing tells more, or less"
            return
        for key, _ in told:
            assert not right.hides_key(right.base + key), "a listing tells what is hidden"
            reached = any(right.base + key in run.keys for run in right.runs)
            assert reached, "it tells a key out of reach"

    @move(at=INDEX, to=INDEX, prefix=PREFIXES)
    def list_on(self, at: int, to: int, prefix: bytes) -> None:
        """Goes on with a cursor that somebody else got, in another part."""
        here, there = self.store_at(at), self.store_at(to)

        async def run() -> None:
            if not there.right.allows(Verb.LIST) or there.right.dry is not None:
                return
            first, _ = await self.tried(answer_of(there.real.raw.list(prefix, b"", 1, b"")))
            if first is None or not first.cursor:
                return
            last = first.objects[0].key
            same = here.right.base == there.right.base

            async def page() -> Any:
                response = await answer_of(here.real.raw.list(prefix, first.cursor, 2, b""))
                return read_objects(response, prefix, b"")

            refusals = [] if same else [Code.INVALID_ARGUMENT]
            await self._lists(here, page(), prefix, last, refusals, 2)

        self.step(run())

    @move(at=INDEX)
    def usage_of_store(self, at: int) -> None:
        held = self.store_at(at)

        async def run() -> None:
            right, objects = held.right, self.world.store.objects
            # Of a quota, or of the whole store; of a part that has none nothing is told.
            refusals = [Code.DENIED] if right.base and not right.quotas else []
            found = await self.attempt(
                held.real.usage(),
                held,
                Effect.OBSERVE,
                lambda: len(objects),
                verb=Verb.LIST,
                refusals=refusals,
            )
            if found is not None and right.dry is None and not right.quotas:
                assert found[0].used_nodes == found[1]

        self.step(run())

    # Parts -----------------------------------------------------------------------------------

    @move(
        at=INDEX,
        how=PARTS,
        prefix=PREFIXES,
    )
    def part(self, at: int, how: str, prefix: bytes) -> None:
        self.step(self._part(self.store_at(at), how, prefix))

    async def _part(self, held: Held, how: str, prefix: bytes) -> None:
        right, refusals = held.right, []
        if how == "sub_store":
            # Below no prefix it is the same.
            narrower = right.part(prefix) if prefix else right
            call = held.real.sub_store(prefix)
        elif how == "get_only":
            narrower, call = right.part(verbs=frozenset({Verb.GET})), held.real.get_only()
            refusals = [] if right.allows(Verb.GET) else [Code.DENIED]
        else:
            narrower, call = right.part(verbs=frozenset({Verb.DROP})), held.real.put_only()
            refusals = [] if right.allows(Verb.DROP) else [Code.DENIED]
        await self.narrow(held, call, narrower, refusals)

    # The store as a whole --------------------------------------------------------------------

    @move(at=INDEX, collects=st.booleans())
    def maintain(self, at: int, collects: bool) -> None:
        held = self.store_at(at)
        right, store = held.right, self.world.store
        whole = right.is_whole and not right.is_attenuated
        does: Callable[[], None] = store.collect if collects else lambda: None
        self.step(
            self.attempt(
                held.real.collect() if collects else held.real.compact(),
                held,
                Effect.CHANGE,
                does,
                refusals=[] if whole else [Code.DENIED],
            )
        )

    @move(at=INDEX, name=NAMES, to=INDEX)
    def rename_into_store(self, at: int, name: str, to: int) -> None:
        """A directory that a client serves, and that has the ticket of a store, is none."""
        here, there = self.directory(at), self.store_at(to)

        async def run() -> None:
            if there.right.is_over(self.clock()):
                return
            await self.attempt(
                here.real.rename(name, await fake_of(there), "a"),
                here,
                Effect.CHANGE,
                lambda: None,
                names=[name],
                refusals=[Code.INVALID_ARGUMENT],
            )

        self.step(run())
