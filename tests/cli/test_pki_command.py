from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tealnet.cli.pki import pki


def teal_pki(*args: str | Path) -> Result:
    result = CliRunner().invoke(pki, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_from_nothing_to_a_certificate(tmp_path: Path) -> None:
    ca, out = tmp_path / "ca", tmp_path / "out"
    made = teal_pki("init", ca, "--trust-domain", "lab.test")
    assert made.exit_code == 0 and "sha256" in made.output
    issued = teal_pki(
        "issue", ca, "controller", "--dns", "c.lab.test", "--ip", "192.0.2.1", "--ip", "::1", "--out", out
    )
    assert issued.exit_code == 0 and str(out / "controller.key") in issued.output
    shown = teal_pki("show", out / "controller.crt")
    assert shown.exit_code == 0
    for text in ("spiffe://lab.test/controller", "c.lab.test", "192.0.2.1", "::1", "CN=Tealnet CA lab.test", "sha256"):
        assert text in shown.output
    assert teal_pki("issue", ca, "tenant/acme/viewer", "--out", out).exit_code == 0
    assert (out / "tenant-acme-viewer.crt").exists()


def test_mistakes_are_one_clear_line(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    assert teal_pki("init", ca, "--trust-domain", "lab.test").exit_code == 0
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk").write_text("junk")
    mistakes: list[tuple[tuple[str | Path, ...], int, str]] = [
        (("init", ca, "--trust-domain", "lab.test"), 1, "never overwritten"),
        (("init", tmp_path / "x", "--trust-domain", "Not A Domain"), 1, "trust domain"),
        (("init", tmp_path / "x"), 2, "--trust-domain"),
        (("issue", ca, "emperor"), 1, "tenant/NAME/admin"),
        (("issue", ca, "host/Bad"), 1, "not a name"),
        (("issue", ca, "controller"), 1, "DNS name"),
        (("issue", ca, "controller", "--ip", "nope"), 1, "nope"),
        (("issue", ca, "admin", "--days", "0"), 2, "--days"),
        (("issue", tmp_path / "none", "admin"), 2, "does not exist"),
        (("issue", tmp_path / "empty", "admin"), 1, "ca.crt"),
        (("show", tmp_path / "junk"), 1, "no PEM certificate"),
        (("show", tmp_path / "none"), 2, "does not exist"),
    ]
    for args, code, text in mistakes:
        result = teal_pki(*args)
        assert (result.exit_code, text in result.output) == (code, True), (args, result.output)
        assert "Traceback" not in result.output


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    assert teal_pki("init", tmp_path, "--trust-domain", "lab.test").exit_code == 0
    assert teal_pki("issue", tmp_path, "admin", "--out", tmp_path).exit_code == 0
    before = (tmp_path / "admin.key").read_bytes()
    assert "never overwritten" in teal_pki("issue", tmp_path, "admin", "--out", tmp_path).output
    assert (tmp_path / "admin.key").read_bytes() == before


@pytest.mark.parametrize("command", [[], ["init"], ["issue"], ["show"]])
def test_help(command: list[str]) -> None:
    assert teal_pki(*command, "--help").exit_code == 0


def test_single_certificates_are_revoked(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    assert teal_pki("init", ca, "--trust-domain", "lab.test").exit_code == 0
    assert teal_pki("issue", ca, "admin", "--out", tmp_path).exit_code == 0
    done = teal_pki("revoke", ca, tmp_path / "admin.crt", "ab:cd:ef")
    assert done.exit_code == 0 and done.output.strip() == f"{ca / 'ca.crl'}: 2 revoked"
    assert teal_pki("revoke", ca, "abcdef", "7").output.strip().endswith("3 revoked")
    shown = teal_pki("show", ca / "ca.crl").output
    described = teal_pki("show", tmp_path / "admin.crt").output.splitlines()
    serial = next(line.split()[1] for line in described if line.startswith("serial"))
    assert all(f"revoked    {number} " in shown for number in (serial, "abcdef", "7")), shown
    known = subprocess.run(
        ["openssl", "crl", "-in", ca / "ca.crl", "-CAfile", ca / "ca.crt", "-noout", "-crlnumber"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "verify OK" in known.stderr and "0x02" in known.stdout.lower(), known
    for wrong, text in (("nobody.crt", "neither a file nor a serial number"), (ca / "ca.key", "no PEM certificate")):
        result = teal_pki("revoke", ca, wrong)
        assert result.exit_code == 1 and text in result.output
    (ca / "ca.crl").write_text("junk")
    result = teal_pki("revoke", ca, "9")
    assert result.exit_code == 1 and "no PEM revocation list" in result.output
