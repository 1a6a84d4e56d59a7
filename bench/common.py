"""What every benchmark needs: figures, tables, the JSON file, a time limit, and how busy the neighbours are."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

RESULTS = Path(__file__).with_name("results")
_ACCOUNT, _SHARE = Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup/cpu")
_SHARES = 20480  # of a processor; any other session has 1,024
Number = int | float


class BenchError(Exception):
    """Why a benchmark cannot go on, for a person."""


@dataclass(frozen=True, slots=True)
class Stat:
    """Of several measurements: how many, least, median, 95 % quantile, most. One unit throughout."""

    count: int
    least: float
    p50: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Stat:
        """Raises BenchError if there are none."""
        ordered = sorted(values)
        if not ordered:
            raise BenchError("nothing was measured")
        p95 = ordered[round(0.95 * (len(ordered) - 1))]
        return cls(len(ordered), ordered[0], statistics.median(ordered), p95, ordered[-1])


@dataclass
class Report:
    """What a benchmark has found. `figures` is flat: name with its unit → number."""

    name: str
    parameters: dict[str, object]
    figures: dict[str, Number] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)

    def put(self, name: str, value: float, digits: int = 3) -> None:
        """One figure."""
        self.figures[name] = round(value, digits)

    def put_stat(self, name: str, values: Iterable[float], *, unit: str) -> None:
        """NAME_min_UNIT, NAME_p50_UNIT and NAME_p95_UNIT; nothing if there are no values."""
        found = list(values)
        if found:
            stat = Stat.of(found)
            self.put(f"{name}_min_{unit}", stat.least, 2)
            self.put(f"{name}_p50_{unit}", stat.p50, 2)
            self.put(f"{name}_p95_{unit}", stat.p95, 2)

    def put_ratio(self, name: str, above: str, below: str) -> None:
        """A figure divided by another, if both are there."""
        if above in self.figures and self.figures.get(below):
            self.put(name, self.figures[above] / self.figures[below])

    def remark(self, text: str) -> None:
        """Something a reader has to know; printed at once, too."""
        say(text)
        self.remarks.append(text)

    def write(self) -> Path:
        """bench/results/NAME.json, in one step."""
        RESULTS.mkdir(exist_ok=True)
        content = {
            "name": self.name,
            "time": time.strftime("%FT%TZ", time.gmtime()),
            "figures": self.figures,
            "versions": versions(),
            "parameters": self.parameters,
            "remarks": self.remarks,
            "raw": self.raw,
        }
        path = RESULTS / f"{self.name}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content, indent=1) + "\n")
        new.rename(path)
        return path


def say(*words: object) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%T')}]", *words, flush=True)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: first column to the left, numbers to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    print(f"\n{title}\n")
    print(text(lines[0]))
    print("  ".join("-" * w for w in widths))
    for line in lines[1:]:
        print(text(line))
    print(flush=True)


def ms(value: float, digits: int = 1) -> str:
    """Milliseconds for a cell."""
    return f"{value:.{digits}f}"


def versions() -> dict[str, str]:
    """Of what takes part, as its programs say."""
    asked: Mapping[str, Sequence[str]] = {
        "openvswitch": ["ovs-vswitchd", "--version"],
        "etcd": ["etcd", "--version"],
        "iperf3": ["iperf3", "--version"],
    }
    found = {name: _first_line(argv) for name, argv in asked.items()}
    return {
        **{name: line for name, line in found.items() if line},
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tealnet": _first_line(["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]) or "unknown",
        "cpus": str(os.cpu_count()),
    }


def _first_line(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n", 1)[0].strip()


@contextlib.contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """Raise BenchError here after so many seconds, or on SIGTERM: what is above tears down on its way out."""

    def late(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # tearing down must not be interrupted by a second one
        raise BenchError("ended by a signal" if number == signal.SIGTERM else f"not done after {seconds} s")

    old = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGTERM)}
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in old.items():
            signal.signal(number, handler)


# -- the neighbours


class Neighbours:
    """CPU time that others use, told apart by a cpuacct group (cgroups v1) of our own; without one nothing is known.

    There is a cpu group, too, if there can be: within it threads compete as threads. Else each daemon of the lab is a
    session and so an autogroup (sched(7)) that waits whole slices for the others, however little it has to do.
    """

    def __init__(self) -> None:
        name = f"tealnet-bench-{os.getpid()}"
        self.group = self._join(_ACCOUNT / name)
        self._share = self._join(_SHARE / name) if _SHARE.resolve() != _ACCOUNT.resolve() else None
        for group in filter(None, (self._share or self.group,)):
            with contextlib.suppress(OSError):
                (group / "cpu.shares").write_text(str(_SHARES))

    @staticmethod
    def _join(group: Path) -> Path | None:
        try:
            group.mkdir()
            (group / "tasks").write_text(str(os.getpid()))
        except OSError:
            return None
        return group

    def close(self) -> None:
        """Leave and remove the groups; what we started must have ended."""
        for group in filter(None, (self.group, self._share)):
            self._leave(group)
        self.group = self._share = None

    @staticmethod
    def _leave(group: Path) -> None:
        with contextlib.suppress(OSError):
            for task in os.listdir("/proc/self/task"):
                (group.parent / "tasks").write_text(task)
        for _ in range(50):
            try:
                group.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.1)  # the kernel is still collecting the last processes
            else:
                return

    def others(self, seconds: float = 0.3) -> float:
        """Cores used by others over the next `seconds`; 0 if that can't be known."""
        if self.group is None:
            return 0.0
        before = self._read(self.group)
        time.sleep(seconds)
        after = self._read(self.group)
        return max(0.0, (after[1] - before[1] - (after[2] - before[2])) / (after[0] - before[0]))

    def wait_quiet(self, *, cores: float = 0.4, seconds: float = 3.0) -> float:
        """Wait until others use less than `cores`, but at most `seconds`; returns what they used last."""
        deadline = time.monotonic() + seconds
        while (used := self.others()) >= cores and time.monotonic() < deadline:
            pass
        return used

    @staticmethod
    def _read(group: Path) -> tuple[float, float, float]:
        with open("/proc/stat") as stat:
            ticks = [int(word) for word in stat.readline().split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, int((group / "cpuacct.usage").read_text()) / 1e9
