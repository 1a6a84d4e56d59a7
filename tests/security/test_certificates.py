"""Certificates that do not count, renewed ones that do at once, and revoked ones that soon do no more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tealnet.core import crl
from tealnet.core.pki import Ca, Leaf, PkiError, load_certificate
from tealnet.core.revoked import stamp_of
from tealnet.v1 import host_pb2, host_pb2_grpc, system_pb2, system_pb2_grpc, tenant_pb2, tenant_pb2_grpc
from tests.controller.running import FakeAgent, Site, prepare, running, site, until
from tests.security.certificates import BAD_ADMIN, BAD_HOST, Plan, end_of, leaf, uris

TIMEOUT = 5.0
RIGHT_HOST = Plan(names=uris("spiffe://tealnet.local/host/h1"))
SHORT = timedelta(seconds=4)
"""How long a certificate lives that ends while it is used: connecting with it may be slow."""


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    async with site() as running:
        async with running.channel(running.ca.issue("admin")) as channel:
            hosts: Any = host_pb2_grpc.HostServiceStub(channel)
            await hosts.CreateHost(host_pb2.CreateHostRequest(host_id="h1", host=host_pb2.Host(vtep="192.0.2.1")))
        yield running


async def version(place: Site, leaf: Leaf) -> grpc.StatusCode:
    """What the API says to a certificate."""
    async with place.channel(leaf) as channel:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        try:
            await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED)


async def test_the_api_refuses_every_bad_certificate(place: Site) -> None:
    assert await version(place, place.ca.issue("admin")) is grpc.StatusCode.OK
    accepted = []
    for what, make in BAD_ADMIN.items():
        if (code := await version(place, make(place.ca))) not in REFUSED:
            accepted.append(f"{what}: {code}")
    assert not accepted, accepted
    assert len(BAD_ADMIN) >= 40
    assert await version(place, place.ca.issue("admin")) is grpc.StatusCode.OK


async def test_the_agents_stream_refuses_every_bad_certificate(place: Site) -> None:
    accepted = []
    for what, make in BAD_HOST.items():
        agent = FakeAgent("h1", "192.0.2.1")
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async with agent.connected(place, make(place.ca)):
                pass
        if agent.welcome is not None:
            accepted.append(what)
    assert not accepted
    for right in (place.ca.issue("host/h1"), leaf(place.ca, RIGHT_HOST)):
        good = FakeAgent("h1", "192.0.2.1")
        async with good.connected(place, right):
            assert good.welcome is not None, good.refused


# ---- versions of TLS


def handshake(path: str, version: ssl.TLSVersion, ca: Ca, leaf: Leaf | None, directory: Path) -> str:
    """The version agreed upon; raises OSError if there is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")  # so that it is not this side that refuses
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=ca.cert_pem.decode())
    context.set_alpn_protocols(["h2"])
    if leaf:
        cert, key = leaf.save(directory, f"tls{time.monotonic_ns()}")
        context.load_cert_chain(cert, key)
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(TIMEOUT)
        plain.connect(path.removeprefix("unix:"))
        with context.wrap_socket(plain, server_hostname="controller") as secure:
            # A server of TLS 1.3 looks at our certificate after we have ended: only its first word shows the result.
            if not secure.recv(1):
                raise ConnectionError("closed")
            return str(secure.version())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("listener", ["api", "join"])
async def test_old_tls_is_refused(place: Site, listener: str, tmp_path: Path) -> None:
    path = place.settings.listen[0] if listener == "api" else place.settings.join_listen
    leaf = place.ca.issue("admin")
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(OSError):
            await asyncio.to_thread(handshake, path, old, place.ca, leaf, tmp_path)
    for new, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        assert await asyncio.to_thread(handshake, path, new, place.ca, leaf, tmp_path) == name


async def test_nothing_is_said_without_tls(place: Site) -> None:
    for path in (place.settings.listen[0], place.settings.join_listen):
        async with grpc.aio.insecure_channel(path) as channel:
            stub: Any = system_pb2_grpc.SystemServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# ---- the listener for those who have no certificate


