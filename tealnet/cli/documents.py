"""Documents of `teal apply`: YAML or JSON, many in a file, each an object with the fields that it names.

    kind: Network
    tenant: acme              # not for tenants and hosts
    name: web                 # or the whole name: tenants/acme/networks/web
    cidrs: [10.0.0.0/24]
    router: main              # short names mean the document's own tenant

A field that is absent is left alone, `field: null` resets it. Every error knows its file and line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format

from tealnet import kinds
from tealnet.kinds import Kind

_REFERENCES = {"router": kinds.ROUTER, "network": kinds.NETWORK, "host": kinds.HOST}
_SUBFIELDS = ("attachment", "placement", "quota", "dns")  # merged by their own fields
SET_LABEL = "tealnet.dev/set"


class BadDocument(ValueError):
    """What is wrong, with file:line."""


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
        """network/web"""
        return f"{self.kind.name}/{self.name.rpartition('/')[2]}"

    @property
    def parent(self) -> str:
        """tenants/acme, or "" """
        return "/".join(self.name.split("/")[:2]) if self.kind.owned else ""

    @property
    def ident(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    def needs(self) -> set[str]:
        """Names of objects that it refers to."""
        found = {self.parent} if self.kind.owned else set()
        return found | {value for name in _REFERENCES if (value := getattr(self.body, name, ""))}

    def line_of(self, path: str) -> str:
        """file:line of a field path like cidrs[0] or port.cidrs[0]."""
        for part in path.replace("[", ".").split("."):
            if part in self.lines:
                return f"{self.file}:{self.lines[part]}"
        return self.where


def read_files(paths: tuple[str, ...], *, tenant: str) -> list[Document]:
    """All documents of files and directories (*.yaml, *.yml, *.json, sorted); "-" = standard input."""
    found: list[Document] = []
    for path in paths:
        for file, text in _texts(path):
            found += _read(text, file=file, tenant=tenant)
    seen: dict[str, str] = {}
    for document in found:
        if document.name in seen:
            raise BadDocument(f"{document.where}: {document.name} stands already in {seen[document.name]}")
        seen[document.name] = document.where
    return found


def _texts(path: str) -> Iterator[tuple[str, str]]:
    if path == "-":
        import sys

        yield "<stdin>", sys.stdin.read()
        return
    root = Path(path)
    if root.is_dir():
        files = sorted(p for p in root.rglob("*") if p.suffix in (".yaml", ".yml", ".json") and p.is_file())
        if not files:
            raise BadDocument(f"{path}: no .yaml, .yml or .json in this directory")
    else:
        files = [root]
    for file in files:
        try:
            yield str(file), file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BadDocument(f"{file}: cannot be read: {error}") from None


def _read(text: str, *, file: str, tenant: str) -> Iterator[Document]:
    try:
        nodes = [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadDocument(f"{file}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BadDocument(f"{file}: not YAML: {error}") from None
    for node in nodes:
        many = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for each in many:
            if isinstance(each, yaml.ScalarNode) and each.value == "":
                continue
            yield _document(each, file=file, tenant=tenant)


def _document(node: yaml.Node, *, file: str, tenant: str) -> Document:
    where = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise BadDocument(f"{where}: a document is a mapping with `kind` and `name`")
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    try:
        constructor = yaml.SafeLoader("")
        data: dict[Any, Any] = constructor.construct_mapping(node, deep=True)
    except yaml.MarkedYAMLError as error:
        raise BadDocument(f"{where}: {error.problem}") from None
    word = data.pop("kind", None)
    kind = kinds.BY_WORD.get(word) if isinstance(word, str) else None
    if kind is None:
        known = ", ".join(k.title for k in kinds.KINDS)
        raise BadDocument(f"{where}: kind: {word!r} is none of {known}")
    name = _name(kind, data, tenant=tenant, where=where)
    data = {_snake(kind, key): value for key, value in data.items()}
    for reference, target in _REFERENCES.items():
        value = data.get(reference)
        if isinstance(value, str) and value and "/" not in value:
            parent = "/".join(name.split("/")[:2])
            data[reference] = target.full_name(parent, value)
    body, mask = _message(kind, data, where=where)
    body.name = name
    return Document(kind, name, body, mask, where, lines, file)


def _name(kind: Kind, data: dict[str, Any], *, tenant: str, where: str) -> str:
    name, owner = data.pop("name", None), data.pop("tenant", None)
    if not isinstance(name, str) or not name:
        raise BadDocument(f"{where}: name: missing; every document names its object")
    if "/" in name:
        try:
            if kinds.kind_of(name) is not kind:
                raise ValueError(f"{name!r} is not the name of a {kind.name}")
        except ValueError as error:
            raise BadDocument(f"{where}: name: {error}") from None
        return name
    if not kind.owned:
        return kind.full_name("", name)
    owner = owner or tenant
    if not isinstance(owner, str) or not owner:
        raise BadDocument(f"{where}: tenant: missing; say `tenant: NAME` in the document, or give -t")
    return kind.full_name(owner if owner.startswith("tenants/") else f"tenants/{owner}", name)


def _snake(kind: Kind, key: Any) -> str:
    """Field names as in the protos; the JSON names are understood, too."""
    fields: dict[str, str] = {f.json_name: f.name for f in kind.message.DESCRIPTOR.fields}
    return fields.get(str(key), str(key))


def _message(kind: Kind, data: dict[str, Any], *, where: str) -> tuple[Any, list[str]]:
    mask: list[str] = []
    for key, value in data.items():
        if key in _SUBFIELDS and isinstance(value, dict):
            mask += [f"{key}.{sub}" for sub in value]
        else:
            mask.append(key)
    if isinstance(data.get("attachment"), dict):
        attachment = data["attachment"]
        if isinstance(attachment.get("kind"), str) and not attachment["kind"].startswith("ATTACHMENT_KIND_"):
            attachment["kind"] = f"ATTACHMENT_KIND_{attachment['kind']}"
    if isinstance(data.get("placement"), dict):
        granted = data["placement"].get("kinds")
        if isinstance(granted, list):
            data["placement"]["kinds"] = [
                k if str(k).startswith("ATTACHMENT_KIND_") else f"ATTACHMENT_KIND_{k}" for k in granted
            ]
    body = kind.message()
    try:
        json_format.ParseDict({key: value for key, value in data.items() if value is not None}, body)
    except json_format.ParseError as error:
        raise BadDocument(f"{where}: {error}") from None
    output_only = {"uid", "revision", "create_time", "update_time", "status", "segments", "networks", "state"}
    for key in mask:
        if key in output_only and key in kind.message.DESCRIPTOR.fields_by_name:
            raise BadDocument(f"{where}: {key} is set by the server; leave it out")
    return body, [key for key in mask if key != "etag"]
