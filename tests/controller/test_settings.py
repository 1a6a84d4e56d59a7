"""Settings: file < environment < flags; what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.settings import Settings, SettingsError, help_of, load, names


def test_defaults() -> None:
    settings = load(None, environ={}, flags={})
    assert settings == Settings() and settings.is_embedded
    assert settings.listen == ("0.0.0.0:7443",) and settings.default_mtu == 1430


def test_order(tmp_path: Path) -> None:
    file = tmp_path / "controller.yaml"
    file.write_text("listen: [a:1, 'unix:/x']\ncluster: file\nlost_after: 40\ncompact: off\n")
    settings = load(
        file,
        environ={"TEALNET_CLUSTER": "env", "TEALNET_ETCD": "https://a:2379,https://b:2379"},
        flags={"lost_after": "50"},
    )
    assert settings.listen == ("a:1", "unix:/x") and settings.cluster == "env" and settings.lost_after == 50
    assert settings.etcd == ("https://a:2379", "https://b:2379") and not settings.is_embedded
    assert settings.compact == "off"
    assert load(file, environ={"TEALNET_TENANT": "x"}, flags={}).cluster == "file"  # the command's, not ours


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("listne: x", "listne"),
        ("lost_after: 0", "lost_after"),
        ("default_mtu: many", "default_mtu"),
        ("log_level: loud", "log_level"),
        ("trust_domain: 'A B'", "trust_domain"),
        ("cluster: [a]", "cluster"),
        ("- a", "mapping"),
        ("a: [", "YAML"),
        ("{vni_first: 9, vni_last: 8}", "vni_first"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "controller.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=part):
        load(file, environ={}, flags={})


def test_every_key_says_what_it_is() -> None:
    assert all(help_of(name) for name in names())
