"""LOST is counted only while we can tell."""

from __future__ import annotations

from controller.liveness import Liveness

HOSTS = {f"h{n}" for n in range(20)}


class Clock:
    def __init__(self) -> None:
        self.liveness, self.now = Liveness(30), 0.0

    def tick(self, present: set[str], seconds: int = 1) -> set[str]:
        lost: set[str] = set()
        for _ in range(seconds):
            self.now += 1
            lost = self.liveness.tick(self.now, elapsed=1, present=present, known=HOSTS)
        return lost


def test_lost_after_thirty_healthy_seconds() -> None:
    clock = Clock()
    assert not clock.tick(HOSTS)
    assert not clock.tick(HOSTS - {"h1"}, 29)
    assert clock.tick(HOSTS - {"h1"}) == {"h1"}
    assert not clock.tick(HOSTS)


def test_coming_back_starts_anew() -> None:
    clock = Clock()
    clock.tick(HOSTS)
    clock.tick(HOSTS - {"h1"}, 25)
    clock.tick(HOSTS)
    assert not clock.tick(HOSTS - {"h1"}, 29)


def test_absent_from_the_start_counts() -> None:
    assert Clock().tick(HOSTS - {"h1"}, 30) == {"h1"}


def test_many_at_once_is_us() -> None:
    clock = Clock()
    clock.tick(HOSTS)
    gone = {f"h{n}" for n in range(5)}
    assert not clock.tick(HOSTS - gone, 100)
    assert clock.liveness.excused == gone
    clock.tick(HOSTS)
    assert not clock.liveness.excused
    assert clock.tick(HOSTS - {"h1"}, 30) == {"h1"}


def test_a_few_in_turn_are_not_us() -> None:
    clock = Clock()
    clock.tick(HOSTS)
    here = set(HOSTS)
    for n in range(5):
        here.discard(f"h{n}")
        clock.tick(here, 11)
    assert clock.tick(here, 30) == HOSTS - here
