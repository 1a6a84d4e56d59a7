"""Coverage-guided fuzzing of one decoder or of all in turn: `python -m tests.fuzz [NAME…] --seconds 60`.

Needs atheris (libFuzzer for Python), which is no part of the usual set-up; `make fuzz` installs it. What libFuzzer
finds stays in build/fuzz/NAME and is its corpus the next time; an input that breaks a decoder is kept as crash-… there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
_RSS = 512  # MiB: more is growth
_HANG = 5  # seconds for one input


def one(name: str, seconds: int) -> None:
    """Fuzz in this process; libFuzzer ends it."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    with atheris.instrument_imports(include=["agent", "controller", "tealnet"]):
        from tests.fuzz.decoders import DECODERS
    decoder = DECODERS[name]
    corpus = BUILD / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, example in enumerate(decoder.examples):
        (corpus / f"example-{number}").write_bytes(example)
    limits = [f"-max_total_time={seconds}", f"-timeout={_HANG}", f"-rss_limit_mb={_RSS}", "-max_len=4096"]
    atheris.Setup(
        [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={corpus}/", str(corpus)], decoder.survive
    )
    atheris.Fuzz()


def main() -> int:
    """Each decoder in a process of its own, for its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="of all together")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        one(given.names[0], given.seconds)
        return 0
    from tests.fuzz.decoders import DECODERS  # not before: what is imported already can't be watched

    names = given.names or sorted(DECODERS)
    share, failed = max(2, given.seconds // len(names)), []
    for name in names:
        argv = [sys.executable, "-m", "tests.fuzz", name, "--here", "--seconds", str(share)]
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=share * 3 + 120)
        runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line), "0")
        print(f"{name}: {runs} inputs in {share} s: {'FAILED' if done.returncode else 'nothing found'}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stderr[-4000:])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
