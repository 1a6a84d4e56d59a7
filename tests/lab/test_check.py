"""`teal admin check` on a lab: the store damaged with etcdctl, and hosts that have too much or say nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tealnet import kinds
from tealnet.lab.wait import wait_for
from tests.lab.stand import ACTIVE, READY, SOON, Store, expect_reached, pinging, standing
from tests.lab.test_backup import teal, use

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]


def test_check_and_repair_under_traffic() -> None:
    with standing("t-check", hosts=2) as stand:
        lab = stand.lab
        use(lab)
        stand.tenant("acme")
        stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
        for name, host in (("a", "h1"), ("b", "h2"), ("c", "h2")):
            stand.port(f"acme/{name}", "web", host)
        stand.sync()
        one, two = stand.workloads("acme/a", "acme/b")

        def check(*words: str, code: int) -> dict[str, Any]:
            done = teal(lab, "admin", "check", "-o", "json", *words)
            assert done.returncode == code, done
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer

        def kinds_of(answer: dict[str, Any]) -> list[str]:
            return sorted(finding["kind"] for finding in answer.get("findings", []))

        def until_unaccounted(count: int) -> None:
            def so() -> bool:
                return bool(stand.client.get("hosts/h2").status.unaccounted == count)

            wait_for(so, seconds=SOON, what=f"{count} ports unaccounted for on h2")

        whole = check(code=0)
        assert whole["hosts"] == 2 and not kinds_of(whole)
        with pinging((one, two.v4), (two, one.v6)):
            # 1. Keys and a status, by hand.
            store, ports = Store(stand), {p.name.rsplit("/", 1)[1]: p for p in stand.client.list_all(kinds.PORT)}
            keys = store.ctl("get", "--prefix", "--keys-only", store.root + "k/u/mac/").decode().split()
            for key in [*keys, f"{store.root}w/s/port/{ports['a'].uid}"]:
                store.ctl("del", key)
            store.put({"k/r/host/0/port/0": b"", f"w/s/port/{'0' * 32}": b""})
            assert kinds_of(check(code=1)) == ["MISSING_KEY"] * 3 + ["ORPHAN", "UNKNOWN_KEY", "WRONG_STATUS"]
            store.ctl("del", f"{store.root}k/r/host/0/port/0")
            assert len(kinds_of(check("--repair", code=0))) == 5
            assert not kinds_of(check(code=0))
            stand.becomes("acme/a", ACTIVE)
            # 2. A port that is in the store no more, and that nobody deleted: the host keeps it, its keys are nobody's.
            intent = store.get("w/o/port/acme/c")
            store.ctl("del", f"{store.root}w/o/port/acme/c")
            until_unaccounted(1)
            found = check(code=1)
            assert set(kinds_of(found)) == {"DANGLING_KEY", "ORPHAN", "UNACCOUNTED"}, found
            assert f"localport/{ports['c'].uid}" in json.dumps(found)
            store.put({"w/o/port/acme/c": intent})  # it comes back before anything was taken away
            until_unaccounted(0)
            stand.sync()
            assert not kinds_of(check("--repair", code=0))
            # 3. A host without an agent is named; what it has is not touched.
            lab.kill("h2", "agent")
            done = teal(lab, "admin", "check")
            assert done.returncode == 3 and "not compared: h2" in done.stderr, done
            lab.start("h2", "agent")
            stand.host_becomes("h2", READY)
            stand.sync()
            assert not kinds_of(check(code=0))
        expect_reached(one, *two.addresses)
        told = teal(lab, "audit", "--who", "admin").stdout
        assert "Check" in told and "CreatePort" in told and "port acme/a" in told, told
