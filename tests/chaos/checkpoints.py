"""What can become of an agent's checkpoint while the agent is away."""

from __future__ import annotations

import random
from pathlib import Path


def spoil(path: Path, how: str, *, old: bytes, dice: random.Random) -> None:
    """Make the file `truncated`, `garbage`, `old`, `gone` or `flipped` (one bit of it)."""
    data = path.read_bytes()
    match how:
        case "truncated":
            path.write_bytes(data[: dice.randrange(len(data))])
        case "garbage":
            path.write_bytes(dice.randbytes(300))
        case "old":
            path.write_bytes(old)
        case "gone":
            path.unlink()
        case "flipped":
            at = dice.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
