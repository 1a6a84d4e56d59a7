"""Documents of `teal apply`: what a person writes, and the words they get when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tealnet.cli.documents import BadDocument, Document, read_files


def read(tmp_path: Path, text: str, *, tenant: str = "") -> list[Document]:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    return read_files((str(file),), tenant=tenant)


def test_short_names_mean_the_documents_own_tenant(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: Network\ntenant: acme\nname: web\ncidrs: [10.0.0.0/24]\nrouter: main\n")
    assert document.name == "tenants/acme/networks/web"
    assert document.body.router == "tenants/acme/routers/main"
    assert document.mask == ["cidrs", "router"]
    assert document.needs() == {"tenants/acme", "tenants/acme/routers/main"}


def test_null_resets_and_absent_is_left_alone(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: Network\nname: tenants/acme/networks/web\nrouter: null\n")
    assert document.mask == ["router"]
    assert document.body.router == ""


def test_json_names_enums_and_subfields(tmp_path: Path) -> None:
    text = (
        '{"kind": "Port", "tenant": "acme", "name": "p", "network": "web", "allowedAddresses": ["10.9.0.0/24"],'
        ' "attachment": {"kind": "DEVICE", "device": "tap0"}}'
    )
    (document,) = read(tmp_path, text)
    assert document.mask == ["network", "allowed_addresses", "attachment.kind", "attachment.device"]
    assert document.body.attachment.device == "tap0"


def test_many_documents_and_lists(tmp_path: Path) -> None:
    text = "kind: Tenant\nname: a\n---\n- {kind: Tenant, name: b}\n- {kind: Host, name: h1, vtep: 192.0.2.1}\n---\n"
    assert [d.title for d in read(tmp_path, text)] == ["tenant/a", "tenant/b", "host/h1"]


def test_the_default_tenant_is_the_callers(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: Router\nname: main\n", tenant="acme")
    assert document.name == "tenants/acme/routers/main"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Netwrk\nname: web\n", ":1: kind: 'Netwrk' is none of"),
        ("name: web\n", ":1: kind: None is none of"),
        ("kind: Network\ncidrs: []\n", ":1: name: missing"),
        ("\n\nkind: Network\nname: web\n", ":3: tenant: missing"),
        (
            "kind: Network\ntenant: a\nname: web\ncidr: x\n",
            ':1: Message type "tealnet.v1.Network" has no field named "cidr"',
        ),
        ("kind: Network\ntenant: a\nname: web\nmtu: big\n", ":1: "),
        ("kind: Network\nname: hosts/h1\n", ":1: name: 'hosts/h1' is not the name of a network"),
        ("kind: Port\ntenant: a\nname: p\nuid: '7'\n", ":1: uid is set by the server"),
        ("kind: [\n", ": not YAML"),
        ("just words\n", ":1: a document is a mapping"),
        ("kind: Tenant\nname: a\n---\nkind: Tenant\nname: a\n", ":4: tenants/a stands already in"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadDocument) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


def test_a_field_knows_its_line(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: Network\ntenant: a\nname: web\ncidrs:\n  - 10.0.0.1/24\n")
    assert document.line_of("network.cidrs[0]").endswith("f.yaml:4")
    assert document.line_of("unknown").endswith("f.yaml:1")


def test_a_missing_file_and_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="cannot be read"):
        read_files((str(tmp_path / "absent.yaml"),), tenant="")
    with pytest.raises(BadDocument, match=r"no \.yaml"):
        read_files((str(tmp_path),), tenant="")


def test_the_examples_are_good() -> None:
    folder = Path(__file__).parents[2] / "examples"
    assert len(read_files((str(folder),), tenant="")) >= 12
