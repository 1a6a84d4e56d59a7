"""The story of `make demo`, chapter by chapter, on a real lab: etcd, Open vSwitch, namespaces, packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tealnet.lab import Lab, api
from tealnet.lab.story import CHAPTERS, Chapter, Story

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with Lab.up("test-story", hosts=3) as lab:
        yield Story(lab, api.client(lab.context))


@pytest.fixture(scope="module")
def told() -> list[str]:
    """Titles of the chapters that went well: a later one builds on the first."""
    return []


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.title.replace(" ", "-"))
def test_chapter(story: Story, told: list[str], chapter: Chapter) -> None:
    if chapter is not CHAPTERS[0] and CHAPTERS[0].title not in told:
        pytest.skip("the networks could not be built")
    chapter.run(story)
    told.append(chapter.title)
