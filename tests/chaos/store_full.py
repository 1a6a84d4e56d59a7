"""`python -m tests.chaos.store_full SECONDS CA CERT KEY ENDPOINT…`, inside a lab: its etcd takes no writes for a while.

Etcd says so by its alarm NOSPACE, when its quota is used up. Here the alarm is raised as a member raises it, and
disarmed as an operator does: then what fills gigabytes in years can be had in a moment.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from controller.etcd import Etcd, StoreError, Tls
from tealnet.etcdpb import etcd_pb2 as pb

PATIENCE, PAUSE = 60.0, 0.2  # seconds: how long there may be no quorum, and between two tries


async def fill(seconds: float, etcd: Etcd) -> None:
    """Until the alarm is disarmed. Raises StoreError if nobody takes it; then there is no quorum, and no alarm."""
    member = (await etcd.members())[0]
    raised = pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, memberID=member.member_id, alarm=pb.AlarmMember.NOSPACE)
    await etcd._alarm(raised)
    await asyncio.sleep(seconds)
    async with asyncio.timeout(PATIENCE):
        while not await _disarmed(etcd):
            await asyncio.sleep(PAUSE)


async def _disarmed(etcd: Etcd) -> bool:
    try:
        for alarm in await etcd.alarms():
            await etcd.disarm(alarm)
        return not await etcd.alarms()
    except StoreError:
        return False


async def main(seconds: float, files: list[str], endpoints: list[str]) -> None:
    """Entry point."""
    ca, cert, key = map(Path, files)
    async with Etcd(endpoints, Tls(ca, cert, key)) as etcd:
        await fill(seconds, etcd)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), sys.argv[2:5], sys.argv[5:]))
