"""The SDK: one object that speaks tealnet.v1 over mutual TLS, blocking, for scripts, tests and the `teal` command.

    with Client(context) as teal:
        network = teal.create(kinds.NETWORK, parent="tenants/acme", ident="web", body=Network(cidrs=["10.0.0.0/24"]))
        teal.sync(network.revision, parent="tenants/acme")

It remembers the highest revision that it has seen and sends it along, so that one client never goes back in time,
on any replica. Failures are ApiError with what the server said about fields, blockers and reasons.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import field_mask_pb2
from google.rpc import error_details_pb2, status_pb2

from tealnet import kinds
from tealnet.kinds import Kind
from tealnet.replicas import DETAILS, OPTIONS, Replicas
from tealnet.v1 import (
    admin_pb2_grpc,
    common_pb2,
    host_pb2,
    host_pb2_grpc,
    port_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
    security_pb2,
    security_pb2_grpc,
    split_pb2,
    split_pb2_grpc,
    system_pb2,
    system_pb2_grpc,
)

_MAX_MESSAGE = 64 << 20


@dataclass(frozen=True, slots=True)
class Context:
    """Where a controller is and who I am: files are PEM. `server_name` is what its certificate must say."""

    server: str  # "host:port" or "unix:/path"; several replicas separated by commas
    ca: str
    cert: str
    key: str
    server_name: str = "controller"


@dataclass
class ApiError(Exception):
    """What the server refused, as a person and a program want it."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    violations: list[tuple[str, str]] = field(default_factory=list)  # (field path, what to do)
    blockers: list[str] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.code.name}: {self.message}"]
        lines += [f"  {path}: {text}" if path else f"  {text}" for path, text in self.violations]
        lines += [f"  {text}" for text in self.blockers]
        return "\n".join(lines)


def error_of(code: grpc.StatusCode, message: str, details: list[Any]) -> ApiError:
    """An ApiError from google.rpc details (packed in Any)."""
    error = ApiError(code, message)
    for detail in details:
        bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
        blocked, quota = error_details_pb2.PreconditionFailure(), error_details_pb2.QuotaFailure()
        if detail.Unpack(bad):
            error.violations += [(v.field, v.description) for v in bad.field_violations]
        elif detail.Unpack(info):
            error.reason, error.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(blocked):
            error.blockers += [v.description or f"{v.type} {v.subject}" for v in blocked.violations]
        elif detail.Unpack(quota):
            error.blockers += [v.description for v in quota.violations]
    return error


def _from_rpc(error: grpc.RpcError) -> ApiError:
    code, message = error.code(), error.details() or ""
    for item in error.trailing_metadata() or ():
        if item.key == DETAILS:
            status = status_pb2.Status.FromString(item.value)
            return error_of(code, message, list(status.details))
    return ApiError(code, message)


def _channel(server: str, credentials: grpc.ChannelCredentials, server_name: str) -> grpc.Channel:
    if not server.startswith("unix:"):
        _, colon, port = server.rpartition(":")
        if not colon or not port.isdecimal():
            raise ValueError(f"{server!r} is not HOST:PORT")
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ("grpc.max_send_message_length", _MAX_MESSAGE),
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.enable_retries", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        *OPTIONS,
    ]
    return grpc.secure_channel(server, credentials, options)


