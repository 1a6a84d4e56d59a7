"""Units: staged, merged at once, checked by digest; proof of removal; what can't be interpreted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.inputs import Inputs
from agent.resources import Resources
from agent.stream import Conversation, SessionOver, Unit
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.digest import Digest, version
from tealnet.core.rows.stream import LocalPort, decode
from tealnet.core.tables import Graph
from tests.fakes.controller import FakeController, endpoint, hostpeer, localport, segment
from tests.samples import samples


class Host:
    """An agent's memory: resources and inputs."""

    def __init__(self, *, features: frozenset[str] = frozenset()) -> None:
        self.resources = Resources(features)
        self.inputs = Inputs(Graph())
        self.records = [self.resources.snapshot()]

    def take(self, parts: list[pb.Update]) -> tuple[str, ...]:
        merged = self.resources.merge(parts)
        for key, row in merged.rows.items():
            self.inputs.put(key, row)
        self.records.append(merged.record)
        return merged.mismatched

    def rows(self) -> dict[str, object]:
        inputs = self.inputs
        tables: list[Any] = [inputs.segments, inputs.endpoints, inputs.hostpeers, inputs.localports, inputs.routes]
        return {f"{number}/{key}": row for number, table in enumerate(tables) for key, row in table.rows.items()}

    def holds(self) -> dict[str, set[str]]:
        return {name: set(self.resources.versions(name)) for name in self.resources.digests()}

    def restarted(self) -> Host:
        host = Host()
        for key, row in host.resources.load(self.records).items():
            host.inputs.put(key, row)
        return host


def update(unit: int, part: int, *, last: bool) -> pb.ToAgent:
    return pb.ToAgent(update=pb.Update(unit=unit, part=part, last=last, revision=7))


WELCOME = pb.ToAgent(welcome=pb.Welcome(cluster_uid="c", vtep="192.0.2.1"))

PORT, OTHER_PORT = localport(1), localport(2)
WORLD = {"host": dict([PORT, OTHER_PORT, hostpeer(2)]), "domain/700": dict([segment(), endpoint(1), endpoint(2)])}


# -- the conversation


def test_a_unit_is_handed_over_when_its_last_part_has_come() -> None:
    talk = Conversation()
    assert talk.receive(WELCOME) == WELCOME.welcome
    assert talk.receive(update(1, 0, last=False)) is None
    assert talk.receive(pb.ToAgent(ping=pb.Ping())) is None
    unit = talk.receive(update(1, 1, last=True))
    assert isinstance(unit, Unit) and [part.part for part in unit.parts] == [0, 1]
    unit = talk.receive(update(2, 0, last=True))
    assert isinstance(unit, Unit) and unit.number == 2 and len(unit.parts) == 1


@pytest.mark.parametrize("turns", [[(1, 1)], [(1, 0), (1, 2)], [(1, 0), (2, 1)], [(1, 0), (1, 0)]])
def test_parts_out_of_turn_end_the_session(turns: list[tuple[int, int]]) -> None:
    talk = Conversation()
    talk.receive(WELCOME)
    with pytest.raises(SessionOver, match="ProtocolError"):
        for unit, part in turns:
            talk.receive(update(unit, part, last=False))


def test_nothing_is_taken_before_welcome() -> None:
    with pytest.raises(SessionOver, match="before welcome"):
        Conversation().receive(update(1, 0, last=True))


def test_a_refusal_says_why_and_when_to_come_back() -> None:
    refused = pb.ToAgent(refused=pb.Refused(reason="VtepMismatch", text="…", retry_after_ms=1500))
    with pytest.raises(SessionOver) as caught:
        Conversation().receive(refused)
    assert (caught.value.reason, caught.value.retry_after) == ("VtepMismatch", 1.5)


def test_a_message_of_a_later_version_is_passed_over() -> None:
    assert Conversation().receive(pb.ToAgent()) is None


# -- units


def test_after_a_unit_the_inputs_are_the_derivation() -> None:
    host, controller = Host(), FakeController()
    assert not host.resources.complete
    assert host.take(controller.unit(WORLD)) == ()
    assert host.resources.complete
    assert host.resources.revision == controller.revision
    assert host.holds() == {name: set(rows) for name, rows in WORLD.items()}
    assert host.inputs.localports.rows.keys() == {PORT[0].partition("/")[2], OTHER_PORT[0].partition("/")[2]}
    assert host.inputs.segments.rows.keys() == {5}


def test_an_empty_unit_is_complete_too() -> None:
    host = Host()
    host.take(FakeController().unit({}))
    assert host.resources.complete and len(host.resources) == 0


