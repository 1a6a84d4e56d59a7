"""Documents of `teal apply`: what a person writes, and the words they get when it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tealnet.cli.documents import BadDocument, Document, read_files, read_text


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
    assert [d.title for d in read(tmp_path, text)] == ["tenant a", "tenant b", "host h1"]


def test_the_default_tenant_is_the_callers(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: Router\nname: main\n", tenant="acme")
    assert document.name == "tenants/acme/routers/main"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: Netwrk\nname: web\n", ":1: kind: 'Netwrk' is none of"),
        ("name: web\n", ":1: kind: missing; one of"),
        ("kind: Network\ncidrs: []\n", ":1: name: missing"),
        ("kind: Tenant\nname: 5\n", ":2: name: 5 is not text; put it in quotes"),
        ("\n\nkind: Network\nname: web\n", ":3: tenant: missing"),
        ("kind: Host\nname: h1\ntenant: a\n", ":3: tenant: a host has none"),
        ("kind: Network\nname: hosts/h1\n", ":2: name: 'hosts/h1' is not the name of a network"),
        ("kind: Network\nname: a/web\n", ":2: name: not a resource name"),
        ("kind: Port\ntenant: a\nname: p\nuid: '7'\n", ":4: uid is set by the server"),
        (
            "kind: Network\ntenant: a\nname: web\ncidr: x\n",
            ":4: cidr: a Network has no such field; did you mean cidrs?",
        ),
        ("kind: Network\ntenant: a\nname: web\nmtu: big\n", ":4: mtu: 'big' is not a whole number"),
        ("kind: Network\ntenant: a\nname: web\nmtu: -1\n", ":4: mtu: -1 is not within 0"),
        ("kind: Network\ntenant: a\nname: web\ncidrs: 10.0.0.0/8\n", ":4: cidrs: a list is expected: ['10.0.0.0/8']"),
        ("kind: Network\ntenant: a\nname: web\ncidrs: [1]\n", ":4: cidrs[0]: 1 is not text; put it in quotes"),
        ("kind: Network\ntenant: a\nname: web\ncidrs: [null]\n", ":4: cidrs[0]: is empty"),
        ("kind: Network\ntenant: a\nname: web\npolicy: SOME\n", ":4: policy: 'SOME' is none of OFF, ENFORCE"),
        (
            "kind: Network\ntenant: a\nname: w\naddress_quarantine: soon\n",
            ":4: address_quarantine: 'soon' is not a time",
        ),
        (
            "kind: Network\ntenant: a\nname: w\ndns: 10.0.0.1\n",
            ":4: dns: a mapping is expected; its fields are: servers",
        ),
        (
            "kind: Network\ntenant: a\nname: w\ndns: {server: x}\n",
            ":4: dns.server: a Dns has no such field; did you mean",
        ),
        ("kind: Tenant\nname: a\nlabels: [x]\n", ":3: labels: a mapping is expected"),
        ("kind: Tenant\nname: a\nlabels: {x: yes}\n", ":3: labels.x: true is not text; put it in quotes"),
        ("kind: Tenant\nname: a\nlabels: {1: x}\n", ":3: labels: the key 1 is not text"),
        (
            "kind: Tenant\nname: a\nplacement: {kinds: [TAP]}\n",
            ":3: placement.kinds[0]: 'TAP' is none of NETNS, NETNS_PATH",
        ),
        ("kind: Tenant\nname: a\nquota: {ports: 5000000000}\n", ":3: quota.ports: 5000000000 is not within"),
        ("kind: Host\nname: h\ndrained: maybe\n", ":3: drained: 'maybe' is neither true nor false"),
        ("kind: Host\nname: h\nrevoked_before: 2020-01-01\n", ":3: revoked_before: 2020-01-01 is not a time like"),
        ("kind: [\n", ":2: not YAML"),
        ("\tkind: Host\n", ":1: not YAML"),
        ("just words\n", ":1: a document is a mapping"),
        ("kind: Tenant\nname: a\n---\nkind: Tenant\nname: a\n", ":4: tenant a stands already in"),
        ("kind: Tenant\nname: a\nname: b\n", ":3: name stands twice"),
        ("a: &a [*a]\nkind: Tenant\nname: x\nlabels: *a\n", ":1: found unconstructable recursive node"),
        ("!!python/object:os.system {}\n", ":1: kind: missing"),
        ("[" * 5000, ": nested too deeply"),
        ("kind: Tenant\nname: x\0y\n", ": not YAML: unacceptable character"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadDocument) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", [b"kind: Tenant\nname: \xff\n", b"\n\n\xc3\x28"])
def test_what_is_not_utf8_is_said_with_its_line(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(text)
    with pytest.raises(BadDocument, match=r"f\.yaml:[23]: not UTF-8 text \(byte 0x(ff|c3)\)"):
        read_files((str(file),), tenant="")


def test_an_export_can_be_applied(tmp_path: Path) -> None:
    text = (
        "- {kind: Network, name: tenants/a/networks/w, uid: u, etag: e, revision: '7', cidrs: [10.0.0.0/24],"
        " create_time: '2026-01-01T00:00:00Z', policy: POLICY_OFF, address_quarantine: 300s, segments: [{uid: x}],"
        " status: {ports: 1}}\n"
    )
    (document,) = read(tmp_path, text)
    assert document.mask == ["cidrs", "policy", "address_quarantine"]
    assert document.body.etag == "e"


@pytest.mark.parametrize(("value", "seconds"), [("30", 30), ("30s", 30), ("5m", 300), ("1.5h", 5400), ("'300s'", 300)])
def test_times_as_people_write_them(tmp_path: Path, value: str, seconds: int) -> None:
    (document,) = read(tmp_path, f"kind: Network\ntenant: a\nname: w\naddress_quarantine: {value}\n")
    assert document.body.address_quarantine.ToSeconds() == seconds


def test_words_that_yaml_takes_for_booleans(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: network\ntenant: a\nname: w\npolicy: OFF\n")
    assert document.body.policy == document.body.POLICY_OFF


def test_a_field_knows_its_line(tmp_path: Path) -> None:
    (document,) = read(tmp_path, "kind: Network\ntenant: a\nname: web\ncidrs:\n  - 10.0.0.1/24\n")
    assert document.line_of("network.cidrs[0]").endswith("f.yaml:4")
    assert document.line_of("unknown").endswith("f.yaml:1")


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadDocument) as caught:
        read(
            tmp_path,
            "kind: Prot\nname: a\n---\nkind: Tenant\nname: a\n---\nkind: Network\ntenant: a\nname: w\ncidr: x\n",
        )
    first, second = str(caught.value).splitlines()
    assert ":1: kind: 'Prot'" in first and ":10: cidr: a Network has no such field" in second
    with pytest.raises(BadDocument) as caught:
        read(tmp_path, "---\n".join("kind: Prot\nname: a\n" for _ in range(30)))
    assert len(str(caught.value).splitlines()) == 21 and str(caught.value).endswith("… and 10 more")


def lines(tmp_path: Path, text: str) -> list[tuple[str, str]]:
    return [(document.name, document.where.rpartition(":")[2]) for document in read(tmp_path, text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"kind": "Tenant", "name": "a"}\n{"kind": "Tenant", "name": "b"}\n', [("a", 1), ("b", 2)]),
        ('{"kind": "Tenant",\n "name": "a"}\n\n  {"kind": "Tenant", "name": "b"}', [("a", 1), ("b", 4)]),
        ('[{"kind": "Tenant", "name": "a"},\n{"kind": "Tenant", "name": "b"}]', [("a", 1), ("b", 2)]),
        ('{\n\t"kind": "Tenant",\n\t"name": "a"\n}\n', [("a", 1)]),
        ('{"kind": "Tenant", "name": "a"}' + "\n" * 5000 + '{"kind": "Tenant", "name": "b"}', [("a", 1), ("b", 5001)]),
    ],
)
def test_json_one_after_another_keeps_its_lines(tmp_path: Path, text: str, found: list[tuple[str, int]]) -> None:
    assert lines(tmp_path, text) == [(f"tenants/{name}", str(line)) for name, line in found]


def test_a_missing_file_and_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="cannot be read"):
        read_files((str(tmp_path / "absent.yaml"),), tenant="")
    with pytest.raises(BadDocument, match=r"no \.yaml"):
        read_files((str(tmp_path),), tenant="")


def test_the_examples_are_good() -> None:
    folder = Path(__file__).parents[2] / "examples"
    assert len(read_files((str(folder),), tenant="")) >= 17


def test_what_the_examples_show_in_comments_is_good_too() -> None:
    shown = 0
    for file in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")):
        text, count = re.subn(r"^( *)# (?=[a-z_]+: )", r"\1", file.read_text(), flags=re.M)
        assert read_text(text, file=file.name, tenant="")
        shown += count
    assert shown >= 6
