"""What there is on a lab host, read by plain tools inside it, in a form that can be compared.

Left out is what may differ from one making to the next: indexes, handles, counters, random addresses of OVS's own
devices, flows of the present era, and what is kept ready for ports to come.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from agent.openflow.flow import MARK
from agent.pipeline import Feature
from tealnet.lab import Host

Look = dict[str, frozenset[str]]

COMMANDS = {
    "flows": "ovs-ofctl -O OpenFlow15 --no-stats dump-flows br-int",
    "bridges": "ovs-vsctl -f json --columns=name,external_ids,fail_mode,datapath_type list Bridge",
    "ports": "ovs-vsctl -f json --columns=name,external_ids list Port",
    "interfaces": "ovs-vsctl -f json"
    " --columns=name,type,options,external_ids,ofport,ofport_request,error list Interface",
    "links": "ip -j -d link",
    "guards": "nft -s list ruleset",
    "spaces": "for n in $(ls /run/netns); do"
    " echo \"@ $n\"; nsenter --net=/run/netns/$n sh -c 'ip -j -d link; ip -j addr; ip -j route; ip -j -6 route'; done",
}
ALL = tuple(COMMANDS)
COMMANDS["spares"] = "ls -A /run/netns | grep ^[.]"
ERA = f"cookie={MARK << 8 | Feature.ERA:#x}"  # flows that are others after each change of flows


def look(host: Host, *sections: str) -> Look:
    """These sections (all if none is named). A tool that fails says nothing: its section is empty or short."""
    wanted = sections or ALL
    # Spares may come and go meanwhile: those before and those after.
    script = "; ".join(f"echo '#### {name}'; {COMMANDS[name]} 2>/dev/null" for name in ("spares", *wanted, "spares"))
    out = host.run(["sh", "-c", script]).stdout
    before, *texts, after = re.split(r"^#### \w+\n", out, flags=re.M)[1:]
    devices = {name.removeprefix(".") for name in (*before.split(), *after.split())}
    return {name: _parsed(name, text, without=devices) for name, text in zip(wanted, texts, strict=True)}


def _parsed(name: str, text: str, *, without: Collection[str]) -> frozenset[str]:
    return frozenset(line for line in _PARSE[name](text) if not any(device in line for device in without))


def _flows(text: str) -> Collection[str]:
    return {line.strip() for line in text.splitlines() if "cookie=" in line and ERA not in line}


def _table(text: str) -> Collection[str]:
    found = json.loads(text) if text.strip() else {"data": []}
    return {json.dumps(row) for row in found["data"]}


def _chains(text: str) -> Collection[str]:
    """Chains of a ruleset, each as one line; a table without any does nothing and does not count."""
    return {re.sub(r"\s+", " ", found) for found in re.findall(r"chain [^}]*\}", text)}


def _link(row: dict[str, Any]) -> str:
    flags = sorted({"UP", "NOARP"} & set(row["flags"]))
    kind = row.get("linkinfo", {}).get("info_kind", "")
    # Open vSwitch itself gives a bridge's device the smallest MTU of its ports.
    mtu = "" if row["ifname"].startswith("br-") else f"mtu={row['mtu']}"
    return f"{row['ifname']} {kind} {mtu} {flags} {row.get('ifalias', '')} {row.get('inet6_addr_gen_mode')}"


def _links(text: str) -> Collection[str]:
    return {_link(row) for row in _documents(text)}


def _documents(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        found += json.loads(line)
    return found


def _spaces(text: str) -> Collection[str]:
    found = set()
    for part in re.split(r"^@ ", text, flags=re.M)[1:]:
        name, _, rest = part.partition("\n")
        found.add(name)
        documents = [json.loads(line) for line in rest.splitlines()]
        if len(documents) != 4:
            found.add(f"{name} not readable")
            continue
        links, addresses, *routes = documents
        found |= {f"{name} link {_link(row)} {row['address']}" for row in links}
        for row in addresses:
            found |= {f"{name} {row['ifname']} {a['local']}/{a['prefixlen']}" for a in row["addr_info"]}
        for row in (row for table in routes for row in table):
            found.add(f"{name} route {row['dst']} via {row.get('gateway', '')} dev {row['dev']}")
    return found


_PARSE = {
    "flows": _flows,
    "bridges": _table,
    "ports": _table,
    "interfaces": _table,
    "links": _links,
    "guards": _chains,
    "spaces": _spaces,
}
