"""Who may what: every method that the server says it has × every kind of caller × whose object × fields that name
other objects. What nobody thought of is denied, and what is another's looks like what is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from controller.api import Errors
from controller.audit import AuditLog
from controller.auth import RULES, Auth
from controller.caller import current_caller
from tealnet.core.revoked import RevocationList
from tests.controller.running import Site
from tests.security.authorising import (
    ACME,
    CALLERS,
    GLOBEX,
    HIDDEN,
    HOST_OF,
    KINDS,
    NOBODY,
    OK,
    TIER_OF,
    Answer,
    Matrix,
    ask,
    expected,
    kind_of,
    matrix,
    name_in,
    outcome,
    requests,
)
from tests.security.reflected import Method, Path, put, strings

AGENT = "tealnet.agent.v1"
# Every string that a request can hold names an object, or is one of these. A new field has to be put into either.
REFERENCES = {
    "behind", "host", "name", "network", "networks", "parent", "remote_group", "router", "security_groups",
}  # fmt: skip
ENDS = {("source",), ("target",)}  # of a connection: ports; the target of a rollout is a color
PLAIN = {
    "actor", "addresses", "agent_version", "allowed_addresses", "cidr", "cidrs", "closed", "color", "colors",
    "datapath", "description", "device", "etag", "filter", "gate", "gateways", "host_id", "interface", "kinds", "mac",
    "namespace", "network_id", "next_hop", "origin", "ovs_version", "page_token", "path", "paths", "policy_tier_id",
    "port_id", "ports", "prefix", "protocol", "reason", "remedy", "remote_cidr", "replica", "request_id",
    "reserved_ranges", "rollout_id", "router_id", "search_domains", "security_group_id", "servers", "target",
    "tenant_id", "text", "type", "uid", "url", "vtep", "vtep_seen", "waiting", "who",
}  # fmt: skip


@pytest.fixture
async def found() -> AsyncIterator[Matrix]:
    async with matrix() as made:
        yield made


def api(found: Matrix) -> list[Method]:
    return [method for method in found.methods if method.package == "tealnet.v1"]


def about(method: Method, request: Any) -> str:
    """The kind of object that a request is about."""
    if "items" in request.DESCRIPTOR.fields_by_name:
        return str(request.items[0].object.WhichOneof("object"))
    return kind_of(method)


def refers(path: Path) -> bool:
    """Whether a field names an object."""
    return path[-1] in REFERENCES or path in ENDS


async def test_every_method_by_every_caller_about_everybody(found: Matrix) -> None:
    wrong, cells = [], 0
    for caller in sorted(CALLERS, key=lambda caller: caller == "admin"):  # last: he is let do everything
        for method in (method for method in found.methods if method.package != AGENT):
            for tenant in (ACME, GLOBEX, NOBODY):
                for request in requests(method, tenant):
                    answer = await ask(method, found.channels[caller], request)
                    want, got = expected(method, caller, tenant, about(method, request)), outcome(answer)
                    cells += 1
                    # An answer to what is wrong says nothing of rights: all that is asked here is right.
                    made = answer.code is not grpc.StatusCode.INVALID_ARGUMENT
                    if not made or (got != want and not (got == HIDDEN and want == OK and tenant == NOBODY)):
                        wrong.append(f"{method.path} by {caller} about {tenant}: {got}, not {want} ({answer.text})")
    assert not wrong, f"{len(wrong)} of {cells} cells\n" + "\n".join(wrong)
    assert cells > 2500


async def test_every_method_is_decided_by_a_rule(found: Matrix) -> None:
    assert {method.path for method in api(found)} == set(RULES)
    packages = {method.package for method in found.methods}
    assert packages == {"tealnet.v1", AGENT, "grpc.health.v1", "grpc.reflection.v1alpha"}


async def test_a_foreign_object_looks_like_one_that_is_not_there(found: Matrix) -> None:
    cost = counted(found.place)
    for role in ("admin", "viewer"):
        channel = found.channels[f"tenant/{ACME}/{role}"]
        for method in api(found):
            for foreign, absent in zip(requests(method, GLOBEX), requests(method, NOBODY), strict=True):
                one, price = await cost(ask, method, channel, foreign)
                other, price_of_other = await cost(ask, method, channel, absent)
                same(one, other, method.path)
                assert price == price_of_other, f"{method.path}: {price} and {price_of_other}"


async def test_a_field_that_names_what_is_foreign_is_answered_as_if_it_were_not_there(found: Matrix) -> None:
    cost, tried, wrong = counted(found.place), 0, []
    channel = found.channels[f"tenant/{ACME}/admin"]
    for method in api(found):
        for path in filter(refers, strings(method.takes)):
            for request in requests(method, ACME):
                if "items" in path and about(method, request) not in path:
                    continue
                for kind in kinds_of(path, method):
                    answers = []
                    for tenant in (GLOBEX, NOBODY):
                        changed = type(request).FromString(request.SerializeToString())
                        put(changed, path, name_in(tenant, kind))
                        answers.append(await cost(ask, method, channel, changed))
                    (one, price), (other, price_of_other) = answers
                    tried += 1
                    where = f"{method.path} {'.'.join(path)} = {kind}"
                    same(one, other, where)
                    if price != price_of_other:
                        wrong.append(f"{where}: {price}, {price_of_other}: {one.code} {one.text}")
                    if one.code is grpc.StatusCode.OK:
                        assert not leaked(found, one), where
    assert not wrong, "\n".join(wrong)
    assert tried > 150


def kinds_of(path: Path, method: Method) -> list[str]:
    """The kinds that a field may name."""
    match path[-1]:
        case "name" if len(path) > 1 and path[-2] in KINDS:
            return [path[-2]]
        case "parent" | "name":
            return [kind_of(method), "tenant"] if kind_of(method) else list(KINDS)
        case "networks" | "security_groups":
            return [path[-1].removesuffix("s")]
        case "remote_group":
            return ["security_group"]
        case "behind":
            return ["host"]
        case "source" | "target":
            return ["port"]
        case other:
            return [other]


async def test_every_field_is_known_to_name_an_object_or_not_to(found: Matrix) -> None:
    paths = {path for method in api(found) for path in strings(method.takes)}
    unknown = {".".join(path) for path in paths if not refers(path) and path[-1] not in PLAIN}
    assert not unknown, unknown


async def test_nothing_of_others_is_in_any_answer(found: Matrix) -> None:
    for role in ("admin", "viewer"):
        for method in api(found):
            for request in requests(method, ACME):
                answer = await ask(method, found.channels[f"tenant/{ACME}/{role}"], request)
                assert not leaked(found, answer), f"{method.path}: {leaked(found, answer)}"
    for method in (m for m in api(found) if {"parent", "page_token"} <= set(m.takes.fields_by_name)):
        request = method.request()
        request.parent = "tenants/-"
        answer = await ask(method, found.channels[f"tenant/{ACME}/viewer"], request)
        assert answer.code is grpc.StatusCode.OK and not leaked(found, answer)


def leaked(found: Matrix, answer: Answer) -> list[str]:
    """What of another tenant is in an answer, or of the fabric below."""
    others = (HOST_OF[GLOBEX], TIER_OF[GLOBEX], f"tenants/{GLOBEX}")
    secrets = {GLOBEX, *others, "192.0.2.", f"secret of {GLOBEX}", "secret of"}
    secrets |= {uid for name, uid in found.uids.items() if name in others}
    secrets |= {uid for name, uid in found.uids.items() if name.startswith(f"tenants/{GLOBEX}/")}
    own = f"secret of {ACME}"  # the description of what is its own
    text = answer.body + answer.details + answer.text.encode()
    return sorted(secret for secret in secrets if secret.encode() in text.replace(own.encode(), b""))


def same(foreign: Answer, absent: Answer, what: str) -> None:
    """Equal but for the name that was asked for."""
    for old, new in ((GLOBEX, NOBODY), (HOST_OF[GLOBEX], HOST_OF[NOBODY]), (TIER_OF[GLOBEX], TIER_OF[NOBODY])):
        foreign = Answer(
            foreign.code, foreign.text.replace(old, new), foreign.details.replace(old.encode(), new.encode())
        )
    assert (foreign.code, foreign.text, foreign.details) == (absent.code, absent.text, absent.details), what


def counted(place: Site) -> Callable[..., Any]:
    """A way to call that also says how often the store was asked what."""
    etcd, counts = place.controller.store.etcd, Counter[str]()

    def counting(name: str) -> None:
        inner = getattr(etcd, name)

        async def call(*args: Any, **more: Any) -> Any:
            with suppress(LookupError):  # outside of calls
                counts[f"{name} for {current_caller().role}"] += 1
            return await inner(*args, **more)

        setattr(etcd, name, call)

    for name in ("txn", "range", "scan", "grant"):
        counting(name)

    async def cost(work: Any, *args: Any) -> tuple[Answer, Counter[str]]:
        counts.clear()
        answer = await work(*args)
        return answer, Counter(counts)

    return cost


async def test_what_has_no_rule_is_denied_even_to_admins(found: Matrix) -> None:
    """A method that somebody adds to the server and forgets in the table."""
    place, nothing = found.place, RevocationList(None, found.place.settings.ca)
    auth = Auth(place.controller.store, trust_domain="tealnet.local", revoked=nothing)

    async def answer(request: bytes, context: Any) -> bytes:
        return b"reached"

    async def answers(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"reached"

    handlers = {
        "Do": grpc.unary_unary_rpc_method_handler(answer),
        "Follow": grpc.unary_stream_rpc_method_handler(answers),
        "Send": grpc.stream_unary_rpc_method_handler(answer),
        "Talk": grpc.stream_stream_rpc_method_handler(answers),
    }
    for service in ("tealnet.v1.NewService", "tealnet.v1.PortService", "tealnet.agent.v2.AgentService"):
        server = grpc.aio.server(interceptors=[Errors(AuditLog(None, most=0), replica="a"), auth])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        address = f"unix:{place.directory}/new.sock"
        server.add_secure_port(address, place.controller.certificates.mutual())
        await server.start()
        leaf = place.ca.issue("admin")
        credentials = grpc.ssl_channel_credentials(place.ca.cert_pem, leaf.key_pem, leaf.cert_pem)
        options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(address, credentials, options) as channel:
            for name in handlers:
                talk: Any = channel.stream_stream
                call = talk(f"/{service}/{name}")(timeout=5)
                # What is sent while the server refuses fails on this side, and hides its answer.
                if name in ("Do", "Follow"):
                    await call.write(b"")
                    await call.done_writing()
                code = await call.code()
                refused = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
                assert code in refused, f"{service}/{name}: {code}"
        await server.stop(None)
