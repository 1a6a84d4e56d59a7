"""The few messages of nf_tables that a guard needs (linux/netfilter/nf_tables.h), in transactions of nfnetlink."""

from __future__ import annotations

import errno
import struct
from collections.abc import Collection
from dataclasses import dataclass

from agent.drivers.netlink import CREATE, NETFILTER, Message, Netlink, attribute, attributes, nested, split, text

GROUP = 7  # NFNLGRP_NFTABLES: changes of tables, chains and rules
FAMILY = 5  # NFPROTO_NETDEV
LIMIT = 100  # chains in one transaction
_SUBSYSTEM = 10
_NEW_TABLE, _GET_TABLE, _NEW_CHAIN, _GET_CHAIN, _DELETE_CHAIN = 0, 1, 3, 4, 5
_BEGIN, _END = 0x10, 0x11
_TABLE_EVENTS, _CHAIN_EVENTS, _RULE_EVENTS = (0, 2), (3, 5), (6, 8)  # made or changed, deleted
_TABLE_NAME, _TABLE_FLAGS = 1, 2
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE, _CHAIN_TYPE = 1, 3, 4, 5, 6, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE, _HOOK_DEVICES = 1, 2, 3, 4
_INGRESS, _DROP = 0, 0


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of our table."""

    name: str
    device: str  # whose ingress it hooks; "" = nobody's
    drops: bool  # all that comes in: policy drop, and no rules


def read_chains(netlink: Netlink, table: str, names: Collection[str] | None = None) -> list[Chain] | None:
    """Chains of a `netdev` table, all or those of these names; None if there is no table or it is dormant.

    Raises OSError.
    """
    answer = _get(netlink, _message(_GET_TABLE, text(_TABLE_NAME, table)))
    if answer is None or _number(attributes(answer[4:]).get(_TABLE_FLAGS, b"")):
        return None
    if names is None:
        found = netlink.dump(_message(_GET_CHAIN, b""))
    else:
        named = [_message(_GET_CHAIN, text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, name)) for name in names]
        found = [body for message in named if (body := _get(netlink, message)) is not None]
    chains = [attributes(body[4:]) for body in found]
    return [_chain(attrs) for attrs in chains if _string(attrs.get(_CHAIN_TABLE, b"")) == table]


def chains_of_event(data: bytes, table: str) -> set[str] | None:
    """Which chains of a `netdev` table a datagram of the group may be about; None: any."""
    found: set[str] = set()
    for kind, _, _, body in split(data):
        attrs = attributes(body[4:])
        # Table and chain names are attribute 1 of messages on both; a rule's chain is attribute 2.
        if kind >> 8 != _SUBSYSTEM or body[:1] != bytes([FAMILY]) or _string(attrs.get(1, b"")) != table:
            continue
        what = kind & 0xFF
        if what in _CHAIN_EVENTS:
            found.add(_string(attrs.get(_CHAIN_NAME, b"")))
        elif what in _RULE_EVENTS:
            found.add(_string(attrs.get(2, b"")))
        elif what in _TABLE_EVENTS:
            return None
    return found


def change(netlink: Netlink, table: str, *, add: Collection[str], delete: Collection[str]) -> OSError | None:
    """One transaction: delete chains, then add chains that drop what the device of their name receives.

    At most `LIMIT` chains, and the deleted ones must be there. Returns why nothing was done at all, or None.
    """
    named = text(_TABLE_NAME, table)
    messages = [_message(_NEW_TABLE, named + _be32(_TABLE_FLAGS, 0), CREATE)]
    messages += [_message(_DELETE_CHAIN, text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, name)) for name in delete]
    messages += [_message(_NEW_CHAIN, _new_chain(table, name), CREATE) for name in add]
    return netlink.batch(_edge(_BEGIN), messages, _edge(_END))


def connect() -> Netlink:
    """A socket for the above, in the namespace of the thread."""
    return Netlink(NETFILTER)


def _get(netlink: Netlink, message: Message) -> bytes | None:
    try:
        return netlink.get(message)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _new_chain(table: str, device: str) -> bytes:
    hook = nested(_CHAIN_HOOK, _be32(_HOOK_NUMBER, _INGRESS), _be32(_HOOK_PRIORITY, 0), text(_HOOK_DEVICE, device))
    head = text(_CHAIN_TABLE, table) + text(_CHAIN_NAME, device) + hook
    return head + _be32(_CHAIN_POLICY, _DROP) + text(_CHAIN_TYPE, "filter")


def _chain(attrs: dict[int, bytes]) -> Chain:
    hook = attributes(attrs.get(_CHAIN_HOOK, b""))
    devices = attributes(hook.get(_HOOK_DEVICES, b""))
    device = _string(hook.get(_HOOK_DEVICE) or devices.get(1, b""))
    ingress = hook.get(_HOOK_NUMBER) == struct.pack("!I", _INGRESS)
    drops = attrs.get(_CHAIN_POLICY) == struct.pack("!I", _DROP) and not _number(attrs.get(_CHAIN_USE, b""))
    return Chain(_string(attrs.get(_CHAIN_NAME, b"")), device if ingress else "", drops)


def _message(kind: int, body: bytes, flags: int = 0) -> Message:
    return Message(_SUBSYSTEM << 8 | kind, struct.pack("!BBH", FAMILY, 0, 0) + body, flags)


def _edge(kind: int) -> Message:
    return Message(kind, struct.pack("!BBH", 0, 0, _SUBSYSTEM))


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def _number(raw: bytes) -> int:
    return int(struct.unpack("!I", raw)[0]) if len(raw) == 4 else 0


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")
