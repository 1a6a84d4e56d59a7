"""What the documents name is there: files, links, commands with their options, make targets, reasons, stages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from agent.pipeline import ROUTER_MAC, Feature, Stage
from tealnet.cli.main import teal

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
OURS = ("agent", "bench", "controller", "deploy", "docs", "examples", "protos", "tealnet", "tests")


def every(pattern: str, *paths: Path) -> Iterator[tuple[str, str]]:
    """Matches in documents, with where they stand."""
    for path in paths or DOCS:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for found in re.finditer(pattern, line):
                yield f"{path.relative_to(ROOT)}:{number}", found[1]


def test_files_that_are_named_exist() -> None:
    named = {where_and for where_and in every(rf"(?<![\w/.-])((?:{'|'.join(OURS)})/[\w./<>*-]*)")}
    assert len(named) > 60
    for where, name in named:
        name = name.rstrip(".")
        if "<" in name or name.startswith("bench/results"):
            continue
        assert list(ROOT.glob(name.rstrip("/"))), f"{where}: {name}"


def test_links_lead_somewhere() -> None:
    for where, target in every(r"\]\(([^)\s]+)\)"):
        path, _, anchor = target.partition("#")
        document = ROOT / where.partition(":")[0]
        target_file = (document.parent / path) if path else document
        assert target_file.exists(), f"{where}: {target}"
        heads = re.findall(r"^#+ (.*)$", target_file.read_text(), re.M)
        anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in anchors, f"{where}: {target}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    benches = re.search(r"^BENCHES := (.*)$", makefile, re.M)
    assert benches
    targets = {*re.findall(r"^([a-z-]+):", makefile, re.M), *(f"bench-{name}" for name in benches[1].split())}
    named = [*every(r"(?<!\w)make ([a-z][\w-]*)(?= *(?:`|#|$|KEEP|,|\.))"), *every(r"`(bench-\w+)`")]
    assert len(named) >= 6
    for where, name in named:
        assert name in targets or name in ("bench-NAME",), f"{where}: make {name}"


def commands() -> list[tuple[str, str]]:
    """`teal …` in backquotes and on lines of their own, with lines that go on joined."""
    found = []
    for path in DOCS:
        text = path.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            shown = re.match(r"^    (?:\$ )?(teal .*)$", line)
            if shown:
                found.append((f"{path.name}: {line.strip()}", re.sub(r"\s+#.*", "", shown[1])))
            found += [(f"{path.name}: {words}", words) for words in re.findall(r"`(teal [^`]*)`", line)]
    return found


@pytest.mark.parametrize(("where", "line"), commands(), ids=[words for _, words in commands()])
def test_commands_and_their_options_exist(where: str, line: str) -> None:
    words = shlex.split(line.replace("…", "X").split(" && ")[0].split(" | ")[0])[1:]
    command: click.Command = teal
    path: list[str] = []
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        if words[0] == "X":
            return
        assert words[0] in command.commands, f"{where}: no command {words[0]!r}"
        path.append(words.pop(0))
        command = command.commands[path[-1]]
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
    used = words[: words.index("--")] if "--" in words else words
    for word in used:
        if word.startswith("-") and len(word) > 1:
            assert word.partition("=")[0] in options, f"{where}: {' '.join(path)} has no option {word}"


def reasons() -> set[str]:
    """Names of failures, refusals and conditions in the code of both daemons."""
    found = set()
    for directory in ("agent", "controller"):
        for file in (ROOT / directory).rglob("*.py"):
            text = file.read_text()
            found |= set(re.findall(r"\b(?:Failure|PlacementRefused|Refusal|Problem)\(\s*\"([A-Z]\w+)\"", text))
            found |= set(re.findall(r"Condition\(\s*(?:type=)?\"([A-Z]\w+)\"", text))
            found |= set(re.findall(r"(?:reason = |, reason=)\"([A-Z][a-z]\w+)\"", text))
            found |= set(re.findall(r"\(\"(Host[A-Z]\w+)\"", text))
    return found


def test_every_reason_is_explained() -> None:
    """What a person may read in a status, an event or a log."""
    known = reasons()
    assert len(known) > 40
    told = set(re.findall(r"`([A-Z][a-z]+[A-Za-z]*)`", OPERATIONS))
    plain = {"Created", "Updated", "Deleted", "Accepted", "Deleting", "Drained"}  # what an event's name says by itself
    assert not sorted(known - told - plain), "not in docs/operations.md"
    words = {"Unaccounted", "ForeignHistory", "VtepMismatch"}  # made from other words
    code = "".join(file.read_text() for d in ("agent", "controller") for file in (ROOT / d).rglob("*.py"))
    assert not sorted(word for word in told - words if f'"{word}"' not in code), "in docs/operations.md only"


def test_the_pipelines_stages_stand_in_its_page() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text()
    rows = re.findall(r"^\| ([\d, ]+) \| ([A-Z_, ]+) \|", page, re.M)
    shown = {
        name.strip(): int(number)
        for numbers, names in rows
        for number, name in zip(numbers.split(","), names.split(","), strict=True)
    }
    assert shown == {stage.name: int(stage) for stage in Stage}
    for feature in Feature:
        assert f"{int(feature):02d} {feature.name.lower()}" in page
    assert ROUTER_MAC in page and ROUTER_MAC in OPERATIONS


def test_every_finding_of_a_check_is_explained() -> None:
    code = "".join(file.read_text() for file in (ROOT / "controller" / "check").glob("*.py"))
    found = set(re.findall(r"Finding\(\s*\"([A-Z_]+)\"", code)) | set(re.findall(r"kind=\"([A-Z_]+)\"", code))
    found |= set(re.findall(r"\"([A-Z_]+)\" if kv else \"", code)) | set(re.findall(r"= \"(HOST_[A-Z]+)\"", code))
    assert len(found) > 15
    (table,) = re.findall(r"\| finding \|.*?\n\n", OPERATIONS, re.S)
    assert found == set(re.findall(r"`([A-Z_]+)`", table))
