"""What every command shares: the context (which controller, who am I), the client, and errors as a person wants them.

Contexts stand in a YAML file, by default ~/.config/tealnet/config.yaml (TEALNET_CONFIG):

    current: lab
    contexts:
      lab: {server: unix:/…/api.sock, ca: …, cert: …, key: …, tenant: acme, lab: demo}
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from tealnet.kinds import Kind


class Failure(click.ClickException):
    """A clear end: what, and what to do. Never a traceback."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.code = code

    def show(self, file: Any = None) -> None:
        """One `error:` line, details below it."""
        click.echo(click.style("error: ", fg="red", bold=True) + self.message, err=True)


def config_path() -> Path:
    """The file of contexts."""
    return Path(os.environ.get("TEALNET_CONFIG") or Path.home() / ".config" / "tealnet" / "config.yaml")


def load_config() -> dict[str, Any]:
    """The file's content; an absent file is an empty one. Raises Failure when it is not what it should be."""
    path = config_path()
    try:
        content = yaml.safe_load(path.read_text()) if path.exists() else {}
    except (OSError, yaml.YAMLError) as error:
        raise Failure(f"cannot read {path}: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict) or not isinstance(content.get("contexts", {}), dict):
        raise Failure(f"{path} is not a file of contexts: expected the keys `current` and `contexts`")
    content.setdefault("contexts", {})
    return content


def save_config(content: dict[str, Any]) -> None:
    """Write the file, readable by its owner alone."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    temporary.chmod(0o600)
    temporary.replace(path)


@dataclass
class Session:
    """One invocation: `context` by name ("" = current), `tenant` as given with -t ("" = the context's)."""

    context: str = ""
    tenant: str = ""
    output: str = "table"
    timeout: float = 30.0
    _client: Any = None

    def settings(self) -> dict[str, Any]:
        """The chosen context's settings. Raises Failure with the way out."""
        config = load_config()
        name = self.context or os.environ.get("TEALNET_CONTEXT") or config.get("current") or ""
        found = config["contexts"].get(name)
        if found is None:
            known = ", ".join(sorted(config["contexts"])) or "none"
            raise Failure(
                f"no context {name!r} (known: {known}).\n  Start a lab with `teal lab up`, or add one with "
                "`teal context add NAME --server HOST:PORT --ca FILE --cert FILE --key FILE`"
                if name
                else "no context chosen. Start a lab with `teal lab up`, or add one with `teal context add`"
            )
        missing = [key for key in ("server", "ca", "cert", "key") if not found.get(key)]
        if missing:
            raise Failure(f"context {name!r} lacks {', '.join(missing)}; see {config_path()}")
        return {"name": name, **found}

    @property
    def client(self) -> Any:
        """The client, made at first use (gRPC is slow to import)."""
        if self._client is None:
            from tealnet.client import Client, Context

            found = self.settings()
            try:
                context = Context(
                    server=found["server"],
                    ca=found["ca"],
                    cert=found["cert"],
                    key=found["key"],
                    server_name=found.get("server_name", "controller"),
                )
                self._client = Client(context, timeout=self.timeout)
            except OSError as error:
                raise Failure(f"cannot read the certificates of context {found['name']!r}: {error}") from None
        return self._client

    def parent(self, *, required: bool) -> str:
        """tenants/acme from -t, TEALNET_TENANT or the context; tenants/- (all) unless `required`."""
        tenant = self.tenant or os.environ.get("TEALNET_TENANT") or self.settings().get("tenant") or ""
        if tenant:
            return tenant if tenant.startswith("tenants/") else f"tenants/{tenant}"
        if required:
            raise Failure("which tenant? Give -t TENANT (or set `tenant` in the context)", code=2)
        return "tenants/-"

    def name_of(self, kind: Kind, text: str) -> str:
        """A resource name from what a person types: web, acme/web or tenants/acme/networks/web."""
        if text.startswith(("tenants/", "hosts/")):
            return text
        if not kind.owned:
            return f"{kind.plural}/{text}"
        tenant, slash, ident = text.partition("/")
        if slash:
            return kind.full_name(f"tenants/{tenant}", ident)
        return kind.full_name(self.parent(required=True), text)


pass_session = click.make_pass_decorator(Session, ensure=True)


@contextmanager
def errors() -> Iterator[None]:
    """API failures as Failure."""
    from tealnet.client import ApiError

    try:
        yield
    except ApiError as error:
        text = explain(error)
        raise Failure(text) from None


def explain(error: Any) -> str:
    """An ApiError for a person: what, which field, what to do."""
    import grpc

    if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
        return f"the controller does not answer ({error.message}).\n  Is it running? `teal lab status` or its log tells"
    lines = [error.message]
    lines += [f"  {path}: {text}" if path else f"  {text}" for path, text in error.violations]
    lines += [f"  {text}" for text in error.blockers if text not in error.message]
    return "\n".join(lines)
