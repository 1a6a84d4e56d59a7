"""The README's five minutes, typed on a real lab: every line of output that it shows comes, but for numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

SOURCES = Path(__file__).resolve().parents[2]
# Addresses, times, identifiers: any word of these with a digit in it.
NUMBER = re.compile(r"[0-9a-f.:/]*[0-9][0-9a-f.:/]*")


def tour() -> list[tuple[str, list[str]]]:
    """Commands, each with the lines that it prints."""
    section = (SOURCES / "README.md").read_text().split("## Five minutes")[1].split("\n## ")[0]
    steps: list[tuple[str, list[str]]] = []
    for line in re.findall(r"^    (.*)$", section, re.M):
        if line.startswith("$ "):
            steps.append((line.removeprefix("$ "), []))
        elif line.strip() and line != "…":
            steps[-1][1].append(line)
    return [step for step in steps if not step[0].startswith("export ")]


def pattern(line: str) -> re.Pattern[str]:
    """The line with other numbers; columns may be wider."""
    words = []
    for word in line.split():
        rest, parts = word, []
        while found := NUMBER.search(rest):
            parts += [re.escape(rest[: found.start()]), r"[0-9a-f.:/]+"]
            rest = rest[found.end() :]
        words.append("".join(parts) + re.escape(rest))
    return re.compile(r"\s+".join(words))


@pytest.fixture
def shell() -> Iterator[dict[str, str]]:
    """The environment of a person with `teal` in the path, and contexts and labs of their own."""
    # Short: a unix socket's path has 107 bytes.
    with TemporaryDirectory(prefix="tr") as directory:
        script = Path(directory) / "teal"
        script.write_text(f'#!/bin/sh\nPYTHONPATH={SOURCES} exec {sys.executable} -m tealnet.cli.main "$@"\n')
        script.chmod(0o755)
        own = {"TEALNET_CONFIG": f"{directory}/config.yaml", "TEALNET_LAB_DIR": f"{directory}/labs"}
        env = {**os.environ, **own, "PATH": f"{directory}:{os.environ['PATH']}"}
        try:
            yield env
        finally:
            done = subprocess.run(["teal", "lab", "down", "--all"], env=env, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr


def test_what_the_readme_shows_is_what_comes(shell: dict[str, str]) -> None:
    steps = tour()
    assert len(steps) >= 10 and sum(len(lines) for _, lines in steps) >= 25
    for command, lines in steps:
        done = subprocess.run(
            ["bash", "-c", command], cwd=SOURCES, env=shell, capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said = done.stdout + done.stderr
        for line in lines:
            assert pattern(line).search(said), f"{command}: no line like {line!r} in\n{said}"
