"""`make bench-fairness`: does one tenant's storm of calls slow the others down? A controller with its own etcd.

Three tenants create and delete a port each, now and then; a fourth first as fast as one can (its sustainable rate),
then ten times as many calls a second as that. Storm and calm take turns in one run; the others' latencies are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.common import BenchError, Neighbours, Report, bounded, ms, say, table
from tealnet.core.pki import Ca
from tealnet.v1 import network_pb2, network_pb2_grpc, port_pb2, port_pb2_grpc, tenant_pb2, tenant_pb2_grpc

SECONDS = 300
STORMY, OTHERS = "storm", ("one", "two", "three")
FACTOR = 10
_EVERY = 0.1  # seconds between two pairs of calls of one of the others
_OPTIONS = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
_OUTSTANDING = 4000  # calls that the storm has under way at most: what is beyond is not sent, and counted
_DEADLINE = 5.0  # seconds of one of its calls


@dataclass(frozen=True, slots=True)
class Site:
    """Where the controller listens, and the certificates of the callers."""

    directory: Path

    @property
    def address(self) -> str:
        return f"unix:{self.directory}/api.sock"

    def channel(self, who: str) -> grpc.aio.Channel:
        """For one of the parties, over a connection of its own."""
        ca, key, cert = ((self.directory / f"{name}").read_bytes() for name in ("ca.crt", f"{who}.key", f"{who}.crt"))
        return grpc.aio.secure_channel(self.address, grpc.ssl_channel_credentials(ca, key, cert), _OPTIONS)


class Calls:
    """Creates and deletes ports of one tenant without a host; names are never used twice."""

    def __init__(self, channel: grpc.aio.Channel, tenant: str, series: str) -> None:
        self.stub: Any = port_pb2_grpc.PortServiceStub(channel)
        self.tenant, self.series, self.number = f"tenants/{tenant}", series, 0

    async def pair(self) -> list[float]:
        """Create and delete one; seconds that each call took. Raises AioRpcError."""
        self.number += 1
        ident = f"{self.series}-{self.number}"
        port = port_pb2.Port(network=f"{self.tenant}/networks/web")
        began = time.perf_counter()
        request = port_pb2.CreatePortRequest(parent=self.tenant, port_id=ident, port=port)
        await self.stub.CreatePort(request, timeout=_DEADLINE)
        made = time.perf_counter()
        await self.stub.DeletePort(port_pb2.DeletePortRequest(name=f"{self.tenant}/ports/{ident}"), timeout=_DEADLINE)
        return [made - began, time.perf_counter() - made]


@dataclass
class Counted:
    """What a storm has done."""

    seconds: float = 0.0
    sent: int = 0
    unsent: int = 0  # _OUTSTANDING were under way
    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)


# ---- the stormy one: a process of its own


async def flat_out(site: Site, seconds: float, *, at_once: int) -> Counted:
    """As fast as one connection can with so many pairs under way."""
    counted, end = Counted(), time.monotonic() + seconds

    async def worker(number: int) -> None:
        calls = Calls(channel, STORMY, f"f{number}x{os.getpid()}")
        while time.monotonic() < end:
            await calls.pair()
            counted.done += 2

    began = time.monotonic()
    async with site.channel(STORMY) as channel, asyncio.TaskGroup() as group:
        for number in range(at_once):
            group.create_task(worker(number))
    counted.seconds = time.monotonic() - began
    return counted


async def storm(site: Site, seconds: float, *, rate: float, connections: int) -> Counted:
    """`rate` calls a second whatever comes of them, over several connections."""
    counted, tasks = Counted(seconds=seconds), set[asyncio.Task[None]]()
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(site.channel(STORMY)) for _ in range(connections)]
        calls = [Calls(channel, STORMY, f"s{number}x{os.getpid()}") for number, channel in enumerate(channels)]

        async def one(turn: int) -> None:
            try:
                await calls[turn % connections].pair()
                counted.done += 2
            except grpc.aio.AioRpcError as error:
                counted.failed[error.code().name] = counted.failed.get(error.code().name, 0) + 1

        began, turn = time.monotonic(), 0
        while (now := time.monotonic() - began) < seconds:
            while turn < now * rate / 2:  # a pair is two calls
                turn += 1
                if 2 * len(tasks) >= _OUTSTANDING:
                    counted.unsent += 2
                    continue
                counted.sent += 2
                task = asyncio.create_task(one(turn))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return counted


async def stormy(site: Site, seconds: float, *, rate: float) -> Counted:
    """In a process of its own, and after everybody else's on the processor: its own work is not what is measured."""
    argv = [sys.executable, "-m", "bench.fairness", "--storm", str(site.directory), "--seconds", str(seconds)]
    process = await asyncio.create_subprocess_exec(
        "nice", "-n", "5", *argv, "--rate", str(rate), stdout=subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        raise
    if process.returncode:
        raise BenchError("the storm failed")
    return Counted(**json.loads(out))


# ---- the others


async def calm(site: Site, until: asyncio.Event, took: list[float]) -> None:
    """All others call now and then until the event; `took` gets the seconds of each call."""

    async def one(tenant: str, channel: grpc.aio.Channel) -> None:
        calls = Calls(channel, tenant, f"c{time.monotonic_ns()}")
        while not until.is_set():
            began = time.monotonic()
            took.extend(await calls.pair())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + _EVERY - time.monotonic())):
                    await until.wait()

    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for tenant in OTHERS:
            group.create_task(one(tenant, await stack.enter_async_context(site.channel(tenant))))
        await until.wait()


