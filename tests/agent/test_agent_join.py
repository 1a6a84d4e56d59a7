"""Joining: a key made here, a token told only to a controller with the pinned CA."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.__main__ import run
from agent.join import Files, JoinError, Ticket, join
from tealnet.core.pki import Ca, fingerprint
from tealnet.v1 import host_pb2, host_pb2_grpc


@dataclass
class JoinListener(host_pb2_grpc.JoinServiceServicer):
    """Signs for whoever has the token."""

    ca: Ca
    answer_with: Ca
    requests: list[host_pb2.JoinRequest] = field(default_factory=list)
    foreign_key: bool = False

    async def Join(self, request: host_pb2.JoinRequest, context: Any) -> host_pb2.JoinResponse:
        self.requests.append(request)
        if request.token != "right":
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the token is not valid for this host")
        if self.foreign_key:
            leaf = self.ca.issue("host/h1").cert_pem
        else:
            leaf = self.ca.sign_csr(request.csr_pem, f"host/{request.host_id}")
        return host_pb2.JoinResponse(certificate_pem=leaf, ca_pem=self.answer_with.cert_pem)


@dataclass
class Site:
    listener: JoinListener
    ticket: Ticket
    files: Files


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    ca = Ca.create("tealnet.example")
    leaf = ca.issue("controller", dns=("localhost",), ips=("127.0.0.1",))
    listener = JoinListener(ca, ca)
    credentials = grpc.ssl_server_credentials([(leaf.key_pem, leaf.cert_pem + b"\n" + ca.cert_pem)])
    server = grpc.aio.server()
    host_pb2_grpc.add_JoinServiceServicer_to_server(listener, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    ticket = Ticket(f"127.0.0.1:{port}", "h1", "right", fingerprint(ca.cert_pem))
    etc = tmp_path / "etc"
    yield Site(listener, ticket, Files(etc / "ca.crt", etc / "host.crt", etc / "host.key"))
    await server.stop(0)


async def test_a_host_gets_a_certificate_for_its_own_key(site: Site) -> None:
    await join(site.ticket, site.files)
    certificate = x509.load_pem_x509_certificate(site.files.cert.read_bytes())
    key = serialization.load_pem_private_key(site.files.key.read_bytes(), None)
    assert certificate.public_key() == key.public_key()
    assert site.files.key.stat().st_mode & 0o777 == 0o600
    assert site.files.ca.read_bytes() == site.listener.ca.cert_pem
    assert b"PRIVATE" not in site.listener.requests[0].csr_pem
    assert [file.name for file in sorted(site.files.ca.parent.iterdir())] == ["ca.crt", "host.crt", "host.key"]


async def test_a_wrong_pin_tells_the_server_nothing(site: Site) -> None:
    with pytest.raises(JoinError, match="wrong hash"):
        await join(replace(site.ticket, ca_sha256="00" * 32), site.files)
    assert site.listener.requests == []
    assert not site.files.ca.parent.exists()


async def test_a_server_that_only_shows_the_pinned_ca_is_told_nothing(site: Site, tmp_path: Path) -> None:
    other = Ca.create("tealnet.example")
    leaf = other.issue("controller", ips=("127.0.0.1",))
    shown = leaf.cert_pem + b"\n" + site.listener.ca.cert_pem  # not who has signed it
    listener = JoinListener(other, other)
    server = grpc.aio.server()
    host_pb2_grpc.add_JoinServiceServicer_to_server(listener, server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(leaf.key_pem, shown)]))
    await server.start()
    try:
        with pytest.raises(JoinError):
            await join(replace(site.ticket, server=f"127.0.0.1:{port}"), site.files)
    finally:
        await server.stop(0)
    assert listener.requests == []


async def test_refusals_are_shown_and_leave_nothing(site: Site) -> None:
    with pytest.raises(JoinError, match="not valid for this host"):
        await join(replace(site.ticket, token="wrong"), site.files)
    site.listener.answer_with = Ca.create("tealnet.example")
    with pytest.raises(JoinError, match="another CA"):
        await join(site.ticket, site.files)
    site.listener.answer_with, site.listener.foreign_key = site.listener.ca, True
    with pytest.raises(JoinError, match="another key"):
        await join(site.ticket, site.files)
    assert not site.files.ca.parent.exists()


async def test_nobody_there(site: Site) -> None:
    with pytest.raises(JoinError, match="no connection"):
        await join(replace(site.ticket, server="127.0.0.1:1"), site.files)
    with pytest.raises(JoinError, match="no connection"):
        await join(replace(site.ticket, server="no-port"), site.files)


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--server", "127.0.0.1:1", "--host", "h1", "--token", "t", "--ca-sha256", "00"]
    assert run(["join", *words]) == 1
    assert "no connection" in capsys.readouterr().err
    assert run(["run", "--datapath", "nonsense"]) == 2
    assert "datapath" in capsys.readouterr().err
