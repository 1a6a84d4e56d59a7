"""How many samples a randomised test takes: some in `make test`, many in `make test-long`, which runs nothing else.

Tests with Hypothesis are found by themselves; others that take samples are marked `random`.
"""

from __future__ import annotations

import os

LONG = "TEALNET_TEST_LONG"
"""Set in the environment, every randomised test takes its many samples."""
IS_LONG = bool(os.environ.get(LONG))


def samples(few: int, *, many: int) -> int:
    """`few` for every change, `many` for the long run."""
    return many if IS_LONG else few
