"""Settings of the controller: a YAML file, over it TEALNET_<KEY> in the environment, over that flags.

Every key is a field of `Settings` and has its default here and nowhere else. Lists are comma-separated in the
environment and in flags. An unknown key is an error: a typing mistake must not silently mean a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from tealnet.core.identity import IdentityError, parse_trust_domain

PREFIX = "TEALNET_"
_ETC = Path("/etc/tealnet")
_DATA = Path("/var/lib/tealnet/controller")


class SettingsError(Exception):
    """What is wrong with which key."""


def _key(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings with their defaults."""

    listen: tuple[str, ...] = _key(("0.0.0.0:7443",), "where the API and agents are served: host:port or unix:/path")
    join_listen: str = _key(
        "0.0.0.0:7444", "where hosts with a token get their certificate; needs ca_key; '' = nowhere"
    )
    metrics_listen: str = _key("127.0.0.1:9464", "where Prometheus metrics are served, without TLS; '' = nowhere")
    data_dir: Path = field(default=_DATA, metadata={"help": "data of the embedded etcd; mode 0700"})
    replica: str = _key("", "name of this process among its replicas; default: random")

    etcd: tuple[str, ...] = _key(("embedded",), "'embedded', or the endpoints of a cluster: https://a:2379,…")
    etcd_ca: str = _key("", "PEM file of the CA that signed etcd's certificates")
    etcd_cert: str = _key("", "PEM file of the certificate that etcd knows this controller by")
    etcd_key: str = _key("", "PEM file of its key")
    etcd_fsync: str = _key("on", "off: the embedded etcd does not wait for the disk; for tests only")
    compact: str = _key("on", "off: somebody else compacts the external etcd")
    etcd_quota_mib: int = _key(2048, "space quota of the external etcd (--quota-backend-bytes), to warn in time")

    ca: Path = field(default=_ETC / "ca.crt", metadata={"help": "PEM file of the CA of this site"})
    cert: Path = field(default=_ETC / "controller.crt", metadata={"help": "PEM file of the controller's certificate"})
    key: Path = field(default=_ETC / "controller.key", metadata={"help": "PEM file of its key"})
    ca_key: str = _key(
        "", "ca.key, with ca.crt beside it, if this controller is to sign hosts' certificates (join tokens)"
    )
    crl: str = _key("", "PEM file with the revocation lists of that CA (teal pki revoke); read again when it changes")
    trust_domain: str = _key("tealnet.local", "of the identities in certificates: spiffe://<trust domain>/…")
    cluster: str = _key("default", "name of the cluster in etcd; several can share one etcd")

    vni_first: int = _key(4096, "lowest VNI that is given out")
    vni_last: int = _key(16_777_214, "highest VNI that is given out")
    default_mtu: int = _key(1430, "MTU of networks that do not say; the same in all replicas")
    quarantine: int = _key(300, "seconds that a released address stays unused, where the network does not say")
    quota_networks: int = _key(1000, "networks of a tenant that has no quota of its own")
    quota_routers: int = _key(100, "routers of such a tenant")
    quota_ports: int = _key(10_000, "ports of such a tenant")
    quota_rollouts: int = _key(1000, "rollouts of such a tenant, those that are over included")
    rollout_urls: tuple[str, ...] = _key(
        (), "URLs that external gates of rollouts may ask: each one itself, and what is below it"
    )
    quota_groups: int = _key(500, "security groups of such a tenant, beside the default one")
    audit_file: str = _key(
        "", "where calls that write are noted, as JSON lines; '' = audit.jsonl in data_dir, 'off' = in the log only"
    )
    audit_mib: int = _key(64, "size at which that file becomes ….1, in whose place it is")
    lost_after: int = _key(30, "seconds without a session until a host is LOST")

    log_level: str = _key("info", "debug, info, warning or error")
    log_format: str = _key("json", "json or console")

    @property
    def is_embedded(self) -> bool:
        """Whether this process runs its own etcd."""
        return self.etcd == ("embedded",)


_KEYS = {key.name: key for key in fields(Settings)}
_CHOICES = {
    "etcd_fsync": ("on", "off"),
    "compact": ("on", "off"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("json", "console"),
}
_RANGES = {
    "vni_first": (1, 2**24 - 2),
    "vni_last": (1, 2**24 - 2),
    "default_mtu": (1280, 65_000),
    "quarantine": (0, 10**9),
    "lost_after": (3, 10**9),
    "etcd_quota_mib": (1, 10**9),
    "audit_mib": (1, 10**6),
}


def load(file: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Settings from all sources; `flags` that are None were not given. Raises SettingsError."""
    values: dict[str, Any] = {}
    if file is not None:
        values |= _checked(_read(file), source=str(file))
    names = {PREFIX + name.upper(): name for name in _KEYS}
    values |= _checked({names[k]: v for k, v in environ.items() if k in names}, source="environment")
    values |= _checked({key: value for key, value in flags.items() if value is not None}, source="flags")
    settings = Settings(**values)
    if settings.vni_first > settings.vni_last:
        raise SettingsError(f"vni_first {settings.vni_first} is above vni_last {settings.vni_last}")
    return settings


def help_of(name: str) -> str:
    """What a key is for, with its default."""
    default = _KEYS[name].default
    shown = ",".join(default) if isinstance(default, tuple) else default
    return f"{_KEYS[name].metadata['help']} (default: {shown})" if shown != "" else str(_KEYS[name].metadata["help"])


def names() -> list[str]:
    """All keys."""
    return list(_KEYS)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file}: a mapping of keys to values is expected")
    return content


def _checked(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    unknown = sorted(str(key) for key in values.keys() - _KEYS.keys())
    if unknown:
        raise SettingsError(f"{source}: unknown: {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    out = {}
    for key, value in values.items():
        try:
            out[key] = _parsed(key, value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{source}: {key}: {error}") from error
    return out


def _parsed(key: str, value: Any) -> Any:
    default = _KEYS[key].default
    if isinstance(value, bool) and key in _CHOICES:  # YAML reads `on` as true
        value = "on" if value else "off"
    if isinstance(default, tuple):
        items = value.split(",") if isinstance(value, str) else value
        return tuple(str(item).strip() for item in items if str(item).strip())
    if isinstance(default, int):
        low, high = _RANGES.get(key, (0, 10**9))
        if not low <= int(value) <= high:
            raise ValueError(f"not within {low}…{high}")
        return int(value)
    if value is None or isinstance(value, (list, dict)):
        raise ValueError("a text is expected")
    if isinstance(default, Path):
        return Path(str(value))
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"one of {', '.join(_CHOICES[key])} is expected")
    if key == "trust_domain":
        try:
            return parse_trust_domain(str(value))
        except IdentityError as error:
            raise ValueError(str(error)) from error
    return str(value)
