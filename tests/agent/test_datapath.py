"""Which datapath an agent chooses, and what depends on it."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from agent import devices, names
from agent.devices import find_datapath
from agent.features import l2
from agent.inputs import THIS, Inputs, This
from agent.objects import Bridge, Guard
from tealnet.core.rows.stream import Attach, LocalPort, Segment, Subnet
from tealnet.core.tables import Graph


@pytest.mark.parametrize("loaded", [True, False], ids=["module loaded", "no module"])
def test_the_kernels_where_its_module_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: bool) -> None:
    module = tmp_path / "openvswitch"
    if loaded:
        module.mkdir()
    monkeypatch.setattr(devices, "KERNEL_MODULE", str(module))
    assert find_datapath("auto") == ("system" if loaded else "netdev")
    assert find_datapath("netdev") == "netdev"
    assert find_datapath("system") == "system"


UID = "a" * 32
PORT = LocalPort(
    uid=UID,
    vni=5,
    addresses=(ip_address("10.0.0.5"),),
    mac="02:00:00:00:00:05",
    identity=300,
    sources=(),
    tenant="acme",
    name="web-1",
    kind=Attach.NETNS,
    where="web-1",
    interface="eth0",
)
SEGMENT = Segment(5, 700, 0, 9, 1430, (Subnet(ip_network("10.0.0.0/24"), ip_address("10.0.0.1")),))


@pytest.mark.parametrize("datapath", ["system", "netdev"])
def test_guards_are_for_the_userspace_datapath_alone(datapath: str) -> None:
    """With the kernel's, Open vSwitch takes the frame from the stack itself, and a guard would cut the port off."""
    graph = Graph()
    inputs = Inputs(graph)
    wants = [want for want in l2.declare(graph, inputs) if want.kind in ("", "localport")]
    vtep = ip_address("192.0.2.1")
    inputs.this.put(THIS, This("b" * 32, 1, vtep, datapath, "br-int", "vxlan0", 1, 4789))
    inputs.segments.put(5, SEGMENT)
    inputs.localports.put(UID, PORT)
    inputs.issued.put(UID, 7)
    device = names.device(PORT)
    inputs.ofports.put(device, 7)  # plugged, but the guard is not confirmed

    def wanted(layer: str, key: str = UID) -> list[Any]:
        graph.settle()
        return [value for want in wants if want.layer == layer for _, value in want.table.rows.get(key, ())]

    assert Bridge("br-int", datapath) in wanted("ovsdb", THIS)
    assert wanted("guard") == ([Guard(device)] if datapath == "netdev" else [])
    assert bool(wanted("flow")) == (datapath == "system")
    inputs.guarded.put(device, True)
    assert wanted("flow")
