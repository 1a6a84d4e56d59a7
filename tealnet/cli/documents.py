"""Documents of `teal apply`: YAML or JSON, many in a file, each an object with the fields that it names.

    kind: Network
    tenant: acme              # not for tenants and hosts
    name: web                 # or the whole name: tenants/acme/networks/web
    cidrs: [10.0.0.0/24]
    router: main              # short names mean the document's own tenant

A field that is absent is left alone, `field: null` resets it. What `teal get -o yaml` prints can be applied: fields
that only the server sets are left out then. Every error knows its file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.fields import Misfit, fit, unknown
from tealnet.kinds import Kind

SET_LABEL = "tealnet.dev/set"
SUFFIXES = (".yaml", ".yml", ".json")
_REFERENCES = {"router": kinds.ROUTER, "network": kinds.NETWORK, "host": kinds.HOST}
RULES = ("ingress", "egress")
_SUBFIELDS = ("attachment", "placement", "quota", "dns")  # merged by their own fields
_OUTPUT_ONLY = frozenset(
    {"uid", "revision", "create_time", "update_time", "status", "segments", "networks", "state"}
)  # fmt: skip
_OUTPUT_ONLY_BY_KIND = {
    kinds.ROLLOUT.name: _OUTPUT_ONLY - {"networks"} | {"step", "reason", "text", "history"},
}
_MOST_BYTES = 64 << 20
_MOST_ERRORS = 20
_VISIBLE = re.compile(r"\S")


class BadDocument(ValueError):
    """What is wrong, with file:line; of several documents a line each."""


@dataclass
class Document:
    """One object as wanted: its message and the mask of fields that the document names."""

    kind: Kind
    name: str
    body: Any
    mask: list[str]
    where: str  # file:line
    lines: dict[str, int] = field(default_factory=dict)  # field → line
    file: str = ""

    @property
    def title(self) -> str:
        """network acme/web"""
        return output.title(self.name)

    @property
    def parent(self) -> str:
        """tenants/acme, or "" """
        return "/".join(self.name.split("/")[:2]) if self.kind.owned else ""

    @property
    def ident(self) -> str:
        """The last part of the name."""
        return output.short(self.name)

    def needs(self) -> set[str]:
        """Names of objects that it refers to."""
        found = {self.parent} if self.kind.owned else set()
        found |= {value for name in _REFERENCES if (value := getattr(self.body, name, ""))}
        found |= set(getattr(self.body, "security_groups", ()))
        if self.kind is kinds.GROUP:
            found |= {rule.remote_group for name in RULES for rule in getattr(self.body, name)}
        if self.kind is kinds.ROLLOUT:
            found |= set(self.body.networks)
        return found - {"", self.name}

    def without_rules(self) -> Document:
        """A group as it can be made before the groups that its rules name."""
        body = self.kind.message()
        body.CopyFrom(self.body)
        for name in RULES:
            body.ClearField(name)
        mask = [path for path in self.mask if path not in RULES]
        return Document(self.kind, self.name, body, mask, self.where, self.lines, self.file)

    def line_of(self, path: str) -> str:
        """file:line of a field path like cidrs[0] or port.cidrs[0]."""
        for part in path.replace("[", ".").split("."):
            if part in self.lines:
                return f"{self.file}:{self.lines[part]}"
        return self.where


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a mapping stands, for errors."""

    file: str
    line: int
    lines: dict[str, int]

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def bad(self, text: str, key: str = "") -> BadDocument:
        """An error at a key of the document, or at its beginning."""
        return BadDocument(f"{self.file}:{self.lines.get(key, self.line)}: {text}")


def bare_first(documents: Iterable[Document]) -> list[Document]:
    """Groups that rules of other groups name, without their own rules: two that name each other can be made so."""
    groups = [document for document in documents if document.kind is kinds.GROUP]
    named = {name for document in groups for name in document.needs()}
    return [document.without_rules() for document in groups if document.name in named]


def read_files(paths: Iterable[str], *, tenant: str) -> list[Document]:
    """All documents of files and directories (*.yaml, *.yml, *.json, sorted); "-" = standard input.

    Raises BadDocument that names all that is wrong, so that it is put right in one go.
    """
    found: list[Document] = []
    wrong: list[str] = []
    for path in paths:
        for file, text in _texts(path):
            try:
                found += read_text(text, file=file, tenant=tenant)
            except BadDocument as error:
                wrong += str(error).splitlines()
    seen: dict[str, str] = {}
    for document in found:
        if document.name in seen:
            wrong.append(f"{document.where}: {document.title} stands already in {seen[document.name]}")
        seen.setdefault(document.name, document.where)
    if wrong:
        more = [f"… and {len(wrong) - _MOST_ERRORS} more"] if len(wrong) > _MOST_ERRORS else []
        raise BadDocument("\n".join(wrong[:_MOST_ERRORS] + more))
    return found


