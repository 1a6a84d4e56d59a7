"""The segments of a network: naming the one that there is, adding and taking out colors (T2), and their split.

Naming changes one row: the segment keeps its uid, VNI, ports and references, whether it gets a name or loses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition
from controller.etcd.types import Page, prefix_end
from controller.features.colors_check import BASE, domain_colors, numbered, too_many, weight_fields, weights_named
from controller.fields import Violations
from controller.intents.base import (
    Context,
    holder,
    holder_of,
    issued_of,
    new_uid,
    release,
    stamp,
    stored,
    stored_message,
    take_number,
)
from controller.intents.split import forget, set_weights
from controller.names import split_of, typed
from controller.rows import Intent, NetworkSpec, RouterSpec, SplitSpec
from tealnet.store.v1 import store_pb2
from tealnet.v1 import network_pb2, split_pb2

Router = Intent[RouterSpec] | None


def new_segments(
    draft: Draft, colors: Iterable[str], *, value: bytes, context: Context
) -> list[store_pb2.IssuedSegment]:
    """Segments that do not exist yet, each with a VNI; `value` stands in its key. Without colors the base segment."""
    return [
        store_pb2.IssuedSegment(color=color, uid=new_uid(), vni=_vni(draft, color, value=value, context=context))
        for color in colors
    ]


def _vni(draft: Draft, color: str, *, value: bytes, context: Context) -> int:
    world = draft.reading.world
    return take_number(
        draft,
        "VNI" if color == BASE else f"VNI of {color}",
        span=(context.settings.vni_first, context.settings.vni_last),
        used=lambda n: bool(world.networks_by_vni.keys(n)),
        key_of=draft.keys.vni,
        value=value,
        rng=context.rng,
    )


def change_segments(
    draft: Draft, row: Intent[NetworkSpec], colors: Sequence[str], *, issued: store_pb2.Issued, context: Context
) -> None:
    """Make the segments of a network those of `colors`, in their order. Raises FailedPrecondition."""
    old = {segment.color: segment for segment in issued.segments}
    if list(colors) == list(row.spec.colors):
        return
    if not row.spec.colors:
        old = {colors[0]: old.pop(BASE)}
        old[colors[0]].was_base = True
    elif not colors:
        old = {BASE: _last(row, old)}
        old[BASE].was_base = False
    wanted = list(colors) or [BASE]
    for color, segment in old.items():
        if color not in wanted:
            _take_out(draft, row, segment)
        segment.color = color
    value = holder(row.name, row.uid)
    added = new_segments(draft, [c for c in wanted if c not in old], value=value, context=context)
    found = {color: segment for color, segment in old.items() if color in wanted}
    found |= {segment.color: segment for segment in added}
    kept = [found[color] for color in wanted]
    del issued.segments[:]
    issued.segments.extend(kept)


def _last(row: Intent[NetworkSpec], old: dict[str, store_pb2.IssuedSegment]) -> store_pb2.IssuedSegment:
    if len(old) > 1:
        text = (
            f"{row.name} has the colors {', '.join(old)}: take out all but one first; its segment is then the one "
            "without a name, with its ports"
        )
        raise FailedPrecondition(text, [Blocker("COLORS_LEFT", row.name, text)], reason="COLORS_LEFT")
    (segment,) = old.values()
    return segment


def _take_out(draft: Draft, row: Intent[NetworkSpec], segment: store_pb2.IssuedSegment) -> None:
    """Only a color without ports. Its VNI is released, not free: hosts may still know its old meaning (A8)."""
    prefix = draft.keys.references("segment", segment.uid)
    draft.must_be_empty(prefix, prefix_end(prefix), _in_use(draft, row.name, segment.color))
    release(draft, draft.keys.vni(segment.vni), name=row.name, uid=row.uid)


def _in_use(draft: Draft, name: str, color: str) -> Callable[[Page], FailedPrecondition]:
    def refuse(page: Page) -> FailedPrecondition:
        kinds = [draft.keys.relative(kv.key).split("/")[4] for kv in page.kvs]
        pairs = [(kind, holder_of(kv).name) for kind, kv in zip(kinds, page.kvs, strict=True)]
        blockers = [Blocker("COLOR_IN_USE", by, f"{kind} {by} is in color {color}") for kind, by in pairs]
        names = ", ".join(by for _, by in pairs)
        more = f" and {page.count - len(pairs)} more" if page.count > len(pairs) else ""
        advice = "delete them first; a port never changes its color"
        if any(kind != "port" for kind in kinds):
            advice = "wait for its end, or end it"
        text = f"color {color} of {name} is in use by {names}{more}: {advice}"
        return FailedPrecondition(text, blockers, reason="COLOR_IN_USE")

    return refuse


# ---- numbers


def number_segments(draft: Draft, name: str, *, issued: store_pb2.Issued, router: Router) -> None:
    """Give the colors of a network the numbers that they have in its domain (a set, which the guard covers)."""
    colors = [segment.color for segment in issued.segments if segment.color != BASE]
    others: list[Intent[NetworkSpec]] = []
    if router:
        draft.reading.guard(router.uid)
        draft.touch_guard(router.uid)
        found = draft.reading.where("network", draft.reading.world.networks_by_router, router.name)
        others = [other for other in found if other.name != name]
    own = {segment.color: segment.color_number for segment in issued.segments if segment.color_number}
    numbers = numbered(colors, own=own, domain=domain_colors(others))
    if numbers is None:
        raise too_many(router.name if router else name, colors, others)
    for segment in issued.segments:
        segment.color_number = numbers.get(segment.color, 0)


# ---- the split


def check_initial(message: network_pb2.Network, *, has_ports: bool) -> None:
    """The weights with which a network gets its first colors. Raises Invalid."""
    found = Violations("network")
    weight_fields(message.initial_weights, "initial_weights", found)
    weights_named(message.initial_weights, message.colors, "initial_weights", found)
    first, *others = message.colors
    for color in others if has_ports else ():
        if message.initial_weights.get(color):
            text = f"{color} has no ports yet: all to {first} first, then `teal color set-weights`"
            found.add("initial_weights", text)
    found.finish()


def begin_split(draft: Draft, name: str, message: network_pb2.Network, *, uid: str, tenant_uid: str) -> None:
    """The split of a network that gets its first colors; `uid` is the network's."""
    split = split_pb2.TrafficSplit(name=split_of(name), affinity=split_pb2.AFFINITY_CONNECTION)
    weights = dict(message.initial_weights) or {message.colors[0]: 100}
    set_weights(split, weights, message.colors)
    stamp(split, draft.now, created=draft.now)
    issued = store_pb2.Issued(network_uid=uid, tenant_uid=tenant_uid)
    draft.create("split", split.name, stored(split, uid=new_uid(), issued=issued))


