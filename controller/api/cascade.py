"""Forced deletes: what an object holds goes first, in order. Resumable: a call that was cut off is simply repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from controller import names
from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.caller import current_caller
from controller.draft import Draft
from controller.errors import Aborted, Ambiguous, FailedPrecondition, NotFound, Unavailable
from controller.etcd import StoreError
from controller.intents.base import Writer, check_etag, stamp, stored_message
from controller.intents.group import Groups
from controller.intents.network import Networks
from controller.intents.port import Ports
from controller.intents.rollout import Rollouts, owned
from controller.intents.router import Routers
from controller.intents.tenant import Tenants
from controller.rollouts.plan import RolloutSpec
from controller.rows import Intent
from tealnet.v1 import tenant_pb2

_ROUNDS = 8
_MOST = 50  # objects per transaction
_COMPARES = 4  # per object, at most, of which etcd counts a limited number


class _Abandoned(Rollouts):
    """Rollouts go with their tenant, however far they are."""

    def delete(self, draft: Draft, row: Intent[RolloutSpec]) -> None:
        self.abandon(draft, row)


@contextlib.contextmanager
def _in_parts() -> Iterator[None]:
    """Something was written before: nobody may be told that nothing was."""
    try:
        yield
    except (StoreError, Unavailable) as error:
        if isinstance(error, Ambiguous):
            raise
        raise Ambiguous("the store does not answer; a part may be deleted already: ask again") from error


class Cascade:
    """Deletes what stands in the way, then the object."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.world = parts, parts.store.world
        context = parts.context
        self._ports, self._networks, self._routers = Ports(context), Networks(context), Routers(context)
        self._tenants, self._rollouts, self._groups = Tenants(context), _Abandoned(context), Groups(context)

    async def network(self, request: Any, standard: Standard[Any]) -> None:
        """A network with its ports. Others may create ports meanwhile: they go, too, or the last try loses."""
        name = names.check_name("network", request.name, "name")
        if await standard.is_done(request, name):
            return  # what has the name now is another's
        await self._check_network(standard, name, request.etag)

        def ports() -> list[str]:
            return list(self.world.ports_by_network.keys(name))

        for _ in range(_ROUNDS):
            with _in_parts():
                await self._delete_all(self._ports, ports)
            try:
                with _in_parts():
                    await standard.delete(request)
                return
            except FailedPrecondition as error:
                if error.reason != "IN_USE":
                    raise
        raise Aborted(f"others create ports in {name} as fast as they are deleted; try again")

    async def tenant(self, request: Any, standard: Standard[Any]) -> None:
        """A tenant with all that it holds. It is DELETING first, and takes nothing new from then on."""
        name = names.check_name("tenant", request.name, "name")
        if await standard.is_done(request, name):
            return  # what has the name now is another's
        await self._mark(name, request.etag)
        with _in_parts():
            for writer, index in (
                (self._rollouts, self.world.rollouts_by_tenant),
                (self._ports, self.world.ports_by_tenant),
                (self._networks, self.world.networks_by_tenant),
                (self._routers, self.world.routers_by_tenant),
            ):
                await self._delete_all(writer, lambda index=index: list(index.keys(name)))  # type: ignore[misc]
            await self._empty_groups(name)
            await self._delete_all(self._groups, lambda: self._groups_of(name))
            await standard.delete(request, etag="")  # it was checked before DELETING changed it

    def _groups_of(self, tenant: str) -> list[str]:
        """All but the default one, which goes with the tenant."""
        return [name for name in self.world.groups_by_tenant.keys(tenant) if name != names.default_group(tenant)]

    async def _empty_groups(self, tenant: str) -> None:
        """Groups may refer to each other: no rules, no references."""
        for name in self.world.groups_by_tenant.keys(tenant):

            def build(draft: Draft, name: str = name) -> None:
                if (row := draft.reading.row("group", name)) and row.spec.rules:
                    self._groups.empty(draft, row)

            await self.parts.committer.commit(build, patience=current_caller().time_left)

    async def _mark(self, name: str, etag: str) -> None:
        def build(draft: Draft) -> None:
            row = draft.reading.row("tenant", name)
            if row is None:
                raise NotFound(name)
            if row.spec.deleting:
                return
            check_etag(row, etag)
            message = stored_message(row, "tenant")
            message.state = tenant_pb2.Tenant.STATE_DELETING
            stamp(message, draft.now)
            draft.replace("tenant", row, message=message)

        noted = await self.parts.notes.noting(build, reason="Deleting")
        await self.parts.committer.commit(noted, patience=current_caller().time_left)

    async def _check_network(self, standard: Standard[Any], name: str, etag: str) -> None:
        """Before anything goes: it is there, the one that the caller means, and no rollout moves its traffic."""

        def build(draft: Draft) -> None:
            row = standard.row(draft, name)
            check_etag(row, etag)
            draft.must_be_absent(draft.keys.rollout_of(row.uid), owned(name))

        await self.parts.committer.commit(build)

    async def _delete_all(self, writer: Writer, left: Callable[[], list[str]]) -> None:
        """Several objects per transaction, until the tables show none."""
        size = max(1, min(_MOST, self.parts.committer.max_ops // _COMPARES))
        while batch := left()[:size]:

            def build(draft: Draft, batch: list[str] = batch) -> None:
                for name in batch:
                    if row := draft.reading.row(writer.kind, name):
                        writer.delete(draft, row)

            noted = await self.parts.notes.noting(build, reason="Deleted", text="with what held it")
            await self.parts.committer.commit(noted, patience=current_caller().time_left)
