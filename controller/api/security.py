"""SecurityGroupService and PolicyTierService: standard methods."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2

from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.intents.group import Groups
from controller.intents.tier import Tiers
from tealnet.v1 import security_pb2, security_pb2_grpc


class SecurityGroupService(security_pb2_grpc.SecurityGroupServiceServicer):
    """Groups of tenants."""

    def __init__(self, parts: Parts) -> None:
        self._standard: Standard[security_pb2.SecurityGroup] = Standard(parts, Groups(parts.context))

    async def CreateSecurityGroup(
        self, request: security_pb2.CreateSecurityGroupRequest, context: Any
    ) -> security_pb2.SecurityGroup:
        """In a tenant; groups that its rules name must be there."""
        return await self._standard.create(request)

    async def GetSecurityGroup(
        self, request: security_pb2.GetSecurityGroupRequest, context: Any
    ) -> security_pb2.SecurityGroup:
        """One group."""
        return await self._standard.get(request)

    async def ListSecurityGroups(
        self, request: security_pb2.ListSecurityGroupsRequest, context: Any
    ) -> security_pb2.ListSecurityGroupsResponse:
        """Groups of a tenant, or of all that the caller may see."""
        return await self._standard.list(request, security_pb2.ListSecurityGroupsResponse())

    async def UpdateSecurityGroup(
        self, request: security_pb2.UpdateSecurityGroupRequest, context: Any
    ) -> security_pb2.SecurityGroup:
        """Rules, mode, what happens to open connections."""
        return await self._standard.update(request)

    async def DeleteSecurityGroup(
        self, request: security_pb2.DeleteSecurityGroupRequest, context: Any
    ) -> empty_pb2.Empty:
        """Refused while ports are in it or rules of other groups name it."""
        await self._standard.delete(request)
        return empty_pb2.Empty()


class PolicyTierService(security_pb2_grpc.PolicyTierServiceServicer):
    """Tiers of admins."""

    def __init__(self, parts: Parts) -> None:
        self._standard: Standard[security_pb2.PolicyTier] = Standard(parts, Tiers(parts.context))

    async def CreatePolicyTier(
        self, request: security_pb2.CreatePolicyTierRequest, context: Any
    ) -> security_pb2.PolicyTier:
        """By admins."""
        return await self._standard.create(request)

    async def GetPolicyTier(self, request: security_pb2.GetPolicyTierRequest, context: Any) -> security_pb2.PolicyTier:
        """One tier."""
        return await self._standard.get(request)

    async def ListPolicyTiers(
        self, request: security_pb2.ListPolicyTiersRequest, context: Any
    ) -> security_pb2.ListPolicyTiersResponse:
        """All; of tenants' those that bind them."""
        return await self._standard.list(request, security_pb2.ListPolicyTiersResponse())

    async def UpdatePolicyTier(
        self, request: security_pb2.UpdatePolicyTierRequest, context: Any
    ) -> security_pb2.PolicyTier:
        """Everything but the name."""
        return await self._standard.update(request)

    async def DeletePolicyTier(self, request: security_pb2.DeletePolicyTierRequest, context: Any) -> empty_pb2.Empty:
        """Its rules go from all hosts."""
        await self._standard.delete(request)
        return empty_pb2.Empty()
