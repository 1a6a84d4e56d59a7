"""A controller made of a dictionary: real gRPC and TLS, no checks; tests set what Sync, Watch and refusals say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf import empty_pb2
from google.rpc import error_details_pb2, status_pb2

from tealnet import kinds
from tealnet.kinds import Kind
from tealnet.v1 import admin_pb2, common_pb2, host_pb2, port_pb2, rollout_pb2, security_pb2, split_pb2, system_pb2

Answer = Callable[[Any], Any]
TRUST_DOMAIN = "lab.test"


class Refusal(Exception):
    """What a handler raises to answer with a status and details."""

    def __init__(
        self, code: grpc.StatusCode, text: str, *, reason: str = "", field: str = "", blocker: str = ""
    ) -> None:
        self.code, self.text = code, text
        self.status = status_pb2.Status(code=code.value[0], message=text)
        if reason:
            self.status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="tealnet"))
        if field:
            bad = error_details_pb2.BadRequest()
            bad.field_violations.add(field=field, description=text)
            self.status.details.add().Pack(bad)
        if blocker:
            failure = error_details_pb2.PreconditionFailure()
            failure.violations.add(description=blocker)
            self.status.details.add().Pack(failure)


def not_found(name: str) -> Refusal:
    return Refusal(grpc.StatusCode.NOT_FOUND, f"{name} not found", reason="NOT_FOUND")


class Fake:
    """The server; `objects` by resource name, `calls` as (method, request), `refuse` by resource name."""

    def __init__(self, socket: Path, pki: Path) -> None:
        self.objects: dict[str, Any] = {}
        self.revision = 0
        self.calls: list[tuple[str, Any]] = []
        self.refuse: dict[str, Refusal] = {}
        self.sync: Answer = lambda _: system_pb2.SyncResponse(complete=True, hosts=3, synced=3)
        self.watch: Callable[[Any], Iterator[Any]] = self._watch
        self.events: list[system_pb2.Event] = []
        self.verdict = security_pb2.TestPolicyResponse()
        self.rules = security_pb2.ListRulesResponse()
        self.denials = security_pb2.ListDenialsResponse()
        self.check = admin_pb2.CheckResponse()
        self.audit = admin_pb2.ListAuditResponse()
        self.set_weights: Answer = self._set_weights
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(32))
        for kind in kinds.KINDS:
            special = {kinds.HOST: self._hosts, kinds.SPLIT: self._splits, kinds.ROLLOUT: self._rollouts}
            more = special.get(kind, dict)
            self._serve(f"{kind.title}Service", self._standard(kind) | more())
        self._serve("SystemService", self._system())
        self._serve("PolicyService", self._policy())
        self._serve("AdminService", self._admin())
        credentials = grpc.ssl_server_credentials(
            [((pki / "controller.key").read_bytes(), (pki / "controller.crt").read_bytes())],
            (pki / "ca.crt").read_bytes(), require_client_auth=True,
        )  # fmt: skip
        self._server.add_secure_port(f"unix:{socket}", credentials)
        self.tcp_port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.server = f"unix:{socket}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def add(self, *objects: Any) -> None:
        """Objects that are there already."""
        for item in objects:
            self._store(item)

    def _store(self, item: Any) -> Any:
        self.revision += 1
        item.revision = self.revision
        item.uid = item.uid or f"{self.revision:032x}"
        item.etag = f"e{self.revision}"
        self.objects[item.name] = item
        return item

    # ---- serving

    def _serve(self, service: str, methods: dict[str, tuple[type[Any], Answer]]) -> None:
        handlers: dict[str, Any] = {}
        for name, (request, answer) in methods.items():
            make = grpc.unary_stream_rpc_method_handler if name == "Watch" else grpc.unary_unary_rpc_method_handler
            handlers[name] = make(
                self._streamed(name, answer) if name == "Watch" else self._called(name, answer),
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(f"tealnet.v1.{service}", handlers),)
        )

    def _called(self, method: str, answer: Answer) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.calls.append((method, request))
            try:
                with self._lock:
                    return answer(request)
            except Refusal as refusal:
                if refusal.status.details:  # without: as if the transport had failed
                    context.set_trailing_metadata((("grpc-status-details-bin", refusal.status.SerializeToString()),))
                context.abort(refusal.code, refusal.text)

        return call

    def _streamed(self, method: str, answer: Answer) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self.calls.append((method, request))
            try:
                yield from answer(request)
            except Refusal as refusal:
                context.set_trailing_metadata((("grpc-status-details-bin", refusal.status.SerializeToString()),))
                context.abort(refusal.code, refusal.text)

        return call

    # ---- methods

    def _admin(self) -> dict[str, tuple[type[Any], Answer]]:
        return {
            "Check": (admin_pb2.CheckRequest, lambda _: self.check),
            "ListAudit": (admin_pb2.ListAuditRequest, lambda _: self.audit),
        }

    def _standard(self, kind: Kind) -> dict[str, tuple[type[Any], Answer]]:
        title, name = kind.title, kind.field

        def create(request: Any) -> Any:
            full = kind.full_name(getattr(request, "parent", ""), getattr(request, f"{name}_id"))
            self._check(full)
            if full in self.objects:
                raise Refusal(grpc.StatusCode.ALREADY_EXISTS, f"{full} exists already", reason="ALREADY_EXISTS")
            made = kind.message()
            made.CopyFrom(getattr(request, name))
            made.name = full
            return self._store(made)

        def get(request: Any) -> Any:
            if request.name not in self.objects:
                raise not_found(request.name)
            return self.objects[request.name]

        def list_(request: Any) -> Any:
            parent = getattr(request, "parent", "tenants/-")
            found = [o for o in self.objects.values() if isinstance(o, kind.message) and _keeps(request.filter, o)]
            found = [o for o in found if parent == "tenants/-" or o.name.startswith(parent + "/")]
            response = getattr(kind.messages, f"List{kind.title_plural}Response")()
            getattr(response, f"{kind.field}s").extend(sorted(found, key=lambda o: str(o.name)))
            return response

        def update(request: Any) -> Any:
            given = getattr(request, name)
            self._check(given.name)
            stored = get(given)
            if given.etag and given.etag != stored.etag:
                raise Refusal(grpc.StatusCode.ABORTED, f"{given.name} was changed meanwhile", reason="ABORTED")
            return self._merge(stored, given, request.update_mask.paths)

        def delete(request: Any) -> Any:
            self._check(request.name)
            get(request)
            held = [n for n in self.objects if n.startswith(request.name + "/")]
            held += [
                n for n, o in self.objects.items()
                if isinstance(o, security_pb2.SecurityGroup) and n != request.name
                and any(r.remote_group == request.name for r in (*o.ingress, *o.egress))
            ]  # fmt: skip
            if held and not getattr(request, "force", False):
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION, f"{request.name} is in use by {held[0]}", reason="IN_USE",
                    blocker=f"{held[0]} refers to it",
                )  # fmt: skip
            if getattr(request, "validate_only", False):
                return empty_pb2.Empty()
            for each in (request.name, *held):
                self.objects.pop(each)
            return empty_pb2.Empty()

        verbs = {"Create": create, "Get": get, "Update": update, "Delete": delete} if kind.written else {"Get": get}
        methods = {f"{verb}{title}": (type(kind.request(verb)), answer) for verb, answer in verbs.items()}
        return {**methods, f"List{kind.title_plural}": (type(kind.request("List")), list_)}

    def _check(self, name: str) -> None:
        if name in self.refuse:
            raise self.refuse[name]

    def _merge(self, stored: Any, given: Any, paths: list[str]) -> Any:
        merged = type(stored)()
        merged.CopyFrom(stored)
        for path in paths:
            top, _, rest = path.partition(".")
            if top == "labels" and rest:
                merged.labels[rest] = given.labels[rest]
                continue
            merged.ClearField(top)
            part = type(stored)()
            part.CopyFrom(given)
            for descriptor, _value in given.ListFields():
                if descriptor.name != top:
                    part.ClearField(descriptor.name)
            merged.MergeFrom(part)
        return stored if merged == stored else self._store(merged)

    def _hosts(self) -> dict[str, tuple[type[Any], Answer]]:
        def token(request: Any) -> Any:
            return host_pb2.CreateJoinTokenResponse(token="secret", ca_sha256="ab" * 32)

        def drain(request: Any) -> Any:
            ports = [n for n, o in self.objects.items() if isinstance(o, port_pb2.Port) and o.host == request.name]
            return host_pb2.DrainHostResponse(host=self.objects[request.name], ports=ports)

        def fence(request: Any) -> Any:
            self.objects[request.name].fenced = True
            return self.objects[request.name]

        return {
            "CreateJoinToken": (host_pb2.CreateJoinTokenRequest, token),
            "DrainHost": (host_pb2.DrainHostRequest, drain),
            "FenceHost": (host_pb2.FenceHostRequest, fence),
            "AcceptHost": (host_pb2.AcceptHostRequest, lambda _: host_pb2.AcceptHostResponse(hosts=["hosts/h1"])),
        }

    def _splits(self) -> dict[str, tuple[type[Any], Answer]]:
        return {"SetWeights": (split_pb2.SetWeightsRequest, lambda request: self.set_weights(request))}

    def _rollouts(self) -> dict[str, tuple[type[Any], Answer]]:
        states = {
            "Pause": "PAUSED", "Resume": "SHIFTING", "Advance": "SHIFTING", "Confirm": "SUCCEEDED",
            "Rollback": "ROLLING_BACK",
        }  # fmt: skip

        def asked(verb: str) -> Answer:
            def answer(request: Any) -> Any:
                self._check(request.name)
                if request.name not in self.objects:
                    raise not_found(request.name)
                item = self.objects[request.name]
                item.state, item.text = f"STATE_{states[verb]}", getattr(request, "text", "")
                return item

            return answer

        return {f"{verb}Rollout": (getattr(rollout_pb2, f"{verb}RolloutRequest"), asked(verb)) for verb in states}

    def _set_weights(self, request: split_pb2.SetWeightsRequest) -> split_pb2.SetWeightsResponse:
        response = split_pb2.SetWeightsResponse()
        for entry in request.networks:
            split = self.objects[kinds.split_of(entry.network)]
            split.weights.update({color: entry.weights.get(color, 0) for color in split.weights})
            response.splits.append(split if request.validate_only else self._store(split))
        response.revision = self.revision
        return response

    def _system(self) -> dict[str, tuple[type[Any], Answer]]:
        def events(request: Any) -> Any:
            return system_pb2.ListEventsResponse(
                events=[e for e in self.events if f"{e.name}/".startswith(request.name)]
            )

        return {
            "Sync": (system_pb2.SyncRequest, lambda request: self.sync(request)),
            "Watch": (system_pb2.WatchRequest, lambda request: self.watch(request)),
            "Plan": (system_pb2.PlanRequest, self._plan),
            "GetStatus": (system_pb2.GetStatusRequest, lambda _: self._status()),
            "ListEvents": (system_pb2.ListEventsRequest, events),
            "GetVersion": (
                system_pb2.GetVersionRequest,
                lambda _: system_pb2.GetVersionResponse(version="9", api="tealnet.v1"),
            ),
        }

    def _policy(self) -> dict[str, tuple[type[Any], Answer]]:
        return {
            "TestPolicy": (security_pb2.TestPolicyRequest, lambda _: self.verdict),
            "ListRules": (security_pb2.ListRulesRequest, lambda _: self.rules),
            "ListDenials": (security_pb2.ListDenialsRequest, lambda _: self.denials),
        }

    def _plan(self, request: system_pb2.PlanRequest) -> system_pb2.PlanResponse:
        response = system_pb2.PlanResponse()
        for item in request.items:
            which = item.object.WhichOneof("object")
            given = getattr(item.object, str(which))
            result = response.results.add()
            if refusal := self.refuse.get(given.name):
                result.action = result.ACTION_FAIL
                status = refusal.status
                result.error.CopyFrom(
                    common_pb2.Error(code=status.code, message=status.message, details=status.details)
                )
                continue
            before = self.objects.get(given.name)
            result.action = result.ACTION_UPDATE if before else result.ACTION_CREATE
            if before:
                getattr(result.before, str(which)).CopyFrom(before)
            getattr(result.after, str(which)).CopyFrom(before or given)
            for descriptor, value in given.ListFields() if before else ():
                if descriptor.message_type is None and not descriptor.is_repeated:
                    setattr(getattr(result.after, str(which)), descriptor.name, value)
            if before and result.before == result.after:
                result.action = result.ACTION_UNCHANGED
        return response

    def _watch(self, _: system_pb2.WatchRequest) -> Iterator[system_pb2.WatchResponse]:
        for item in self.objects.values():
            response = system_pb2.WatchResponse(type=system_pb2.WatchResponse.TYPE_ADDED, revision=item.revision)
            getattr(response.object, kinds.kind_of(item.name).field).CopyFrom(item)
            yield response
        yield system_pb2.WatchResponse(type=system_pb2.WatchResponse.TYPE_SYNCED, revision=self.revision)

    def _status(self) -> system_pb2.GetStatusResponse:
        def of(message: type[Any]) -> list[Any]:
            return [o for o in self.objects.values() if isinstance(o, message)]

        response = system_pb2.GetStatusResponse(cluster="default", revision=self.revision, ports=len(of(port_pb2.Port)))
        response.hosts.extend(of(host_pb2.Host))
        response.replicas.add(id="r1", sessions=1, chores=True, version="9")
        response.etcd.add(endpoint="http://e:1", healthy=True, version="3.4.23", db_size_bytes=5 << 20, leader=True)
        response.port_states.add(state=port_pb2.PortStatus.STATE_ACTIVE, count=len(of(port_pb2.Port)))
        return response


def _keeps(selector: str, item: Any) -> bool:
    for term in filter(None, selector.split(",")):
        key, _, value = term.partition("=")
        if key in ("network", "host"):
            if getattr(item, key).rpartition("/")[2] != value:
                return False
        elif item.labels.get(key) != value:
            return False
    return True
