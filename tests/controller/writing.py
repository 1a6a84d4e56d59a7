"""The write path on a real etcd, called directly: several replicas in one process, without listeners."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from controller import api
from controller.caller import Caller, set_caller
from controller.derive import declare
from controller.errors import ApiError
from controller.etcd import Etcd
from controller.replica import Replica
from controller.server import Controller
from controller.settings import Settings
from controller.status import Status
from controller.store import Store, bootstrap
from tealnet.core.identity import Identity, Kind
from tealnet.core.pki import Ca
from tealnet.v1 import host_pb2, network_pb2, port_pb2, rollout_pb2, router_pb2, security_pb2, split_pb2, tenant_pb2
from tests.controller.shared import shared_etcd


def group_name(name: str) -> str:
    """acme/web → tenants/acme/securityGroups/web"""
    tenant, ident = name.split("/")
    return f"tenants/{tenant}/securityGroups/{ident}"


def become(kind: Kind = Kind.ADMIN, name: str = "") -> None:
    """From now on calls of this task are this party's."""
    set_caller(Caller(Identity(kind, name), time.time(), time.time() + 3600, time.monotonic() + 30))


@dataclass
class Replicated:
    """One replica: its store and its services by kind."""

    store: Store
    api: api.Api
    tenants: Any
    networks: Any
    routers: Any
    ports: Any
    hosts: Any
    splits: Any
    rollouts: Any
    groups: Any
    tiers: Any
    join: Any

    async def tenant(self, ident: str, **body: Any) -> Any:
        request = tenant_pb2.CreateTenantRequest(tenant_id=ident, tenant=tenant_pb2.Tenant(**body))
        return await self.tenants.CreateTenant(request, None)

    async def host(self, ident: str, **body: Any) -> Any:
        request = host_pb2.CreateHostRequest(host_id=ident, host=host_pb2.Host(**body))
        return await self.hosts.CreateHost(request, None)

    async def network(self, name: str, **body: Any) -> Any:
        """`name` is acme/web."""
        tenant, ident = name.split("/")
        request = network_pb2.CreateNetworkRequest(
            parent=f"tenants/{tenant}", network_id=ident, network=network_pb2.Network(**body)
        )
        return await self.networks.CreateNetwork(request, None)

    async def router(self, name: str, **body: Any) -> Any:
        tenant, ident = name.split("/")
        request = router_pb2.CreateRouterRequest(
            parent=f"tenants/{tenant}", router_id=ident, router=router_pb2.Router(**body)
        )
        return await self.routers.CreateRouter(request, None)

    async def port(self, name: str, network: str = "web", **body: Any) -> Any:
        tenant, ident = name.split("/")
        port = port_pb2.Port(network=f"tenants/{tenant}/networks/{network}", **body)
        request = port_pb2.CreatePortRequest(parent=f"tenants/{tenant}", port_id=ident, port=port)
        return await self.ports.CreatePort(request, None)

    async def colors(self, name: str, *colors: str, **body: Any) -> Any:
        """`name` is acme/web."""
        tenant, ident = name.split("/")
        full = f"tenants/{tenant}/networks/{ident}"
        return await self.update_network(full, "colors", *body, colors=colors, **body)

    async def weights(self, *networks: str, **more: Any) -> Any:
        """Each of `networks` is like `acme/web blue=95 green=5`."""
        request = split_pb2.SetWeightsRequest(**more)
        for words in networks:
            name, *pairs = words.split()
            tenant, ident = name.split("/")
            request.parent = f"tenants/{tenant}"
            weights = {color: int(weight) for color, weight in (pair.split("=") for pair in pairs)}
            request.networks.add(network=f"tenants/{tenant}/networks/{ident}", weights=weights)
        return await self.splits.SetWeights(request, None)

    async def split(self, name: str) -> Any:
        """`name` is acme/web."""
        tenant, ident = name.split("/")
        full = f"tenants/{tenant}/networks/{ident}/trafficSplit"
        return await self.splits.GetTrafficSplit(split_pb2.GetTrafficSplitRequest(name=full), None)

    async def rollout(self, name: str, **body: Any) -> Any:
        """`name` is acme/r; of the network web, from blue to green at once, unless told otherwise."""
        tenant, ident = name.split("/")
        body = {
            "networks": [f"tenants/{tenant}/networks/web"],
            "target": "green",
            "steps": [rollout_pb2.RolloutStep(weights={"green": 100})],
            **body,
        }
        request = rollout_pb2.CreateRolloutRequest(
            parent=f"tenants/{tenant}", rollout_id=ident, rollout=rollout_pb2.Rollout(**body)
        )
        return await self.rollouts.CreateRollout(request, None)

    async def ask(self, verb: str, name: str, **more: Any) -> Any:
        """Pause, Resume, Advance, Confirm, Rollback, Get or Delete a rollout like acme/r."""
        tenant, ident = name.split("/")
        request = getattr(rollout_pb2, f"{verb}RolloutRequest")(name=f"tenants/{tenant}/rollouts/{ident}", **more)
        return await getattr(self.rollouts, f"{verb}Rollout")(request, None)

    async def group(self, name: str, **body: Any) -> Any:
        tenant, ident = name.split("/")
        request = security_pb2.CreateSecurityGroupRequest(
            parent=f"tenants/{tenant}", security_group_id=ident, security_group=security_pb2.SecurityGroup(**body)
        )
        return await self.groups.CreateSecurityGroup(request, None)

    async def update_group(self, name: str, *mask: str, **body: Any) -> Any:
        group = security_pb2.SecurityGroup(name=group_name(name), **body)
        request = security_pb2.UpdateSecurityGroupRequest(security_group=group)
        request.update_mask.paths.extend(mask)
        return await self.groups.UpdateSecurityGroup(request, None)

    async def delete_group(self, name: str, **more: Any) -> None:
        await self.groups.DeleteSecurityGroup(
            security_pb2.DeleteSecurityGroupRequest(name=group_name(name), **more), None
        )

    async def tier(self, ident: str, **body: Any) -> Any:
        request = security_pb2.CreatePolicyTierRequest(
            policy_tier_id=ident, policy_tier=security_pb2.PolicyTier(**body)
        )
        return await self.tiers.CreatePolicyTier(request, None)

    async def delete_port(self, name: str, **more: Any) -> None:
        await self.ports.DeletePort(port_pb2.DeletePortRequest(name=name, **more), None)

    async def delete_network(self, name: str, **more: Any) -> None:
        await self.networks.DeleteNetwork(network_pb2.DeleteNetworkRequest(name=name, **more), None)

    async def update_port(self, name: str, *mask: str, **body: Any) -> Any:
        request = port_pb2.UpdatePortRequest(port=port_pb2.Port(name=name, **body))
        request.update_mask.paths.extend(mask)
        return await self.ports.UpdatePort(request, None)

    async def update_network(self, name: str, *mask: str, **body: Any) -> Any:
        request = network_pb2.UpdateNetworkRequest(network=network_pb2.Network(name=name, **body))
        request.update_mask.paths.extend(mask)
        return await self.networks.UpdateNetwork(request, None)


