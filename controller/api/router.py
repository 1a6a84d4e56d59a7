"""RouterService."""

from __future__ import annotations

from typing import Any

from google.protobuf import empty_pb2

from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.intents.router import Routers
from tealnet.v1 import router_pb2, router_pb2_grpc


class RouterService(router_pb2_grpc.RouterServiceServicer):
    """Standard methods."""

    def __init__(self, parts: Parts) -> None:
        self._standard: Standard[router_pb2.Router] = Standard(parts, Routers(parts.context))

    async def CreateRouter(self, request: router_pb2.CreateRouterRequest, context: Any) -> router_pb2.Router:
        """In a tenant; its routing domain is issued here."""
        return await self._standard.create(request)

    async def GetRouter(self, request: router_pb2.GetRouterRequest, context: Any) -> router_pb2.Router:
        """One router."""
        return await self._standard.get(request)

    async def ListRouters(self, request: router_pb2.ListRoutersRequest, context: Any) -> router_pb2.ListRoutersResponse:
        """Routers of a tenant, or of all that the caller may see."""
        return await self._standard.list(request, router_pb2.ListRoutersResponse())

    async def UpdateRouter(self, request: router_pb2.UpdateRouterRequest, context: Any) -> router_pb2.Router:
        """Static routes, labels, description."""
        return await self._standard.update(request)

    async def DeleteRouter(self, request: router_pb2.DeleteRouterRequest, context: Any) -> empty_pb2.Empty:
        """Refused while networks are attached."""
        await self._standard.delete(request)
        return empty_pb2.Empty()
