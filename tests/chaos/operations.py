"""Random writes and reads of the API as requests: the same for the simulation and for a lab.

Names come from a small pool, so that operations meet; what was acknowledged is remembered, so that most of them mean
something. Every write of an object sets its label `chaos` to a word of its own: what a later read finds tells which
write it saw.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import duration_pb2

from tealnet.v1 import (
    common_pb2,
    host_pb2,
    network_pb2,
    port_pb2,
    rollout_pb2,
    router_pb2,
    security_pb2,
    split_pb2,
    tenant_pb2,
)

LABEL = "chaos"
STRONG = common_pb2.ReadOptions.CONSISTENCY_STRONG
_CIDRS = {
    "n1": ("10.1.0.0/24", "fd01::/64"),
    "n2": ("10.2.0.0/24",),
    "n3": ("10.3.0.0/24", "fd03::/64"),
    "n4": ("10.1.0.0/24",),  # meets n1 in a router
}
_MESSAGES: dict[str, tuple[Any, str, str, str]] = {  # service → module, kind's CamelCase name, field, collection
    "tenant": (tenant_pb2, "Tenant", "tenant", "tenants"),
    "network": (network_pb2, "Network", "network", "networks"),
    "router": (router_pb2, "Router", "router", "routers"),
    "port": (port_pb2, "Port", "port", "ports"),
    "host": (host_pb2, "Host", "host", "hosts"),
    "group": (security_pb2, "SecurityGroup", "security_group", "securityGroups"),
    "rollout": (rollout_pb2, "Rollout", "rollout", "rollouts"),
}


@dataclass(frozen=True)
class Call:
    """One request. `key` is the object it is about, `act` create, update, delete, read or look (a plain read).

    `token`: what the label is after it. `takes`: a delete that takes what is below its key along.
    """

    service: str
    method: str
    request: Any
    key: str = ""
    act: str = ""
    token: str = ""
    takes: bool = False


@dataclass
class Known:
    """What has been acknowledged, by collection; also what may be gone."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def note(self, call: Call) -> None:
        """It was done."""
        kind = call.service
        if call.act == "create":
            self.names.setdefault(kind, []).append(call.key)
        elif call.act == "delete":
            for many in self.names.values():
                many[:] = [n for n in many if n != call.key and not (call.takes and n.startswith(call.key + "/"))]


def _seconds(value: float) -> duration_pb2.Duration:
    found = duration_pb2.Duration()
    found.FromNanoseconds(int(value * 1e9))
    return found


