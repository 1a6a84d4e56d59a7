"""Unique keys, references and quota slots: those that intents must have against those that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from controller.check.finding import Finding
from controller.check.wanted import Wanted, wanted
from controller.etcd.types import Compare, KeyValue, absent, created, delete, modified, put
from controller.intents.base import identity_digest, issued_of
from controller.rows import IdentityRow, Intent
from controller.store import Store
from tealnet.store.v1 import store_pb2

_AT_ONCE = 200  # keys compared before others get their turn: some milliseconds
_UNIQUE = frozenset({"vni", "domain", "hostno", "netno", "vtep", "ip", "mac", "nic", "dev", "rollout"})
_LEASED = ("k/i/", "k/j/")
"""Request ids and join tokens: they end by themselves."""
_NUMBERS = ("k/u/vni/", "k/u/domain/")
"""Released ones are freed by the elected replica, when no host can hold their old meaning."""


async def differences(store: Store, found: Mapping[bytes, KeyValue]) -> list[Finding]:
    """`found`: all keys under `k/`, read at a revision that the tables have.

    Others get their turn in between: whoever had a key then has it still, or has changed it, which the finding's
    compares tell; so a row may be read later than another.
    """
    by_key: dict[bytes, list[Wanted]] = {}
    for number, one in enumerate(wanted(store.world, store.keys), 1):
        by_key.setdefault(one.key, []).append(one)
        await breathe(number)
    findings: list[Finding] = []
    for number, (key, claims) in enumerate(by_key.items(), 1):
        findings.extend(_of_intents(store, key, claims, found.get(key)))
        await breathe(number)
    for number, (key, kv) in enumerate(found.items(), 1):
        if key not in by_key:
            findings.extend(_of_nobody(store, kv))
        await breathe(number)
    return [*findings, *_identities(store, found)]


async def breathe(number: int) -> None:
    """Others get their turn now and again."""
    if number % _AT_ONCE == 0:
        await asyncio.sleep(0)


def unchanged(store: Store, row: Intent[Any]) -> Compare:
    """The intent is as the tables have it."""
    return modified(store.keys.intent(row.name), row.mod_revision)


def _of_intents(store: Store, key: bytes, claims: list[Wanted], kv: KeyValue | None) -> Iterator[Finding]:
    subject, own = store.keys.relative(key), claims[0]
    holds = tuple(unchanged(store, one.by) for one in claims)
    if len(claims) > 1:
        names = ", ".join(sorted(one.by.name for one in claims))
        text = f"{names} all have it, and only one may: delete or change the others"
        yield Finding("SHARED_KEY", subject, text, holds, object=own.by.name)
        return
    write = put(key, own.value)
    if kv is None:
        text = f"{own.by.name} must have it, and it is not there: another object could take it"
        yield Finding(
            "MISSING_KEY", subject, text, (*holds, absent(key)), (write,), own.by.name, f"write it for {own.by.name}"
        )
        return
    held = _holder(kv)
    if held is not None and held.uid == own.by.uid and not held.released:
        return
    who = f"{held.name} ({'released' if held.released else held.uid})" if held else "nothing that can be read"
    text = f"{own.by.name} must have it, but it names {who}"
    same = modified(key, kv.mod_revision)
    yield Finding("WRONG_KEY", subject, text, (*holds, same), (write,), own.by.name, f"write it for {own.by.name}")


def _of_nobody(store: Store, kv: KeyValue) -> Iterator[Finding]:
    subject = store.keys.relative(kv.key)
    if subject.startswith((*_LEASED, "k/u/identity/")):
        return
    kind, held, same = subject.split("/")[1], _holder(kv), modified(kv.key, kv.mod_revision)
    is_known = kind in ("r", "q") or (kind == "u" and subject.split("/")[2] in _UNIQUE)
    if not is_known or held is None:
        yield Finding("UNKNOWN_KEY", subject, "this version of the controller does not know what it is", (same,))
        return
    if held.released:
        yield from _released(store, kv, held)
        return
    try:
        intent = store.keys.intent(held.name)
    except ValueError:
        text = f"{held.name} holds it, which this version of the controller does not know"
        yield Finding("UNKNOWN_KEY", subject, text, (same,))
        return
    row = _row(store, held.name)
    # Also while its holder's value is one that can't be read, nothing of it is taken away.
    holds = (same, modified(intent, row.mod_revision) if row else absent(intent))
    is_gone = row is None or row.uid != held.uid
    why = f"{held.name} ({held.uid}), which is no more" if is_gone else f"{held.name}, which does not need it"
    text = f"it is held for {why}: nobody else can have it, or delete what it refers to"
    yield Finding("DANGLING_KEY", subject, text, holds, (delete(kv.key),), held.name, "delete it")


def _released(store: Store, kv: KeyValue, held: store_pb2.Holder) -> Iterator[Finding]:
    """An address in quarantine waits for its tombstone; a number for the elected replica."""
    subject = store.keys.relative(kv.key)
    if subject.startswith(_NUMBERS):
        return
    tombstone = held.tombstone.encode()
    parts = store.keys.relative(tombstone).split("/")[2:] if tombstone.startswith(store.keys.watched) else []
    place = (parts[0], parts[1], parts[2] if len(parts) > 2 else "") if len(parts) in (2, 3) else None
    row = store.world.tombstones.rows.get(place) if place else None
    if row is not None and kv.key.decode() in row.address_keys:
        return
    holds = [modified(kv.key, kv.mod_revision)]
    if place and row is None:
        holds.append(absent(tombstone))
    text = f"{held.name} has given it up, and the tombstone that its quarantine waits for is not there"
    yield Finding("DANGLING_KEY", subject, text, tuple(holds), (delete(kv.key),), held.name, "delete it")


def _identities(store: Store, found: Mapping[bytes, KeyValue]) -> Iterator[Finding]:
    """Each number is found by its set, and each set that ports have has its number."""
    keys, world = store.keys, store.world
    known = _lost(store)
    for number, row in sorted(world.identities.rows.items()):
        key = keys.identity_set(identity_digest(row.members))
        if key in known:
            text = f"{number} is the identity of the same groups as {known[key]}; the one without ports is freed later"
            yield Finding("TWIN_IDENTITY", keys.relative(keys.identity(number)), text, (_alive(store, number, row),))
            continue
        known[key] = number
        kv = found.get(key)
        if kv is None or kv.value != str(number).encode():
            same = modified(key, kv.mod_revision) if kv else absent(key)
            yield Finding(
                "WRONG_KEY" if kv else "MISSING_KEY",
                keys.relative(key),
                f"identity {number} must be found by it",
                (same, _alive(store, number, row)),
                (put(key, str(number).encode()),),
                repair=f"write it for identity {number}",
            )
    prefix = keys.identity_set("")
    for key, kv in found.items():
        if key.startswith(prefix) and key not in known:
            text = f"it leads to identity {kv.value.decode(errors='replace')[:20]}, which is not of these groups"
            same = modified(key, kv.mod_revision)
            number = int(kv.value) if kv.value.isdigit() and len(kv.value) <= 10 else 0
            gone = (same, absent(keys.identity(number))) if number not in world.identities.rows else (same,)
            yield Finding("DANGLING_KEY", keys.relative(key), text, gone, (delete(key),), repair="delete it")


def _lost(store: Store) -> dict[bytes, int]:
    """Where the identities of ports are found whose rows are not there: they will be written again (`rows`)."""
    found: dict[bytes, int] = {}
    for port in store.world.ports.rows.values():
        if port.spec.identity not in store.world.identities.rows:
            issued = issued_of(port)
            members = (issued.tenant_uid, *issued.group_uids)
            found[store.keys.identity_set(identity_digest(members))] = port.spec.identity
    return found


def _alive(store: Store, number: int, row: IdentityRow) -> Compare:
    return created(store.keys.identity(number), row.create_revision)


def _holder(kv: KeyValue) -> store_pb2.Holder | None:
    try:
        held = store_pb2.Holder.FromString(kv.value)
    except DecodeError:
        return None
    return held if held.uid and held.name else None


def _row(store: Store, name: str) -> Intent[Any] | None:
    world = store.world
    tables: tuple[Any, ...] = (
        world.tenants, world.hosts, world.routers, world.networks, world.ports, world.splits, world.rollouts,
        world.groups, world.tiers,
    )  # fmt: skip
    return next((table.rows[name] for table in tables if name in table.rows), None)
