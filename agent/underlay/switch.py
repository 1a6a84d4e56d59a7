"""The bridge in Open vSwitch, the guard in front of the kernel's own stack, and what the card must not do by itself."""

from __future__ import annotations

import json
from pathlib import Path

from agent.underlay.state import Link
from agent.underlay.tools import UnderlayError, call, words_of

TABLE = "tealnet-underlay"  # of nft's family netdev; the agent's own table is `tealnet`
OWNER = "tealnet-underlay"  # external_ids key of the bridge: the card it was made for
KERNEL_MODULE = Path("/sys/module/openvswitch")
_WAIT = "--timeout=10"
# Frames glued together by the card or the kernel are longer than the MTU. OVS reads the card through a packet socket
# with room for one MTU: what is longer arrives cut off, and TCP to this machine stops.
_GLUE = {
    "generic-receive-offload": "gro",
    "large-receive-offload": "lro",
    "rx-gro-hw": "rx-gro-hw",
}
# Per-device settings of the kernel that hold for whoever has the addresses (ip-sysctl).
_CONF = {
    "ipv4": ("rp_filter", "forwarding", "arp_ignore", "arp_announce", "arp_filter", "accept_redirects", "log_martians"),
    "ipv6": ("forwarding", "accept_ra", "accept_ra_defrtr", "autoconf", "use_tempaddr", "accept_redirects"),
}


def datapath_type(asked: str) -> str:
    """`system` or `netdev`; for `auto` chosen as the agent does: `system` where the kernel module is there.

    Raises:
        UnderlayError: Open vSwitch does not run.
    """
    row = call("ovs-vsctl", _WAIT, "--format=json", "--columns=datapath_types", "list", "Open_vSwitch")
    if asked != "auto":
        return asked
    return "system" if KERNEL_MODULE.exists() and '"system"' in row else "netdev"


def bridge_of(port: str) -> str:
    """The bridge that a device is in, "" if none. Raises UnderlayError."""
    for bridge in bridges():
        if port in call("ovs-vsctl", _WAIT, "list-ports", bridge).split():
            return bridge
    return ""


def bridges() -> list[str]:
    """The bridges there are. Raises UnderlayError."""
    return call("ovs-vsctl", _WAIT, "list-br").split()


def owner(bridge: str) -> str:
    """The card that a bridge was made for; "" = it is not ours or not there. Raises UnderlayError."""
    if bridge not in bridges():
        return ""
    return call("ovs-vsctl", _WAIT, "br-get-external-id", bridge, OWNER).strip()


def make_bridge(bridge: str, *, link: Link) -> None:
    """The bridge with the card's MAC and MTU, still without the card. Idempotent. Raises UnderlayError."""
    call(
        *("ovs-vsctl", _WAIT, "--may-exist", "add-br", bridge),
        *("--", "set", "Bridge", bridge, "datapath_type=netdev", "fail_mode=standalone"),
        *(f'other_config:hwaddr="{link.mac}"', f"external_ids:{OWNER}={link.name}"),
        *("--", "set", "Interface", bridge, f"mtu_request={link.mtu}"),
    )


def plug(bridge: str, device: str) -> None:
    """Put the card into the bridge: from now on both OVS and the kernel see each frame. Raises UnderlayError."""
    call("ovs-vsctl", _WAIT, "--may-exist", "add-port", bridge, device)
    row = call("ovs-vsctl", _WAIT, "--format=json", "--columns=ofport,error", "find", "Interface", f"name={device}")
    ofport, error = json.loads(row)["data"][0]
    if not isinstance(ofport, int) or ofport < 1:
        raise UnderlayError(f"Open vSwitch cannot use {device}: {error if isinstance(error, str) else 'no ofport'}")


def remove_bridge(bridge: str) -> None:
    """Idempotent; a vswitchd that does not run is not waited for. Raises UnderlayError when the database is away."""
    if words_of("ovs-vsctl", _WAIT, "--if-exists", "del-br", bridge):
        call("ovs-vsctl", _WAIT, "--no-wait", "--if-exists", "del-br", bridge)


# -- the guard


def guard(device: str) -> None:
    """Keep the card's frames from the kernel's own stack. Idempotent, in one step. Raises UnderlayError.

    Without it the kernel answers ARP and everything else a second time. OVS gets its copy before this hook.
    """
    chain = f'chain ingress {{ type filter hook ingress device "{device}" priority 0; policy drop; }}'
    call("nft", "-f", "-", given=f"add table netdev {TABLE}\ndelete table netdev {TABLE}\n" + _table(chain))


def unguard() -> None:
    """Let the kernel have the card again. Idempotent. Raises UnderlayError."""
    call("nft", "-f", "-", given=f"add table netdev {TABLE}\ndelete table netdev {TABLE}\n")


def guarded(device: str) -> bool:
    """Whether the guard stands. Raises UnderlayError."""
    # Not in JSON: nft 1.0.6 leaves the device out there.
    if not any(line.split() == ["table", "netdev", TABLE] for line in call("nft", "list", "tables").splitlines()):
        return False
    told = call("nft", "list", "table", "netdev", TABLE)
    return f'hook ingress device "{device}" ' in told and "policy drop;" in told


def _table(chain: str) -> str:
    return f"table netdev {TABLE} {{\n {chain}\n}}\n"


# -- the card


def glueing(device: str) -> tuple[str, ...]:
    """Offloads that are on, can be switched off and would glue frames together. Raises UnderlayError."""
    out = []
    for line in call("ethtool", "--show-features", device).splitlines():
        name, _, value = line.strip().partition(": ")
        if name in _GLUE and value == "on":
            out.append(_GLUE[name])
    return tuple(out)


def switch_features(device: str, names: tuple[str, ...], *, state: str) -> None:
    """Switch offloads `on` or `off`. Raises UnderlayError."""
    if names:
        call("ethtool", "--features", device, *(word for name in names for word in (name, state)))


def copy_settings(device: str, bridge: str) -> None:
    """Give the bridge's device the kernel settings of the card that go with addresses."""
    for family, names in _CONF.items():
        for name in names:
            source = Path(f"/proc/sys/net/{family}/conf/{device}/{name}")
            target = Path(f"/proc/sys/net/{family}/conf/{bridge}/{name}")
            if source.exists() and target.exists() and source.read_text() != target.read_text():
                target.write_text(source.read_text())