def _texts(path: str) -> Iterator[tuple[str, str]]:
    if path == "-":
        import sys

        yield "<stdin>", _decoded(sys.stdin.buffer.read(_MOST_BYTES), "<stdin>")
        return
    root = Path(path)
    files = [root]
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise BadDocument(f"{path}: no .yaml, .yml or .json in this directory")
    for file in files:
        try:
            with file.open("rb") as opened:
                content = opened.read(_MOST_BYTES)
        except (OSError, ValueError) as error:
            raise BadDocument(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        yield str(file), _decoded(content, str(file))


def _decoded(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadDocument(f"{file}:{line}: not UTF-8 text (byte 0x{content[error.start]:02x})") from None


def read_text(text: str, *, file: str, tenant: str) -> list[Document]:
    """All documents of a text; `file` is its name in errors. Raises BadDocument."""
    nodes = _nodes(text, file)
    each = [one for node in nodes for one in (node.value if isinstance(node, yaml.SequenceNode) else [node])]
    empty = ("", "null", "~")
    found: list[Document] = []
    wrong: list[str] = []
    for node in each:
        if not (isinstance(node, yaml.ScalarNode) and node.value in empty) and not _is_exported_split(node):
            try:
                found.append(_document(node, file=file, tenant=tenant))
            except BadDocument as error:
                wrong.append(str(error))
    if wrong:
        raise BadDocument("\n".join(wrong))
    return found


def _nodes(text: str, file: str) -> list[yaml.Node]:
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        if stream := _json_stream(text):
            return _nodes(stream, file)
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadDocument(f"{file}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadDocument(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise BadDocument(f"{file}: nested too deeply") from None


def _json_stream(text: str) -> str:
    """JSON values one after another, or with tabs, as YAML that keeps its lines; "" for what is nothing like that."""
    decoder, at = json.JSONDecoder(), 0
    pieces: list[str] = []
    while value := _VISIBLE.search(text, at):
        try:
            _, end = decoder.raw_decode(text, value.start())
        except (ValueError, RecursionError):
            return ""
        gap = text[at : value.start()]
        if pieces:  # what marks the beginning of a document stands at the beginning of a line
            gap = gap.rpartition("\n")[0] + "\n--- "
        pieces.append(gap + text[value.start() : end])
        at = end
    stream = "".join(pieces).replace("\t", " ")  # inside JSON's strings tabs are written \\t
    return stream if stream != text.rstrip() else ""


def _is_exported_split(node: yaml.Node) -> bool:
    """What `teal get all -o yaml` prints of splits: no document moves traffic, so it is passed over."""
    if not isinstance(node, yaml.MappingNode):
        return False
    found = {key.value: value.value for key, value in node.value}
    return found.get("kind") == kinds.SPLIT.title and "revision" in found


def _document(node: yaml.Node, *, file: str, tenant: str) -> Document:
    source = _Source(file, node.start_mark.line + 1, {})
    if not isinstance(node, yaml.MappingNode):
        raise source.bad("a document is a mapping with `kind` and `name`")
    data = _mapping(node, source)
    word = data.pop("kind", None)
    kind = (kinds.BY_WORD.get(word) or kinds.BY_WORD.get(word.lower())) if isinstance(word, str) else None
    if kind is None:
        known = ", ".join(k.title for k in kinds.KINDS if k.written)
        raise source.bad(
            f"kind: {word!r} is none of {known}" if word is not None else f"kind: missing; one of {known}", "kind"
        )
    if not kind.written:
        text = (
            f"kind: no document moves traffic: `teal color set-weights` does. How a network begins says its "
            f"`initial_weights`; take this {kind.title} out"
        )
        raise source.bad(text, "kind")
    name = _name(kind, data, tenant=tenant, source=source)
    data = {_snake(kind, key): value for key, value in data.items()}
    lines = {_snake(kind, key): line for key, line in source.lines.items()}
    source = _Source(file, source.line, lines)
    _resolve(kind, data, name)
    body, mask = _message(kind, _own(kind, data, source), source)
    body.name = name
    return Document(kind, name, body, mask, source.where, lines, file)


def _mapping(node: yaml.MappingNode, source: _Source) -> dict[Any, Any]:
    """The content; fills the source's lines. A key that stands twice is an error, not the last one's victory."""
    for key, _ in node.value:
        text, line = str(key.value), key.start_mark.line + 1
        if text in source.lines and text != "<<":
            raise BadDocument(f"{source.file}:{line}: {text} stands twice in this document")
        source.lines[text] = line
    try:
        constructor = yaml.SafeLoader("")
        data: dict[Any, Any] = constructor.construct_mapping(node, deep=True)
    except yaml.MarkedYAMLError as error:
        raise source.bad(str(error.problem)) from None
    except (RecursionError, ValueError) as error:
        raise source.bad(f"not to be understood: {error}") from None
    return data


def _name(kind: Kind, data: dict[str, Any], *, tenant: str, source: _Source) -> str:
    name, owner = data.pop("name", None), data.pop("tenant", None)
    if name is None or name == "":
        raise source.bad("name: missing; every document names its object", "name")
    if not isinstance(name, str):
        raise source.bad(f"name: {name!r} is not text; put it in quotes", "name")
    if "/" in name:
        try:
            if kinds.kind_of(name) is not kind:
                raise ValueError(f"{name!r} is not the name of a {kind.words}")
        except ValueError as error:
            raise source.bad(f"name: {error}", "name") from None
        return name
    if not kind.owned:
        if owner is not None:
            raise source.bad(f"tenant: a {kind.words} has none; leave it out", "tenant")
        return kind.full_name("", name)
    owner = owner or tenant
    if not isinstance(owner, str) or not owner:
        raise source.bad("tenant: missing; say `tenant: NAME` in the document, or give -t", "tenant")
    return kind.full_name(owner if owner.startswith("tenants/") else f"tenants/{owner}", name)


def _snake(kind: Kind, key: Any) -> str:
    """Field names as in the protos; the JSON names are understood, too."""
    fields: dict[str, str] = {f.json_name: f.name for f in kind.message.DESCRIPTOR.fields}
    return fields.get(str(key), str(key))


def _output_only(kind: Kind) -> frozenset[str]:
    """Fields that only the server sets."""
    return _OUTPUT_ONLY_BY_KIND.get(kind.name, _OUTPUT_ONLY)


def _resolve(kind: Kind, data: dict[str, Any], name: str) -> None:
    """Short names of other objects to whole ones. A tier names groups of any tenant: by their last part, always."""
    tenant = "/".join(name.split("/")[:2])

    def whole(value: Any, target: Kind) -> Any:
        return target.full_name(tenant, value) if isinstance(value, str) and value and "/" not in value else value

    if kind is kinds.ROLLOUT:
        _resolve_networks(data, tenant)
    for reference, target in _REFERENCES.items():
        if reference in data:
            data[reference] = whole(data[reference], target)
    if isinstance(groups := data.get("security_groups"), list):
        data["security_groups"] = [whole(one, kinds.GROUP) for one in groups]
    if kind is kinds.GROUP:
        for key in RULES:
            for rule in data[key] if isinstance(data.get(key), list) else ():
                for field in ("remote_group", "remoteGroup"):
                    if isinstance(rule, dict) and field in rule:
                        rule[field] = whole(rule[field], kinds.GROUP)


def _resolve_networks(data: dict[str, Any], parent: str) -> None:
    """The networks of a rollout and of its probes."""

    def whole(value: Any) -> Any:
        return kinds.NETWORK.full_name(parent, value) if isinstance(value, str) and "/" not in value else value

    if isinstance(data.get("networks"), list):
        data["networks"] = [whole(value) for value in data["networks"]]
    for gate in data["gates"] if isinstance(data.get("gates"), list) else ():
        probe = gate.get("probe") if isinstance(gate, dict) else None
        if isinstance(probe, dict) and probe.get("network"):
            probe["network"] = whole(probe["network"])


def _own(kind: Kind, data: dict[str, Any], source: _Source) -> dict[str, Any]:
    """Without what only the server sets, which an export (it has a revision) holds."""
    foreign = [key for key in data if key in _output_only(kind)]
    if foreign and "revision" not in data:
        raise source.bad(f"{foreign[0]} is set by the server; leave it out", foreign[0])
    return {key: value for key, value in data.items() if key not in _output_only(kind)}


def _message(kind: Kind, data: dict[str, Any], source: _Source) -> tuple[Any, list[str]]:
    body, mask = kind.message(), []
    fields = kind.message.DESCRIPTOR.fields_by_name
    for key, value in data.items():
        if key not in fields:
            known = [name for name in fields if name not in _output_only(kind)]
            raise source.bad(f"{key}: {unknown(key, known, f'a {kind.title}')}", key)
        if value is not None:
            try:
                json_format.ParseDict({key: fit(fields[key], value, key)}, body)
            except (Misfit, json_format.ParseError) as error:
                raise source.bad(str(error), key) from None
            except (RecursionError, ValueError) as error:  # text that is no UTF-8, for example
                raise source.bad(f"{key}: does not fit: {error}", key) from None
        if key in _SUBFIELDS and isinstance(value, dict):
            names = {f.json_name: f.name for f in fields[key].message_type.fields}
            mask += [f"{key}.{names.get(str(sub), sub)}" for sub in value]
        elif key != "etag":
            mask.append(key)
    return body, mask
