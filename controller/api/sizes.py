"""How much one request may say, before anybody looks at what: a million entries take seconds of everybody to check."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from controller.errors import invalid

MOST = 10_000
"""Entries of one list or map; what may be in each is limited further where it is known."""
LONGEST = 100_000
"""Characters or bytes of one text."""
_TEXTS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def check_size(message: Any, path: str = "") -> None:
    """Raises Invalid, with the path of what is too large."""
    for descriptor, value in message.ListFields():
        name = f"{path}{descriptor.name}"
        if not descriptor.is_repeated:
            if descriptor.message_type is not None:
                check_size(value, f"{name}.")
            elif descriptor.type in _TEXTS:
                _check_text(value, name)
            continue
        if len(value) > MOST:
            raise invalid(name, f"at most {MOST} entries in any list, not {len(value)}", reason="TOO_LARGE")
        entry = descriptor.message_type
        if entry is not None and entry.GetOptions().map_entry:
            for key, inner in value.items():
                _check_text(key, name)
                _check_text(inner, name)
        elif entry is not None:
            for number, inner in enumerate(value):
                check_size(inner, f"{name}[{number}].")
        elif descriptor.type in _TEXTS:
            for inner in value:
                _check_text(inner, name)


def _check_text(value: object, name: str) -> None:
    if isinstance(value, (str, bytes)) and len(value) > LONGEST:
        raise invalid(name, f"at most {LONGEST} characters in any text, not {len(value)}", reason="TOO_LARGE")