def change_split(draft: Draft, row: Intent[NetworkSpec], message: network_pb2.Network) -> None:
    """The split after a change of colors; other colors' weights stay. Call it when the network was written."""
    if list(message.colors) == list(row.spec.colors):
        return
    if not row.spec.colors:
        check_initial(message, has_ports=bool(draft.reading.world.ports_by_network.keys(row.name)))
        begin_split(draft, row.name, message, uid=row.uid, tenant_uid=issued_of(row).tenant_uid)
        return
    split: Intent[SplitSpec] | None = draft.reading.row("split", split_of(row.name))
    if split is None:  # only in a store that was edited by hand
        return
    if not message.colors:
        draft.remove("split", split)
        return
    gone = set(row.spec.colors) - set(message.colors)
    _weightless(row.name, split.spec, gone)
    changed = stored_message(split, "split")
    forget(changed, gone)
    if changed != stored_message(split, "split"):
        stamp(changed, draft.now)
        draft.replace("split", split, message=changed)


def _weightless(name: str, split: SplitSpec, gone: set[str]) -> None:
    """What new connections go to stays."""
    weights = dict(split.weights)
    for color in sorted(gone & weights.keys()):
        rest = {other: weight for other, weight in weights.items() if other not in gone} or {"COLOR": 100}
        words = " ".join(f"{other}={weight}" for other, weight in rest.items())
        text = (
            f"color {color} of {name} gets {weights[color]} of {sum(weights.values())} new connections: move them "
            f"first, for example `teal color set-weights {typed(name)} {words}`"
        )
        raise FailedPrecondition(text, [Blocker("COLOR_HAS_WEIGHT", name, text)], reason="COLOR_HAS_WEIGHT")


def end_split(draft: Draft, name: str) -> None:
    """With its network."""
    if split := draft.reading.row("split", split_of(name)):
        draft.remove("split", split)
