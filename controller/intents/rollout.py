"""Rollouts: created once, moved by transitions (A11), deleted when they are over.

An unfinished one holds its networks (`k/u/rollout/…`: nobody else moves their weights) and refers to them and to every
color that it may use; a color that a host may still send to it refers to until no host is behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, NotFound
from controller.etcd.types import KeyValue, created, put
from controller.features.colors_check import weights_named
from controller.features.rollout_check import PLAN, rollout_fields, rollout_shape
from controller.fields import Violations
from controller.intents.base import (
    Context,
    Quota,
    holder,
    holder_of,
    issued_of,
    living_tenant,
    new_uid,
    stamp,
    stored,
    stored_message,
    take_slot,
)
from controller.intents.split import split_value
from controller.masks import OUTPUT, Policy
from controller.names import no_colors, split_of, tenant_of, typed
from controller.rollouts.messages import plan_of, write
from controller.rollouts.plan import Claims, Plan, RolloutSpec, Run, Shares, claims
from controller.rollouts.transition import Key, Transition
from controller.rows import Intent, NetworkSpec, SplitSpec
from tealnet.store.v1 import store_pb2
from tealnet.v1 import rollout_pb2


class Rollouts:
    """Writer of rollouts."""

    kind = "rollout"
    policy = Policy(
        output=OUTPUT | {"state", "step", "reason", "text", "history", "status"},
        chosen=PLAN - {"networks", "target", "steps"},
    )

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: rollout_pb2.Rollout, found: Violations) -> None:
        """Each field by itself."""
        rollout_fields(message, self.context.settings.rollout_urls, found)

    def create(self, draft: Draft, name: str, message: rollout_pb2.Rollout) -> None:
        """It owns its networks' weights from this revision on."""
        found = Violations("rollout")
        rollout_shape(message, found)
        found.finish()
        tenant, uid = living_tenant(draft, tenant_of(name)), new_uid()
        run = store_pb2.RolloutRun(state=rollout_pb2.Rollout.STATE_PENDING)
        pairs = [self._network(draft, name, message, i) for i in range(len(message.networks))]
        message.origin = message.origin or _origin([split for _, split in pairs], message.target)
        for network, split in pairs:
            _refuse_stale(network, split, message)
            _refuse_empty(draft, network, message.target)
            run.networks.append(_before(network, split, plan_of(message)))
        limit = tenant.spec.max_rollouts or self.context.settings.quota_rollouts
        quota = Quota("rollout", limit, draft.reading.world.rollouts_by_slot)
        slot = take_slot(draft, tenant, quota, uid=uid, name=name, rng=self.context.rng)
        message.name = name
        stamp(message, draft.now, created=draft.now)
        issued = store_pb2.Issued(tenant_uid=tenant.uid, run=run)
        draft.create("rollout", name, stored(message, uid=uid, issued=issued, slot=slot))
        for network, _ in pairs:
            draft.claim(draft.keys.rollout_of(network.uid), holder(name, uid), refuse=owned(network.name))
        for key in [*_references(draft, run, uid), _tenant_reference(draft, tenant.uid, uid)]:
            draft.put(key, holder(name, uid))

    def update(self, draft: Draft, row: Intent[RolloutSpec], message: rollout_pb2.Rollout) -> None:
        """What is to be done stays as it was created (A26)."""
        before: rollout_pb2.Rollout = stored_message(row, "rollout")
        fields = [field for field in message.DESCRIPTOR.fields_by_name if field in PLAN]
        changed = [field for field in fields if getattr(before, field) != getattr(message, field)]
        if plan_of(before) != plan_of(message):
            text = (
                f"{row.name} cannot be changed once it is created; {', '.join(changed)} would be: "
                "create another one of another name, or delete this one when it is over"
            )
            raise FailedPrecondition(text, [Blocker("ROLLOUT_FIXED", row.name, text)], reason="ROLLOUT_FIXED")
        labels, description = dict(message.labels), message.description
        message.CopyFrom(before)  # the plan may have been said in other words
        message.labels.clear()
        message.labels.update(labels)
        message.description = description
        stamp(message, draft.now)
        draft.replace("rollout", row, message=message)

    def delete(self, draft: Draft, row: Intent[RolloutSpec]) -> None:
        """Only of one that is over, on all hosts."""
        run = row.spec.run
        if not run.is_done:
            if run.is_over:
                text = (
                    f"{row.name} is over, but hosts that do not know it yet may still send to its colors: "
                    f"`teal get rollout {typed(row.name)}` names them; `teal host fence` says that one is gone for good"
                )
            else:
                text = (
                    f"{row.name} is {run.state.value}: `teal rollout rollback {typed(row.name)}` first, or let it end"
                )
            raise FailedPrecondition(text, [Blocker("ROLLOUT_ACTIVE", row.name, text)], reason="ROLLOUT_ACTIVE")
        self.abandon(draft, row)

    def abandon(self, draft: Draft, row: Intent[RolloutSpec]) -> None:
        """Away with it, however far it is: its networks go, too. The weights stay as they are."""
        issued, keys = issued_of(row), draft.keys
        draft.remove("rollout", row)
        _release(draft, issued.run, row, kept=Claims.NONE)
        draft.delete(keys.confirmation(row.uid))
        for step in range(1, len(row.spec.plan.steps) + 1):
            draft.delete(keys.rollout_step(row.uid, step))
        draft.delete(keys.slot(tenant_uid=issued.tenant_uid, kind="rollout", slot=row.slot))
        draft.delete(_tenant_reference(draft, issued.tenant_uid, row.uid))

    # ---- creating

    def _network(
        self, draft: Draft, name: str, message: rollout_pb2.Rollout, i: int
    ) -> tuple[Intent[NetworkSpec], Intent[SplitSpec]]:
        """One of the networks, compared whole: its colors stay until the references are there."""
        field = f"networks[{i}]"
        found = Violations("rollout")
        if tenant_of(message.networks[i]) != tenant_of(name):
            found.add(field, f"{message.networks[i]} is not of {tenant_of(name)}")
            found.finish()
        network = draft.reading.row("network", message.networks[i])
        if network is None:
            raise NotFound(message.networks[i], field=f"rollout.{field}")
        split = draft.reading.row("split", split_of(network.name))
        if split is None:
            text = no_colors(network.name)
            raise FailedPrecondition(text, [Blocker("NO_COLORS", network.name, text)], reason="NO_COLORS")
        weights_named(
            dict.fromkeys(filter(None, (message.target, message.origin)), 0), network.spec.colors, field, found
        )
        for j, step in enumerate(message.steps):
            weights_named(step.weights, network.spec.colors, f"steps[{j}].weights", found)
        found.finish()
        return network, split


