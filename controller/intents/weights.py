"""SetWeights: what is wrong with it, and what it makes of each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from controller.decode import AFFINITY
from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, NotFound
from controller.etcd.types import KeyValue
from controller.features.colors_check import weight_fields, weights_named
from controller.fields import Violations, distinct
from controller.intents.base import check_etag, holder_of, stamp, stored_message
from controller.intents.split import Leaving, OnOpen, leave, set_weights
from controller.names import kind_of, no_colors, split_of, tenant_of, typed
from controller.rows import Intent, NetworkSpec, SplitSpec
from controller.status import Status
from tealnet.v1 import port_pb2, split_pb2

MOST_NETWORKS = 64
LONGEST_DRAIN = 7 * 86_400  # seconds


@dataclass(frozen=True, slots=True)
class Wish:
    """One network's part of a SetWeights. `field`: its path in the request; affinity 0: as it is."""

    field: str
    network: str
    weights: Mapping[str, int]
    affinity: int
    etag: str
    leaving: Leaving
    force: bool


def wishes_of(request: split_pb2.SetWeightsRequest, found: Violations) -> list[Wish]:
    """The parts of a request; what is wrong with them by themselves goes to `found`."""
    leaving = _leaving(request, found)
    if not 1 <= len(request.networks) <= MOST_NETWORKS:
        found.add("networks", f"1 to {MOST_NETWORKS} networks, not {len(request.networks)}")
        return []
    distinct([entry.network for entry in request.networks], "networks", found)
    wishes = []
    for i, entry in enumerate(request.networks):
        field = f"networks[{i}]"
        if kind_of(entry.network) != "network":
            found.add(f"{field}.network", f"{entry.network[:200]!r} is not a name like tenants/TENANT/networks/NETWORK")
        elif tenant_of(entry.network) != request.parent:
            found.add(f"{field}.network", f"{entry.network} is not of {request.parent}")
        if not entry.weights:
            found.add(f"{field}.weights", "is missing: for example blue: 95, green: 5")
        weight_fields(entry.weights, f"{field}.weights", found)
        if entry.affinity not in AFFINITY:
            found.add(f"{field}.affinity", f"{entry.affinity} is not known")
        wish = Wish(field, entry.network, dict(entry.weights), entry.affinity, entry.etag, leaving, request.force)
        wishes.append(wish)
    return wishes


def _leaving(request: split_pb2.SetWeightsRequest, found: Violations) -> Leaving:
    if request.on_open not in split_pb2.OnOpen.values():
        found.add("on_open", f"{request.on_open} is not known")
        return Leaving()
    seconds = request.drain_timeout.seconds + request.drain_timeout.nanos / 1e9
    on_open = OnOpen(split_pb2.OnOpen.Name(request.on_open or split_pb2.ON_OPEN_KEEP).removeprefix("ON_OPEN_"))
    if on_open is not OnOpen.DRAIN and request.HasField("drain_timeout"):
        found.add("drain_timeout", "is for on_open DRAIN; leave it out")
    elif on_open is OnOpen.DRAIN and not 0 < seconds <= LONGEST_DRAIN:
        found.add("drain_timeout", f"is missing, or not within 0…{LONGEST_DRAIN} s: how long open connections may stay")
    return Leaving(on_open, seconds)


class Splits:
    """Moves weights; only networks create and delete splits."""

    def __init__(self, status: Status) -> None:
        self.status = status

    def move(self, draft: Draft, wish: Wish) -> str:
        """Fill the draft with new weights; returns what changes in words, "" for nothing. Raises ApiError.

        The network's row is compared whole, as far as colors go: none can be taken out meanwhile.
        """
        network = draft.reading.row("network", wish.network)
        if network is None:
            raise NotFound(wish.network, field=f"{wish.field}.network")
        row = draft.reading.row("split", split_of(wish.network))
        if row is None:
            text = no_colors(wish.network)
            raise FailedPrecondition(text, [Blocker("NO_COLORS", wish.network, text)], reason="NO_COLORS")
        check_etag(row, wish.etag)
        found = Violations()
        weights_named(wish.weights, network.spec.colors, f"{wish.field}.weights", found)
        found.finish()
        draft.must_be_absent(draft.keys.rollout_of(network.uid), _owned(wish.network))
        if not wish.force:
            self._check_endpoints(network, row.spec, wish.weights)
        message, before = stored_message(row, "split"), stored_message(row, "split")
        set_weights(message, wish.weights, network.spec.colors)
        leave(message, network.spec.colors, wish.leaving, draft.now)
        message.affinity = wish.affinity or message.affinity
        message.ClearField("apply_at")
        if message == before:
            return ""
        stamp(message, draft.now)
        draft.replace("split", row, message=message)
        return self._in_words(message, network.spec.colors, wish.leaving)

    def _check_endpoints(self, network: Intent[NetworkSpec], split: SplitSpec, wanted: Mapping[str, int]) -> None:
        """A color whose share rises needs a port that is ACTIVE. Not compared: ports come and go at any time."""
        before = dict(split.weights)
        total_before, total = sum(before.values()), sum(wanted.values())
        for segment in network.spec.segments:
            share, share_before = wanted.get(segment.color, 0) * total_before, before.get(segment.color, 0) * total
            if not wanted.get(segment.color) or (total_before and share <= share_before):
                continue
            what = f"color {segment.color} of {network.name}"
            names = self.status.world.ports_by_segment.keys(segment.uid)
            states = Counter(port_pb2.PortStatus.State.Name(self.status.port(n).state)[6:] for n in names)
            if not names:
                text = f"{what} has no ports: new connections to it would fail. Create ports in it, or force it"
                raise FailedPrecondition(text, [Blocker("COLOR_EMPTY", network.name, text)], reason="COLOR_EMPTY")
            if not states["ACTIVE"]:
                counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
                text = f"no port in {what} is ACTIVE ({counts}): wait until one is, or force it"
                blocker = Blocker("COLOR_NOT_ACTIVE", network.name, text)
                raise FailedPrecondition(text, [blocker], reason="COLOR_NOT_ACTIVE")

    def _in_words(self, message: split_pb2.TrafficSplit, colors: Iterable[str], leaving: Leaving) -> str:
        weights = " ".join(f"{color}={message.weights.get(color, 0)}" for color in colors)
        on_open = {
            OnOpen.KEEP: "",
            OnOpen.DRAIN: f", open connections of the others end in {leaving.seconds:g} s",
            OnOpen.CUT: ", open connections of the others cut",
        }
        return weights + on_open[leaving.on_open]


def _owned(network: str) -> Callable[[KeyValue], FailedPrecondition]:
    def refuse(found: KeyValue) -> FailedPrecondition:
        rollout = holder_of(found).name
        text = (
            f"the weights of {network} belong to {rollout}, which is not finished: `teal rollout watch "
            f"{typed(rollout)}` shows it, `teal rollout rollback` or `advance` ends it"
        )
        return FailedPrecondition(text, [Blocker("ROLLOUT_ACTIVE", rollout, text)], reason="ROLLOUT_ACTIVE")

    return refuse
