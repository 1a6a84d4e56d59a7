"""grpc.health.v1: does this process serve? One word for all its services.

Our own, because the one that comes with gRPC has no List, and its Watch fits no interceptor that reads answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from controller.errors import NotFound

Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Serves from the first `say`; `ALL`, the empty name, is the only service that has a health."""

    ALL = ""

    def __init__(self) -> None:
        self._status: Any = Status.Value("NOT_SERVING")
        self._changed = asyncio.Event()

    def say(self, *, word: str) -> None:
        """SERVING or NOT_SERVING, from now on."""
        self._status = Status.Value(word)
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Any) -> Any:
        """Now. Raises NotFound for a service by name."""
        if request.service != self.ALL:
            raise NotFound(request.service[:200])
        return self._response()

    async def List(self, request: Any, context: Any) -> Any:
        """All there is."""
        return health_pb2.HealthListResponse(statuses={self.ALL: self._response()})

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Now, and at each change; a service that is not known stays so."""
        if request.service != self.ALL:
            yield health_pb2.HealthCheckResponse(status=Status.Value("SERVICE_UNKNOWN"))
        while True:
            changed = self._changed
            if request.service == self.ALL:
                yield self._response()
            await changed.wait()

    def _response(self) -> Any:
        return health_pb2.HealthCheckResponse(status=self._status)
