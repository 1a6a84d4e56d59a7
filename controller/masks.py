"""Updates: which fields, and the request's message merged into the stored one (AIP-134). Pure.

The stored message is edited, so that fields which this build does not know survive. An absent mask means all fields
that the request populates, `*` all fields; a field of the mask that the request leaves empty is reset to its default,
but what the server has chosen (addresses, a MAC) is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from controller.errors import Invalid, Violation
from controller.fields import MOST_LABELS

OUTPUT = frozenset({"name", "uid", "etag", "revision", "create_time", "update_time"})


@dataclass(frozen=True, slots=True)
class Policy:
    """How the fields of a kind may be changed: `output` by the server only, `fixed` never, `chosen` never emptied."""

    output: frozenset[str] = OUTPUT
    fixed: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()


def paths_of(mask: FieldMask, body: Any, policy: Policy) -> list[str]:
    """The paths that an update means."""
    if not mask.paths:
        return [descriptor.name for descriptor, _ in body.ListFields() if descriptor.name not in policy.output]
    if "*" in mask.paths:
        if len(mask.paths) > 1:
            raise Invalid([Violation("update_mask", "`*` stands alone")])
        return [d.name for d in body.DESCRIPTOR.fields if d.name not in policy.output]
    return list(mask.paths)


def merge(stored: Any, body: Any, *, paths: list[str], policy: Policy, prefix: str) -> None:
    """Edit `stored` in place. Raises Invalid for paths that are unknown, output only or not to be changed."""
    found: list[Violation] = []
    for path in paths:
        top, dot, rest = path.partition(".")
        if dot and (not rest or top in policy.fixed | policy.chosen):
            found.append(Violation("update_mask", f"{path[:80]!r} is no path of a {prefix}"))
        elif top not in stored.DESCRIPTOR.fields_by_name:
            known = ", ".join(d.name for d in stored.DESCRIPTOR.fields if d.name not in policy.output)
            found.append(Violation("update_mask", f"{path[:80]!r} is no field of a {prefix}; there are: {known}"))
        elif top in policy.output:
            if top not in ("name", "etag"):
                found.append(Violation("update_mask", f"{top} is set by the server"))
        elif top in policy.fixed:
            if _populated(body, top) and getattr(body, top) != getattr(stored, top):
                now = getattr(stored, top)
                found.append(Violation(f"{prefix}.{top}", f"cannot be changed; it is {now!r}"))
        elif top in policy.chosen and not rest and not _populated(body, top):
            continue
        elif problem := _copy(stored, body, top, rest):
            found.append(Violation("update_mask", f"{path[:80]!r}: {problem}"))
    if not found:
        found = [Violation(f"{prefix}.{path}", f"at most {MOST_LABELS} labels") for path in _overfull(stored)]
    if found:
        raise Invalid(found)


def _overfull(message: Any, path: str = "") -> Iterator[str]:
    """Maps that have grown too large, label by label."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            if len(value) > MOST_LABELS:
                yield path + descriptor.name
        elif not descriptor.is_repeated:
            yield from _overfull(value, f"{path}{descriptor.name}.")


def _populated(message: Any, field: str) -> bool:
    return any(descriptor.name == field for descriptor, _ in message.ListFields())


def _copy(target: Any, source: Any, field: str, rest: str) -> str:
    """Copy one field, or what `rest` means of it; returns what is wrong."""
    descriptor = target.DESCRIPTOR.fields_by_name.get(field)
    if descriptor is None:
        return f"{field!r} is no field of {target.DESCRIPTOR.name}"
    kind = descriptor.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return _copy_map(getattr(target, field), getattr(source, field), rest, whole=(target, field))
    if rest:
        if kind is None or descriptor.is_repeated or kind.full_name.startswith("google.protobuf."):
            return f"{field!r} has no fields of its own"
        first, _, further = rest.partition(".")
        return _copy(getattr(target, field), getattr(source, field), first, further)
    target.ClearField(field)
    if descriptor.is_repeated:
        getattr(target, field).MergeFrom(getattr(source, field))
    elif kind is not None:
        if source.HasField(field):
            getattr(target, field).CopyFrom(getattr(source, field))
    else:
        setattr(target, field, getattr(source, field))
    return ""


def _copy_map(target: Any, source: Any, key: str, *, whole: tuple[Any, str]) -> str:
    if not key:
        wanted = dict(source)
        whole[0].ClearField(whole[1])
        getattr(whole[0], whole[1]).update(wanted)
    elif key in source:
        target[key] = source[key]
    else:
        target.pop(key, None)
    return ""
