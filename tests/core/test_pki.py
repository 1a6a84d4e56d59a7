from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from tealnet.core.identity import Identity, IdentityError, Kind, parse_identity, parse_role, parse_trust_domain
from tealnet.core.pki import Ca, Leaf, PkiError, fingerprint, make_csr

DOMAIN = "lab.test"


@pytest.fixture(scope="module")
def ca() -> Ca:
    return Ca.create(DOMAIN)


# ---- identities

ROLES = {
    "admin": Identity(Kind.ADMIN),
    "controller": Identity(Kind.CONTROLLER),
    "host/h-1": Identity(Kind.HOST, "h-1"),
    "tenant/acme/admin": Identity(Kind.TENANT_ADMIN, "acme"),
    "tenant/acme/viewer": Identity(Kind.TENANT_VIEWER, "acme"),
}


@pytest.mark.parametrize(("role", "identity"), ROLES.items())
def test_roles_there_and_back(role: str, identity: Identity) -> None:
    assert parse_role(role) == identity and identity.role == role
    assert parse_identity(identity.uri(DOMAIN), DOMAIN) == identity


@pytest.mark.parametrize(
    "role",
    [
        "",
        "Admin",
        "admin/",
        "/admin",
        "root",
        "host",
        "host/",
        "host/H1",
        "host/a/b",
        "host/-a",
        "host/a-",
        "host/a\n",
        "host/" + "a" * 64,
        "tenant/acme",
        "tenant//admin",
        "tenant/acme/owner",
        "tenant/acme/admin/x",
        "tenant/../admin",
        "tenant/a%2fb/admin",
    ],
)
def test_other_roles_are_refused(role: str) -> None:
    with pytest.raises(IdentityError):
        parse_role(role)
    with pytest.raises(IdentityError):
        parse_identity(f"spiffe://{DOMAIN}/{role}", DOMAIN)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "admin",
        "https://lab.test/admin",
        "SPIFFE://lab.test/admin",
        "spiffe://lab.test",
        "spiffe:///admin",
        "spiffe://evil.test/admin",
        "spiffe://lab.test.evil/admin",
        "spiffe://x@lab.test/admin",
        "spiffe://lab.test:443/admin",
        "spiffe://LAB.test/admin",
        "spiffe://lab.test/admin?x",
        "spiffe://lab.test/admin#x",
        "spiffe://lab.test//admin",
    ],
)
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(IdentityError):
        parse_identity(uri, DOMAIN)


@given(st.text(max_size=80))
def test_whatever_parses_is_written_the_same_way(text: str) -> None:
    try:
        identity = parse_role(text)
    except IdentityError:
        return
    assert identity.role == text


@pytest.mark.parametrize("name", ["", "A.b", "a b", "a/b", ".a", "a:1", "a" * 256])
def test_bad_trust_domains_are_refused(name: str) -> None:
    with pytest.raises(IdentityError):
        parse_trust_domain(name)
    with pytest.raises(IdentityError):
        Ca.create(name)


# ---- certificates


def parsed(leaf: Leaf) -> x509.Certificate:
    return x509.load_pem_x509_certificate(leaf.cert_pem)


def test_a_leaf_says_who_and_for_what(ca: Ca) -> None:
    cert = parsed(ca.issue("host/h1", dns=["h1.lab.test"], ips=["192.0.2.1", ip_address("2001:db8::1")]))
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://lab.test/host/h1"]
    assert names.get_values_for_type(x509.DNSName) == ["h1.lab.test"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("192.0.2.1"), ip_address("2001:db8::1")]
    assert cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert cert.serial_number.bit_length() == 128
    cert.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.cert_pem))


