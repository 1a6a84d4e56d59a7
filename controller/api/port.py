"""PortService but for the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import empty_pb2

from controller.api import filters
from controller.api.filters import Term
from controller.api.port_batch import Batch
from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.errors import invalid
from controller.intents.port import Ports
from controller.names import default_group, short
from controller.rows import Intent
from tealnet.v1 import port_pb2, port_pb2_grpc

_FIELDS = ("network", "host", "color", "group", "state")


class PortStandard(Standard[port_pb2.Port]):
    """Ports are also listed by network, host, color, security group and state."""

    def keeps(self, text: str) -> Callable[[Intent[Any]], bool]:
        """Labels, and network=…, host=…, color=…, group=…, state=…."""
        terms = filters.parse_filter(text)
        own = [term for term in terms if term.key in _FIELDS]
        labels = [term for term in terms if term.key not in _FIELDS]
        for term in own:
            if not term.relation:
                raise invalid("filter", f"{term.key} needs a value: {term.key}=…")
        return lambda row: filters.matches(labels, row.labels) and all(self._holds(term, row) for term in own)

    def _holds(self, term: Term, row: Intent[Any]) -> bool:
        if term.key == "state":
            state = self.parts.presenter.status.port(row.name).state
            equal = port_pb2.PortStatus.State.Name(state) in (term.value, f"STATE_{term.value.upper()}")
        elif term.key == "group":
            groups = row.spec.groups or (default_group(row.spec.tenant),)
            equal = any(term.value in (name, short(name)) for name in groups)
        elif term.key == "color":
            network = self.world.networks.rows.get(row.spec.network)
            equal = network is not None and network.spec.color_of(row.spec.segment_uid) == term.value
        else:
            value: str = getattr(row.spec, term.key)
            equal = term.value in (value, short(value))
        return equal == (term.relation == "=")


class PortService(port_pb2_grpc.PortServiceServicer):
    """Standard methods and the batch."""

    def __init__(self, parts: Parts) -> None:
        writer = Ports(parts.context)
        self._standard = PortStandard(parts, writer)
        self._batch = Batch(parts, self._standard)

    async def CreatePort(self, request: port_pb2.CreatePortRequest, context: Any) -> port_pb2.Port:
        """In a tenant; what is not asked for is chosen here."""
        return await self._standard.create(request)

    async def BatchCreatePorts(
        self, request: port_pb2.BatchCreatePortsRequest, context: Any
    ) -> port_pb2.BatchCreatePortsResponse:
        """Up to 1,000 ports, each with its own result."""
        return await self._batch.create(request)

    async def GetPort(self, request: port_pb2.GetPortRequest, context: Any) -> port_pb2.Port:
        """One port."""
        return await self._standard.get(request)

    async def ListPorts(self, request: port_pb2.ListPortsRequest, context: Any) -> port_pb2.ListPortsResponse:
        """Ports of a tenant, or of all that the caller may see."""
        return await self._standard.list(request, port_pb2.ListPortsResponse())

    async def UpdatePort(self, request: port_pb2.UpdatePortRequest, context: Any) -> port_pb2.Port:
        """Another `host` moves the port."""
        return await self._standard.update(request)

    async def BatchUpdatePorts(
        self, request: port_pb2.BatchUpdatePortsRequest, context: Any
    ) -> port_pb2.BatchUpdatePortsResponse:
        """Up to 1,000 ports, each with its own result."""
        return await self._batch.update(request)

    async def DeletePort(self, request: port_pb2.DeletePortRequest, context: Any) -> empty_pb2.Empty:
        """The intent goes at once, the host is told with proof."""
        await self._standard.delete(request)
        return empty_pb2.Empty()
