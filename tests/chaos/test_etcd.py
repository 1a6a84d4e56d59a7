"""The store in memory answers random transactions as etcd does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from controller.etcd import Etcd, StoreRefused
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.types import Compare, Field, Is, Nested, Op, Page, TxnResult, delete, get, put
from tests.chaos.etcd import Server

KEYS = [f"/chaos/{letter}".encode() for letter in "abcdef"]
END = b"/chaos/z"


def compares(dice: random.Random, revision: int) -> list[Compare]:
    found = []
    for _ in range(dice.randint(0, 2)):
        kind = dice.choice(list(Field))
        operand: Any = (
            dice.choice([b"v1", b"v2"]) if kind is Field.VALUE else dice.choice([0, 1, revision, revision - 1])
        )
        end = END if dice.random() < 0.2 else b""
        found.append(Compare(dice.choice(KEYS), kind, operand, dice.choice(list(Is)), end))
    return found


def operations(dice: random.Random, revision: int, depth: int = 0) -> list[Op]:
    found: list[Op] = []
    for _ in range(dice.randint(0, 3)):
        key = dice.choice(KEYS)
        match dice.choice(["put", "put", "delete", "range", "get", "nested"]):
            case "put":
                found.append(put(key, dice.choice([b"v1", b"v2", b""])))
            case "delete":
                found.append(delete(key))
            case "range":
                found.append(delete(key, END) if dice.random() < 0.3 else get(key, END, limit=dice.choice([0, 2])))
            case "get":
                found.append(get(key))
            case "nested" if depth == 0:
                inner = operations(dice, revision, 1), operations(dice, revision, 1)
                found.append(Nested(tuple(compares(dice, revision)), tuple(inner[0]), tuple(inner[1])))
    return found


def shown(result: TxnResult, offset: int) -> Any:
    """As it can be compared: revisions as in the memory."""

    def one(response: Any) -> Any:
        if isinstance(response, TxnResult):
            return response.succeeded, [one(inner) for inner in response.responses]
        if isinstance(response, Page):
            rows = [
                (kv.key, kv.value, kv.create_revision - offset, kv.mod_revision - offset, kv.version)
                for kv in response.kvs
            ]
            return rows, response.more, response.count
        return repr(response)

    return result.succeeded, result.revision - offset, [one(response) for response in result.responses]


async def test_as_etcd(tmp_path: Path) -> None:
    dice = random.Random(5)
    options = Options(tmp_path / "etcd", durability=Durability.MEMORY)
    async with EmbeddedEtcd(options) as server, Etcd([server.endpoint]) as real:
        memory, offset = Server(), await real.revision() - 1
        for _ in range(400):
            checks = compares(dice, memory.revision)
            then, orelse = operations(dice, memory.revision), operations(dice, memory.revision)
            moved = [Compare(c.key, c.field, _moved(c, offset), c.relation, c.end) for c in checks]
            try:
                wanted: Any = shown(await real.txn(moved, _at(then, offset), _at(orelse, offset)), offset)
            except StoreRefused:
                continue  # a key given twice: what is refused is checked where it is asked for
            assert shown(memory.txn(checks, then, orelse), 0) == wanted, (checks, then, orelse)


def _moved(compare: Compare, offset: int) -> Any:
    if compare.field in (Field.CREATE, Field.MOD) and compare.operand:
        return int(compare.operand) + offset
    return compare.operand


def _at(ops: list[Op], offset: int) -> list[Op]:
    return [
        Nested(
            tuple(Compare(c.key, c.field, _moved(c, offset), c.relation, c.end) for c in op.compares),
            tuple(_at(list(op.then), offset)),
            tuple(_at(list(op.orelse), offset)),
        )
        if isinstance(op, Nested)
        else op
        for op in ops
    ]
