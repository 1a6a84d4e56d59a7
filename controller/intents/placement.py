"""Where a tenant may attach workloads, and how: the grants of A1. Pure."""

from __future__ import annotations

from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, NotFound
from controller.rows import Attach, HostSpec, Intent, Labels, TenantSpec


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
