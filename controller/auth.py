"""Who may what: one table of method × role, default deny (A28). The role is the client certificate's URI SAN.

A foreign object is indistinguishable from an absent one: the same error, and no look at the tables.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from controller.caller import PATIENCE, Caller, current_caller, set_caller
from controller.errors import NotFound, PermissionDenied, Unauthenticated
from controller.names import kind_of, tenant_of
from controller.store import Store
from tealnet.core.crl import Revoked, key_of
from tealnet.core.identity import Identity, IdentityError, Kind, parse_identity
from tealnet.core.pki import SKEW, PkiError, is_strong, load_certificate, uri_names
from tealnet.core.revoked import RevocationList

if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor
Continue = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Subject = Callable[[Any], str]

_ADMIN = frozenset({Kind.ADMIN})
_WRITERS = _ADMIN | {Kind.TENANT_ADMIN}
_READERS = _WRITERS | {Kind.TENANT_VIEWER}
_ALL = frozenset(Kind)
_RECHECK = 2.0  # seconds between looks whether the certificate of an open stream is revoked


@dataclass(frozen=True, slots=True)
class Rule:
    """Roles that may call a method; `subject`: the name that must be the caller's own where it is a tenant."""

    roles: frozenset[Kind]
    subject: Subject = lambda _: ""


def _name(request: Any) -> str:
    return str(request.name)


def _parent(request: Any) -> str:
    return str(request.parent)


def _name_in(field: str, request: Any) -> str:
    return str(getattr(request, field).name)


def _rules() -> dict[str, Rule]:
    v1 = "/tealnet.v1."
    rules = {
        f"{v1}TenantService/GetTenant": Rule(_READERS, _name),
        f"{v1}TenantService/ListTenants": Rule(_READERS),
        f"{v1}HostService/GetHost": Rule(_READERS),
        f"{v1}HostService/ListHosts": Rule(_READERS),
        f"{v1}HostService/RenewCertificate": Rule(frozenset({Kind.HOST})),
        f"{v1}PolicyTierService/GetPolicyTier": Rule(_READERS),
        f"{v1}PolicyTierService/ListPolicyTiers": Rule(_READERS),
        f"{v1}PolicyService/TestPolicy": Rule(_READERS, lambda request: str(request.source)),
        f"{v1}PolicyService/ListRules": Rule(_READERS, _parent),
        f"{v1}PolicyService/ListDenials": Rule(_READERS, _parent),
        f"{v1}PortService/BatchCreatePorts": Rule(_WRITERS, _parent),
        f"{v1}PortService/BatchUpdatePorts": Rule(_WRITERS, _parent),
        f"{v1}TrafficSplitService/GetTrafficSplit": Rule(_READERS, _name),
        f"{v1}TrafficSplitService/ListTrafficSplits": Rule(_READERS, _parent),
        f"{v1}TrafficSplitService/SetWeights": Rule(_WRITERS, _parent),
        f"{v1}SystemService/Sync": Rule(_READERS, _parent),
        f"{v1}SystemService/Watch": Rule(_READERS, _parent),
        f"{v1}SystemService/GetStatus": Rule(_READERS),
        f"{v1}SystemService/ListEvents": Rule(_READERS, _name),
        f"{v1}SystemService/Plan": Rule(_WRITERS),
        f"{v1}SystemService/GetVersion": Rule(_ALL),
    }
    for verb in ("Create", "Update", "Delete"):
        rules[f"{v1}TenantService/{verb}Tenant"] = Rule(_ADMIN)
        rules[f"{v1}HostService/{verb}Host"] = Rule(_ADMIN)
    for method in ("Backup", "Defragment", "ListAlarms", "DisarmAlarms", "Check", "ListAudit"):
        rules[f"{v1}AdminService/{method}"] = Rule(_ADMIN)
    for method in ("AcceptHost", "FenceHost", "DrainHost", "CreateJoinToken"):
        rules[f"{v1}HostService/{method}"] = Rule(_ADMIN)
    for verb in ("Pause", "Resume", "Advance", "Confirm", "Rollback"):
        rules[f"{v1}RolloutService/{verb}Rollout"] = Rule(_WRITERS, _name)
    for verb in ("Create", "Update", "Delete"):
        rules[f"{v1}PolicyTierService/{verb}PolicyTier"] = Rule(_ADMIN)
    for kind, field in (
        ("Network", "network"), ("Router", "router"), ("Port", "port"), ("Rollout", "rollout"),
        ("SecurityGroup", "security_group"),
    ):  # fmt: skip
        service = f"{v1}{kind}Service/"
        rules[f"{service}Create{kind}"] = Rule(_WRITERS, _parent)
        rules[f"{service}Get{kind}"] = Rule(_READERS, _name)
        rules[f"{service}List{kind}s"] = Rule(_READERS, _parent)
        rules[f"{service}Update{kind}"] = Rule(_WRITERS, partial(_name_in, field))
        rules[f"{service}Delete{kind}"] = Rule(_WRITERS, _name)
    return rules


RULES = _rules()
"""Every method of the API; what is not here nobody may call."""

OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.")
"""For whoever has a certificate of ours."""
AGENTS = "/tealnet.agent.v1.AgentService/"
"""Checks its peers itself: a refused agent is told why on the stream."""


