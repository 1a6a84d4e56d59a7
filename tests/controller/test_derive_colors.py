"""Colors: rows in, segments and weights out; and how fast a change of weights leaves."""

from __future__ import annotations

import time
from typing import Any

from controller.outbox import Outbox
from controller.resources import field
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.colors import Affinity, ColorWeight, Weights
from tealnet.core.rows.stream import Segment
from tealnet.v1 import split_pb2
from tests.controller.deriving import KEYS, MAKE, Derivation
from tests.controller.making import uid_of
from tests.controller.test_derive import DB, H1, P1, ROUTER, WEB, base

BLUE_GREEN = (("blue", 4), ("green", 1))
WEIGHTS = f"weights/{uid_of(WEB)}"
GREEN = "tenants/acme/ports/green"


def colored() -> Derivation:
    return base().put(
        MAKE.network(WEB, 1, colors=BLUE_GREEN),
        MAKE.split(WEB, {"blue": 95, "green": 5}),
        MAKE.port(GREEN, WEB, ["10.0.0.5", "fd00::5"], host="h2", segment="green"),
    )


def weights(derivation: Derivation, domain: int = 1001) -> Weights:
    found = derivation.settle().rows(f"domain/{domain}")[WEIGHTS]
    assert isinstance(found, Weights)
    return found


def test_weights_exactly() -> None:
    derivation = colored()
    assert weights(derivation) == Weights(
        network_uid=uid_of(WEB),
        domain=1001,
        network_number=1,
        colors=(ColorWeight(1, 5), ColorWeight(4, 95)),
        epoch=derivation.revision,
        affinity=Affinity.CONNECTION,
        closed=(),
        apply_at=0,
    )
    more: dict[str, Any] = {"closed": ["blue"], "affinity": split_pb2.AFFINITY_SOURCE, "apply_at": 7_000_000_001}
    derivation.put(MAKE.split(WEB, {"green": 1}, **more))
    found = weights(derivation)
    assert (found.colors, found.closed) == ((ColorWeight(1, 1), ColorWeight(4, 0)), (4,))
    assert (found.affinity, found.apply_at, found.epoch) == (Affinity.SOURCE, 7_000_000_001, derivation.revision)
    derivation.put(KEYS.intent(f"{WEB}/trafficSplit")).settle()
    assert WEIGHTS not in derivation.rows("domain/1001")


def test_segments_of_colors() -> None:
    rows = colored().settle().rows("domain/1001")
    blue, green = rows["segment/5001"], rows["segment/5101"]
    assert isinstance(blue, Segment) and isinstance(green, Segment)
    assert (blue.color, blue.base, green.color, green.base) == (4, True, 1, False)
    assert blue.network_number == green.network_number == 1 and blue.subnets == green.subnets
    assert [rows[f"endpoint/{uid_of(p)}"].vni for p in (P1, GREEN)] == [5001, 5101]
    assert rows[f"endpoint/{uid_of(P1)}"].addresses == rows[f"endpoint/{uid_of(GREEN)}"].addresses


def test_what_speaks_of_colors_says_so() -> None:
    """An agent that does not know colors must not guess (A15)."""
    chunks = colored().settle().resources.scope("domain/1001").chunks
    requires = {}
    for key, chunk in chunks.items():
        (resource,) = pb.ScopeDelta.FromString(chunk.encoded).upserts
        requires[key.partition("/")[0]] = list(resource.requires)
    assert requires == {"weights": ["colors"], "segment": ["colors"], "endpoint": []}
    (plain,) = pb.ScopeDelta.FromString(base().resources.scope("domain/1001").chunks["segment/5001"].encoded).upserts
    assert not plain.requires


