"""Plan: validate_only for a list, each document against the world plus the documents before it (A26)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from controller import masks, names
from controller.api.reads import Parts
from controller.api.standard import Standard, copy_of, row_of
from controller.caller import Caller, current_caller
from controller.draft import Draft, Proposals, Reading
from controller.errors import ApiError, NotFound, PermissionDenied, invalid
from controller.etcd.types import KeyValue, Page, get
from controller.intents.base import Writer, check_etag, stored_message
from controller.intents.group import Groups
from controller.intents.host import Hosts
from controller.intents.network import Networks
from controller.intents.port import Ports
from controller.intents.rollout import Rollouts
from controller.intents.router import Routers
from controller.intents.tenant import Tenants
from controller.intents.tier import Tiers
from controller.keys import OWNED
from controller.rows import Intent
from tealnet.v1 import common_pb2, system_pb2

MOST = 2000
_Action = system_pb2.PlanResult.Action


@dataclass(slots=True)
class _World:
    """What the documents so far have made of the world."""

    overlay: dict[tuple[str, str], Intent[Any]] = field(default_factory=dict)
    claimed: dict[bytes, bytes] = field(default_factory=dict)
    freed: set[bytes] = field(default_factory=set)
    in_flight: set[bytes] = field(default_factory=set)

    def absorb(self, draft: Draft) -> None:
        """Go on with a document's changes."""
        for key in draft.deletes:
            self.freed.add(key)
            self.claimed.pop(key, None)
        for key in draft.claims:
            if key in draft.puts:
                self.claimed[key] = draft.puts[key].value


class Planner:
    """The method."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.store = parts, parts.store
        context = parts.context
        writers: list[Writer] = [
            Tenants(context),
            Hosts(context),
            Routers(context),
            Networks(context),
            Ports(context),
            Rollouts(context),
            Groups(context),
            Tiers(context),
        ]
        self._standards: dict[str, Standard[Any]] = {w.kind: Standard(parts, w) for w in writers}

    async def plan(self, request: system_pb2.PlanRequest) -> system_pb2.PlanResponse:
        """One result per document; what is wrong with one stands in its result."""
        if len(request.items) > MOST:
            raise invalid("items", f"at most {MOST}")
        await self.store.barrier()
        world, response = _World(), system_pb2.PlanResponse()
        for item in request.items:
            try:
                response.results.append(await self._item(item, world, current_caller()))
            except ApiError as error:
                status = error.status()
                refusal = common_pb2.Error(code=status.code, message=status.message, details=status.details)
                response.results.add(action=_Action.ACTION_FAIL, error=refusal)
        return response

    async def _item(self, item: system_pb2.PlanItem, world: _World, caller: Caller) -> system_pb2.PlanResult:
        field = item.object.WhichOneof("object") or ""
        if not field:
            raise invalid("object", "is missing")
        kind, given = names.kind_of_field(field), getattr(item.object, field)
        if kind not in self._standards:
            raise invalid(
                f"object.{field}", "is not made by documents: traffic moves by SetWeights and by rollouts only"
            )
        name = names.check_name(kind, given.name, f"{field}.name")
        _allow(kind, name, caller)
        standard = self._standards[kind]
        await standard.ready(name)
        body = standard.body(given, name=name)
        draft = Draft(Reading(self.store.world, self.store.keys, world.overlay), Proposals(world.in_flight), b"")
        row = draft.reading.peek(kind, name)
        if row is None:
            standard.writer.create(draft, name, copy_of(body))
            await self._check_keys(draft, world)
            return self._created(kind, name, body, draft=draft, world=world)
        check_etag(row, given.etag)
        before = stored_message(row, kind)
        message = copy_of(before)
        paths = masks.paths_of(item.update_mask, given, standard.writer.policy)
        masks.merge(message, body, paths=paths, policy=standard.writer.policy, prefix=field)
        standard.writer.update(draft, row, message)
        message.update_time.CopyFrom(before.update_time)
        shown = self.parts.presenter.render(kind, row, caller)
        if message == before:
            return system_pb2.PlanResult(action=_Action.ACTION_UNCHANGED, before=shown, after=shown)
        await self._check_keys(draft, world)
        after = self._absorbed(kind, name, draft, world, mod_revision=row.mod_revision)
        rendered = self.parts.presenter.render(kind, after, caller)
        return system_pb2.PlanResult(action=_Action.ACTION_UPDATE, before=shown, after=rendered)

    async def _check_keys(self, draft: Draft, world: _World) -> None:
        """What etcd would say of the claims: taken there, or by a document before."""
        asked = [claim for claim in draft.claims.values() if claim.refuse is not None]
        for claim in asked:
            if claim.key in world.claimed and claim.refuse:
                raise claim.refuse(KeyValue(claim.key, world.claimed[claim.key], 0, 0, 0))
        for item in draft.emptiness:
            held = [KeyValue(k, v, 0, 0, 0) for k, v in world.claimed.items() if item.check.key <= k < item.check.end]
            if held:
                raise item.refuse(Page(tuple(held), more=False, count=len(held), revision=0))
        looks = [get(claim.key) for claim in asked]
        looks += [get(item.check.key, item.check.end, limit=10) for item in draft.emptiness]
        if not looks:
            return
        found = [page for page in (await self.store.etcd.txn((), looks)).responses if isinstance(page, Page)]
        for claim, page in zip(asked, found, strict=False):
            if page.kvs and claim.refuse and claim.key not in world.freed:
                raise claim.refuse(page.kvs[0])
        for item, page in zip(draft.emptiness, found[len(asked) :], strict=True):
            if any(kv.key not in world.freed for kv in page.kvs):
                raise item.refuse(page)

    def _created(self, kind: str, name: str, body: Any, *, draft: Draft, world: _World) -> system_pb2.PlanResult:
        """What is not known yet is left empty."""
        row = self._absorbed(kind, name, draft, world, mod_revision=0)
        rendered = self.parts.presenter.render(kind, row, current_caller())
        shown = getattr(rendered, names.field_of(kind))
        for unknown in ("uid", "etag", "revision", "create_time", "update_time", "segments", "status"):
            if unknown in shown.DESCRIPTOR.fields_by_name:
                shown.ClearField(unknown)
        if kind == "port":
            shown.addresses[:] = body.addresses
            shown.mac, shown.color = body.mac, body.color
        return system_pb2.PlanResult(action=_Action.ACTION_CREATE, after=rendered)

    def _absorbed(self, kind: str, name: str, draft: Draft, world: _World, *, mod_revision: int) -> Intent[Any]:
        for written in draft.objects:  # a tenant comes with its default group
            if written.value is not None:
                world.overlay[written.kind, written.name] = row_of(written, mod_revision, self.store)
        world.absorb(draft)
        return world.overlay[kind, name]


def _allow(kind: str, name: str, caller: Caller) -> None:
    """As for the single calls."""
    if not caller.tenant:
        return
    if kind in OWNED:
        if names.tenant_of(name) != caller.tenant:
            raise NotFound(name)
    else:
        raise PermissionDenied(f"{caller.role} may not write {kind}s")
