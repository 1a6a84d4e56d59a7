"""Status and metrics on a unix socket: the agent has no other listener.

    curl --unix-socket /run/tealnet/agent.sock http://agent/status     JSON
    curl --unix-socket /run/tealnet/agent.sock http://agent/metrics    Prometheus text

HTTP/1.0 as far as these two need it (RFC 1945): a request line is read, headers are ignored, the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.core import Condition, Core
from agent.reconcile import Reconciler
from agent.spares import Spares
from agent.tally import Tally

log = structlog.get_logger()

SHOWN = 50  # keys per list
REQUEST_TIMEOUT = 5.0  # seconds


class Status:
    """What this agent can say about itself."""

    def __init__(
        self,
        core: Core,
        reconciler: Reconciler,
        tally: Tally,
        spares: Spares,
        *,
        conditions: Callable[[], Iterable[Condition]],
    ) -> None:
        self._core, self._reconciler, self._tally, self._conditions = core, reconciler, tally, conditions
        self._spares = spares

    def as_dict(self) -> dict[str, Any]:
        """For people and tests; lists are cut at 50 entries."""
        core, resources = self._core, self._core.resources
        applied = self._reconciler.applied()
        failures = core.failures(applied) if applied else {}
        return {
            "host_uid": resources.origin.host_uid,
            "cluster_uid": resources.origin.cluster_uid,
            "in_sync": core.ready(),
            "revision": resources.revision,
            "applied": applied.revision if applied else 0,
            "resources": len(resources),
            "unaccounted": resources.unaccounted(),
            "session": {
                "server": core.server,
                "problem": core.problem.reason if core.problem else "",
                "text": core.problem.text if core.problem else "",
            },
            "failures": {key: f"{f.reason}: {f.text}" for key, f in sorted(failures.items())[:SHOWN]},
            "failed": len(failures),
            "conditions": [{"type": c.type, "text": c.text, "remedy": c.remedy} for c in sorted(self._conditions())],
            "digest_mismatches": core.mismatches,
            "spares": {"waiting": self._spares.count(), "low": self._spares.is_low()},
            "color_collisions": self._tally.collisions,
            "full_zones": {zone: used.count for zone, used in sorted(self._tally.full.items())[:SHOWN]},
            "layers": {name: self._layer(name) for name in self._reconciler.layers},
        }

    def _layer(self, name: str) -> dict[str, Any]:
        layer = self._reconciler.layers[name]
        return {
            "wanted": len(layer.delta.desired),
            "actual": len(layer.delta.actual),
            "to_write": sorted(map(str, layer.delta.to_write))[:SHOWN],
            "to_delete": sorted(map(str, layer.delta.to_delete))[:SHOWN],
            "pending": len(layer.pending()),
            "failing": {str(key): t.failure.reason for key, t in list(layer.troubles.items())[:SHOWN]},
            "repairs": layer.repairs,
            "unavailable": layer.unavailable,
        }

    def collect(self) -> Iterator[Metric]:
        """The same for Prometheus."""
        core, layers = self._core, self._reconciler.layers
        applied = self._reconciler.applied()
        repairs = CounterMetricFamily("tealnet_repairs", "Objects that somebody else had changed", labels=["layer"])
        wanted = GaugeMetricFamily("tealnet_wanted", "Device objects wanted", labels=["layer"])
        pending = GaugeMetricFamily("tealnet_pending", "Device objects not as wanted", labels=["layer"])
        failing = GaugeMetricFamily("tealnet_failing", "Device objects that could not be applied", labels=["layer"])
        available = GaugeMetricFamily("tealnet_device_available", "The device answers", labels=["layer"])
        for name, layer in layers.items():
            repairs.add_metric([name], layer.repairs)
            wanted.add_metric([name], len(layer.delta.desired))
            pending.add_metric([name], len(layer.pending()))
            failing.add_metric([name], len(layer.troubles))
            available.add_metric([name], 0 if layer.unavailable else 1)
        yield from (repairs, wanted, pending, failing, available)
        yield CounterMetricFamily(
            "tealnet_digest_mismatches", "Units after which a digest did not match; a bug", value=core.mismatches
        )
        text = "Packets of twins dropped because the other one has a connection with their ports"
        yield CounterMetricFamily("tealnet_color_collisions", text, value=self._tally.collisions)
        gauges = {
            "tealnet_full_zones": ("Ports with as many connections as are remembered", len(self._tally.full)),
            "tealnet_in_session": ("In session with a controller", bool(core.server)),
            "tealnet_in_sync": ("The inputs are whole", core.ready()),
            "tealnet_revision": ("Revision of the inputs", core.resources.revision),
            "tealnet_applied_revision": ("Revision on the devices", applied.revision if applied else 0),
            "tealnet_resources": ("Resources held", len(core.resources)),
            "tealnet_unaccounted": ("Local ports kept without proof of removal", len(core.resources.unaccounted())),
            "tealnet_failed_resources": ("Resources that failed", len(core.failures(applied)) if applied else 0),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))


class _Collector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        return self._status.collect()


class StatusServer:
    """Serves a `Status` on a unix socket that only root may open."""

    def __init__(self, status: Status, path: Path) -> None:
        self._status, self._path = status, path
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(status))

    async def run(self) -> None:
        """Serve for ever; cancel to stop, which removes the socket."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, self._path)
        os.chmod(self._path, 0o600)
        try:
            await server.serve_forever()
        finally:
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await reader.readline()
                while (await reader.readline()).strip():
                    pass
                writer.write(self._answer(request))
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # the client's business
        finally:
            writer.close()

    def _answer(self, request: bytes) -> bytes:
        path = [*request.split(), b"", b""][1]
        if path == b"/status":
            return _response(json.dumps(self._status.as_dict(), indent=2).encode(), "200 OK", "application/json")
        if path == b"/metrics":
            return _response(generate_latest(self._registry), "200 OK", "text/plain; version=0.0.4")
        return _response(b"/status or /metrics\n", "404 Not Found", "text/plain")


def _response(body: bytes, status: str, kind: str) -> bytes:
    head = f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
