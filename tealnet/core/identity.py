"""Who a certificate speaks for: the roles, and the URI they have in it.

A role is written `admin`, `tenant/<name>/admin`, `tenant/<name>/viewer`, `host/<name>` or `controller`, and stands in a
certificate as the one URI SAN `spiffe://<trust domain>/<role>` (the form of the SPIFFE ID specification, section 2).
Nothing else in a certificate is ever read as an identity. Pure text, no cryptography.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?")
_SCHEME = "spiffe://"

ROLES = "admin, controller, host/NAME, tenant/NAME/admin or tenant/NAME/viewer"


class IdentityError(ValueError):
    """A role, URI or trust domain that is not one; the text says why."""


class Kind(Enum):
    """What kind of party a certificate is for."""

    ADMIN = "admin"
    TENANT_ADMIN = "tenant admin"
    TENANT_VIEWER = "tenant viewer"
    HOST = "host"
    CONTROLLER = "controller"


@dataclass(frozen=True, slots=True)
class Identity:
    """One party; `name` is the tenant's or the host's, otherwise empty."""

    kind: Kind
    name: str = ""

    @property
    def role(self) -> str:
        """The role as it is written in commands and in the URI."""
        form = {
            Kind.ADMIN: "admin",
            Kind.TENANT_ADMIN: f"tenant/{self.name}/admin",
            Kind.TENANT_VIEWER: f"tenant/{self.name}/viewer",
            Kind.HOST: f"host/{self.name}",
            Kind.CONTROLLER: "controller",
        }
        return form[self.kind]

    def uri(self, trust_domain: str) -> str:
        """The URI SAN of this party's certificates."""
        return f"{_SCHEME}{trust_domain}/{self.role}"


def parse_trust_domain(text: str) -> str:
    """The trust domain, if it is one: lower case, no port, at most 255 characters."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise IdentityError(
            f"trust domain {text!r}: use lower-case letters, digits, dots, hyphens and underscores, at most 255"
        )
    return text


def parse_role(text: str) -> Identity:
    """The party that a role names; raises IdentityError."""
    match text.split("/"):
        case ["admin"]:
            return Identity(Kind.ADMIN)
        case ["controller"]:
            return Identity(Kind.CONTROLLER)
        case ["host", name]:
            return Identity(Kind.HOST, _name(name, text))
        case ["tenant", name, "admin"]:
            return Identity(Kind.TENANT_ADMIN, _name(name, text))
        case ["tenant", name, "viewer"]:
            return Identity(Kind.TENANT_VIEWER, _name(name, text))
        case _:
            raise IdentityError(f"role {text!r}: use {ROLES}")


def parse_identity(uri: str, trust_domain: str) -> Identity:
    """The party that a certificate's URI SAN names, if it is of our trust domain; raises IdentityError.

    Compared exactly: we wrote these URIs ourselves, so one that needs normalising is not ours.
    """
    if not uri.startswith(_SCHEME):
        raise IdentityError(f"{uri!r} is not a {_SCHEME}… identity")
    domain, _, role = uri.removeprefix(_SCHEME).partition("/")
    if domain != trust_domain:
        raise IdentityError(f"{uri!r} is of trust domain {domain!r}, not {trust_domain!r}")
    return parse_role(role)


def _name(name: str, role: str) -> str:
    if not _NAME.fullmatch(name):
        raise IdentityError(
            f"role {role!r}: {name!r} is not a name (a letter, then letters, digits or hyphens, at most 63, lower case)"
        )
    return name
