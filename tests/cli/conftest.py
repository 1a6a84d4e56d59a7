"""`teal` in this process against a controller made of a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tealnet.cli.main import run
from tealnet.core.pki import Ca
from tests.cli.fake_server import Fake


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


Teal = Callable[..., Result]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA with the leaves `controller` and `admin`."""
    directory = tmp_path_factory.mktemp("pki")
    ca = Ca.create("lab.test")
    ca.save(directory)
    ca.issue("controller", dns=("controller",)).save(directory, "controller")
    ca.issue("admin").save(directory, "admin")
    return directory


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own file of contexts, and no other influence from the environment."""
    for name in ("TEALNET_CONTEXT", "TEALNET_TENANT", "TEALNET_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config.yaml"
    monkeypatch.setenv("TEALNET_CONFIG", str(path))
    return path


@pytest.fixture
def teal(config: Path, capsys: pytest.CaptureFixture[str]) -> Teal:
    """`teal WORDS`: never a traceback, whatever happens."""

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err and "bug of teal" not in err, err
        return Result(code, out, err)

    return call


@pytest.fixture
def fake(tmp_path: Path, pki: Path, teal: Teal) -> Iterator[Fake]:
    """The controller, in the current context `fake`."""
    with Fake(tmp_path / "s", pki) as server:
        done = teal("context", "add", "fake", "--server", server.server, "--ca", pki / "ca.crt",
                    "--cert", pki / "admin.crt", "--key", pki / "admin.key")  # fmt: skip
        assert done.code == 0, done
        yield server


@pytest.fixture
def labs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of labs; not pytest's, which is too long for sockets."""
    monkeypatch.delenv("TEALNET_LAB", raising=False)
    with TemporaryDirectory(prefix="t-") as directory:
        monkeypatch.setenv("TEALNET_LAB_DIR", directory)
        yield Path(directory)
