"""context list|use|add|remove: which controller, and who I am there."""

from __future__ import annotations

from pathlib import Path

import click

from tealnet.cli import output
from tealnet.cli.session import Failure, load_config, save_config


@click.group()
def context() -> None:
    """Controllers and certificates by name."""


@context.command("list")
def list_() -> None:
    """All contexts; * = current."""
    config = load_config()
    current = config.get("current")
    output.table(
        ["", "NAME", "SERVER", "TENANT"],
        [
            ["*" if n == current else "", n, c.get("server", ""), c.get("tenant", "")]
            for n, c in config["contexts"].items()
        ],
    )


@context.command("use")
@click.argument("name")
def use(name: str) -> None:
    """Make a context the current one."""
    config = load_config()
    if name not in config["contexts"]:
        raise Failure(f"no context {name!r}; known: {', '.join(sorted(config['contexts'])) or 'none'}")
    config["current"] = name
    save_config(config)
    click.echo(f"current context: {name}")


@context.command("add")
@click.argument("name")
@click.option("--server", required=True, help="HOST:PORT of a controller; several separated by commas.")
@click.option("--server-name", default="controller", help="What its certificate says.")
@click.option("--ca", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--cert", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--key", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tenant", default="", help="Default tenant.")
def add(name: str, *, server: str, server_name: str, ca: Path, cert: Path, key: Path, tenant: str) -> None:
    """Add or replace a context and use it."""
    put_context(
        name,
        {
            "server": server,
            "server_name": server_name,
            "ca": str(ca.resolve()),
            "cert": str(cert.resolve()),
            "key": str(key.resolve()),
            **({"tenant": tenant} if tenant else {}),
        },
    )
    click.echo(f"context {name} added; it is the current one")


@context.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Forget a context."""
    drop_context(name)
    click.echo(f"context {name} removed")


def put_context(name: str, settings: dict[str, str]) -> None:
    """Add or replace a context and make it the current one."""
    config = load_config()
    config["contexts"][name] = settings
    config["current"] = name
    save_config(config)


def drop_context(name: str) -> None:
    """Forget a context; the absent is forgotten already."""
    config = load_config()
    if config["contexts"].pop(name, None) is not None:
        if config.get("current") == name:
            config["current"] = next(iter(config["contexts"]), "")
        save_config(config)
