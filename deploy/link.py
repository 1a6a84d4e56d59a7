"""Makes the checkout importable in its virtual environment and writes the commands of [project.scripts] there.

What an editable installation does, without a build back end: run by deploy/setup.sh with the environment's interpreter.
"""

from __future__ import annotations

import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = """#!{python}
import sys
from {module} import {function}
sys.exit({function}())
"""


def main() -> None:
    """Write the .pth file and the commands."""
    (Path(sysconfig.get_path("purelib")) / "tealnet-checkout.pth").write_text(f"{ROOT}\n")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        path = Path(sysconfig.get_path("scripts")) / name
        path.write_text(COMMAND.format(python=sys.executable, module=module, function=function))
        path.chmod(0o755)


if __name__ == "__main__":
    main()