def test_naming_base_changes_one_segment_and_nothing_else() -> None:
    derivation = base()
    derivation.put(MAKE.network(WEB, 1, colors=BLUE_GREEN[:1]), MAKE.split(WEB, {"blue": 100})).settle()
    assert derivation.changed == {"domain/1001": {"segment/5001", WEIGHTS}}
    derivation.put(MAKE.network(WEB, 1), KEYS.intent(f"{WEB}/trafficSplit")).settle()
    assert derivation.changed == {"domain/1001": {"segment/5001", WEIGHTS}}
    assert derivation.everything() == base().everything()


def test_naming_base_of_a_thousand_ports_changes_one_segment() -> None:
    derivation = base()
    for n in range(1000):
        name = f"tenants/acme/ports/x{n}"
        derivation.put(MAKE.port(name, WEB, [f"10.0.{n >> 8}.{n & 255}"], host=f"h{n % 3 + 1}"))
    derivation.settle()
    derivation.put(MAKE.network(WEB, 1, colors=BLUE_GREEN), MAKE.split(WEB, {"blue": 100})).settle()
    assert derivation.changed == {"domain/1001": {"segment/5001", "segment/5101", WEIGHTS}}


def test_weights_follow_their_network_to_another_domain() -> None:
    derivation = colored().put(MAKE.router(ROUTER, 77)).settle()
    derivation.put(MAKE.network(WEB, 1, router=ROUTER, colors=(("blue", 2), ("green", 1)))).settle()
    assert weights(derivation, 77).colors == (ColorWeight(1, 5), ColorWeight(2, 95))
    assert WEIGHTS not in derivation.resources.scope("domain/1001").chunks


def test_a_split_of_another_life_counts_for_nothing() -> None:
    derivation = base().put(MAKE.network(DB, 2, colors=BLUE_GREEN)).put(MAKE.split(WEB, {"blue": 1})).settle()
    assert not any("weights" in key for scope in derivation.everything().values() for key in scope)


def test_one_encoded_body_for_all_hosts() -> None:
    """A flip to 1,000 hosts is encoded once (A24)."""
    derivation = colored().settle()
    outboxes = [Outbox(derivation.resources, f"{n:032x}") for n in range(1000)]
    for outbox in outboxes:
        outbox.scopes.add("domain/1001")
        outbox.owe(1)
        outbox.cut(1, (1, "l"))
        outbox.taken(1)
    derivation.put(MAKE.split(WEB, {"green": 1})).settle()
    begin = time.perf_counter()
    for outbox in outboxes:
        outbox.mark(5, "domain/1001", derivation.changed["domain/1001"])
    units = [outbox.cut(5, (1, "l")) for outbox in outboxes]
    took = time.perf_counter() - begin
    assert len(derivation.resources.encoded) == 1
    ((delta,),) = derivation.resources.encoded.values()
    assert all(field(6, delta) in part for unit in units for part in unit.parts)
    (update,) = (pb.ToAgent.FromString(part).update for part in units[7].parts)
    assert [r.key for r in update.scopes[0].upserts] == [WEIGHTS]
    now = derivation.resources.scope("domain/1001").digest("domain/1001")
    assert (update.scopes[0].digest.digest, update.scopes[0].digest.count) == (now.digest, now.count)
    assert took < 0.5, f"{took:.3f} s for 1,000 hosts"


def test_shared_bodies_are_those_of_now() -> None:
    """What is encoded once is forgotten as soon as anything changes."""
    derivation = colored().settle()
    outbox = Outbox(derivation.resources, H1)
    outbox.scopes.add("domain/1001")
    for revision in range(2, 6):
        derivation.put(MAKE.split(WEB, {"blue": revision, "green": 1})).settle()
        outbox.mark(revision, "domain/1001", {WEIGHTS})
        unit = outbox.cut(revision, (1, "l"))
        outbox.taken(unit.number)
        (update,) = (pb.ToAgent.FromString(part).update for part in unit.parts)
        (delta,) = [scope for scope in update.scopes if scope.scope == "domain/1001"]
        assert pb.Weights.FromString(delta.upserts[0].body).colors[1].weight == revision