def allow(rule: Rule | None, caller: Caller, request: Any) -> None:
    """Raises PermissionDenied, or NotFound for what is not the caller's."""
    if rule is None or caller.identity.kind not in rule.roles:
        raise PermissionDenied(f"{caller.role} may not do this")
    own, subject = caller.tenant, rule.subject(request)
    if own and kind_of(subject) and tenant_of(subject) and tenant_of(subject) != own:
        raise NotFound(subject)


@dataclass(frozen=True, slots=True)
class Party:
    """What a certificate says: who, when it was issued and when it ends (Unix time), and how lists name it."""

    identity: Identity
    issued: float
    ends: float
    certificate: Revoked


@lru_cache(maxsize=1024)
def party_of(pem: bytes, trust_domain: str) -> Party:
    """Who showed this certificate, which the TLS handshake has verified. Raises Unauthenticated."""
    try:
        cert = load_certificate(pem, "client certificate")
        uris = uri_names(cert)
        if len(uris) != 1:
            raise IdentityError(f"the certificate has {len(uris)} URI names, not one")
        if not is_strong(cert.public_key()):
            raise IdentityError("its key is too weak")
        identity = parse_identity(uris[0], trust_domain)
    except (PkiError, IdentityError) as error:
        raise Unauthenticated(f"this certificate does not count: {error}") from error
    # Our CA lets certificates begin a little before they are issued, for hosts whose clocks are behind.
    issued, ends = (cert.not_valid_before_utc + SKEW).timestamp(), cert.not_valid_after_utc.timestamp()
    return Party(identity, issued, ends, key_of(cert))


class Auth(Interceptor):
    """Inside `Errors`: no call without a certificate that counts and a rule that allows it."""

    def __init__(self, store: Store, *, trust_domain: str, revoked: RevocationList) -> None:
        self.store, self.trust_domain, self.revoked = store, trust_domain, revoked

    async def intercept_service(self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap unary and server-streaming handlers."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(AGENTS):
            return handler
        rule = RULES.get(method)
        if method.startswith(OPEN):
            rule = Rule(_ALL)
            if handler.request_streaming and handler.response_streaming:
                return self._talking(handler, rule)
        if handler.request_streaming:
            return None
        return self._streaming(handler, rule) if handler.response_streaming else self._unary(handler, rule)

    def _unary(self, handler: Any, rule: Rule | None) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            await self._enter(rule, request, context)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _streaming(self, handler: Any, rule: Rule | None) -> Any:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            await self._enter(rule, request, context)
            async for response in self._while_valid(handler.unary_stream(request, context)):
                yield response

        return grpc.unary_stream_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _talking(self, handler: Any, rule: Rule) -> Any:
        """Reflection: it shows the API's description only, so that what it is asked does not matter."""

        async def call(requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            await self._enter(rule, None, context)
            async for response in self._while_valid(handler.stream_stream(requests, context)):
                yield response

        return grpc.stream_stream_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    async def _enter(self, rule: Rule | None, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        pem = b"".join((context.auth_context() or {}).get("x509_pem_cert", ()))
        if not pem:
            raise Unauthenticated("a client certificate is needed")
        party = party_of(pem, self.trust_domain)
        left = context.time_remaining()
        caller = Caller(
            party.identity,
            party.issued,
            party.ends,
            time.monotonic() + (PATIENCE if left is None else left),
            party.certificate,
        )
        set_caller(caller)
        await self._check_revoked(caller)
        allow(rule, caller, request)

    async def _check_revoked(self, caller: Caller) -> None:
        """Tenants and hosts must exist, and their certificates be newer than `revoked_before`."""
        if (name := _subject_name(caller)) is None:
            self._check_now(caller)
            return
        if self._revoked_before(name) is None:
            await self.store.barrier()  # this replica may be behind the one that created it
        self._check_now(caller)

    def _check_now(self, caller: Caller) -> None:
        """As at the handshake, which may be long ago."""
        if time.time() > caller.ends:
            raise Unauthenticated(f"the certificate of {caller.role} has ended", reason="EXPIRED")
        if self.revoked.has(caller.certificate):
            raise Unauthenticated(f"this certificate of {caller.role} is on the revocation list", reason="REVOKED")
        if (name := _subject_name(caller)) is None:
            return
        since = self._revoked_before(name)
        if since is None:
            raise Unauthenticated(f"{caller.role}: no such party", reason="UNKNOWN_PARTY")
        if caller.issued < since:
            raise Unauthenticated(f"certificates of {caller.role} of this age are revoked", reason="REVOKED")

    def _revoked_before(self, name: str) -> float | None:
        table: Any = self.store.world.tenants if name.startswith("tenants/") else self.store.world.hosts
        row = table.rows.get(name)
        return None if row is None else float(row.spec.revoked_before)

    async def _while_valid(self, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """A stream that ends when its caller's certificate is revoked."""
        caller, it = current_caller(), aiter(responses)
        following: asyncio.Future[Any] = asyncio.ensure_future(anext(it))
        try:
            while True:
                done, _ = await asyncio.wait({following}, timeout=_RECHECK)
                self._check_now(caller)
                if not done:
                    continue
                try:
                    response = following.result()
                except StopAsyncIteration:
                    return
                following = asyncio.ensure_future(anext(it))
                yield response
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await it.aclose()  # type: ignore[attr-defined]


def _subject_name(caller: Caller) -> str | None:
    """The object that a certificate is of: a tenant or a host."""
    if caller.tenant:
        return caller.tenant
    return f"hosts/{caller.identity.name}" if caller.identity.kind is Kind.HOST else None