@dataclass
class Writing:
    """An etcd with replicas on it."""

    etcd: Etcd
    endpoint: str
    ca: Ca
    replicas: list[Replicated]

    @property
    def one(self) -> Replicated:
        return self.replicas[0]

    async def keys(self, prefix: str) -> dict[str, bytes]:
        """What is in the store below a relative prefix."""
        start = self.one.store.keys.watched[:-2] + prefix.encode()
        _, found = await self.etcd.scan(start, start + b"\xff")
        return {self.one.store.keys.relative(kv.key): kv.value for kv in found}


def services(store: Store, settings: Settings, ca: Ca, *, max_ops: int) -> Replicated:
    mtu = settings.default_mtu
    status = Status(store.world, declare(store.world, default_mtu=mtu), lambda _: 0, default_mtu=mtu)
    built = api.build(store, settings, status=status, ca=ca, max_ops=max_ops)
    tenants, networks, routers, ports, hosts, splits, rollouts, groups, tiers = (s for _, s in built.servicers)
    return Replicated(
        store, built, tenants, networks, routers, ports, hosts, splits, rollouts, groups, tiers, built.join[0][1]
    )


def replicated(controller: Controller) -> Replicated:
    """The API of a running controller, called directly."""
    tenants, networks, routers, ports, hosts, splits, rollouts, groups, tiers = (s for _, s in controller.api.servicers)
    return Replicated(
        controller.store,
        controller.api,
        tenants,
        networks,
        routers,
        ports,
        hosts,
        splits,
        rollouts,
        groups,
        tiers,
        controller.api.join[0][1],
    )


@contextlib.asynccontextmanager
async def writing(*, replicas: int = 1, max_ops: int = 4096, **settings: Any) -> AsyncIterator[Writing]:
    """Replicas with everything they need in the background."""
    become()
    ca = Ca.create("tealnet.local")
    async with contextlib.AsyncExitStack() as stack:
        endpoint, cluster = shared_etcd()
        etcd = await stack.enter_async_context(Etcd([endpoint]))
        keys = await bootstrap(etcd, cluster)
        jobs, made = [], []
        async with asyncio.TaskGroup() as group:  # a job that fails ends the test
            for number in range(replicas):
                replica = Replica(etcd, keys, f"replica-{number}")
                store = Store(etcd, keys, replica=replica.id)
                made.append(services(store, Settings(**settings), ca, max_ops=max_ops))
                await store.load()
                jobs += [group.create_task(store.run()), group.create_task(replica.run())]
            try:
                yield Writing(etcd, endpoint, ca, made)
            finally:
                for job in jobs:
                    job.cancel()


async def refusal(call: Any) -> ApiError:
    """The error that a call ends with."""
    try:
        answer = await call
    except ApiError as error:
        return error
    raise AssertionError(f"not refused, but {answer}")


async def outcome(call: Any) -> Any:
    """The answer, or the error."""
    try:
        return await call
    except ApiError as error:
        return error
