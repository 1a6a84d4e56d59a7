"""Rules as people type and read them: `tcp 80,8000-8099 from web`, `icmp 8/0 to 10.0.0.0/8 in blue`.

    PROTOCOL [PORTS | TYPE[/CODE]] [from|to REMOTE] [in COLOR]

REMOTE is `anyone`, a prefix, or a group. A tier's rule begins with what it says: `deny tcp 22`.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from tealnet.cli import output

_ICMP = ("icmp", "icmpv6")
_ACTIONS = ("allow", "deny", "pass")
ANYONE = "anyone"


class BadRule(ValueError):
    """What is wrong with a rule as it was typed."""


def in_words(rule: Any, direction: str) -> str:
    """A SecurityRule or TierRule; `direction` is ingress or egress."""
    words = []
    if "action" in rule.DESCRIPTOR.fields_by_name:
        words.append(output.enum_of(rule, "action").lower())
    words.append(rule.protocol or "any")
    if rule.ports:
        words.append(",".join(rule.ports))
    if rule.HasField("icmp_type"):
        words.append(str(rule.icmp_type) + (f"/{rule.icmp_code}" if rule.HasField("icmp_code") else ""))
    remote = rule.remote_cidr or (output.named(rule.remote_group) if rule.remote_group else ANYONE)
    words += ["from" if direction == "ingress" else "to", remote]
    if rule.color:
        words += ["in", rule.color]
    if rule.HasField("enabled") and not rule.enabled:
        words.append("(disabled)")
    return " ".join(words)


def parse(text: str, *, direction: str, of_tier: bool) -> dict[str, Any]:
    """The fields of a rule; `remote_group` is as it was typed. Raises BadRule."""
    words = text.split()
    fields: dict[str, Any] = {}
    if of_tier:
        action = words.pop(0).lower() if words else ""
        if action not in _ACTIONS:
            raise BadRule(f"{text!r}: a tier's rule begins with {', '.join(_ACTIONS[:-1])} or {_ACTIONS[-1]}")
        fields["action"] = f"RULE_ACTION_{action.upper()}"
    if not words:
        raise BadRule(f"{text!r}: the protocol is missing: any, tcp, udp, sctp, icmp, icmpv6 or a number")
    fields["protocol"] = words.pop(0).lower()
    if words and words[0] not in ("from", "to", "in"):
        _detail(fields, words.pop(0), text)
    if words and words[0] in ("from", "to"):
        _remote(fields, words, text, direction)
    if words and words[0] == "in":
        if len(words) < 2:
            raise BadRule(f"{text!r}: in which color?")
        fields["color"] = words[1]
        del words[:2]
    if words:
        raise BadRule(f"{text!r}: {words[0]!r} is not understood; write PROTOCOL [PORTS] [from|to REMOTE] [in COLOR]")
    return fields


def _detail(fields: dict[str, Any], word: str, text: str) -> None:
    if fields["protocol"] not in _ICMP:
        fields["ports"] = [part for part in word.split(",") if part]
        return
    kind, slash, code = word.partition("/")
    if not kind.isdecimal() or (slash and not code.isdecimal()):
        raise BadRule(f"{text!r}: {word!r} is not TYPE or TYPE/CODE, for example 8/0")
    fields["icmp_type"] = int(kind)
    if slash:
        fields["icmp_code"] = int(code)


def _remote(fields: dict[str, Any], words: list[str], text: str, direction: str) -> None:
    expected = "from" if direction == "ingress" else "to"
    if words[0] != expected:
        raise BadRule(f"{text!r}: {direction} rules say {expected!r}, not {words[0]!r}")
    if len(words) < 2:
        raise BadRule(f"{text!r}: {expected} whom? {ANYONE}, a prefix like 10.0.0.0/8, or a group")
    remote = words[1]
    del words[:2]
    if remote == ANYONE:
        return
    try:
        ip_network(remote, strict=False)
    except ValueError:
        fields["remote_group"] = remote
    else:
        fields["remote_cidr"] = remote
