"""How a person names objects on the command line, and completion of those names.

KIND [NAME…]       port web-1 · networks acme/web acme/db · ports,networks · all
KIND/NAME…         port/web-1 network/acme/web
resource names     tenants/acme/ports/web-1, as `-o name` prints them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import click
from click.shell_completion import CompletionItem

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.session import Failure, Session, load_config
from tealnet.kinds import Kind

_COMPLETION_SECONDS = 0.6
_COMPLETION_MOST = 300
_SHOWN_FIRST = (
    kinds.TENANT, kinds.NETWORK, kinds.ROUTER, kinds.GROUP, kinds.PORT, kinds.SPLIT, kinds.ROLLOUT, kinds.TIER,
    kinds.HOST,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """An object by resource name, or all of a kind (name "")."""

    kind: Kind
    name: str = ""


def kind_of_word(word: str) -> Kind:
    """tenant(s), network(s) or net, router(s), port(s), split(s), rollout(s), host(s). Raises Failure (usage)."""
    found = kinds.BY_WORD.get(word) or kinds.BY_WORD.get(word.lower())
    if found is None:
        near = get_close_matches(word.lower(), kinds.BY_WORD, n=1, cutoff=0.6)
        known = ", ".join(kind.plural for kind in _SHOWN_FIRST)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {known}"
        raise Failure(f"{word!r} is not a kind of object{hint}", code=2)
    return found


def targets_of(session: Session, words: tuple[str, ...]) -> list[Target]:
    """What the words mean, in their order. Raises Failure (usage)."""
    if not words:
        raise Failure("which objects? Say KIND NAME, for example `port web-1`, or KIND/NAME", code=2)
    first, names = words[0], words[1:]
    if "/" in first:
        return [_one(session, word) for word in words]
    if first.lower() == "all":
        chosen = [kind for kind in _SHOWN_FIRST if kind.owned or not session.own_tenant()]
    else:
        chosen = [kind_of_word(word) for word in first.split(",")]
    if not names:
        return [Target(kind) for kind in chosen]
    if len(chosen) > 1:
        raise Failure(f"names belong to one kind, not to {first!r}; write KIND/NAME for each", code=2)
    return [Target(chosen[0], session.name_of(chosen[0], name)) for name in names]


def written(targets: list[Target]) -> list[Target]:
    """The targets, which a command is to change or delete. Raises Failure (usage)."""
    for target in targets:
        if not target.kind.written:
            raise Failure(
                f"a {target.kind.name} is changed by `teal color set-weights` and by rollouts alone; it comes and goes "
                "with its network's colors",
                code=2,
            )
    return targets


def one_target(session: Session, words: tuple[str, ...]) -> Target:
    """Exactly one object. Raises Failure (usage)."""
    found = targets_of(session, words)
    if len(found) != 1 or not found[0].name:
        raise Failure(f"one object, please: {' '.join(words)} NAME", code=2)
    return found[0]


def _one(session: Session, word: str) -> Target:
    try:
        return Target(kinds.kind_of(word), word)
    except ValueError:
        pass
    kind_word, _, name = word.partition("/")
    if kind_word not in kinds.BY_WORD:
        raise Failure(f"{word!r} does not say which kind: write `port {word}` or port/{word}", code=2)
    kind = kinds.BY_WORD[kind_word]
    return Target(kind, session.name_of(kind, name))


# ---- completion: quick, and silent whatever happens


def _session(ctx: click.Context) -> Session:
    named = ctx.find_root().params.get("context") or ""
    return Session(context=named, tenant=ctx.params.get("tenant") or "", timeout=_COMPLETION_SECONDS)


def silent(look: Callable[[], Iterable[str]]) -> list[CompletionItem]:
    """Completion must never speak: an error would land in the middle of what is being typed."""
    try:
        return [CompletionItem(word) for word in look()]
    except Exception:
        return []


def _names(session: Session, kind: Kind, incomplete: str) -> Iterable[str]:
    """Short names of the chosen tenant's objects, else TENANT/NAME."""
    parent = session.parent(required=False)
    request = kind.request("List")
    if kind.owned:
        request.parent = parent
    request.page_size = _COMPLETION_MOST
    for item in session.client.list_page(kind, request):
        ident, tenant = output.short(item.name), item.name.split("/")[1]
        word = f"{tenant}/{ident}" if kind.owned and (parent == "tenants/-" or "/" in incomplete) else ident
        if word.startswith(incomplete):
            yield word


def complete_targets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds first, then names of that kind."""
    words: tuple[str, ...] = tuple(ctx.params.get(param.name or "") or ())

    def look() -> Iterable[str]:
        if not words and "/" in incomplete:
            kind_word, _, rest = incomplete.partition("/")
            found = _names(_session(ctx), kind_of_word(kind_word), rest)
            return [f"{kind_word}/{word}" for word in found]
        if not words:
            plain = [kind.plural for kind in _SHOWN_FIRST if kind.plural.startswith(incomplete)]
            return plain or [word for word in kinds.BY_WORD if word.startswith(incomplete)]
        return [word for word in _names(_session(ctx), kind_of_word(words[0]), incomplete) if word not in words]

    return silent(look)


def complete_names(kind: Kind) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Names of one kind, for arguments and options."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return silent(lambda: _names(_session(ctx), kind, incomplete))

    return complete


def complete_colors(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Colors of the network that stands on the line."""

    def look() -> Iterable[str]:
        session = _session(ctx)
        name = session.name_of(kinds.NETWORK, str(ctx.params.get("network") or ""))
        return [color for color in session.client.get(name).colors if color.startswith(incomplete)]

    return silent(look)


def complete_weights(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Networks, and after one the weights of its colors as they are."""
    words: tuple[str, ...] = tuple(ctx.params.get(param.name or "") or ())
    network = next((word for word in reversed(words) if "=" not in word), "")

    def look() -> Iterable[str]:
        session = _session(ctx)
        found: list[str] = []
        if network:
            split = session.client.get(session.name_of(kinds.SPLIT, network))
            said = {word.partition("=")[0] for word in words}
            found = [f"{color}={weight}" for color, weight in sorted(split.weights.items()) if color not in said]
        matching = [word for word in found if word.startswith(incomplete)]
        return matching or [word for word in _names(session, kinds.SPLIT, incomplete) if word not in words]

    return silent(look)


def complete_contexts(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of contexts."""
    return silent(lambda: [name for name in load_config()["contexts"] if name.startswith(incomplete)])


def kinds_completion(_: click.Context, __: click.Parameter, incomplete: str) -> list[Any]:
    """Plural words of kinds."""
    return [CompletionItem(kind.plural) for kind in _SHOWN_FIRST if kind.plural.startswith(incomplete)]
