"""Generates the Python modules of protos/ beside the packages they belong to.

Runs at every wheel and editable build, and by hand as `python hatch_build.py`. Generated files are git-ignored.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, where hatchling need not be installed
    BuildHookInterface = object  # type: ignore[assignment,misc]

ROOT = Path(__file__).resolve().parent


def generate() -> None:
    """Compile every .proto; the path of a proto is the path of its Python module."""
    from importlib.resources import files

    from grpc_tools import protoc

    protos = sorted(str(p.relative_to(ROOT / "protos")) for p in (ROOT / "protos").rglob("*.proto"))
    well_known = str(files("grpc_tools") / "_proto")
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'protos'}",
            f"-I{well_known}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            f"--grpc_python_out={ROOT}",
            *protos,
        ]
    )
    if code:
        raise SystemExit(f"protoc failed with {code}")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg,misc]
    """Hatch calls this before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate before the build reads the tree."""
        generate()


if __name__ == "__main__":
    generate()
    sys.exit(0)
