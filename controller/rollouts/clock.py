"""A leader's clocks of one rollout, by its monotonic time: they may read less than has passed, never more."""

from __future__ import annotations

from controller.rollouts.plan import Run, State


class Clock:
    """Of one rollout in one term. Read it often: what lies between two transitions by others is not counted."""

    def __init__(self) -> None:
        self._serial = -1
        self._since = self._last = 0.0
        self._total = 0.0

    def read(self, run: Run, now: float) -> tuple[float, float]:
        """Seconds since this run was first seen as it is, and of the whole rollout without pauses."""
        if self._serial < 0:
            self._total = run.spent
        elif run.serial == self._serial and run.state is not State.PAUSED:
            self._total += now - self._last
        if run.serial != self._serial:
            self._serial, self._since = run.serial, now
        self._last = now
        return now - self._since, max(self._total, run.spent)