@pytest.mark.parametrize("role", ROLES)
def test_only_a_controller_may_be_a_server(ca: Ca, role: str) -> None:
    cert = parsed(ca.issue(role, dns=["localhost"]))
    purposes = set(cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    client, server = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
    assert purposes == ({client, server} if role == "controller" else {client})


def test_validity(ca: Ca) -> None:
    begin = datetime(2030, 1, 1, tzinfo=UTC)
    cert = parsed(ca.issue("admin", days=10, not_before=begin))
    assert (cert.not_valid_before_utc, cert.not_valid_after_utc) == (begin, begin + timedelta(days=10))
    short = Ca.create(DOMAIN, days=5)
    end = x509.load_pem_x509_certificate(short.cert_pem).not_valid_after_utc
    assert parsed(short.issue("admin")).not_valid_after_utc == end
    for days, start in ((0, None), (-1, None), (1, begin + timedelta(days=36500))):
        with pytest.raises(PkiError, match="validity"):
            ca.issue("admin", days=days, not_before=start)


def test_serials_and_keys_differ(ca: Ca) -> None:
    leaves = [ca.issue("admin") for _ in range(20)]
    assert len({parsed(leaf).serial_number for leaf in leaves}) == len({leaf.key_pem for leaf in leaves}) == 20


@pytest.mark.parametrize(
    ("dns", "ips"), [(["ä.test"], []), ([""], []), (["a b"], []), ([], ["300.1.1.1"]), ([], ["10.0.0.0/8"])]
)
def test_bad_names_are_refused(ca: Ca, dns: list[str], ips: list[str]) -> None:
    with pytest.raises(PkiError):
        ca.issue("controller", dns=dns, ips=ips)


def test_a_controller_needs_a_name(ca: Ca) -> None:
    with pytest.raises(PkiError, match="DNS name"):
        ca.issue("controller")


def test_openssl_agrees(ca: Ca, tmp_path: Path) -> None:
    ca.save(tmp_path)
    leaf = ca.issue("controller", dns=["localhost"])
    cert, _ = leaf.save(tmp_path, "controller")

    def openssl(*args: str) -> str:
        return subprocess.run(["openssl", *args], check=True, capture_output=True, text=True).stdout

    strict = ("-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost")
    assert openssl("verify", *strict, "-CAfile", str(tmp_path / "ca.crt"), str(cert)).strip().endswith("OK")
    shown = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", str(cert))
    assert shown.strip().split("=")[1].replace(":", "").lower() == fingerprint(leaf.cert_pem)


# ---- requests


def test_a_request_gets_the_role_that_the_signer_decides(ca: Ca) -> None:
    request = make_csr("admin", DOMAIN)  # asks for more than it gets
    leaf = Leaf(ca.sign_csr(request.csr_pem, "host/h1"), request.key_pem)
    names = parsed(leaf).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://lab.test/host/h1"]
    key = serialization.load_pem_private_key(request.key_pem, None)
    assert key.public_key() == parsed(leaf).public_key()


def weak_rsa() -> bytes:
    key = rsa.generate_private_key(65537, 1024)
    return _request(key)


def unusual() -> bytes:
    return _request(ed25519.Ed25519PrivateKey.generate())


def tampered() -> bytes:
    pem = make_csr("host/h1", DOMAIN).csr_pem
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[der.index(b"host/h1")] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


def _request(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize("bad", [lambda: b"", lambda: b"junk", weak_rsa, unusual, tampered])
def test_bad_requests_are_refused(ca: Ca, bad: Callable[[], bytes]) -> None:
    with pytest.raises(PkiError):
        ca.sign_csr(bad(), "host/h1")


# ---- files


def test_a_ca_is_saved_and_loaded(ca: Ca, tmp_path: Path) -> None:
    cert, key = ca.save(tmp_path / "new" / "ca")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and cert.read_bytes() == ca.cert_pem
    again = Ca.load(tmp_path / "new" / "ca")
    assert again.trust_domain == DOMAIN
    parsed(again.issue("admin")).verify_directly_issued_by(x509.load_pem_x509_certificate(ca.cert_pem))


def test_nothing_is_overwritten(ca: Ca, tmp_path: Path) -> None:
    _, key = ca.save(tmp_path)
    before = key.read_bytes()
    with pytest.raises(PkiError, match="never overwritten"):
        Ca.create(DOMAIN).save(tmp_path)
    (tmp_path / "x.crt").write_text("mine")
    with pytest.raises(PkiError, match="never overwritten"):
        ca.issue("admin").save(tmp_path, "x")
    assert key.read_bytes() == before and not (tmp_path / "x.key").exists()


def spoil_mode(directory: Path) -> None:
    (directory / "ca.key").chmod(0o644)


def spoil_key(directory: Path) -> None:
    (directory / "ca.key").write_bytes(Ca.create(DOMAIN).issue("admin").key_pem)


def spoil_cert(directory: Path) -> None:
    (directory / "ca.crt").write_text("junk")


def junk_key(directory: Path) -> None:
    (directory / "ca.key").write_text("junk")


def no_key(directory: Path) -> None:
    (directory / "ca.key").unlink()


@pytest.mark.parametrize("spoil", [spoil_mode, spoil_key, spoil_cert, junk_key, no_key])
def test_a_spoiled_ca_is_refused_by_name(ca: Ca, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    ca.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(PkiError, match=r"ca\.(crt|key)"):
        Ca.load(tmp_path)


def test_a_leaf_is_no_ca(ca: Ca, tmp_path: Path) -> None:
    ca.issue("admin").save(tmp_path, "ca")
    with pytest.raises(PkiError, match="not the certificate of an authority"):
        Ca.load(tmp_path)


def test_unwritable_places_are_named(ca: Ca, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PkiError, match="file"):
        ca.save(tmp_path / "file")


# ---- in use


async def test_mutual_tls_over_grpc_shows_the_identity(ca: Ca) -> None:
    async def who(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return b" ".join(context.auth_context()["peer_uri"])

    server = grpc.aio.server()
    handlers = {"Who": grpc.unary_unary_rpc_method_handler(who)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
    own = ca.issue("controller", dns=["localhost"], ips=["127.0.0.1"])
    pair = [(own.key_pem, own.cert_pem)]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair, ca.cert_pem, True))
    await server.start()

    async def ask(trusted: bytes, leaf: Leaf | None) -> bytes:
        key, cert = (leaf.key_pem, leaf.cert_pem) if leaf else (None, None)
        credentials = grpc.ssl_channel_credentials(trusted, key, cert)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            answer = await channel.unary_unary("/test.Test/Who", None, None)(b"", timeout=3)
            assert isinstance(answer, bytes)
            return answer

    try:
        assert await ask(ca.cert_pem, ca.issue("host/h1")) == b"spiffe://lab.test/host/h1"
        stranger = Ca.create(DOMAIN)
        for trusted, leaf in (
            (ca.cert_pem, None),
            (ca.cert_pem, stranger.issue("admin")),
            (stranger.cert_pem, ca.issue("admin")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await ask(trusted, leaf)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        await server.stop(None)


def test_nothing_secret_is_readable_even_with_an_open_umask(ca: Ca, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        _, key = ca.issue("admin").save(tmp_path, "admin")
    finally:
        os.umask(old)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