class Client:
    """All services of one controller (or several replicas of it)."""

    def __init__(self, context: Context, *, timeout: float = 30.0) -> None:
        """Does not connect yet. `timeout` in seconds is the deadline of each call.

        Raises OSError for files that can't be read, ValueError for a server that is no address.
        """
        self.context, self.timeout, self.revision = context, timeout, 0
        credentials = grpc.ssl_channel_credentials(
            Path(context.ca).read_bytes(), Path(context.key).read_bytes(), Path(context.cert).read_bytes()
        )
        servers = [one.strip() for one in context.server.split(",") if one.strip()]
        channels = [_channel(server, credentials, context.server_name) for server in servers]
        if not channels:
            raise ValueError("no server given")
        self.channel = channels[0] if len(channels) == 1 else Replicas(channels)
        self._stubs = {kind.name: kind.stub(self.channel) for kind in kinds.KINDS}
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        self.system = system_pb2_grpc.SystemServiceStub(self.channel)
        self.hosts = host_pb2_grpc.HostServiceStub(self.channel)
        self.ports = port_pb2_grpc.PortServiceStub(self.channel)
        self.policy = security_pb2_grpc.PolicyServiceStub(self.channel)
        self.splits = split_pb2_grpc.TrafficSplitServiceStub(self.channel)
        self.rollouts = rollout_pb2_grpc.RolloutServiceStub(self.channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self.channel.close()

    def call(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        """One call; raises ApiError. Sends and remembers revisions."""
        if "read" in request.DESCRIPTOR.fields_by_name and not request.read.min_revision:
            request.read.min_revision = self.revision
        try:
            answer = method(request, timeout=timeout or self.timeout)
        except grpc.RpcError as error:
            raise _from_rpc(error) from None
        self._note(answer)
        return answer

    def _note(self, answer: Any) -> None:
        fields = answer.DESCRIPTOR.fields_by_name
        if "revision" in fields:
            self.revision = max(self.revision, answer.revision)
        if "info" in fields:
            self.revision = max(self.revision, answer.info.revision)

    # --- standard methods, for every kind ---

    def create(
        self,
        kind: Kind,
        *,
        ident: str,
        body: Any,
        parent: str = "",
        validate_only: bool = False,
        request_id: str = "",
    ) -> Any:
        """Creates an object; `ident` is the last part of its name."""
        request = kind.request("Create")
        if kind.owned:
            request.parent = parent
        setattr(request, f"{kind.field}_id", ident)
        getattr(request, kind.field).CopyFrom(body)
        request.validate_only, request.request_id = validate_only, request_id
        return self.call(kind.method(self._stubs[kind.name], "Create"), request)

    def get(self, name: str, *, strong: bool = False) -> Any:
        """One object by resource name; `strong` = linearizable."""
        kind = kinds.kind_of(name)
        request = kind.request("Get")
        request.name = name
        if strong:
            request.read.consistency = common_pb2.ReadOptions.CONSISTENCY_STRONG
        return self.call(kind.method(self._stubs[kind.name], "Get"), request)

    def list_all(self, kind: Kind, *, parent: str = "tenants/-", filter_: str = "") -> Iterator[Any]:
        """All objects of a kind, page by page."""
        token = ""
        while True:
            request = kind.request("List")
            if kind.owned:
                request.parent = parent
            request.page_size, request.page_token, request.filter = 500, token, filter_
            answer = self._list(kind, request)
            yield from getattr(answer, f"{kind.field}s")
            token = answer.next_page_token
            if not token:
                return

    def list_page(self, kind: Kind, request: Any) -> list[Any]:
        """The objects of one page, as the List request asks."""
        return list(getattr(self._list(kind, request), f"{kind.field}s"))

    def _list(self, kind: Kind, request: Any) -> Any:
        return self.call(kind.method(self._stubs[kind.name], "List"), request)

    def update(self, body: Any, *, mask: list[str], validate_only: bool = False, request_id: str = "") -> Any:
        """Changes the fields of `mask`; with an etag in the body only if nobody else did in between."""
        kind = kinds.kind_of(body.name)
        request = kind.request("Update")
        getattr(request, kind.field).CopyFrom(body)
        request.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=mask))
        request.validate_only, request.request_id = validate_only, request_id
        return self.call(kind.method(self._stubs[kind.name], "Update"), request)

    def delete(self, name: str, *, etag: str = "", force: bool = False, validate_only: bool = False) -> None:
        """Removes the intent at once; `force` takes what it holds along (tenants and networks)."""
        kind = kinds.kind_of(name)
        request = kind.request("Delete")
        request.name, request.etag, request.validate_only = name, etag, validate_only
        if force:
            request.force = True
        self.call(kind.method(self._stubs[kind.name], "Delete"), request)

    # --- colors ---

    def set_weights(
        self,
        networks: Mapping[str, Mapping[str, int]],
        *,
        on_open: str = "KEEP",
        drain: float = 0.0,
        affinity: str = "",
        force: bool = False,
        validate_only: bool = False,
        request_id: str = "",
    ) -> split_pb2.SetWeightsResponse:
        """New shares for the colors of networks (of one tenant, by resource name), all in one revision.

        `on_open`: KEEP, DRAIN (`drain` seconds) or CUT what is open to colors without weight; `affinity`: CONNECTION or
        SOURCE, "" as it is; `force`: also to colors without a port that is ACTIVE.
        """
        request = split_pb2.SetWeightsRequest(
            on_open=f"ON_OPEN_{on_open}", force=force, validate_only=validate_only, request_id=request_id
        )
        if drain:
            request.drain_timeout.FromNanoseconds(int(drain * 1e9))
        for network, weights in networks.items():
            request.parent = "/".join(network.split("/")[:2])
            request.networks.add(
                network=network, weights=weights, affinity=f"AFFINITY_{affinity}" if affinity else None
            )
        answer: split_pb2.SetWeightsResponse = self.call(self.splits.SetWeights, request)
        return answer

    def ask_rollout(self, verb: str, name: str, *, step: int = 0, text: str = "") -> rollout_pb2.Rollout:
        """Pause, Resume, Advance, Confirm or Rollback a rollout, by resource name.

        `step`: advance only if it is there still (0: wherever it is); `text`: why it is rolled back.
        """
        request = getattr(rollout_pb2, f"{verb}RolloutRequest")(name=name)
        if step:
            request.step = step
        if text:
            request.text = text
        answer: rollout_pb2.Rollout = self.call(getattr(self.rollouts, f"{verb}Rollout"), request)
        return answer

    # --- the rest ---

    def sync(self, revision: int = 0, *, parent: str = "", timeout: float = 10.0) -> system_pb2.SyncResponse:
        """Has everything up to `revision` (0: up to now) reached the data plane of the hosts in scope?"""
        # 0 stays 0: a delete answers no revision, so what this client has seen may be older than what it did.
        request = system_pb2.SyncRequest(revision=revision, parent=parent)
        request.timeout.FromNanoseconds(int(timeout * 1e9))
        answer: system_pb2.SyncResponse = self.call(self.system.Sync, request, timeout=timeout + 5)
        return answer

    def test_policy(self, request: security_pb2.TestPolicyRequest) -> security_pb2.TestPolicyResponse:
        """Would a connection be let through, and which rule says so?"""
        answer: security_pb2.TestPolicyResponse = self.call(self.policy.TestPolicy, request)
        return answer

    def rules(
        self, parent: str = "", *, counters: bool = False, timeout: float = 5.0
    ) -> security_pb2.ListRulesResponse:
        """The rules in force of a tenant, group, tier or port; with `counters` also what hosts say of them."""
        request = security_pb2.ListRulesRequest(parent=parent, counters=counters)
        request.timeout.FromNanoseconds(int(timeout * 1e9))
        answer: security_pb2.ListRulesResponse = self.call(self.policy.ListRules, request, timeout=timeout + 5)
        return answer

    def denials(self, request: security_pb2.ListDenialsRequest) -> security_pb2.ListDenialsResponse:
        """Connections that were denied of late."""
        answer: security_pb2.ListDenialsResponse = self.call(self.policy.ListDenials, request)
        return answer

    def watch(self, request: system_pb2.WatchRequest) -> Iterator[system_pb2.WatchResponse]:
        """Changes as they happen; ends with ApiError when the server cuts (`tealnet.follow` goes on by itself)."""
        for response in self.stream(self.system.Watch, request):
            self._note(response)
            yield response

    def stream(self, method: Any, request: Any) -> Iterator[Any]:
        """All answers of a streaming call; raises ApiError when it breaks off."""
        try:
            yield from method(request)
        except grpc.RpcError as error:
            raise _from_rpc(error) from None

    def status(self) -> system_pb2.GetStatusResponse:
        """Store, replicas and hosts on one screen."""
        answer: system_pb2.GetStatusResponse = self.call(self.system.GetStatus, system_pb2.GetStatusRequest())
        return answer

    def accept(self, host: str) -> host_pb2.AcceptHostResponse:
        """hosts/h1 or hosts/-: let hosts go on under this store's history."""
        answer: host_pb2.AcceptHostResponse = self.call(self.hosts.AcceptHost, host_pb2.AcceptHostRequest(name=host))
        return answer
