"""`teal-agent underlay setup | undo | show | confirm | apply | keep`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.underlay import keep, move, setup
from agent.underlay.record import STATE_DIR, Phase, Store
from agent.underlay.setup import Approval, Leases, Wish
from agent.underlay.tools import UnderlayError

BRIDGE = "br-underlay"


def run(argv: Sequence[str]) -> int:
    """Run a command; returns the exit code: 0, 1 failed or not in place, 2 wrong use, 3 nothing is set up."""
    arguments = _parser().parse_args(argv)
    store = Store(arguments.state_dir)
    try:
        if os.geteuid() != 0:
            raise UnderlayError("this needs root")
        return int(arguments.work(arguments, store))
    except UnderlayError as error:
        print(f"teal-agent underlay {arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="teal-agent underlay",
        description="The bridge that carries the tunnel address. Only the userspace datapath (netdev) needs it.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("setup", help="move a network card with its addresses into a bridge of Open vSwitch")
    _setup_arguments(one)
    one.set_defaults(work=_setup)
    for name, work, text in (
        ("undo", _undo, "put everything back as it was before setup"),
        ("show", _show, "what is set up, and what is not in place"),
        ("confirm", _confirm, "after `setup --confirm`: it works, keep it"),
        ("apply", _apply, "bring about what was set up, after a reboot or a restart of Open vSwitch"),
        ("keep", _keep, "apply, and again whenever the bridge's device is made anew; for the service manager"),
    ):
        commands.add_parser(name, help=text).set_defaults(work=work)
    watchdog = commands.add_parser("watchdog")
    watchdog.add_argument("token")
    watchdog.add_argument("seconds", type=float)
    watchdog.set_defaults(work=_watchdog)
    for command in commands.choices.values():
        command.add_argument("--state-dir", type=Path, default=STATE_DIR, help=f"default: {STATE_DIR}")
    return parser


def _setup_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--uplink", required=True, metavar="DEVICE", help="the network card of the underlay")
    parser.add_argument("--bridge", default=BRIDGE, help=f"default: {BRIDGE}")
    parser.add_argument("--vtep", default="", metavar="ADDRESS", help="refuse unless the card has this tunnel address")
    parser.add_argument("--datapath", choices=("auto", "netdev", "system"), default="auto", help="as in the agent's")
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="ADDRESS[:PORT]",
        help="must answer ping, or TCP on PORT, before and after; may be repeated; default: the default gateways",
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="until everything is put back; default: 30")
    parser.add_argument("--confirm", action="store_true", help="put back unless `underlay confirm` is run in time")
    parser.add_argument(
        "--accept-leases", action="store_true", help="the card's address is from DHCP, and that is fine"
    )


def _setup(arguments: argparse.Namespace, store: Store) -> int:
    wish = Wish(
        uplink=arguments.uplink,
        bridge=arguments.bridge,
        vtep=arguments.vtep,
        datapath=arguments.datapath,
        targets=tuple(arguments.check),
        seconds=arguments.seconds,
        approval=Approval.PERSON if arguments.confirm else Approval.CHECK,
        leases=Leases.ACCEPT if arguments.accept_leases else Leases.REFUSE,
    )
    setup.set_up(wish, store, say=print)
    return 0


def _undo(_: argparse.Namespace, store: Store) -> int:
    with store.locked():
        record = store.load()
        if record is None:
            print("nothing is set up")
            return 0
        setup.put_back(record, store)
    print(f"{record.device} is as it was")
    return 0


def _show(_: argparse.Namespace, store: Store) -> int:
    record = store.load()
    if record is None:
        print("nothing is set up")
        return 3
    print(f"uplink     {record.device}\nbridge     {record.bridge}\nstate      {record.phase}")
    for address in record.uplink.addresses:
        print(f"address    {address.local}/{address.prefix_length}")
    for route in record.uplink.routes:
        print(f"route      {route.text(record.bridge)}")
    missing = move.engaged(record)
    for text in missing:
        print(f"missing    {text}")
    return 1 if missing or record.phase is Phase.PENDING else 0


def _confirm(_: argparse.Namespace, store: Store) -> int:
    with store.locked():
        record = store.load()
        if record is None:
            raise UnderlayError("nothing is set up; the time was up and everything was put back?")
        store.set_phase(record, Phase.ACTIVE)
    print(f"{record.bridge} stays")
    return 0


def _apply(_: argparse.Namespace, store: Store) -> int:
    print(keep.apply(store))
    return 0


def _keep(_: argparse.Namespace, store: Store) -> int:
    keep.keep(store)


def _watchdog(arguments: argparse.Namespace, store: Store) -> int:
    print("ready", flush=True)
    # The one who started it may go; its log is the state directory's.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    setup.watch(arguments.token, store, seconds=arguments.seconds, say=lambda text: print(text, file=sys.stderr))
    return 0
