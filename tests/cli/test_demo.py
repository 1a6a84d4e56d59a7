"""What `teal demo` prints and how it ends; the story itself is told on a real lab in tests/lab/test_story.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tealnet.lab import Lab, LabError, api, story
from tealnet.lab.story import Chapter, StoryError
from tests.cli.conftest import Teal


class Stage:
    """A lab that is only said to be there, and chapters that say what they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.context = {"server": "unix:/none", "ca": "/none", "cert": "/none", "key": "/none", "lab": "demo"}
        self.up = 0
        self.told: list[str] = []
        self._patch = monkeypatch
        monkeypatch.setattr("os.geteuid", lambda: 0)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        monkeypatch.setattr(Lab, "up", self._up)
        monkeypatch.setattr(api, "client", lambda _: None)
        self.plays()

    def _up(self, name: str, *, hosts: int) -> Any:
        self.up += 1
        return self

    def down(self) -> None:
        self.up -= 1

    def plays(self, **failures: Exception) -> None:
        """Chapters one, two, three; these fail so."""

        def chapter(title: str) -> Chapter:
            def run(_: Any) -> str:
                self.told.append(title)
                if title in failures:
                    raise failures[title]
                return f"{title} found"

            return Chapter(title, run)

        self._patch.setattr(story, "CHAPTERS", tuple(chapter(title) for title in ("one", "two", "three")))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, labs: Path) -> Stage:
    return Stage(monkeypatch)


def test_all_as_promised(stage: Stage, teal: Teal) -> None:
    done = teal("demo")
    assert (done.code, done.err, stage.up) == (0, "", 0)
    assert "ok  two: two found" in done.out and "3 of 3 chapters as promised" in done.out and "tear down" in done.out
    assert "three found" in done.out.rpartition("chapters as promised")[2], "the table has every chapter"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (StoryError("3 frames leaked"), "“two” is not as promised: 3 frames leaked"),
        (LabError("h1 is down"), "“two” is not as promised: h1 is down"),
        (KeyError("x"), "“two” is not as promised: KeyError: 'x'"),
    ],
)
def test_not_as_promised(stage: Stage, teal: Teal, failure: Exception, words: str) -> None:
    stage.plays(two=failure)
    done = teal("demo")
    assert (done.code, stage.up, stage.told) == (1, 0, ["one", "two"])
    assert words in done.err and "KEEP=1" in done.err
    assert "1 of 2 chapters as promised" in done.out and "NOT AS PROMISED" in done.out


def test_interrupted_it_leaves_nothing(stage: Stage, teal: Teal) -> None:
    stage.plays(two=KeyboardInterrupt())  # type: ignore[arg-type]  # which is no Exception, and that is the point
    assert (teal("demo").code, stage.up) == (130, 0)


def test_kept_it_can_be_played_with(stage: Stage, teal: Teal) -> None:
    done = teal("demo", "--keep")
    assert (done.code, stage.up, stage.told) == (0, 1, ["one", "two"]), "what deletes everything is left out"
    assert "lab down --name demo" in done.out
    assert "*  lab-demo" in teal("context", "list").out


def test_kept_also_when_it_failed(stage: Stage, teal: Teal) -> None:
    stage.plays(one=StoryError("no"))
    done = teal("demo", "--keep")
    assert (done.code, stage.up) == (1, 1) and "“one” is not as promised: no" in done.err


def test_a_second_one_says_how_to_end_the_first(stage: Stage, teal: Teal, labs: Path) -> None:
    (labs / "demo").mkdir()
    done = teal("demo")
    assert done.code == 1 and stage.up == 0
    assert "the lab 'demo' is there already" in done.err and "lab down --name demo" in done.err


def test_a_lab_that_does_not_start(stage: Stage, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LabError("not installed: ovsdb-server")

    monkeypatch.setattr(Lab, "up", fail)
    done = teal("demo")
    assert done.code == 1 and done.err == "error: the lab did not start: not installed: ovsdb-server\n"
