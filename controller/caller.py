"""Who calls, for everything that happens inside a call. Set by the interceptor in `auth`, read anywhere."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass

from tealnet.core.crl import NONE, Revoked
from tealnet.core.identity import Identity, Kind

PATIENCE = 10.0
"""Seconds that a write is tried for where the caller set no deadline."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One call's party. `issued`, `ends`: Unix times of its certificate; `deadline`: of the call, monotonic."""

    identity: Identity
    issued: float
    ends: float
    deadline: float
    certificate: Revoked = NONE  # how a revocation list would name it

    @property
    def is_admin(self) -> bool:
        """May do everything."""
        return self.identity.kind is Kind.ADMIN

    @property
    def tenant(self) -> str:
        """The resource name of the one tenant that it may see; "" for all others."""
        tenants = (Kind.TENANT_ADMIN, Kind.TENANT_VIEWER)
        return f"tenants/{self.identity.name}" if self.identity.kind in tenants else ""

    @property
    def role(self) -> str:
        """For logs and events: admin, tenant/acme/admin, …"""
        return self.identity.role

    @property
    def time_left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()


_current: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    """The party of this call. Raises LookupError outside a call."""
    return _current.get()


def set_caller(caller: Caller) -> None:
    """For the interceptor, and for tests."""
    _current.set(caller)