def test_digests_are_those_of_the_bytes_received() -> None:
    host = Host()
    host.take(FakeController().unit(WORLD))
    assert host.resources.digests() == {name: Digest.of(rows.items()) for name, rows in WORLD.items()}
    assert host.resources.versions("host") == {key: version(body) for key, body in WORLD["host"].items()}


def test_a_wrong_digest_asks_for_the_scope_whole_which_heals_it() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    controller.sent["domain/700"].pop(endpoint(2)[0])  # the controller forgets that it had sent this
    fewer = {**WORLD, "domain/700": dict([segment(), endpoint(1)])}
    assert host.take(controller.unit(fewer)) == ("domain/700",)
    assert host.take(controller.unit(fewer, whole=["domain/700"])) == ()
    assert host.holds()["domain/700"] == set(fewer["domain/700"])


def test_a_key_may_move_between_scopes_within_a_unit() -> None:
    for domains in (("domain/700", "domain/800"), ("domain/800", "domain/700")):  # either is first in a unit
        host, controller = Host(), FakeController()
        host.take(controller.unit({domains[0]: dict([segment(domain=700)])}))
        assert host.take(controller.unit({domains[0]: {}, domains[1]: dict([segment(domain=800)])})) == ()
        assert [row.domain for row in host.inputs.segments.rows.values()] == [800]


# -- proof


def test_a_port_goes_with_proof() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    host.take(controller.unit({"host": dict([OTHER_PORT])}, proofs=[PORT[0]]))
    assert host.resources.find(PORT[0]) is None
    assert host.resources.unaccounted() == []


def test_a_port_that_is_gone_without_proof_is_kept_with_what_it_needs() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    before = host.rows()
    assert host.take(controller.unit({"host": {}})) == ()  # a store that has lost everything
    assert host.resources.unaccounted() == [PORT[0], OTHER_PORT[0]]
    assert host.rows() == before  # it works as before: segment, endpoints and peers are still known
    assert set(host.resources.digests()) <= {"host"}  # … and all that is outside the digests
    assert host.restarted().rows() == before


def test_one_of_many_that_is_gone_without_proof_stays_reachable_here() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    before = host.rows()
    fewer = {"host": dict([OTHER_PORT, hostpeer(2)]), "domain/700": dict([segment(), endpoint(2)])}
    assert host.take(controller.unit(fewer)) == ()
    assert host.resources.unaccounted() == [PORT[0]]
    assert host.rows() == before == host.restarted().rows()
    assert host.take(controller.unit(fewer, proofs=[PORT[0]])) == ()
    fresh = Host()
    fresh.take(FakeController().unit(fewer))
    assert host.rows() == fresh.rows() == host.restarted().rows()


def test_kept_ports_are_told_when_versions_are_wanted() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    host.take(controller.unit({}))
    assert set(host.resources.versions("host")) == {PORT[0], OTHER_PORT[0]}


def test_proof_that_comes_later_releases_what_was_kept() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    host.take(controller.unit({}))
    host.take(controller.unit({"host": {}}, proofs=[PORT[0]]))
    assert host.resources.unaccounted() == [OTHER_PORT[0]]
    assert host.inputs.segments.rows
    host.take(controller.unit({"host": {}}, proofs=[OTHER_PORT[0]]))
    assert host.rows() == {}
    assert len(host.resources) == 0


def test_a_kept_port_that_is_wanted_again_is_an_ordinary_one() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    host.take(controller.unit({}))
    assert host.take(controller.unit(WORLD, whole=WORLD)) == ()
    assert host.resources.unaccounted() == []
    assert host.holds() == {name: set(rows) for name, rows in WORLD.items()}


def test_whole_does_not_take_ports_without_proof() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    host.take(controller.unit({**WORLD, "host": dict([PORT])}, whole=["host"]))
    assert host.resources.unaccounted() == [OTHER_PORT[0]]


# -- what can't be interpreted


def test_an_unsupported_resource_stays_as_it_was() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    newer = localport(1, identity=999)
    world = {**WORLD, "host": {**WORLD["host"], newer[0]: newer[1]}}
    assert host.take(controller.unit(world, requires={newer[0]: ["quantum"]})) == ()
    assert host.resources.problems[newer[0]].reason == "Unsupported"
    assert host.inputs.localports.rows[PORT[0].partition("/")[2]] == decode(*PORT)
    assert host.resources.version(newer[0]) == version(newer[1])
    again = host.restarted()
    assert again.inputs.localports.rows[PORT[0].partition("/")[2]] == decode(*PORT)
    assert again.resources.problems.keys() == {newer[0]}


