"""No controller, wrong certificates, broken files of contexts: what a person reads, and never a traceback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tealnet.client import Client, Context
from tealnet.core.pki import Ca
from tealnet.v1 import tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake, Refusal

Add = Callable[..., None]


@pytest.fixture
def add(teal: Teal, fake: Fake, pki: Path) -> Add:
    """A context of the fake's with something else."""

    def put(**other: object) -> None:
        options = {"server": fake.server, "ca": pki / "ca.crt", "cert": pki / "admin.crt", "key": pki / "admin.key"}
        words = [f"--{word.replace('_', '-')}={value}" for word, value in {**options, **other}.items()]
        assert teal("context", "add", "other", *words).code == 0

    return put


def test_no_context_says_how_to_get_one(teal: Teal) -> None:
    done = teal("status")
    assert done.code == 1 and "teal lab up" in done.err and "teal context add" in done.err
    done = teal("--context", "prod", "status")
    assert done.code == 1 and "no context 'prod'; there are: none" in done.err


def test_the_end_of_the_current_context_chooses_no_other(add: Add, teal: Teal) -> None:
    """The next `delete` must not go to a controller that nobody has chosen."""
    add()
    assert teal("context", "remove", "other").code == 0
    done = teal("get", "tenants")
    assert done.code == 1 and "Choose one with `teal context use NAME` (there are: fake)" in done.err
    assert "*" not in teal("context", "list").out


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"}{", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
        (b"- a\n", "is not a file of contexts"),
        (b"contexts: {a: 5}\n", "is not a file of contexts"),
        (b"contexts: {a: {server: x}}\ncurrent: a\n", "context 'a' lacks ca, cert, key"),
        (b"contexts: {a: {server: [x], ca: 1, cert: 1, key: 1}}\ncurrent: a\n", "lacks server, ca, cert, key"),
        (b"current: gone\n", "no context 'gone'"),
        (b"", "no context:"),
    ],
)
def test_a_broken_file_of_contexts(teal: Teal, config: Path, content: bytes, text: str) -> None:
    config.write_bytes(content)
    done = teal("status")
    assert (done.code, text in done.err) == (1, True), done
    if b"server: x" not in content:
        assert teal("get", "ports").code == 1


def test_a_file_of_contexts_that_cannot_be_read(teal: Teal, config: Path) -> None:
    config.mkdir()
    assert "Is a directory" in teal("status").err
    done = teal("context", "use", "x")
    assert done.code == 1


def test_nobody_there(add: Add, teal: Teal, tmp_path: Path) -> None:
    add(server=f"unix:{tmp_path}/none")
    done = teal("get", "ports")
    assert done.code == 1 and f"there is no controller at unix:{tmp_path}/none" in done.err
    add(server="127.0.0.1:1", lab="blue")
    done = teal("get", "ports")
    assert "nobody listens at 127.0.0.1:1" in done.err and "`teal lab status --name blue`" in done.err
    add(server="nowhere.invalid:7443")
    assert "nowhere.invalid:7443 can't be reached" in teal("get", "ports").err
    for server in ("here", "a:b,c:d"):
        add(server=server)
        assert "HOST:PORT" in teal("get", "ports").err


def test_of_several_replicas_one_is_enough(fake: Fake, pki: Path) -> None:
    files = {name: str(pki / file) for name, file in (("ca", "ca.crt"), ("cert", "admin.crt"), ("key", "admin.key"))}
    with Client(Context(server=f"127.0.0.1:1, localhost:{fake.tcp_port}", **files)) as client:
        assert client.status().cluster == "default"


def test_a_ca_that_did_not_sign_the_controller(add: Add, teal: Teal, tmp_path: Path) -> None:
    Ca.create("lab.test").save(tmp_path / "other")
    add(ca=tmp_path / "other" / "ca.crt")
    done = teal("get", "ports")
    assert done.code == 1 and "is not signed by" in done.err and "other/ca.crt" in done.err


def test_a_certificate_that_the_controller_does_not_take(add: Add, teal: Teal, tmp_path: Path) -> None:
    other = Ca.create("lab.test")
    other.issue("admin").save(tmp_path, "admin")
    add(cert=tmp_path / "admin.crt", key=tmp_path / "admin.key")
    done = teal("get", "ports")
    assert done.code == 1 and f"does not take the certificate {tmp_path / 'admin.crt'}" in done.err


