"""The services of tealnet.v1, put together; users import from here."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controller.api.fair import Fair
from controller.api.host import HostService
from controller.api.interceptors import Errors
from controller.api.join import JoinService, Tokens
from controller.api.network import NetworkService
from controller.api.notes import Notes
from controller.api.plan import Planner
from controller.api.port import PortService
from controller.api.present import Presenter
from controller.api.reads import Parts
from controller.api.rollout import RolloutService
from controller.api.router import RouterService
from controller.api.security import PolicyTierService, SecurityGroupService
from controller.api.split import TrafficSplitService
from controller.api.tenant import TenantService
from controller.audit import AuditLog
from controller.auth import Auth
from controller.commit import Committer
from controller.events import Events
from controller.intents.base import Context
from controller.requests import Requests
from controller.settings import Settings
from controller.status import Status
from controller.store import Store
from tealnet.core.pki import Ca
from tealnet.core.revoked import RevocationList
from tealnet.v1 import (
    host_pb2_grpc,
    network_pb2_grpc,
    port_pb2_grpc,
    rollout_pb2_grpc,
    router_pb2_grpc,
    security_pb2_grpc,
    split_pb2_grpc,
    tenant_pb2_grpc,
)

Added = tuple[Callable[[Any, Any], None], Any]
"""A function that adds a servicer to a server, and the servicer."""


@dataclass(frozen=True, slots=True)
class Api:
    """What a server needs of the write path and of plain reads."""

    servicers: list[Added]
    join: list[Added]  # for a listener without client certificates; empty without a CA key
    presenter: Presenter
    planner: Planner


def build(store: Store, settings: Settings, *, status: Status, ca: Ca | None, max_ops: int) -> Api:
    """All services of one replica. `ca` signs hosts' certificates; `max_ops` is what etcd takes in a transaction."""
    presenter, events = Presenter(store.world, status), Events(store.etcd, store.keys)
    parts = Parts(
        store=store,
        committer=Committer(store, max_ops=max_ops, on_lease_gone=events.forget),
        requests=Requests(store, events),
        notes=Notes(events),
        presenter=presenter,
        context=Context(settings, random.Random()),
    )
    servicers: list[Added] = [
        (tenant_pb2_grpc.add_TenantServiceServicer_to_server, TenantService(parts)),
        (network_pb2_grpc.add_NetworkServiceServicer_to_server, NetworkService(parts)),
        (router_pb2_grpc.add_RouterServiceServicer_to_server, RouterService(parts)),
        (port_pb2_grpc.add_PortServiceServicer_to_server, PortService(parts)),
        (host_pb2_grpc.add_HostServiceServicer_to_server, HostService(parts, Tokens(store, ca))),
        (split_pb2_grpc.add_TrafficSplitServiceServicer_to_server, TrafficSplitService(parts)),
        (rollout_pb2_grpc.add_RolloutServiceServicer_to_server, RolloutService(parts)),
        (security_pb2_grpc.add_SecurityGroupServiceServicer_to_server, SecurityGroupService(parts)),
        (security_pb2_grpc.add_PolicyTierServiceServicer_to_server, PolicyTierService(parts)),
    ]
    join: list[Added] = [(host_pb2_grpc.add_JoinServiceServicer_to_server, JoinService(store, ca))] if ca else []
    return Api(servicers, join, presenter, Planner(parts))


def interceptors(store: Store, settings: Settings, audit: AuditLog, revoked: RevocationList) -> list[Any]:
    """For the server of the API, in their order."""
    auth = Auth(store, trust_domain=settings.trust_domain, revoked=revoked)
    return [Errors(audit, replica=store.replica), auth, Fair()]


__all__ = ["Api", "Errors", "build", "interceptors"]