def test_an_unsupported_resource_that_is_new_is_absent() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD, requires={PORT[0]: ["quantum"]}))
    assert PORT[0].partition("/")[2] not in host.inputs.localports.rows


def test_a_later_build_understands_what_an_earlier_one_has_kept() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD, requires={PORT[0]: ["quantum"]}))
    later = Resources(frozenset({"quantum"}))
    assert later.load(host.records)[PORT[0]] == decode(*PORT)
    assert not later.problems


def test_an_invalid_resource_is_absent_and_reported_until_it_is_right() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    bad = {**WORLD, "domain/700": {**WORLD["domain/700"], endpoint(2)[0]: b"\xff"}}
    assert host.take(controller.unit(bad)) == ()
    assert host.resources.problems[endpoint(2)[0]].reason == "BadResource"
    assert len(host.inputs.endpoints.rows) == 1
    host.take(controller.unit(WORLD))
    assert not host.resources.problems
    assert len(host.inputs.endpoints.rows) == 2


def test_an_invalid_local_port_or_segment_does_not_unplug_what_works() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    before = host.rows()
    bad = {
        "host": {**WORLD["host"], PORT[0]: b"\xff"},
        "domain/700": {**WORLD["domain/700"], segment()[0]: b""},
    }
    host.take(controller.unit(bad))
    assert host.resources.problems.keys() == {PORT[0], segment()[0]}
    assert host.rows() == before


def test_keys_of_kinds_we_do_not_know_harm_nobody() -> None:
    host, controller = Host(), FakeController()
    host.take(controller.unit(WORLD))
    before = host.rows()
    other_segment = f"segment/0{segment()[0].partition('/')[2]}"  # another key than that of the true one
    strange = {"weights/x": b"1", "segment/x": b"2", "": b"3", f"segment/{'9' * 5000}": b"4", other_segment: b"5"}
    world = {**WORLD, "domain/700": {**WORLD["domain/700"], **strange}}
    assert host.take(controller.unit(world)) == ()
    assert host.resources.problems.keys() == strange.keys()
    assert host.rows() == before
    assert host.take(controller.unit(WORLD)) == ()
    assert not host.resources.problems


# -- any history

POOL = [localport(1), localport(2), localport(3, vni=6)]
MEMBERS = [segment(5), segment(5, mtu=1500), segment(6), endpoint(1), endpoint(2), endpoint(3, vni=6), hostpeer(2)]


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, dict[str, bytes]]:
    ports = draw(st.lists(st.sampled_from(POOL), unique=True))
    world = {"host": dict(ports)}
    for domain in draw(st.sets(st.sampled_from(["domain/700", "domain/800"]))):
        world[domain] = dict(draw(st.lists(st.sampled_from(MEMBERS), unique=True)))
    return world


@settings(max_examples=samples(60, many=2000))
@given(st.lists(worlds(), min_size=1, max_size=6))
def test_any_history_with_proofs_ends_where_the_last_state_says(history: list[dict[str, dict[str, bytes]]]) -> None:
    host, controller = Host(), FakeController()
    for world in history:
        gone = controller.sent.get("host", {}).keys() - world["host"].keys()
        assert host.take(controller.unit(world, proofs=gone)) == ()
        fresh = Host()
        fresh.take(FakeController().unit(world))
        assert host.holds() == fresh.holds() == {name: set(rows) for name, rows in world.items() if rows}
        assert host.resources.unaccounted() == []
        keys = {key.partition("/")[2] for key in world["host"]}
        assert host.inputs.localports.rows.keys() == keys
        assert host.restarted().rows() == host.rows()


@settings(max_examples=samples(60, many=2000))
@given(st.lists(worlds(), min_size=1, max_size=6), st.randoms())
def test_no_local_port_ever_goes_without_proof(history: list[dict[str, dict[str, bytes]]], random: object) -> None:
    host, controller = Host(), FakeController()
    alive: dict[str, bytes] = {}
    for world in history:
        gone = alive.keys() - world["host"].keys()
        proven = {key for key in gone if random.random() < 0.5}  # type: ignore[attr-defined]
        assert host.take(controller.unit(world, proofs=proven)) == ()
        alive = {key: body for key, body in alive.items() if key not in proven} | world["host"]
        rows = host.inputs.localports.rows.values()
        assert {f"localport/{row.uid}" for row in rows if isinstance(row, LocalPort)} == alive.keys()
        assert host.restarted().rows() == host.rows()
