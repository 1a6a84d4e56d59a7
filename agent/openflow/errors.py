"""What can go wrong between us and an OpenFlow switch."""

from __future__ import annotations


class ProtocolError(Exception):
    """Bytes that are not what OpenFlow 1.5 or our subset of it allows."""