def _origin(splits: Iterable[Intent[SplitSpec]], target: str) -> str:
    """The color that has all the traffic which is to move. Raises Invalid."""
    found = sorted({color for split in splits for color, _ in split.spec.weights} - {target})
    if len(found) == 1:
        return found[0]
    violations = Violations("rollout")
    text = f"{target} has all the traffic already" if not found else f"say which: traffic is on {', '.join(found)}"
    violations.add("origin", text)
    violations.finish()
    raise AssertionError


def _refuse_stale(network: Intent[NetworkSpec], split: Intent[SplitSpec], message: rollout_pb2.Rollout) -> None:
    """A plan that was made for other weights is not carried out."""
    weights = dict(split.spec.weights)
    if message.origin not in weights:
        now = ", ".join(f"{color} {weight}" for color, weight in split.spec.weights)
        text = f"{message.origin} of {network.name} has no traffic to move; the weights are {now}"
        raise FailedPrecondition(text, [Blocker("ORIGIN_EMPTY", network.name, text)], reason="ORIGIN_EMPTY")


def _refuse_empty(draft: Draft, network: Intent[NetworkSpec], target: str) -> None:
    segment = next(s for s in network.spec.segments if s.color == target)
    if not draft.reading.where("port", draft.reading.world.ports_by_segment, segment.uid):
        text = f"color {target} of {network.name} has no ports: create the workloads in it first"
        raise FailedPrecondition(text, [Blocker("COLOR_EMPTY", network.name, text)], reason="COLOR_EMPTY")


