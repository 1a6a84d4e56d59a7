"""Waiting for a condition with a deadline: never a fixed sleep."""

from __future__ import annotations

import time
from collections.abc import Callable

from tealnet.lab.errors import LabError


def wait_for(condition: Callable[[], bool], *, seconds: float, what: str, every: float = 0.01) -> None:
    """Ask `condition` every `every` seconds until it holds.

    Raises:
        LabError: it does not within `seconds`; `what` names what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not there after {seconds:g} s")
        time.sleep(every)