async def test_the_join_listener_serves_join_and_nothing_else(place: Site) -> None:
    """It asks for no certificate, so none can be wrong there; whoever comes without the token gets nothing."""
    async with place.stranger() as channel:
        tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tenants.ListTenants(tenant_pb2.ListTenantsRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        join: Any = host_pb2_grpc.JoinServiceStub(channel)
        for host in ("h1", "nobody", "", "../h1"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await join.Join(host_pb2.JoinRequest(host_id=host, token="guessed"), timeout=TIMEOUT)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "no host of this name waits with this token" in str(caught.value.details())


# ---- servers that are none


@pytest.mark.parametrize("role", ["host/h1", "admin", "tenant/acme/admin"])
async def test_a_clients_certificate_is_no_servers(place: Site, role: str) -> None:
    """A stolen host's or person's certificate can't pose as the controller, by whatever name it is called."""
    leaf = place.ca.issue(role, dns=["controller"])
    server = grpc.aio.server()
    address = f"unix:{place.directory}/false.sock"
    server.add_secure_port(address, grpc.ssl_server_credentials([(leaf.key_pem, leaf.cert_pem)]))
    await server.start()
    own = place.ca.issue("admin")
    credentials = grpc.ssl_channel_credentials(place.ca.cert_pem, own.key_pem, own.cert_pem)
    options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop(None)


# ---- what was good when it came


async def test_a_certificate_that_ends_ends_its_calls_and_streams_too(place: Site) -> None:
    """A connection outlives the handshake in which its certificate was looked at."""
    short = leaf(place.ca, Plan(end=SHORT))
    async with place.channel(short) as channel:
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
        watch = stub.Watch(system_pb2.WatchRequest())
        await watch.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(2 * TIMEOUT):
                while isinstance(await watch.read(), system_pb2.WatchResponse):
                    pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert datetime.now(UTC) >= end_of(short)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_session_ends_with_the_certificate_of_its_host(place: Site) -> None:
    agent, short = FakeAgent("h1", "192.0.2.1"), leaf(place.ca, replace(RIGHT_HOST, end=SHORT))
    async with agent.connected(place, short):
        assert agent.welcome is not None, agent.refused
        async with asyncio.timeout(2 * TIMEOUT):
            await agent.done.wait()
        assert datetime.now(UTC) >= end_of(short)
        assert agent.refused is not None and agent.refused.text == "the certificate has ended"


# ---- rotation


def replace_file(path: Path, content: bytes) -> None:
    """As a tool that renews certificates does it."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    os.replace(new, path)


async def test_leaf_and_ca_rotate_under_load(place: Site) -> None:
    """Old and new side by side, then only the new: no stream is dropped, and no call fails that has a right to pass."""
    old_ca, files = place.ca, place.settings
    old_admin = old_ca.issue("admin")
    new_ca = Ca.create("tealnet.local")
    both = old_ca.cert_pem + new_ca.cert_pem
    agent = FakeAgent("h1", "192.0.2.1")
    calls = 0

    async def admitted(leaf: Leaf, trusted: bytes) -> bool:
        credentials = grpc.ssl_channel_credentials(trusted, leaf.key_pem, leaf.cert_pem)
        options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(files.listen[0], credentials, options) as channel:
            stub: Any = system_pb2_grpc.SystemServiceStub(channel)
            try:
                await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
            except grpc.aio.AioRpcError:
                return False
            return True

    async def load(channel: grpc.aio.Channel) -> None:
        nonlocal calls
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        while True:
            await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
            calls += 1

    async with agent.connected(place), place.channel(old_admin) as channel:
        watch = system_pb2_grpc.SystemServiceStub(channel).Watch(system_pb2.WatchRequest())
        await watch.read()
        busy = asyncio.create_task(load(channel))
        # 1. Everybody trusts both.
        replace_file(files.ca, both)
        assert await admitted(new_ca.issue("admin"), both) and await admitted(old_admin, both)
        # 2. The controller's new leaf, key first: between the two files it goes on with the old pair.
        renewed = new_ca.issue("controller", dns=["controller"])
        replace_file(files.key, renewed.key_pem)
        assert await admitted(old_admin, old_ca.cert_pem)
        replace_file(files.cert, renewed.cert_pem)
        assert await admitted(old_admin, both) and await admitted(new_ca.issue("admin"), new_ca.cert_pem)
        assert not await admitted(old_admin, old_ca.cert_pem)  # it is the new leaf that is shown
        # 3. Garbage on the way changes nothing.
        replace_file(files.cert, b"not a certificate")
        assert await admitted(new_ca.issue("admin"), new_ca.cert_pem)
        replace_file(files.cert, renewed.cert_pem)
        # 4. Nobody trusts the old one any more.
        replace_file(files.ca, new_ca.cert_pem)
        assert not await admitted(old_admin, both) and await admitted(new_ca.issue("admin"), new_ca.cert_pem)
        before = calls
        await until(lambda: calls > before + 10, "calls go on")
        assert not busy.done() and not agent.done.is_set() and agent.welcome is not None
        busy.cancel()
        # The stream that was there all the time still tells what happens.
        async with asyncio.timeout(TIMEOUT):
            tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
            await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="late"))
            while (answer := await watch.read()).object.tenant.name != "tenants/late":
                assert isinstance(answer, system_pb2.WatchResponse)
        watch.cancel()


# ---- revocation


async def test_a_revoked_hosts_session_ends_at_once(place: Site) -> None:
    agent = FakeAgent("h1", "192.0.2.1")
    async with agent.connected(place), place.channel(place.ca.issue("admin")) as channel:
        hosts: Any = host_pb2_grpc.HostServiceStub(channel)
        update = host_pb2.UpdateHostRequest(host=host_pb2.Host(name="hosts/h1"))
        update.host.revoked_before.seconds = int(time.time()) + 60
        await hosts.UpdateHost(update)
        began = time.monotonic()
        async with asyncio.timeout(TIMEOUT):
            await agent.done.wait()
        assert time.monotonic() - began < 5
    again = FakeAgent("h1", "192.0.2.1")
    async with again.connected(place):
        assert again.refused is not None and again.refused.reason == "Revoked"


# ---- single certificates


@pytest.fixture
async def listed() -> AsyncIterator[Site]:
    """A site with a revocation list, on which nothing stands yet."""
    with tempfile.TemporaryDirectory(prefix="tn") as name:
        directory = Path(name)
        ca, settings = prepare(directory, crl=str(directory / crl.NAME))
        crl.revoke(directory, ca, [])
        async with running(settings) as controller:
            yield Site(directory, ca, settings, controller)


def serial(leaf: Leaf) -> int:
    return load_certificate(leaf.cert_pem, "leaf").serial_number


def content(file: Path) -> bytes:
    return file.read_bytes()


async def refused(place: Site, leaf: Leaf) -> bool:
    return await version(place, leaf) is grpc.StatusCode.UNAUTHENTICATED


async def comes_true(so: Callable[[], Awaitable[bool]], seconds: float = TIMEOUT) -> None:
    """An effect that is promised within so many seconds."""
    async with asyncio.timeout(2 * seconds):
        while not await so():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_certificate_on_the_list_ends_and_its_owners_others_go_on(listed: Site) -> None:
    place, lost, kept = listed, listed.ca.issue("admin"), listed.ca.issue("admin")
    host, other = place.ca.issue("host/h1"), place.ca.issue("host/h1")
    agent = FakeAgent("h1", "192.0.2.1")
    async with place.channel(lost) as channel, place.channel(kept) as good:
        hosts: Any = host_pb2_grpc.HostServiceStub(good)
        await hosts.CreateHost(host_pb2.CreateHostRequest(host_id="h1", host=host_pb2.Host(vtep="192.0.2.1")))
        watches = [system_pb2_grpc.SystemServiceStub(c).Watch(system_pb2.WatchRequest()) for c in (channel, good)]
        for watch in watches:
            await watch.read()
        async with agent.connected(place, host):
            assert agent.welcome is not None
            crl.revoke(place.directory, place.ca, [serial(lost), serial(host)])
            began = time.monotonic()
            async with asyncio.timeout(2 * TIMEOUT):  # on the connection that is open already
                await agent.done.wait()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    while isinstance(await watches[0].read(), system_pb2.WatchResponse):
                        pass
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert agent.refused is not None and agent.refused.text == "the certificate is on the revocation list"
            assert time.monotonic() - began < 5
        stub: Any = system_pb2_grpc.SystemServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetVersion(system_pb2.GetVersionRequest(), timeout=TIMEOUT)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert await refused(place, lost) and not await refused(place, kept)
        async with agent.connected(place, host):
            assert agent.refused is not None and agent.refused.reason == "Revoked"
        async with agent.connected(place, other):
            assert agent.welcome is not None
        tenants: Any = tenant_pb2_grpc.TenantServiceStub(good)
        await tenants.CreateTenant(tenant_pb2.CreateTenantRequest(tenant_id="late"))
        async with asyncio.timeout(TIMEOUT):
            while (await watches[1].read()).object.tenant.name != "tenants/late":
                pass


async def test_a_list_that_cannot_be_used_changes_nothing(listed: Site) -> None:
    place, lost, kept = listed, listed.ca.issue("admin"), listed.ca.issue("admin")
    file, seen = Path(place.settings.crl), place.controller.revoked
    crl.revoke(place.directory, place.ca, [serial(lost)])
    await comes_true(lambda: refused(place, lost))
    stranger = Ca.create("tealnet.local")  # of the same name
    (place.directory / "other").mkdir()
    crl.revoke(place.directory / "other", stranger, [serial(kept)])
    foreign, own = content(place.directory / "other" / crl.NAME), content(file)
    for wrong in (b"garbage", b"", foreign, own[:-40]):
        replace_file(file, wrong)
        await until(lambda: seen.stamp == stamp_of(file), "the file was looked at")
        assert await refused(place, lost) and not await refused(place, kept)
    os.unlink(file)
    assert await refused(place, lost) and not await refused(place, kept)
    # Two lists in a file, one of them of an authority that is not trusted (any more): the other one counts.
    crl.revoke(place.directory, place.ca, [serial(kept)])
    replace_file(file, foreign + content(file))
    await comes_true(lambda: refused(place, kept))
    assert not await refused(place, lost)


async def test_no_start_without_the_list_that_is_named() -> None:
    with tempfile.TemporaryDirectory(prefix="tn") as name:
        directory = Path(name)
        _, settings = prepare(directory, crl=str(directory / crl.NAME))
        with pytest.raises(PkiError, match="cannot read the revocation list"):
            async with running(settings):
                pass
