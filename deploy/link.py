"""Makes the checkout importable in its virtual environment and writes the commands of [project.scripts] there.

What an editable installation does, without a build back end: run by deploy/setup.sh with the environment's interpreter.
"""

from __future__ import annotations

import shutil
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    _describe(Path(sysconfig.get_path("purelib")), name=project["name"], version=project["version"])
    for name, entry in project["scripts"].items():
        module, _, function = entry.partition(":")
        path = Path(sysconfig.get_path("scripts")) / name
        path.write_text(COMMAND.format(python=sys.executable, module=module, function=function))
        path.chmod(0o755)


def _describe(packages: Path, *, name: str, version: str) -> None:
    """What importlib.metadata reads, so that the programs know their version."""
    for old in packages.glob(f"{name}-*.dist-info"):
        shutil.rmtree(old)
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


if __name__ == "__main__":
    main()
