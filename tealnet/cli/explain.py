"""Failures of the API and of the connection as a person wants them: what, which field, what to do."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tealnet.cli.session import Failure, Session, lab_command

_SECONDS = 2.0  # for one look at a server
_EXPIRED, _NOT_YET, _HOSTNAME = 10, 9, 62  # X509_V_ERR_* of OpenSSL, x509_vfy.h


def explain(error: Any, session: Session) -> str:
    """An ApiError in words, ready to be printed after `error: `."""
    import grpc

    code, local = error.code, not error.reason  # without a reason it does not come from the controller's own code
    if is_unreachable(error):
        return unreachable(session.settings(), grpc_says=error.message)
    if local and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {session.timeout:g} s.\n  Look with `teal status`; --request-timeout allows longer"
    if local and code is grpc.StatusCode.UNIMPLEMENTED:
        return f"the controller does not know this call ({error.message}).\n  Compare the versions: `teal version`"
    lines = [error.message]
    lines += [f"  {path}: {text}" if path else f"  {text}" for path, text in error.violations if text not in lines[0]]
    lines += [f"  {text}" for text in error.blockers if not _is_said(text, lines[0])]
    if code is grpc.StatusCode.OUT_OF_RANGE and error.reason == "RESUME_EXPIRED":
        lines.append("  Leave out --resume")
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        found = session.settings()
        lines.append(f"  context {found['name']!r} uses {found['cert']}; `teal pki show` says who that is")
    if code is grpc.StatusCode.UNAVAILABLE:
        lines.append("  Look with `teal status`, then run the command again: nothing is done twice")
    if code is grpc.StatusCode.INTERNAL:
        lines.append("  That is a bug of the controller; its log says more")
    return "\n".join(lines)


def is_unreachable(error: Any) -> bool:
    """Whether an ApiError says that there was no connection."""
    import grpc

    return error.code is grpc.StatusCode.UNAVAILABLE and not error.reason


def _is_said(text: str, message: str) -> bool:
    """Whether a message names what another text names."""
    names = [word for word in text.split() if word.startswith(("tenants/", "hosts/"))]
    return all(name in message for name in names) if names else text in message


def failure_of(error: BaseException, session: Session) -> Failure | None:
    """What a person should read; None for what nobody foresaw."""
    from tealnet.lab.errors import LabError

    if isinstance(error, LabError):
        return Failure(str(error))
    if type(error).__module__ == "tealnet.client":
        from tealnet.client import ApiError

        if isinstance(error, ApiError):
            return Failure(explain(error, session))
    return None


def unreachable(context: dict[str, Any], *, grpc_says: str) -> str:
    """Why the controller of a context can't be reached, found out by trying what gRPC tried, step by step."""
    with suppress(OSError, ValueError):
        if problem := _own_certificate(Path(context["cert"])):
            return problem
    servers = str(context["server"]).split(",")
    problems = [_look(server.strip(), context) for server in servers]
    if all(problems):
        return "\n  ".join(dict.fromkeys(problems))
    return f"the connection to {context['server']} failed ({grpc_says}); it answers now: try again"


def _own_certificate(path: Path) -> str:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        return (
            f"your certificate {path} expired on {certificate.not_valid_after_utc:%F %R} UTC.\n"
            "  Issue a new one with `teal pki issue`, where the CA's key is"
        )
    if certificate.not_valid_before_utc > now:
        return (
            f"your certificate {path} is valid from {certificate.not_valid_before_utc:%F %R} UTC on, and the clock of "
            f"this machine says {now:%F %R}.\n  Set the clock"
        )
    return ""


def _look(server: str, context: dict[str, Any]) -> str:
    """What is wrong with one server; "" if it answers."""
    try:
        plain = _connect(server)
    except FileNotFoundError:
        return f"there is no controller at {server}: {_hint(context)}"
    except PermissionError:
        return f"{server} may not be opened by this user.\n  Use sudo, or the controller's TCP address"
    except ConnectionRefusedError:
        return f"nobody listens at {server}: {_hint(context)}"
    except TimeoutError:
        return (
            f"no answer from {server} within {_SECONDS:g} s.\n  Is the address right, and does a firewall let you in?"
        )
    except (OSError, ValueError, OverflowError) as error:
        return f"{server} can't be reached: {getattr(error, 'strerror', None) or error}"
    with plain:
        try:
            return _handshake(plain, server, context)
        except ssl.SSLCertVerificationError as error:
            return _distrust(server, context, error)
        except ssl.SSLError as error:
            return (
                f"{server} refuses the connection ({error.reason or error}): it does not take the certificate "
                f"{context['cert']}, or it is no controller.\n  Is that certificate signed by the controller's CA? "
                "`teal pki show` tells who signed it"
            )
        except OSError as error:
            return f"{server} ends the connection ({error.strerror or error})"


def _connect(server: str) -> socket.socket:
    if server.startswith("unix:"):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(_SECONDS)
        try:
            plain.connect(server.removeprefix("unix:"))
        except OSError:
            plain.close()
            raise
        return plain
    host, _, port = server.removeprefix("dns:").removeprefix("///").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("it is no address; write HOST:PORT or unix:PATH")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS)


def _handshake(plain: socket.socket, server: str, context: dict[str, Any]) -> str:
    try:
        tls = ssl.create_default_context(cafile=context["ca"])
        tls.load_cert_chain(context["cert"], context["key"])
    except ssl.SSLError as error:
        return (
            f"the certificates of context {context['name']!r} can't be used ({error.reason or error}).\n"
            f"  Do {context['cert']} and {context['key']} belong together, and is {context['ca']} a CA's certificate?"
        )
    tls.set_alpn_protocols(["h2"])
    with tls.wrap_socket(plain, server_hostname=context.get("server_name") or "controller") as secure:
        # With TLS 1.3 the server's word on our certificate comes with its first bytes (RFC 8446, 4.4.2.4).
        if not secure.recv(1):
            return f"{server} ends the connection: it does not take the certificate {context['cert']}"
    return ""


def _distrust(server: str, context: dict[str, Any], error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _HOSTNAME:
        return (
            f"the certificate of {server} is not for {context.get('server_name') or 'controller'!r}.\n"
            "  Say the name it is for: `teal context add … --server-name NAME`"
        )
    if error.verify_code in (_EXPIRED, _NOT_YET):
        return (
            f"the certificate of {server} is not valid now ({error.verify_message}).\n  The controller needs a new one"
        )
    return (
        f"the certificate of {server} is not signed by {context['ca']} ({error.verify_message}).\n"
        "  Is that the CA of this controller? Do not trust it before you know"
    )


def _hint(context: dict[str, Any]) -> str:
    if command := lab_command(context, "status"):
        return f"it does not run.\n  `{command}` shows what does, `{lab_command(context, 'logs controller')}` why"
    return "it does not run.\n  On its machine: `systemctl status tealnet-controller`"
