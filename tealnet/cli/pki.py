"""`teal pki`: the site's own certificate authority."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tealnet.cli.group import Suggesting
from tealnet.cli.session import Failure

if TYPE_CHECKING:
    from cryptography import x509

# cryptography is imported by the commands that need it, so that the others start fast.


@contextmanager
def _plain_errors() -> Iterator[None]:
    """What is wrong, in one line, instead of a traceback."""
    from tealnet.core.identity import IdentityError
    from tealnet.core.pki import PkiError

    try:
        yield
    except (IdentityError, PkiError) as error:
        raise Failure(str(error)) from None


@click.group(cls=Suggesting)
def pki() -> None:
    """Make a certificate authority and issue certificates.

    \b
      teal pki init ca --trust-domain net.example.org
      teal pki issue ca controller --dns c1.example.org --ip 192.0.2.10
      teal pki issue ca admin
      teal pki issue ca tenant/acme/admin --out acme
      teal pki revoke ca acme/tenant-acme-admin.crt
    """


@pki.command()
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--trust-domain", required=True, help="Names the site in every identity, for example net.example.org.")
@click.option("--days", type=click.IntRange(1, 36500), default=3650, show_default=True, help="How long it is valid.")
def init(directory: Path, trust_domain: str, days: int) -> None:
    """Make a certificate authority in DIR.

    \b
      teal pki init ca --trust-domain net.example.org

    ca.crt is for everybody, ca.key for nobody else.
    """
    with _plain_errors():
        from tealnet.core.pki import Ca, fingerprint

        ca = Ca.create(trust_domain, days=days)
        cert, key = ca.save(directory)
        click.echo(f"{cert}\n{key} (keep it secret)\nsha256 {fingerprint(ca.cert_pem)}")


@pki.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("role")
@click.option("--dns", multiple=True, metavar="NAME", help="DNS name that clients call it by. May be repeated.")
@click.option("--ip", "ips", multiple=True, metavar="ADDRESS", help="Address, likewise.")
@click.option("--days", type=click.IntRange(1, 36500), default=365, show_default=True, help="How long it is valid.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default="the current directory",
    help="Where the certificate and key are written.",
)
def issue(directory: Path, role: str, dns: tuple[str, ...], ips: tuple[str, ...], days: int, out: Path) -> None:
    """Issue a certificate and key for ROLE.

    \b
      teal pki issue ca controller --dns c1.example.org --ip 192.0.2.10
      teal pki issue ca tenant/acme/viewer --days 30 --out acme

    They are signed by the authority in DIR. ROLE is admin, controller, host/NAME, tenant/NAME/admin or
    tenant/NAME/viewer. The files are named after it: tenant-acme-admin.crt and tenant-acme-admin.key.
    """
    with _plain_errors():
        from tealnet.core.pki import Ca

        leaf = Ca.load(directory).issue(role, dns=dns, ips=ips, days=days)
        cert, key = leaf.save(out, role.replace("/", "-"))
        click.echo(f"{cert}\n{key} (keep it secret)")


@pki.command()
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("certs", metavar="CERT...", nargs=-1, required=True)
def revoke(directory: Path, certs: tuple[str, ...]) -> None:
    """Revoke single certificates: files, or serial numbers in hex.

    \b
      teal pki revoke ca laptop.crt
      teal pki revoke ca 8f3a52c1e07b4d96a1b2c3d4e5f60718

    Adds them to ca.crl in DIR. Copy it to where the `crl` setting of every controller says: within five seconds they
    count no more, and the streams that were opened with them end.
    """
    with _plain_errors():
        from tealnet.core import crl
        from tealnet.core.pki import Ca

        file, count = crl.revoke(directory, Ca.load(directory), [_serial(one) for one in certs])
        click.echo(f"{file}: {count} revoked")


def _serial(text: str) -> int:
    from tealnet.core.pki import PkiError, load_certificate

    file = Path(text)
    if file.is_file():
        return load_certificate(file.read_bytes(), text).serial_number
    try:
        return int(text.replace(":", ""), 16)
    except ValueError:
        raise PkiError(f"{text} is neither a file nor a serial number in hex") from None


@pki.command()
@click.argument("cert", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def show(cert: Path) -> None:
    """Show whose a certificate is, or what is in a revocation list.

    \b
      teal pki show admin.crt
      teal pki show ca/ca.crl
    """
    with _plain_errors():
        from tealnet.core.pki import PkiError, load_certificate

        try:
            pem = cert.read_bytes()
        except OSError as error:
            raise PkiError(f"cannot read {cert}: {error.strerror}") from error
        if b"BEGIN X509 CRL" in pem:
            from tealnet.core import crl

            rows = [row for one in crl.read(pem, str(cert)) for row in crl.as_text(one)]
        else:
            rows = _describe(load_certificate(pem, str(cert)), pem)
        for field, value in rows:
            click.echo(f"{field:<10} {value}")


def _describe(certificate: x509.Certificate, pem: bytes) -> list[tuple[str, str]]:
    from cryptography import x509

    from tealnet.core.pki import fingerprint, uri_names

    rows = [("identity", uri) for uri in uri_names(certificate)]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        rows += [("dns", name) for name in names.get_values_for_type(x509.DNSName)]
        rows += [("ip", str(ip)) for ip in names.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        rows.append(("identity", "none: this certificate has no names"))
    return [
        *rows,
        ("issuer", certificate.issuer.rfc4514_string()),
        ("valid", f"{certificate.not_valid_before_utc:%F %T} to {certificate.not_valid_after_utc:%F %T} UTC"),
        ("serial", f"{certificate.serial_number:x}"),
        ("sha256", fingerprint(pem)),
    ]
