"""YAML read strictly: every key is known, stands once, and an error names the line.

Values are looked at as nodes, before YAML turns them into Python objects, because only nodes know where they stand.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 1 << 20
_MERGE, _DEEPEST = "tag:yaml.org,2002:merge", 32  # of keys "<<": their tag, and how deep they go

Scalar = bool | int | float | str


class ConfigError(ValueError):
    """What is wrong with a configuration: file, line, what was found, what was expected."""


@dataclass(frozen=True)
class Value:
    """A value and where it stands.

    Attributes:
        called: the file's name; node: YAML's own.
    """

    called: str
    node: yaml.Node

    @property
    def line(self) -> int:
        """From 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def empty(self) -> bool:
        return self.node.tag == "tag:yaml.org,2002:null"

    @property
    def is_list(self) -> bool:
        return isinstance(self.node, yaml.SequenceNode)

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.called}, line {self.line}: {message}")

    def scalar(self, what: str) -> Scalar:
        """A single text, number or truth value."""
        if not isinstance(self.node, yaml.ScalarNode) or self.empty:
            raise self.error(f"{what} is {self.kind()}; expected a single value")
        found = _plain(self.node)
        if not isinstance(found, bool | int | float | str):
            raise self.error(f"{what} is {str(self.node.value)!r}, a {type(found).__name__}; put it in quotes")
        return found

    def text(self, what: str) -> str:
        """A text; a number is the text it is written as."""
        self.scalar(what)
        return str(self.node.value)

    def items(self, what: str) -> list["Value"]:
        """The entries of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.error(f"{what} is {self.kind()}; expected a list")
        return [Value(self.called, node) for node in self.node.value]

    def mapping(self, what: str, known: Collection[str], unsupported: Mapping[str, str] | None = None) -> dict[str, "Value"]:
        """The values by key, all of which are ``known``; keys without a value are left out.

        Args:
            unsupported: keys that mean something to mergekit, and what to do without them.

        Raises:
            ConfigError: it is no mapping, or has an unknown key or one twice.
        """
        found: dict[str, Value] = {}
        seen: set[str] = set()
        for key, value, own in self._pairs(what):
            name = str(key.node.value)
            if name in seen:
                if own:
                    raise key.error(f"{what} has the key {name!r} twice")
                continue
            seen.add(name)
            if unsupported and name in unsupported:
                raise key.error(f"{name!r} is not supported by paring fuse: {unsupported[name]}")
            if name not in known:
                raise key.error(f"{what} has the unknown key {name!r}; {nearest(name, known)}")
            if not value.empty:
                found[name] = value
        return found

    def kind(self) -> str:
        if self.empty:
            return "empty"
        return {yaml.SequenceNode: "a list", yaml.MappingNode: "a mapping"}.get(type(self.node), "a single value")

    def _pairs(self, what: str, depth: int = 0) -> Iterator[tuple["Value", "Value", bool]]:
        """Keys and values; first its own (True), then those of the mappings that it takes in by "<<", which hold where there
        is none of its own; of several such mappings the first."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error(f"{what} is {self.kind()}; expected a mapping (key: value)")
        if depth > _DEEPEST:
            raise self.error(f"{what} takes in itself")
        taken_in: list[Value] = []
        for key, value in self.node.value:
            if key.tag == _MERGE:
                inner = Value(self.called, value)
                taken_in += inner.items(what) if inner.is_list else [inner]
            else:
                yield Value(self.called, key), Value(self.called, value), True
        for other in taken_in:
            for key, value, _ in other._pairs(what, depth + 1):
                yield key, value, False


def nearest(name: str, known: Collection[str]) -> str:
    """Words for an error: the nearest known name, or all of them."""
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def read_yaml(path: Path) -> tuple[Value, str]:
    """The one document in a file, and the text of the file.

    Raises:
        ConfigError: as ``parse_yaml``; or the file is no UTF-8, or larger than 1 MiB. OSError: it cannot be read.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{path} is {path.stat().st_size:,} bytes, more than a configuration has")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}") from None
    return parse_yaml(text, path), text


def parse_yaml(text: str, path: Path) -> Value:
    """The one document in a text; ``path`` is what errors call it.

    Raises:
        ConfigError: it is no YAML, empty, or has several documents.
    """
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: no valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: no configuration is nested that deep") from None
    if not documents:
        raise ConfigError(f"{path} is empty; expected a configuration with models or slices, and a merge_method")
    if len(documents) > 1:
        second = Value(str(path), documents[1])
        raise second.error(
            "a second document, which mergekit-multi takes, is not supported by paring fuse: make a file of each and fuse "
            "them one after the other"
        )
    return Value(str(path), documents[0])


def _plain(node: yaml.ScalarNode) -> Any:
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError):
        return node.value
