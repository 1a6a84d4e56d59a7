"""A client of several replicas: one is gone, one is silent, one refuses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from tealnet import kinds
from tealnet.client import ApiError, Client, Context
from tealnet.v1 import tenant_pb2
from tests.cli.fake_server import Fake, Refusal


@pytest.fixture
def pair(tmp_path: Path, pki: Path) -> Iterator[tuple[Fake, Fake]]:
    with Fake(tmp_path / "a", pki) as one, Fake(tmp_path / "b", pki) as two:
        yield one, two


def client(pki: Path, *servers: str) -> Client:
    files = {"ca": pki / "ca.crt", "cert": pki / "admin.crt", "key": pki / "admin.key"}
    return Client(Context(server=",".join(servers), **{name: str(path) for name, path in files.items()}))


def create(teal: Client, ident: str) -> None:
    teal.create(kinds.TENANT, ident=ident, body=tenant_pb2.Tenant())


def test_the_next_one_takes_over_from_one_that_nobody_serves(
    pki: Path, tmp_path: Path, pair: tuple[Fake, Fake]
) -> None:
    with client(pki, f"unix:{tmp_path / 'nobody'}", pair[0].server) as teal:
        create(teal, "acme")
        create(teal, "globex")
    assert sorted(pair[0].objects) == ["tenants/acme", "tenants/globex"]


def test_the_next_one_takes_over_from_one_that_accepts_and_is_silent(
    pki: Path, tmp_path: Path, pair: tuple[Fake, Fake]
) -> None:
    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX) as silent, ExitStack() as stack:
        silent.bind(path)
        silent.listen()
        teal = stack.enter_context(client(pki, f"unix:{path}", pair[0].server))
        create(teal, "acme")
    assert list(pair[0].objects) == ["tenants/acme"]


def test_a_write_that_is_sent_again_has_the_same_request_id(pki: Path, pair: tuple[Fake, Fake]) -> None:
    one, two = pair
    one.refuse["tenants/acme"] = Refusal(grpc.StatusCode.UNAVAILABLE, "cut")
    with client(pki, one.server, two.server) as teal:
        create(teal, "acme")
        create(teal, "globex")
    (first, sent), (_, again) = one.calls[0], two.calls[0]
    assert first == "CreateTenant" and sent.request_id and sent.request_id == again.request_id
    assert list(one.objects) == [] and sorted(two.objects) == ["tenants/acme", "tenants/globex"]


def test_what_a_replica_says_itself_is_the_answer(pki: Path, pair: tuple[Fake, Fake]) -> None:
    one, two = pair
    one.refuse["tenants/acme"] = Refusal(grpc.StatusCode.UNAVAILABLE, "no quorum", reason="STORE_UNAVAILABLE")
    with client(pki, one.server, two.server) as teal, pytest.raises(ApiError, match="no quorum"):
        create(teal, "acme")
    assert two.calls == []
