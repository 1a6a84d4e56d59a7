"""TenantService."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2

from controller.api.cascade import Cascade
from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.intents.tenant import Tenants
from tealnet.v1 import tenant_pb2, tenant_pb2_grpc


class TenantService(tenant_pb2_grpc.TenantServiceServicer):
    """Standard methods; a forced delete takes all that the tenant holds along."""

    def __init__(self, parts: Parts) -> None:
        self._standard: Standard[tenant_pb2.Tenant] = Standard(parts, Tenants(parts.context))
        self._cascade = Cascade(parts)

    async def CreateTenant(self, request: tenant_pb2.CreateTenantRequest, context: Any) -> tenant_pb2.Tenant:
        """By admins."""
        return await self._standard.create(request)

    async def GetTenant(self, request: tenant_pb2.GetTenantRequest, context: Any) -> tenant_pb2.Tenant:
        """One tenant."""
        return await self._standard.get(request)

    async def ListTenants(self, request: tenant_pb2.ListTenantsRequest, context: Any) -> tenant_pb2.ListTenantsResponse:
        """All that the caller may see."""
        return await self._standard.list(request, tenant_pb2.ListTenantsResponse())

    async def UpdateTenant(self, request: tenant_pb2.UpdateTenantRequest, context: Any) -> tenant_pb2.Tenant:
        """Quota, placement, labels, revocation."""
        return await self._standard.update(request)

    async def DeleteTenant(self, request: tenant_pb2.DeleteTenantRequest, context: Any) -> empty_pb2.Empty:
        """Refused while it holds anything, unless forced."""
        if request.force and not request.validate_only:
            await self._cascade.tenant(request, self._standard)
        else:
            await self._standard.delete(request)
        return empty_pb2.Empty()
