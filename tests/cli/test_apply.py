"""apply, diff, prune: order, partial failure with file:line, exit codes, and what is asked of the controller."""

from __future__ import annotations

import io
from pathlib import Path

import grpc
import pytest

from tealnet import kinds
from tealnet.cli.documents import SET_LABEL
from tealnet.v1 import host_pb2, network_pb2, port_pb2, system_pb2, tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake, Refusal

SITE = """\
kind: Port
tenant: acme
name: web-1
network: web
host: h1
---
kind: Network
tenant: acme
name: web
cidrs:
  - 10.0.0.0/24
router: main
---
kind: Router
tenant: acme
name: main
---
kind: Tenant
name: acme
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    file = tmp_path / "site.yaml"
    file.write_text(SITE)
    return file


def created(fake: Fake) -> list[str]:
    return [method for method, _ in fake.calls if method.startswith("Create")]


def test_order_of_creation_and_the_second_time(fake: Fake, teal: Teal, site: Path) -> None:
    done = teal("apply", "-f", site)
    assert done.code == 0
    assert done.out.splitlines() == [
        "tenant acme created", "router acme/main created", "network acme/web created", "port acme/web-1 created",
    ]  # fmt: skip
    assert created(fake) == ["CreateTenant", "CreateRouter", "CreateNetwork", "CreatePort"]
    again = teal("apply", "-f", site)
    assert again.code == 0 and again.out.count(" unchanged\n") == 4 and "4 unchanged" in again.err
    site.write_text(SITE.replace("10.0.0.0", "10.9.0.0"))
    assert "network acme/web changed" in teal("apply", "-f", site).out
    (update,) = [r for m, r in fake.calls if m == "UpdateNetwork" and "10.9.0.0/24" in r.network.cidrs]
    assert list(update.update_mask.paths) == ["cidrs", "router"]


def test_one_kind_in_parallel_and_many(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "many.yaml"
    file.write_text("".join(f"---\nkind: Host\nname: h{n}\n" for n in range(200)))
    done = teal("apply", "-f", file)
    assert done.code == 0 and done.out.count("created") == 200
    assert done.out.splitlines()[:2] == ["host h0 created", "host h1 created"], "in the order of the file"


def test_a_failure_takes_its_dependents_along_and_others_go_on(fake: Fake, teal: Teal, site: Path) -> None:
    site.write_text(SITE + "---\nkind: Router\ntenant: acme\nname: other\n")
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "network.cidrs[0]: bad", field="network.cidrs[0]")
    fake.refuse["tenants/acme/networks/web"] = refusal
    done = teal("apply", "-f", site)
    assert done.code == 1
    assert f"network acme/web failed: {site}:10: network.cidrs[0]: bad" in done.err
    assert f"port acme/web-1 skipped: network acme/web failed ({site}:1)" in done.err
    assert "2 of 5 documents failed or were skipped" in done.err
    assert "router acme/other created" in done.out
    assert "tenants/acme/ports/web-1" not in fake.objects


def test_without_a_controller_it_is_said_once(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("---\n".join(f"kind: Host\nname: h{number}\n" for number in range(40)))
    fake.refuse["hosts/h3"] = Refusal(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer")
    done = teal("apply", "-f", file)
    assert done.code == 1 and done.err.count("error: ") == 1 and "failed:" not in done.err, done
    assert "3 of 40 documents were dealt with before" in done.err
    del fake.refuse["hosts/h3"]
    done = teal("apply", "-f", file)
    assert done.code == 0 and "host h3 created" in done.out


def test_wrong_documents_are_listed(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("kind: Host\nname: h1\n---\nkind: Hots\nname: h2\n---\nkind: Host\nnaem: h3\n")
    done = teal("apply", "-f", file)
    assert done.code == 2 and done.err.startswith("error: documents are wrong, nothing was done\n  "), done
    assert f"\n  {file}:4: kind: 'Hots' is none of" in done.err and f"\n  {file}:7: name: missing" in done.err
    assert not fake.objects


def test_somebody_else_creates_it_first(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    """Between the look and the create: then it is an update."""
    file = tmp_path / "f.yaml"
    file.write_text("kind: Tenant\nname: acme\nlabels: {a: b}\n")

    class Late(dict[str, object]):
        hidden = True

        def __contains__(self, key: object) -> bool:
            if self.hidden and key == "tenants/acme":
                self.hidden = False
                return False
            return super().__contains__(key)

    fake.objects = Late()
    fake.add(tenant_pb2.Tenant(name="tenants/acme"))
    assert teal("apply", "-f", file).out == "tenant acme changed\n"


def test_dry_run_changes_nothing_and_names_what_fails(fake: Fake, teal: Teal, site: Path) -> None:
    done = teal("apply", "-f", site, "--dry-run")
    assert done.code == 0 and done.out.count("would be created") == 4 and not fake.objects
    fake.refuse["tenants/acme/routers/main"] = Refusal(grpc.StatusCode.PERMISSION_DENIED, "no")
    done = teal("apply", "-f", site, "--dry-run")
    assert done.code == 1
    assert f"router acme/main would fail: {site}:14: no" in done.err
    assert "network acme/web would be skipped: router acme/main fails" in done.err
    assert "port acme/web-1 would be skipped: network acme/web fails" in done.err


def test_exit_codes_of_diff(fake: Fake, teal: Teal, site: Path) -> None:
    done = teal("diff", "-f", site)
    assert done.code == 1 and "+- 10.0.0.0/24" in done.out and f"network acme/web ({site}:7)" in done.out
    assert "etag" not in done.out and "revision" not in done.out
    teal("apply", "-f", site)
    done = teal("diff", "-f", site)
    assert (done.code, done.out) == (0, "")
    fake.refuse["tenants/acme/networks/web"] = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "bad")
    assert teal("diff", "-f", site).code == 2
    site.write_text("kind: [")
    assert teal("diff", "-f", site).code == 2


def test_wait_asks_for_the_tenants_of_the_documents(fake: Fake, teal: Teal, site: Path) -> None:
    done = teal("apply", "-f", site, "--wait")
    assert "3 of 3 hosts know it" in done.out
    site.write_text(SITE + "---\nkind: Tenant\nname: globex\n")
    done = teal("apply", "-f", site, "--wait")
    assert "acme: 3 of 3 hosts know it (0 ms); globex: 3 of 3" in done.out
    asked = [request.parent for method, request in fake.calls if method == "Sync"]
    assert asked == ["tenants/acme", "tenants/acme", "tenants/globex"]
    fake.sync = lambda _: system_pb2.SyncResponse(hosts=3, synced=2, disconnected=["hosts/h2"])
    done = teal("apply", "-f", site, "--wait")
    assert done.code == 3 and "h2 is disconnected" in done.err


# ---- sets


def test_prune_deletes_what_bears_the_mark_and_stands_in_no_document(
    fake: Fake, teal: Teal, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add(host_pb2.Host(name="hosts/h9", labels={SET_LABEL: "other"}))
    assert teal("apply", "-f", site, "--set", "site").code == 0
    assert all(o.labels[SET_LABEL] == "site" for name, o in fake.objects.items() if name != "hosts/h9")
    site.write_text("\n".join(SITE.splitlines()[13:]))  # router and tenant stay
    dry = teal("apply", "-f", site, "--set", "site", "--prune", "--dry-run")
    assert "port acme/web-1 would be deleted\nnetwork acme/web would be deleted\n" in dry.out
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    done = teal("apply", "-f", site, "--set", "site", "--prune")
    assert done.code == 1 and "nothing was done" in done.err and "tenants/acme/ports/web-1" in fake.objects
    done = teal("apply", "-f", site, "--set", "site", "--prune", "--yes")
    assert done.code == 0
    assert done.out.endswith("port acme/web-1 deleted\nnetwork acme/web deleted\n")
    assert set(fake.objects) == {"hosts/h9", "tenants/acme", "tenants/acme/routers/main"}


def test_the_mark_leaves_other_labels_alone(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    fake.add(tenant_pb2.Tenant(name="tenants/acme", labels={"team": "shop"}))
    file = tmp_path / "f.yaml"
    file.write_text("kind: Tenant\nname: acme\n")
    teal("apply", "-f", file, "--set", "site")
    assert dict(fake.objects["tenants/acme"].labels) == {"team": "shop", SET_LABEL: "site"}


def test_nothing_is_pruned_after_a_failure(fake: Fake, teal: Teal, site: Path) -> None:
    fake.add(host_pb2.Host(name="hosts/h9", labels={SET_LABEL: "site"}))
    fake.refuse["tenants/acme"] = Refusal(grpc.StatusCode.PERMISSION_DENIED, "no")
    done = teal("apply", "-f", site, "--set", "site", "--prune", "--yes")
    assert done.code == 1 and "nothing was pruned" in done.err and "hosts/h9" in fake.objects


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("apply",), "Missing option '-f'"),
        (("apply", "-f", "/nonexistent.yaml"), "/nonexistent.yaml: cannot be read: No such file"),
        (("apply", "-f", "SITE", "--prune"), "--prune needs --set"),
        (("apply", "-f", "SITE", "--timeout", "never"), "is not a time"),
    ],
)
def test_usage(fake: Fake, teal: Teal, site: Path, words: tuple[str, ...], text: str) -> None:
    done = teal(*(str(site) if word == "SITE" else word for word in words))
    assert (done.code, text in done.err) == (2, True), done


def test_an_empty_file_is_usage_too(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("---\n---\n")
    assert teal("apply", "-f", tmp_path / "e.yaml").code == 2


def test_what_get_prints_can_be_applied(fake: Fake, teal: Teal, tmp_path: Path) -> None:
    fake.add(
        tenant_pb2.Tenant(name="tenants/acme", state=tenant_pb2.Tenant.STATE_ACTIVE),
        network_pb2.Network(name="tenants/acme/networks/web", cidrs=["10.0.0.0/24"], policy="POLICY_OFF"),
        port_pb2.Port(name="tenants/acme/ports/p", network="tenants/acme/networks/web", addresses=["10.0.0.4"]),
    )
    for form in ("yaml", "json"):
        file = tmp_path / f"export.{form}"
        file.write_text(teal("get", "all", "-o", form).out)
        done = teal("apply", "-f", file)
        assert (done.code, done.out.count("unchanged")) == (0, 3), done
    assert len(fake.objects) == 3 and {kinds.kind_of(name).name for name in fake.objects} == {
        "tenant",
        "network",
        "port",
    }
