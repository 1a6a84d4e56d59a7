"""NetworkService."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2

from controller.api.cascade import Cascade
from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.intents.network import Networks
from tealnet.v1 import network_pb2, network_pb2_grpc


class NetworkService(network_pb2_grpc.NetworkServiceServicer):
    """Standard methods; a forced delete takes the ports along."""

    def __init__(self, parts: Parts) -> None:
        self._standard: Standard[network_pb2.Network] = Standard(parts, Networks(parts.context))
        self._cascade = Cascade(parts)

    async def CreateNetwork(self, request: network_pb2.CreateNetworkRequest, context: Any) -> network_pb2.Network:
        """In a tenant; VNI, numbers and gateways are chosen here."""
        return await self._standard.create(request)

    async def GetNetwork(self, request: network_pb2.GetNetworkRequest, context: Any) -> network_pb2.Network:
        """One network."""
        return await self._standard.get(request)

    async def ListNetworks(
        self, request: network_pb2.ListNetworksRequest, context: Any
    ) -> network_pb2.ListNetworksResponse:
        """Networks of a tenant, or of all that the caller may see."""
        return await self._standard.list(request, network_pb2.ListNetworksResponse())

    async def UpdateNetwork(self, request: network_pb2.UpdateNetworkRequest, context: Any) -> network_pb2.Network:
        """Works on a live network, also attaching to and detaching from a router."""
        return await self._standard.update(request)

    async def DeleteNetwork(self, request: network_pb2.DeleteNetworkRequest, context: Any) -> empty_pb2.Empty:
        """Refused while it has ports, unless forced."""
        if request.force and not request.validate_only:
            await self._cascade.network(request, self._standard)
        else:
            await self._standard.delete(request)
        return empty_pb2.Empty()