class Operations:
    """A stream of random calls. `hosts` are names of Host objects that exist."""

    def __init__(self, dice: random.Random, hosts: list[str], *, tenants: int = 2, ports: int = 8) -> None:
        self.dice, self.hosts = dice, hosts
        self.known = Known()
        self._tenants = [f"tenants/t{n}" for n in range(1, tenants + 1)]
        self._ports = ports
        self._count = 0
        self._choices: list[tuple[int, Callable[[], Call | None]]] = [
            (2, self._create_tenant),
            (1, self._update_tenant),
            (1, self._delete_tenant),
            (6, self._create_network),
            (9, self._update_network),
            (2, self._delete_network),
            (3, self._create_router),
            (3, self._update_router),
            (1, self._delete_router),
            (18, self._create_port),
            (3, self._batch_ports),
            (9, self._move_port),
            (9, self._update_port),
            (9, self._delete_port),
            (3, self._create_group),
            (4, self._update_group),
            (1, self._delete_group),
            (5, self._weights),
            (3, self._create_rollout),
            (6, self._ask_rollout),
            (1, self._delete_rollout),
            (10, self._read),
            (6, self._look),
        ]

    def first(self) -> list[Call]:
        """Something to begin with: a tenant with networks, a router and ports on all hosts."""
        tenant = self._tenants[0]
        calls = [self._new("tenant", tenant)]
        calls.append(self._new("router", f"{tenant}/routers/r1"))
        for ident, more in (
            ("n1", {"colors": ["blue", "green"], "policy": network_pb2.Network.POLICY_OFF}),
            ("n2", {"router": f"{tenant}/routers/r1", "policy": network_pb2.Network.POLICY_ENFORCE}),
            ("n3", {"router": f"{tenant}/routers/r1", "policy": network_pb2.Network.POLICY_OFF}),
        ):
            calls.append(self._new("network", f"{tenant}/networks/{ident}", **self._body_of_network(ident) | more))
        for number, host in enumerate(self.hosts):
            network = f"{tenant}/networks/n{2 + number % 2}"
            calls.append(self._new("port", f"{tenant}/ports/p{number + 1}", network=network, host=f"hosts/{host}"))
        return calls

    def next(self) -> Call:
        """Any."""
        while True:
            weights, makers = zip(*self._choices, strict=True)
            call: Call | None = self.dice.choices(makers, weights)[0]()
            if call is not None:
                return call

    def last(self) -> list[str]:
        """Tenants that there may be."""
        return list(self._tenants)

    # -- how requests are made

    def _token(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _new(self, service: str, name: str, **body: Any) -> Call:
        module, kind, own, collection = _MESSAGES[service]
        token, (parent, _, ident) = self._token(), name.rpartition(f"{collection}/")
        request = getattr(module, f"Create{kind}Request")()
        setattr(request, f"{own}_id", ident)
        if parent:
            request.parent = parent.rstrip("/")
        getattr(request, own).CopyFrom(getattr(module, kind)(labels={LABEL: token}, **body))
        request.request_id = f"request-{token}" if self.dice.random() < 0.7 else ""
        return Call(service, f"Create{kind}", request, name, "create", token)

    def _change(self, service: str, name: str, **body: Any) -> Call:
        module, kind, own, _ = _MESSAGES[service]
        token = self._token()
        request = getattr(module, f"Update{kind}Request")()
        getattr(request, own).CopyFrom(getattr(module, kind)(name=name, labels={LABEL: token}, **body))
        request.update_mask.paths.extend(["labels", *body])
        request.request_id = f"request-{token}" if self.dice.random() < 0.7 else ""
        return Call(service, f"Update{kind}", request, name, "update", token)

    def remove(self, service: str, name: str, *, force: bool = False) -> Call:
        """A delete."""
        module, kind, _, _ = _MESSAGES[service]
        request = getattr(module, f"Delete{kind}Request")(name=name)
        if force:
            request.force = True
        return Call(service, f"Delete{kind}", request, name, "delete", takes=force)

    def get(self, service: str, name: str, *, strong: bool) -> Call:
        """A read of one object."""
        module, kind, _, _ = _MESSAGES[service]
        request = getattr(module, f"Get{kind}Request")(name=name)
        if strong:
            request.read.consistency = STRONG
        return Call(service, f"Get{kind}", request, name, "read" if strong else "look")

    def _some(self, service: str) -> str | None:
        """One that is known, or now and then one that may not be there."""
        found = self.known.names.get(service, [])
        if found and self.dice.random() < 0.9:
            return self.dice.choice(found)
        if service == "tenant":
            return self.dice.choice(self._tenants)
        tenant = self._some("tenant")
        pool = {"network": "networks/n", "router": "routers/r", "port": "ports/p", "group": "securityGroups/g"}
        return f"{tenant}/{pool[service]}{self.dice.randint(1, 3)}" if service in pool else None

    def _below(self, service: str, tenant: str) -> str | None:
        found = [name for name in self.known.names.get(service, []) if name.startswith(tenant + "/")]
        return self.dice.choice(found) if found else None

    # -- tenants, networks, routers

    def _create_tenant(self) -> Call:
        return self._new("tenant", self.dice.choice(self._tenants))

    def _update_tenant(self) -> Call | None:
        name = self._some("tenant")
        return self._change("tenant", name) if name else None

    def _delete_tenant(self) -> Call | None:
        if self.dice.random() < 0.5:
            return None
        name = self._some("tenant")
        return self.remove("tenant", name, force=self.dice.random() < 0.8) if name else None

    def _body_of_network(self, ident: str) -> dict[str, Any]:
        return {"cidrs": _CIDRS[ident], "address_quarantine": _seconds(0)}

    def _create_network(self) -> Call | None:
        tenant, ident = self._some("tenant"), self.dice.choice(sorted(_CIDRS))
        if not tenant:
            return None
        body = self._body_of_network(ident)
        if self.dice.random() < 0.5 and (router := self._below("router", tenant)):
            body["router"] = router
        if self.dice.random() < 0.4:
            body["colors"] = ["blue", "green"]
        body["policy"] = self.dice.choice([network_pb2.Network.POLICY_OFF, network_pb2.Network.POLICY_ENFORCE])
        return self._new("network", f"{tenant}/networks/{ident}", **body)

    def _update_network(self) -> Call | None:
        name = self._some("network")
        if not name:
            return None
        tenant = name.partition("/networks/")[0]
        match self.dice.choice(["router", "router", "policy", "colors", "mtu", "labels"]):
            case "router":
                router = self._below("router", tenant) if self.dice.random() < 0.6 else ""
                return self._change("network", name, router=router or "")
            case "policy":
                off, enforce = network_pb2.Network.POLICY_OFF, network_pb2.Network.POLICY_ENFORCE
                return self._change("network", name, policy=self.dice.choice([off, enforce]))
            case "colors":
                colors = self.dice.choice([["blue", "green"], ["blue"], ["blue", "green", "red"], []])
                return self._change("network", name, colors=colors)
            case "mtu":
                return self._change("network", name, mtu=self.dice.choice([1300, 1400, 0]))
        return self._change("network", name)

    def _delete_network(self) -> Call | None:
        name = self._some("network")
        return self.remove("network", name, force=self.dice.random() < 0.5) if name else None

    def _create_router(self) -> Call | None:
        tenant = self._some("tenant")
        return self._new("router", f"{tenant}/routers/r{self.dice.randint(1, 2)}") if tenant else None

    def _update_router(self) -> Call | None:
        name = self._some("router")
        if not name:
            return None
        hops = self.dice.choice([[], ["10.2.0.9"], ["10.3.0.9"]])
        routes = [router_pb2.StaticRoute(prefix="10.99.0.0/16", next_hop=hop) for hop in hops]
        return self._change("router", name, routes=routes)

    def _delete_router(self) -> Call | None:
        name = self._some("router")
        return self.remove("router", name) if name else None

    # -- ports

    def _body_of_port(self, tenant: str) -> dict[str, Any] | None:
        network = self._below("network", tenant)
        if network is None:
            return None
        body: dict[str, Any] = {"network": network}
        if self.dice.random() < 0.9:
            body["host"] = f"hosts/{self.dice.choice(self.hosts)}"
        if self.dice.random() < 0.3:
            body["color"] = self.dice.choice(["blue", "green"])
        if self.dice.random() < 0.3 and (group := self._below("group", tenant)):
            body["security_groups"] = [group]
        return body

    def _create_port(self) -> Call | None:
        tenant = self._some("tenant")
        body = self._body_of_port(tenant) if tenant else None
        return self._new("port", f"{tenant}/ports/p{self.dice.randint(1, self._ports)}", **body) if body else None

    def _batch_ports(self) -> Call | None:
        tenant = self._some("tenant")
        request = port_pb2.BatchCreatePortsRequest(parent=tenant, atomic=self.dice.random() < 0.5)
        for number in range(self.dice.randint(2, 4)):
            body = self._body_of_port(tenant) if tenant else None
            if body is None:
                return None
            ident = f"b{self.dice.randint(1, 3)}{number}"
            request.requests.add(port_id=ident, port=port_pb2.Port(**body))
        return Call("port", "BatchCreatePorts", request)

    def _move_port(self) -> Call | None:
        name = self._some("port")
        return self._change("port", name, host=f"hosts/{self.dice.choice(self.hosts)}") if name else None

    def _update_port(self) -> Call | None:
        name = self._some("port")
        if not name:
            return None
        tenant = name.partition("/ports/")[0]
        match self.dice.choice(["groups", "allowed", "host", "labels"]):
            case "groups":
                group = self._below("group", tenant)
                return self._change("port", name, security_groups=[group] if group else [])
            case "allowed":
                return self._change("port", name, allowed_addresses=[f"10.77.{self.dice.randint(0, 9)}.0/24"])
            case "host":
                return self._change("port", name, host="")
        return self._change("port", name)

    def _delete_port(self) -> Call | None:
        name = self._some("port")
        return self.remove("port", name) if name else None

    # -- groups

    def _rules(self, tenant: str) -> list[security_pb2.SecurityRule]:
        made = []
        for _ in range(self.dice.randint(0, 3)):
            rule = security_pb2.SecurityRule(protocol=self.dice.choice(["tcp", "udp", "any", "icmp"]))
            if rule.protocol in ("tcp", "udp"):
                rule.ports.append(str(self.dice.choice([80, 443, 8080])))
            group = self._below("group", tenant)
            if group and self.dice.random() < 0.5:
                rule.remote_group = group
            elif self.dice.random() < 0.5:
                rule.remote_cidr = self.dice.choice(["10.0.0.0/8", "10.1.0.0/24"])
            if rule not in made:
                made.append(rule)
        return made

    def _create_group(self) -> Call | None:
        tenant = self._some("tenant")
        if not tenant:
            return None
        name = f"{tenant}/securityGroups/g{self.dice.randint(1, 3)}"
        return self._new("group", name, ingress=self._rules(tenant), egress=self._rules(tenant))

    def _update_group(self) -> Call | None:
        name = self._some("group")
        if not name:
            return None
        return self._change("group", name, ingress=self._rules(name.partition("/securityGroups/")[0]))

    def _delete_group(self) -> Call | None:
        name = self._some("group")
        return self.remove("group", name) if name else None

    # -- colors

    def _shares(self) -> dict[str, int]:
        blue = self.dice.choice([0, 1, 10, 50, 90, 100])
        return {"blue": blue, "green": 100 - blue}

    def _weights(self) -> Call | None:
        name = self._some("network")
        if not name:
            return None
        request = split_pb2.SetWeightsRequest(
            parent=name.partition("/networks/")[0],
            on_open=self.dice.choice([split_pb2.ON_OPEN_KEEP, split_pb2.ON_OPEN_CUT]),
            force=self.dice.random() < 0.7,
        )
        request.networks.add(network=name, weights=self._shares())
        return Call("split", "SetWeights", request)

    def _create_rollout(self) -> Call | None:
        network = self._some("network")
        if not network:
            return None
        tenant = network.partition("/networks/")[0]
        steps = [
            rollout_pb2.RolloutStep(weights={"blue": 70, "green": 30}, hold=_seconds(self.dice.random())),
            rollout_pb2.RolloutStep(weights={"green": 100}),
        ]
        return self._new(
            "rollout",
            f"{tenant}/rollouts/x{self.dice.randint(1, 2)}",
            networks=[network],
            target="green",
            steps=steps,
            deadline=_seconds(30),
            step_timeout=_seconds(5),
            pause_timeout=_seconds(10),
            on_behind=self.dice.choice(["ON_BEHIND_WAIT", "ON_BEHIND_ROLLBACK"]),
            on_lost=self.dice.choice(["ON_LOST_WAIT", "ON_LOST_ROLLBACK", "ON_LOST_PROCEED"]),
            on_open=self.dice.choice(["ON_OPEN_KEEP", "ON_OPEN_CUT"]),
            confirm_within=_seconds(self.dice.choice([0, 0, 3])),
        )

    def _ask_rollout(self) -> Call | None:
        name = self._some("rollout")
        if not name:
            return None
        verb = self.dice.choice(["Pause", "Resume", "Resume", "Advance", "Confirm", "Rollback"])
        return Call("rollout", f"{verb}Rollout", getattr(rollout_pb2, f"{verb}RolloutRequest")(name=name))

    def _delete_rollout(self) -> Call | None:
        name = self._some("rollout")
        return self.remove("rollout", name) if name else None

    # -- reads

    def _read(self) -> Call | None:
        service = self.dice.choice(["tenant", "network", "router", "port", "port", "group"])
        name = self._some(service)
        return self.get(service, name, strong=True) if name else None

    def _look(self) -> Call | None:
        service = self.dice.choice(["tenant", "network", "port", "port", "group"])
        name = self._some(service)
        return self.get(service, name, strong=False) if name else None
