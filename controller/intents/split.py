"""Traffic splits: what a change of weights makes of the stored message, and of the colors that are left.

A split is written with its network's first colors, and by SetWeights and rollouts. Its epoch is its mod_revision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from controller.hosts import timestamp
from controller.intents.base import stored_message
from controller.rows import Intent, SplitSpec
from controller.rows import OnOpen as OnOpen
from tealnet.store.v1 import store_pb2
from tealnet.v1 import split_pb2


@dataclass(frozen=True, slots=True)
class Leaving:
    """`seconds`: of a DRAIN."""

    on_open: OnOpen = OnOpen.KEEP
    seconds: float = 0.0


def set_weights(message: split_pb2.TrafficSplit, weights: Mapping[str, int], colors: Iterable[str]) -> None:
    """New weights for the `colors` that there are; what is not named has none. What has weight is open again."""
    wanted = {color: weights[color] for color in colors if weights.get(color)}
    if dict(message.weights) != wanted:
        message.weights.clear()
        message.weights.update(wanted)
    _keep(message, set(colors) - wanted.keys())


def leave(message: split_pb2.TrafficSplit, colors: Iterable[str], leaving: Leaving, now: Timestamp) -> None:
    """What becomes of the connections to colors without weight: a drain begins (anew), or they are closed at once.

    KEEP changes nothing: a drain that runs goes on, what is closed stays closed.
    """
    idle = [color for color in colors if color not in message.weights and color not in message.closed]
    if leaving.on_open is OnOpen.DRAIN:
        kept = [drain for drain in message.drains if drain.color not in idle]
        del message.drains[:]
        message.drains.extend(kept)
        for color in idle:
            drain = message.drains.add(color=color, begin=now)
            drain.timeout.FromNanoseconds(int(leaving.seconds * 1e9))
    elif leaving.on_open is OnOpen.CUT:
        close(message, idle)


def close(message: split_pb2.TrafficSplit, colors: Collection[str]) -> None:
    """Cut what is open to these colors; those that have weight again are left alone."""
    closed = {*message.closed, *(color for color in colors if color not in message.weights)}
    message.closed[:] = sorted(closed)
    kept = [drain for drain in message.drains if drain.color not in closed]
    del message.drains[:]
    message.drains.extend(kept)


def forget(message: split_pb2.TrafficSplit, colors: Collection[str]) -> None:
    """Colors are taken out of the network: one of the same name later begins anew."""
    _keep(message, {*message.closed, *(drain.color for drain in message.drains)} - set(colors))


def _keep(message: split_pb2.TrafficSplit, colors: Collection[str]) -> None:
    """Only these may be closed or draining."""
    message.closed[:] = [color for color in message.closed if color in colors]
    kept = [drain for drain in message.drains if drain.color in colors]
    if len(kept) != len(message.drains):
        del message.drains[:]
        message.drains.extend(kept)


def split_value(
    row: Intent[SplitSpec], *, weights: Mapping[str, int], closed: Collection[str], apply_at: int, write_id: bytes
) -> bytes:
    """The stored value of a split that a rollout's step moves; the transaction compares the row's mod_revision.

    `weights` and `closed` are all there is afterwards: drains of an earlier SetWeights end. `apply_at`: Unix time in
    ns, 0 = at once. Fields that this build does not know stay.
    """
    message: split_pb2.TrafficSplit = stored_message(row, "split")
    del message.drains[:]
    message.closed[:] = []
    set_weights(message, weights, weights.keys())
    close(message, closed)
    message.ClearField("apply_at")
    if apply_at:
        message.apply_at.FromNanoseconds(apply_at)
    message.update_time.CopyFrom(timestamp())
    stored = store_pb2.Stored.FromString(row.stored)
    stored.message, stored.write_id = message.SerializeToString(deterministic=True), write_id
    return stored.SerializeToString()