def expired(pki: Path, directory: Path) -> tuple[Path, Path]:
    """An admin's certificate that ended an hour ago; `teal pki` makes none that begins before its CA."""
    ca = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
    key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    good = x509.load_pem_x509_certificate((pki / "admin.crt").read_bytes())
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer_name=ca.subject, subject_name=good.subject, public_key=good.public_key(), serial_number=1,
        not_valid_before=now - timedelta(days=2), not_valid_after=now - timedelta(hours=1),
        extensions=list(good.extensions),
    )  # fmt: skip
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    cert = directory / "old.crt"
    cert.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return cert, pki / "admin.key"


def test_an_expired_certificate(add: Add, teal: Teal, tmp_path: Path, pki: Path) -> None:
    cert, key = expired(pki, tmp_path)
    add(cert=cert, key=key)
    done = teal("get", "ports")
    assert done.code == 1 and "expired on" in done.err and "teal pki issue" in done.err, done
    assert "other" in teal("context", "list").out


def test_files_that_do_not_belong_together(add: Add, teal: Teal, tmp_path: Path, pki: Path) -> None:
    add(key=pki / "controller.key")
    done = teal("get", "ports")
    assert done.code == 1 and "belong together" in done.err
    (tmp_path / "junk").write_text("junk")
    add(ca=tmp_path / "junk", cert=tmp_path / "junk", key=tmp_path / "junk")
    assert teal("get", "ports").code == 1
    assert "is no certificate" in teal("context", "list").out
    (tmp_path / "junk").unlink()
    done = teal("get", "ports")
    assert done.code == 1 and f"cannot read {tmp_path / 'junk'}" in done.err


def test_another_name(add: Add, teal: Teal) -> None:
    add(server_name="api.example.org")
    done = teal("get", "ports")
    assert done.code == 1 and "is not for 'api.example.org'" in done.err and "--server-name" in done.err


def test_something_that_is_no_controller(add: Add, teal: Teal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            for _ in range(20):
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(1000)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        add(server=f"127.0.0.1:{listening.getsockname()[1]}")
        done = teal("get", "ports")
        assert done.code == 1 and "it is no controller" in done.err


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", "context 'fake' uses"),
        (grpc.StatusCode.UNAUTHENTICATED, "REVOKED", "teal pki show"),
        (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "teal status"),
        (grpc.StatusCode.INTERNAL, "", "a bug of the controller"),
        (grpc.StatusCode.UNIMPLEMENTED, "", "teal version"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", "--request-timeout"),
    ],
)
def test_refusals_come_with_advice(fake: Fake, teal: Teal, code: grpc.StatusCode, reason: str, text: str) -> None:
    fake.refuse["tenants/x"] = Refusal(code, "no", reason=reason)
    done = teal("create", "tenant", "x")
    assert (done.code, text in done.err) == (1, True), done


# ---- as processes


def teal_process(*words: str, **more: object) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "tealnet.cli.main", *words]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, **more)  # type: ignore[call-overload,no-any-return]


def test_a_reader_that_goes_away(fake: Fake, teal: Teal) -> None:
    fake.add(*(tenant_pb2.Tenant(name=f"tenants/t{n}", description="x" * 100) for n in range(3000)))
    read, write = os.pipe()
    process = teal_process("get", "tenants", "-o", "wide", stdout=write)
    os.close(write)
    os.read(read, 10)
    os.close(read)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "")


@pytest.mark.parametrize("where", ["> /dev/full", ">&-", ">&- 2>&-", "| true"])
def test_an_output_that_takes_nothing(where: str) -> None:
    words = f"{sys.executable} -m tealnet.cli.main --help {where}"
    done = subprocess.run(
        ["bash", "-c", words], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=30
    )
    assert "Traceback" not in done.stderr and "bug of teal" not in done.stderr and "Exception" not in done.stderr
    if "full" in where:
        assert done.returncode == 1 and "error: the output could not be written: No space left" in done.stderr


def test_ctrl_c(fake: Fake, teal: Teal) -> None:
    over = threading.Event()

    def endless(request: object) -> object:
        yield from fake._watch(request)  # type: ignore[arg-type]
        over.wait(30)

    fake.watch = endless  # type: ignore[assignment]
    fake.add(tenant_pb2.Tenant(name="tenants/acme"))
    process = teal_process("watch", stdout=subprocess.PIPE)
    assert process.stdout
    try:
        assert "tenant acme" in process.stdout.readline()
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
        assert time.monotonic() - started < 5
    finally:
        over.set()
        process.kill()
        process.wait()
