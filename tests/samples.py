"""How many samples a randomised test takes: some in `make test`, many in `make test-long`, which runs nothing else.

Tests with Hypothesis are found by themselves; others that take samples are marked `long`.
"""

from __future__ import annotations

import os

LONG = bool(os.environ.get("TEALNET_LONG"))
"""Whether every such test takes its many samples."""


def samples(few: int, *, many: int) -> int:
    """`few` for every change, `many` for the long run."""
    return many if LONG else few