def _before(network: Intent[NetworkSpec], split: Intent[SplitSpec], plan: Plan) -> store_pb2.RolloutNetwork:
    used = {plan.target, *dict(split.spec.weights)} | {color for step in plan.steps for color, _ in step.weights}
    return store_pb2.RolloutNetwork(
        name=network.name,
        uid=network.uid,
        weights=dict(split.spec.weights),
        closed=split.spec.closed,
        segments={s.color: s.uid for s in network.spec.segments if s.color in used},
    )


def owned(network: str) -> Callable[[KeyValue], FailedPrecondition]:
    """The refusal where an unfinished rollout holds a network."""

    def refuse(found: KeyValue) -> FailedPrecondition:
        other = holder_of(found).name
        text = (
            f"{network} is moved by {other} already: `teal rollout watch {typed(other)}` shows it; "
            "one at a time, so roll that one back or let it end"
        )
        return FailedPrecondition(text, [Blocker("ROLLOUT_ACTIVE", other, text)], reason="ROLLOUT_ACTIVE")

    return refuse


# ---- transitions


def carry_out(draft: Draft, row: Intent[RolloutSpec], transition: Transition, *, actor: str, lease: int = 0) -> None:
    """Fill the draft with a transition: every split is compared, whether it is written or not.

    `lease`: for the key of the confirmation.
    """
    run = row.spec.run
    for network, split in splits_of(draft, run).items():
        shares = (transition.shares or {}).get(network)
        if shares is not None:
            weights = dict(shares.weights)
            value = split_value(
                split, weights=weights, closed=shares.closed, apply_at=shares.apply_at, write_id=draft.write_id
            )
            draft.put(draft.keys.intent(split.name), value)
    issued = issued_of(row)
    _release(draft, issued.run, row, kept=claims(transition.run))
    write(issued.run, transition, now=draft.now, actor=actor)
    draft.replace("rollout", row, message=stored_message(row, "rollout"), issued=issued)
    _confirmation(draft, row.uid, transition.key, lease)


def splits_of(draft: Draft, run: Run) -> Mapping[str, Intent[SplitSpec]]:
    """The splits of a run's networks, by network, each compared; one that is gone is left out."""
    rows = ((before.network, draft.reading.row("split", split_of(before.network))) for before in run.networks)
    return {network: row for network, row in rows if row is not None}


def shares_of(split: Intent[SplitSpec]) -> Shares:
    """A split as the machine sees it."""
    return Shares(split.spec.weights, split.spec.closed, split.spec.apply_at)


def _confirmation(draft: Draft, uid: str, what: Key, lease: int) -> None:
    key = draft.keys.confirmation(uid)
    match what:
        case Key.PUT:
            draft.add(put(key, b"", lease))
        case Key.TAKE:
            draft.reading.checks[key] = created(key, draft.reading.world.confirmations.rows.get(uid, -1))
            draft.delete(key)
        case Key.EXPIRED:
            draft.reading.absent(key)
        case Key.DROP:
            draft.delete(key)


def _release(draft: Draft, run: store_pb2.RolloutRun, row: Intent[RolloutSpec], *, kept: Claims) -> None:
    """Give back what is not to be kept any more."""
    if kept is Claims.ALL:
        return
    segments = set() if kept is Claims.NONE else _segment_references(draft, run, row.uid)
    for key in _references(draft, run, row.uid):
        if key not in segments:
            draft.delete(key)
    if not row.spec.run.is_over:  # afterwards they may be another one's
        for network in run.networks:
            draft.delete(draft.keys.rollout_of(network.uid))


def _references(draft: Draft, run: store_pb2.RolloutRun, uid: str) -> list[bytes]:
    networks = [
        draft.keys.reference(kind="network", uid=network.uid, by_kind="rollout", by_uid=uid) for network in run.networks
    ]
    return [*networks, *sorted(_segment_references(draft, run, uid))]


def _segment_references(draft: Draft, run: store_pb2.RolloutRun, uid: str) -> set[bytes]:
    return {
        draft.keys.reference(kind="segment", uid=segment, by_kind="rollout", by_uid=uid)
        for network in run.networks
        for segment in network.segments.values()
    }


def _tenant_reference(draft: Draft, tenant_uid: str, uid: str) -> bytes:
    return draft.keys.reference(kind="tenant", uid=tenant_uid, by_kind="rollout", by_uid=uid)
