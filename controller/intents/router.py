"""Routers: T0 create router, T2 static routes, T5."""

from __future__ import annotations

from controller import decode
from controller.draft import Draft
from controller.features.router_check import router_fields, router_shape, routes_fit
from controller.fields import Violations
from controller.intents.base import (
    Context,
    Quota,
    holder,
    issued_of,
    living_tenant,
    new_uid,
    refuse_referenced,
    release,
    stamp,
    stored,
    take_domain,
    take_slot,
)
from controller.masks import OUTPUT, Policy
from controller.names import tenant_of
from controller.rows import Intent, RouterSpec
from tealnet.store.v1 import store_pb2
from tealnet.v1 import router_pb2


class Routers:
    """Writer of routers."""

    kind = "router"
    policy = Policy(output=OUTPUT | {"networks"})

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: router_pb2.Router, found: Violations) -> None:
        """Each field by itself; puts routes into canonical form."""
        router_fields(message, found)

    def create(self, draft: Draft, name: str, message: router_pb2.Router) -> None:
        """T0, with the guard of its set."""
        self._shape(name, message, store_pb2.Issued())
        tenant = living_tenant(draft, tenant_of(name))
        uid, rng, settings = new_uid(), self.context.rng, self.context.settings
        message.name = name
        stamp(message, draft.now, created=draft.now)
        limit = tenant.spec.max_routers or settings.quota_routers
        quota = Quota("router", limit, draft.reading.world.routers_by_slot)
        slot = take_slot(draft, tenant, quota, uid=uid, name=name, rng=rng)
        issued = store_pb2.Issued(domain=take_domain(draft, value=holder(name, uid), rng=rng), tenant_uid=tenant.uid)
        draft.create("router", name, stored(message, uid=uid, issued=issued, slot=slot))
        draft.put(draft.keys.reference(kind="tenant", uid=tenant.uid, by_kind="router", by_uid=uid), holder(name, uid))
        draft.touch_guard(uid)

    def update(self, draft: Draft, row: Intent[RouterSpec], message: router_pb2.Router) -> None:
        """T2, static routes: checked against the networks attached, which the guard covers."""
        spec = self._shape(row.name, message, issued_of(row))
        if spec.routes != row.spec.routes:
            draft.reading.guard(row.uid)
            networks = draft.reading.where("network", draft.reading.world.networks_by_router, row.name)
            routes_fit(spec.routes, networks)
            draft.touch_guard(row.uid)
        stamp(message, draft.now)
        draft.replace("router", row, message=message)

    def delete(self, draft: Draft, row: Intent[RouterSpec]) -> None:
        """T5: only without networks."""
        issued = issued_of(row)
        refuse_referenced(draft, row.name, kind="router", uid=row.uid)
        draft.remove("router", row)
        release(draft, draft.keys.domain(issued.domain), name=row.name, uid=row.uid)
        draft.delete(draft.keys.domain_guard(row.uid))
        draft.delete(draft.keys.slot(tenant_uid=issued.tenant_uid, kind="router", slot=row.slot))
        draft.delete(draft.keys.reference(kind="tenant", uid=issued.tenant_uid, by_kind="router", by_uid=row.uid))

    def _shape(self, name: str, message: router_pb2.Router, issued: store_pb2.Issued) -> RouterSpec:
        found = Violations("router")
        spec: RouterSpec = decode.spec_of("router", name, message, issued)
        router_shape(spec, found)
        found.finish()
        return spec
