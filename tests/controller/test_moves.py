"""The end of moves: whatever happens while one is being ended, the next one is not forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from controller.etcd.types import Compare, Field, KeyValue, Put
from controller.moves import Moves
from controller.store import Change
from controller.sync import Outcome
from tests.controller.deriving import KEYS, MAKE, Derivation
from tests.controller.running import until

PORT, NETWORK = "tenants/acme/ports/web-1", "tenants/acme/networks/web"
TERM = Compare(b"term", Field.CREATE, 1)


class Place:
    """Tables, an etcd that holds one tombstone and knows how it came to be, and a Sync that answers when told to."""

    def __init__(self) -> None:
        self.tables = Derivation()
        hosts = MAKE.host("h1", 1), MAKE.host("h2", 2)
        self.tables.put(*hosts, MAKE.tenant("acme"), MAKE.network(NETWORK, 1)).settle()
        self.held: KeyValue | None = None
        self.questions: list[asyncio.Event] = []
        store: Any = SimpleNamespace(
            world=self.tables.world, keys=KEYS, etcd=self, revision=0, passed=lambda revision: asyncio.sleep(0)
        )
        sync: Any = SimpleNamespace(ask=self._ask, sessions=SimpleNamespace(resources=self.tables.resources))
        self.moves = Moves(store, sync, TERM)

    async def _ask(self, **asked: Any) -> Outcome:
        self.questions.append(asyncio.Event())
        await self.questions[-1].wait()
        return Outcome(0)

    def moved(self, to: str, *, away: str) -> None:
        """The port is on `to`, which serves it, and still to go from `away`."""
        row = MAKE.tombstone(away, PORT, moved_to=to, network=NETWORK)
        self.tables.put(MAKE.port(PORT, NETWORK, ["10.0.0.5"], host=to), MAKE.applied(PORT, to)).settle()
        self._write(row, created=self.tables.revision + 1)

    def _write(self, row: Put, *, created: int) -> None:
        self.tables.put(row)
        self.held = KeyValue(row.key, row.value, created, self.tables.revision, 1)
        rows = self.tables.world.tombstones
        (key,) = rows.rows
        self.moves.follow(0, [Change("tombstones", key, None, rows.rows[key], self.tables.revision)])

    async def range(self, key: bytes) -> Any:
        return SimpleNamespace(kvs=[self.held] if self.held and self.held.key == key else [])

    async def txn(self, conditions: Sequence[Compare], ops: Sequence[Put]) -> Any:
        held = self.held
        assert held is not None
        known = {Field.CREATE: held.create_revision, Field.MOD: held.mod_revision}
        succeeded = all(known[c.field] == c.operand for c in conditions if c.key == held.key)
        if succeeded:
            self._write(ops[0], created=held.create_revision)
        return SimpleNamespace(succeeded=succeeded, revision=self.tables.revision)

    def is_due(self) -> bool:
        return [row.due for row in self.tables.world.tombstones.rows.values()] == [True]


async def test_a_port_that_comes_and_goes_again_while_its_move_ends() -> None:
    place = Place()
    run = asyncio.create_task(place.moves.run())
    place.moved("h2", away="h1")
    await until(lambda: len(place.questions) == 1, "a question whether all know the new place")
    place.moved("h2", away="h1")  # there and back meanwhile: a tombstone of its own
    place.questions[0].set()
    await until(lambda: len(place.questions) == 2, "a question for the second move")
    assert not place.is_due()
    place.questions[1].set()
    await until(place.is_due, "the old host is told")
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(place.questions) == 2
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
