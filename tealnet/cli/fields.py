"""Values as people write them in YAML, made fit for protobuf's JSON form; what does not fit is said in their words.

Enum values may be written without their prefix (NETNS for ATTACHMENT_KIND_NETNS), durations as 30, 30s or 5m.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from difflib import get_close_matches
from typing import Any

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|)")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_INTEGERS = {"int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1), "int64": (-(2**63), 2**63 - 1),
             "uint64": (0, 2**64 - 1)}  # fmt: skip
_TYPES = {3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 12: "bytes", 13: "uint32"}
# Texts that may be numbers: nobody quotes a port.
_NUMBERS_TOO = {
    f"tealnet.v1.{rule}.{field}" for rule in ("SecurityRule", "TierRule") for field in ("ports", "protocol")
}


class Misfit(ValueError):
    """What is wrong, and at which path inside the document: labels.a, cidrs[1]."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.path = path


def fit(descriptor: Any, value: Any, path: str) -> Any:
    """The value of a field in protobuf's JSON form. Raises Misfit."""
    message = descriptor.message_type
    if message is not None and message.GetOptions().map_entry:
        return _map(message, value, path)
    if descriptor.is_repeated:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            raise Misfit(path, f"a list is expected: [{_shown(value)}]" if _is_plain(value) else "a list is expected")
        return [_one(descriptor, item, f"{path}[{number}]") for number, item in enumerate(value)]
    return _one(descriptor, value, path)


def unknown(key: str, known: Sequence[str], owner: str) -> str:
    """The words about a field that does not exist."""
    near = get_close_matches(key, known, n=1)
    return f"{owner} has no such field; " + (f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}")


def _map(entry: Any, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Misfit(path, "a mapping is expected: {key: value}")
    of_value = entry.fields_by_name["value"]
    found = {}
    for key, one in value.items():
        if not isinstance(key, str):
            raise Misfit(path, f"the key {_shown(key)} is not text; put it in quotes")
        found[key] = _one(of_value, one, f"{path}.{key}")
    return found


def _one(descriptor: Any, value: Any, path: str) -> Any:
    if value is None:
        raise Misfit(path, "is empty; write a value, or leave the line out")
    if descriptor.enum_type is not None:
        return _enum(descriptor.enum_type, value, path)
    if descriptor.message_type is not None:
        return _message(descriptor.message_type, value, path)
    kind = _TYPES.get(descriptor.type, "")
    if kind == "bool" and not isinstance(value, bool):
        raise Misfit(path, f"{_shown(value)} is neither true nor false")
    if descriptor.full_name in _NUMBERS_TOO and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind == "string" and not isinstance(value, str):
        hint = "; put it in quotes" if _is_plain(value) else ""
        raise Misfit(path, f"{_shown(value)} is not text{hint}")
    if kind in _INTEGERS:
        return _integer(value, path, *_INTEGERS[kind])
    return value


def _integer(value: Any, path: str, low: int, high: int) -> int:
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,20}", value):  # as JSON writes 64 bits
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Misfit(path, f"{_shown(value)} is not a whole number")
    if not low <= value <= high:
        raise Misfit(path, f"{value} is not within {low}…{high}")
    return value


def _enum(enum: Any, value: Any, path: str) -> str:
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    if value is False:  # YAML reads OFF as false
        value = "OFF"
    word = str(value).upper()
    full = word if word.startswith(prefix) else prefix + word
    if full not in enum.values_by_name:
        words = ", ".join(v.name.removeprefix(prefix) for v in enum.values if v.number)
        raise Misfit(path, f"{_shown(value)} is none of {words}")
    return full


def _message(message: Any, value: Any, path: str) -> Any:
    if message.full_name == "google.protobuf.Duration":
        match = _DURATION.fullmatch(str(value)) if not isinstance(value, bool) else None
        if not match:
            raise Misfit(path, f"{_shown(value)} is not a time like 30s or 5m")
        return f"{float(match[1]) * _UNITS[match[2]]:.9f}s"
    if message.full_name == "google.protobuf.Timestamp":
        return _moment(value, path)
    if not isinstance(value, Mapping):
        raise Misfit(path, f"a mapping is expected; its fields are: {', '.join(message.fields_by_name)}")
    names = {f.json_name: f.name for f in message.fields}
    known = list(message.fields_by_name)
    found = {}
    for key, one in value.items():
        name = names.get(str(key), str(key))
        if name not in message.fields_by_name:
            raise Misfit(f"{path}.{key}", unknown(str(key), known, f"a {message.name}"))
        if one is not None:
            found[name] = fit(message.fields_by_name[name], one, f"{path}.{name}")
    return found


def _moment(value: Any, path: str) -> str:
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", value):
        raise Misfit(path, f"{_shown(value)} is not a time like 2026-01-31T12:00:00Z")
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool, date))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value[:60]) if isinstance(value, str) else str(value)[:60]
