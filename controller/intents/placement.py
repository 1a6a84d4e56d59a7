"""Where a tenant may attach workloads, and how: the grants of A1. Pure."""

from __future__ import annotations

from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, NotFound
from controller.features.l2_check import tunnel_room
from controller.rows import Attach, HostSpec, Intent, Labels, NetworkSpec, TenantSpec


def may_use(tenant: TenantSpec, host: Intent[HostSpec]) -> bool:
    """Whether a tenant's placement grants a host at all; an empty selector grants every host."""
    return selected(tenant.host_selector, host.labels)


def selected(selector: Labels, labels: Labels) -> bool:
    """Whether labels have every pair of a selector."""
    return set(selector) <= set(labels)


def check_kind(tenant: Intent[TenantSpec], kind: Attach) -> None:
    """Whether a tenant may attach in this way. Raises FailedPrecondition."""
    if kind not in tenant.spec.kinds:
        granted = ", ".join(k.value for k in tenant.spec.kinds)
        text = (
            f"{tenant.name} may not attach by {kind.value}, only by {granted}; an admin can grant it (placement.kinds)"
        )
        raise FailedPrecondition(text, [Blocker("KIND_NOT_GRANTED", tenant.name, text)], reason="KIND_NOT_GRANTED")


def place(draft: Draft, tenant: Intent[TenantSpec], *, host: str) -> Intent[HostSpec] | None:
    """The host that a port is to be on, if the tenant may put it there; None for an unbound port.

    A host that is not granted is not found. Raises NotFound, FailedPrecondition.
    """
    if not host:
        return None
    row = draft.reading.row("host", host)
    if row is None or not may_use(tenant.spec, row):
        raise NotFound(host, field="port.host")
    if row.spec.fenced or row.spec.drained:
        what = "fenced" if row.spec.fenced else "drained"
        text = f"{host} is {what} and takes no new ports"
        raise FailedPrecondition(text, [Blocker(f"HOST_{what.upper()}", host, text)], reason=f"HOST_{what.upper()}")
    return row


def tunnel_version(host: HostSpec) -> int:
    """The IP version of a host's tunnels; 4 until its tunnel address is known."""
    return host.vtep.version if host.vtep else 4


def check_room(draft: Draft, host: Intent[HostSpec], network: Intent[NetworkSpec], *, default_mtu: int) -> None:
    """Whether a host's underlay, as it was reported last, carries a network's packets. Raises FailedPrecondition.

    Where it does not, its workloads would lose their large packets and nobody would hear of it.
    """
    status = draft.reading.world.host_status.rows.get(host.uid)
    mtu = network.spec.mtu or default_mtu
    if status is None or not status.underlay_mtu or mtu <= tunnel_room(status.underlay_mtu, tunnel_version(host.spec)):
        return
    most = tunnel_room(status.underlay_mtu, tunnel_version(host.spec))
    text = (
        f"{host.name} takes no ports of {network.name}: the MTU of the network is {mtu}, "
        f"the host's underlay (MTU {status.underlay_mtu}) has room for {most}"
    )
    raise FailedPrecondition(text, [Blocker("MTU_TOO_LARGE", host.name, text)], reason="MTU_TOO_LARGE")
