"""`python -m agent.underlay`: the same command, without the daemon's imports."""

from __future__ import annotations

import sys

from agent.underlay.command import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
