"""teal admin check and teal audit: what is asked, what is shown, and the exit codes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tealnet.v1 import admin_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake

Check = admin_pb2.CheckResponse
LOST = admin_pb2.Finding(
    kind="MISSING_KEY", subject="k/u/vni/5", object="tenants/acme/networks/web", text="it is free", repair="write it"
)
DONE = admin_pb2.Finding(kind="ORPHAN", subject="w/s/port/1", text="no port", repair="delete it", repaired=True)
TWICE = admin_pb2.Finding(kind="SHARED_KEY", subject="k/u/ip/1", text="two ports have it")


@pytest.mark.parametrize(
    ("words", "answer", "code", "shown"),
    [
        ([], Check(intents=3, keys=9, hosts=2, revision=7), 0, ["3 objects, 9 keys and 2 hosts", "7: nothing to mend"]),
        (
            [],
            Check(findings=[LOST, TWICE]),
            1,
            ["MISSING_KEY  k/u/vni/5", "write it\n", "two ports have", "2 to mend"],
        ),
        (["--repair"], Check(findings=[DONE]), 0, ["delete it: done", "nothing left to mend"]),
        (["--repair"], Check(findings=[DONE, TWICE]), 1, ["1 left to mend"]),
        ([], Check(silent_hosts=["hosts/h1", "hosts/h2"]), 3, ["not compared: h1, h2"]),
        ([], Check(findings=[LOST], more=4), 1, ["and 4 more", "5 to mend"]),
    ],
)
def test_check(fake: Fake, teal: Teal, words: list[str], answer: Check, code: int, shown: list[str]) -> None:
    fake.check = answer
    done = teal("admin", "check", "--timeout", "2s", *words)
    assert done.code == code, done
    assert all(text in done.text for text in shown), done
    (asked,) = (request for method, request in fake.calls if method == "Check")
    assert asked.repair == bool(words) and asked.timeout.seconds == 2


def test_check_as_data(fake: Fake, teal: Teal) -> None:
    fake.check = Check(findings=[LOST], revision=7)
    done = teal("admin", "check", "-o", "json")
    assert done.code == 1 and json.loads(done.out)["findings"][0]["kind"] == "MISSING_KEY"


def entry(**more: Any) -> admin_pb2.AuditEntry:
    made = admin_pb2.AuditEntry(who="tenant/acme/admin", method="DeletePort", result="OK", **more)
    made.time.FromSeconds(1_700_000_000)
    return made


def test_audit(fake: Fake, teal: Teal) -> None:
    one, two = "tenants/acme/ports/a", "tenants/acme/ports/b"
    fake.audit.entries.extend([
        entry(name=one, objects=[one, two], revision=42),
        admin_pb2.AuditEntry(method="CreateTenant", name="x", result="PERMISSION_DENIED", reason="PERMISSION_DENIED"),
        entry(name=two, validate_only=True),
    ])  # fmt: skip
    fake.audit.silent_replicas.append("b")
    done = teal("audit", "port", "acme/a", "--who", "tenant/acme", "--since", "1h", "--count", "5")
    assert done.code == 0, done
    for text in ("tenant/acme/admin  DeletePort", "port acme/a and 1 more", "42", "without an answer: b"):
        assert text in done.text, done
    assert "-                  CreateTenant" in done.text and "OK (not written)" in done.text, done
    (asked,) = (request for method, request in fake.calls if method == "ListAudit")
    assert (asked.name, asked.who, asked.page_size) == (one, "tenant/acme", 5) and not asked.HasField("before")
    assert abs(asked.after.seconds - (time.time() - 3600)) < 60


def test_audit_of_a_tenant_and_times(fake: Fake, teal: Teal) -> None:
    done = teal("audit", "-t", "acme", "--since", "2026-11-01T12:00:00Z", "--until", "2026-11-01T14:00:00+01:00")
    assert done.code == 0 and "nothing was written" in done.err
    (asked,) = (request for method, request in fake.calls if method == "ListAudit")
    assert asked.name == "tenants/acme" and asked.before.seconds - asked.after.seconds == 3600
    assert teal("audit", "--since", "yesterday").code == 2
    fake.audit.entries.append(entry(name="tenants/acme", revision=3))
    assert json.loads(teal("audit", "-o", "json").out)[0]["method"] == "DeletePort"
