"""Three members on loopback with mutual TLS: what only a real cluster shows."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from pathlib import Path

import grpc
import grpc.aio
import pytest

from controller.etcd import Etcd, OutcomeUnknown, StoreUnavailable, Tls, child
from controller.etcd.types import put
from tealnet.core.pki import Ca
from tealnet.v1.network_pb2 import CreateNetworkRequest, Network
from tealnet.v1.network_pb2_grpc import NetworkServiceStub
from tealnet.v1.port_pb2 import BatchCreatePortsRequest, Port
from tealnet.v1.port_pb2_grpc import PortServiceStub
from tealnet.v1.tenant_pb2 import CreateTenantRequest
from tealnet.v1.tenant_pb2_grpc import TenantServiceStub
from tests.controller.etcd.helpers import eventually
from tests.controller.running import Site, prepare, running


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """Three etcd processes; they die with this one."""

    def __init__(self, directory: Path) -> None:
        ca = Ca.create("lab.test")
        ca.save(directory)
        self.directory = directory
        self.server_files = ca.issue("controller", dns=["localhost"], ips=["127.0.0.1"]).save(directory, "server")
        cert, key = ca.issue("controller", dns=["client"]).save(directory, "client")
        self.tls = Tls(directory / "ca.crt", cert, key)
        ports = free_ports(6)
        self.clients = [f"https://127.0.0.1:{port}" for port in ports[:3]]
        self._peers = [f"http://127.0.0.1:{port}" for port in ports[3:]]
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        cert, key = self.server_files
        program = shutil.which("etcd")
        assert program is not None
        for index, (client, peer) in enumerate(zip(self.clients, self._peers, strict=True)):
            flags = (
                f"--name=m{index}",
                f"--data-dir={self.directory / f'm{index}'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                "--initial-cluster=" + ",".join(f"m{i}={url}" for i, url in enumerate(self._peers)),
                f"--cert-file={cert}",
                f"--key-file={key}",
                "--client-cert-auth",
                f"--trusted-ca-file={self.tls.ca}",
                "--heartbeat-interval=30",
                "--election-timeout=300",
                "--unsafe-no-fsync",
                "--log-level=error",
            )
            pid_file = self.directory / f"m{index}.pid"
            shim = (sys.executable, "-I", "-S", child.__file__, str(os.getpid()), str(pid_file), program)
            self.processes.append(await asyncio.create_subprocess_exec(*shim, *flags))

    async def stop(self) -> None:
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def test_the_member_in_use_is_killed_then_another_is_stopped(cluster: Cluster) -> None:
    """Reads, writes and the watch go on while a majority lives, also when the one in use is the leader."""
    async with Etcd(cluster.clients, cluster.tls) as etcd, Etcd(cluster.clients, cluster.tls) as watcher:

        async def up() -> bool:
            try:
                return (await etcd.status()).leader != 0 and await etcd.revision() > 0
            except StoreUnavailable:
                return False

        await eventually(up)
        last = await write(etcd, rounds=20)
        async with asyncio.timeout(30), aclosing(watcher.watch(b"w/", b"w0", from_revision=1)) as watch:
            told: list[int] = []
            while not told or told[-1] < last:
                told.extend(event.kv.mod_revision for event in (await anext(watch)).events)

            index = cluster.clients.index(watcher.endpoint)
            cluster.processes[index].kill()
            last = await write(etcd, rounds=20)
            while told[-1] < last:
                told.extend(event.kv.mod_revision for event in (await anext(watch)).events)
            assert told == list(range(told[0], told[0] + len(told)))

            # Of two no majority is left: everything is refused or unknown within the deadline, then goes on.
            other = cluster.processes[index - 1]
            other.send_signal(signal.SIGSTOP)
            async with Etcd(cluster.clients, cluster.tls, timeout=1.0) as hasty:
                with pytest.raises(StoreUnavailable):
                    await hasty.range(b"w/0")
                with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                    await hasty.txn((), [put(b"x", b"")])
            other.send_signal(signal.SIGCONT)
            last = await write(etcd, rounds=5)
            while told[-1] < last:
                told.extend(event.kv.mod_revision for event in (await anext(watch)).events)
            assert sorted(set(told)) == told


async def write(etcd: Etcd, *, rounds: int) -> int:
    """Write until that many were answered; returns the last one's revision."""
    revision = done = 0
    async with asyncio.timeout(15):
        while done < rounds:
            try:
                revision = (await etcd.txn((), [put(b"w/%d" % done, b"")])).revision
                done += 1
            except (OutcomeUnknown, StoreUnavailable):
                continue
    return revision


async def test_a_client_without_certificate_or_with_another_ca_is_unavailable(cluster: Cluster, tmp_path: Path) -> None:
    Ca.create("lab.test").save(tmp_path / "stranger")
    for tls in (Tls(cluster.tls.ca), Tls(tmp_path / "stranger" / "ca.crt", cluster.tls.cert, cluster.tls.key)):
        async with Etcd(cluster.clients, tls, timeout=0.5) as etcd:
            with pytest.raises(StoreUnavailable):
                await etcd.revision()


async def test_a_controller_on_three_members_loses_one(cluster: Cluster) -> None:
    """External etcd over mutual TLS with its default limits: the API writes on when the member in use is killed."""

    async def up() -> bool:
        try:
            async with Etcd(cluster.clients, cluster.tls) as etcd:
                return (await etcd.status()).leader != 0 and await etcd.revision() > 0
        except StoreUnavailable:
            return False

    await eventually(up)
    with tempfile.TemporaryDirectory(prefix="tn") as name:
        tls = {"etcd_ca": str(cluster.tls.ca), "etcd_cert": str(cluster.tls.cert), "etcd_key": str(cluster.tls.key)}
        ca, settings = prepare(Path(name), etcd=tuple(cluster.clients), **tls)
        async with running(settings) as controller:
            place = Site(Path(name), ca, settings, controller)
            async with place.channel(ca.issue("admin")) as channel:
                tenants, networks = TenantServiceStub(channel), NetworkServiceStub(channel)
                await tenants.CreateTenant(CreateTenantRequest(tenant_id="acme"))
                cluster.processes[cluster.clients.index(controller.etcd.endpoint)].kill()

                async def written() -> bool:
                    body = Network(cidrs=["10.0.0.0/24"])
                    request = CreateNetworkRequest(parent="tenants/acme", network_id="web", network=body)
                    try:
                        await networks.CreateNetwork(request)
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.UNAVAILABLE:  # the member that led was killed
                            return False
                        return error.code() is grpc.StatusCode.ALREADY_EXISTS
                    return True

                await eventually(written)
                batch = BatchCreatePortsRequest(parent="tenants/acme")
                for number in range(40):
                    batch.requests.add(port_id=f"p{number}", port=Port(network="tenants/acme/networks/web"))
                answer = await PortServiceStub(channel).BatchCreatePorts(batch)
                assert all(result.HasField("port") for result in answer.results)
