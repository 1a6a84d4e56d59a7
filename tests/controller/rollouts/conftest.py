"""Rollouts at a quicker pace: what is seconds for people is a fraction of one here."""

from __future__ import annotations

import pytest

from controller.rollouts import leader, observer, record, scout


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the leader and of the observers in this process."""
    monkeypatch.setattr(observer, "_EVERY", 0.2)
    for module in (observer, leader):
        monkeypatch.setattr(module, "LINGER", 1.0)
    monkeypatch.setattr(record, "_PATIENCE", 1.5)
    monkeypatch.setattr(scout, "_AFTERCARE", 1.0)