async def during(site: Site, work: Any) -> tuple[list[float], Any]:
    """The others' latencies while something goes on, and what came of it."""
    over, took = asyncio.Event(), list[float]()
    async with asyncio.TaskGroup() as group:
        group.create_task(calm(site, over, took))
        result = await work
        over.set()
    return took, result


# ---- the whole


@contextlib.asynccontextmanager
async def controller() -> AsyncIterator[Site]:
    """A controller as installed, with an etcd of its own, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tnb") as name:
        site = Site(Path(name))
        ca = Ca.create("tealnet.local")
        ca.save(site.directory)
        ca.issue("controller", dns=["controller"]).save(site.directory, "controller")
        ca.issue("admin").save(site.directory, "admin")
        settings = {"listen": site.address, "join_listen": "", "metrics_listen": "", "data_dir": f"{name}/data",
                    "ca": f"{name}/ca.crt", "cert": f"{name}/controller.crt", "key": f"{name}/controller.key",
                    "quota_ports": 1_000_000}  # fmt: skip
        words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
        log = (site.directory / "controller.log").open("wb")
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "controller", *words, stderr=log)
        try:
            async with site.channel("admin") as channel:
                await _fill(site, channel, ca)
            yield site
        finally:
            process.terminate()
            await process.wait()
            log.close()


async def _fill(site: Site, channel: grpc.aio.Channel, ca: Ca) -> None:
    tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
    networks: Any = network_pb2_grpc.NetworkServiceStub(channel)
    for tenant in (STORMY, *OTHERS):
        request = tenant_pb2.CreateTenantRequest(tenant_id=tenant)
        await tenants.CreateTenant(request, timeout=30, wait_for_ready=True)
        body = network_pb2.Network(cidrs=["fd00::/64"])
        body.address_quarantine.SetInParent()
        await networks.CreateNetwork(
            network_pb2.CreateNetworkRequest(parent=f"tenants/{tenant}", network_id="web", network=body)
        )
        ca.issue(f"tenant/{tenant}/admin").save(site.directory, tenant)


async def run(report: Report, neighbours: Neighbours, *, rounds: int, seconds: float) -> None:
    """Calm and storm in turns."""
    quiet: list[float] = []
    steady: list[float] = []
    rough: list[float] = []
    storms: list[Counted] = []
    async with controller() as site:
        await during(site, asyncio.sleep(2))  # warm
        for number in range(rounds):
            neighbours.wait_quiet(seconds=5)
            took, _ = await during(site, asyncio.sleep(seconds))
            quiet += took
            took, flat = await during(site, flat_out(site, seconds, at_once=16))
            steady += took
            rate = flat.done / flat.seconds
            took, counted = await during(site, stormy(site, seconds, rate=FACTOR * rate))
            rough += took
            storms.append(counted)
            say(
                f"round {number + 1}: sustainable {rate:.0f} calls/s, storm sent {counted.sent / seconds:.0f}/s, "
                f"done {counted.done / seconds:.0f}/s; others' median {1000 * statistics.median(quiet):.1f} ms calm, "
                f"{1000 * statistics.median(rough):.1f} ms in the storm"
            )
            report.put("sustainable_per_s", rate, 0)
    for name, values in (("calm", quiet), ("beside_one", steady), ("storm", rough)):
        ordered = sorted(1000 * value for value in values)
        for word, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            report.put(f"{name}_{word}_ms", ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)
        report.put(f"{name}_calls", len(ordered), 0)
    for word in ("p50", "p95", "p99"):
        report.put_ratio(f"storm_vs_calm_{word}_ratio", f"storm_{word}_ms", f"calm_{word}_ms")
        report.put_ratio(f"storm_vs_one_{word}_ratio", f"storm_{word}_ms", f"beside_one_{word}_ms")
    report.put("storm_sent_per_s", sum(c.sent for c in storms) / sum(c.seconds for c in storms), 0)
    report.put("storm_done_per_s", sum(c.done for c in storms) / sum(c.seconds for c in storms), 0)
    report.put("storm_unsent_per_s", sum(c.unsent for c in storms) / sum(c.seconds for c in storms), 0)
    report.raw["storm_failed"] = [counted.failed for counted in storms]


def print_table(report: Report) -> None:
    """The others' latencies."""
    figures = report.figures
    rows = [
        (text, *(ms(figures[f"{name}_{word}_ms"]) for word in ("p50", "p95", "p99")), figures[f"{name}_calls"])
        for name, text in (
            ("calm", "nobody else calls"),
            ("beside_one", "one tenant, as fast as it can"),
            ("storm", f"one tenant, {FACTOR} times that"),
        )
    ]
    table("Calls of three other tenants (ms)", ("meanwhile", "median", "p95", "p99", "calls"), rows)


def main() -> int:
    """Exit code 0, or 1 with the reason."""
    parser = argparse.ArgumentParser(prog="make bench-fairness", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each of the three parts of a round")
    parser.add_argument("--storm", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.storm:
        site = Site(Path(arguments.storm))
        done = asyncio.run(storm(site, arguments.seconds, rate=arguments.rate, connections=4))
        print(json.dumps({name: getattr(done, name) for name in Counted.__dataclass_fields__}))
        return 0
    report = Report("fairness", {"rounds": arguments.rounds, "seconds": arguments.seconds, "factor": FACTOR})
    neighbours = Neighbours()
    try:
        with bounded(SECONDS):
            asyncio.run(run(report, neighbours, rounds=arguments.rounds, seconds=arguments.seconds))
    except (BenchError, grpc.aio.AioRpcError) as error:
        say(f"error: {error}")
        return 1
    finally:
        neighbours.close()
    print_table(report)
    print(f"figures: {report.write()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
