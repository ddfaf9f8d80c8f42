"""Reads the YAML and JSON that people write for the command: recipes, and the space of a search.

YAML 1.1 reads 010 as 8, 1:30 as 90 and 2.50 as 2.5. Here a number or a date stays the text that was written, and its
flag decides what it means, as on a command line. What could be read in two ways is refused: a key that is given twice,
an alias, a tag of Python's.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import yaml

from lstmpool.training.errors import InputError, one_line


LARGEST = 100_000  # bytes of a document; a recipe has about a thousand
TAG = "tag:yaml.org,2002:"
WRITTEN = {f"{TAG}{kind}" for kind in ("int", "float", "timestamp")}
TEXT = {f"{TAG}{kind}" for kind in ("str", "value", "merge")}  # the others are a plain = and a plain <<
BOOLS = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)
NUMBER = re.compile(r"[-+]?(0|[1-9]\d*|(?=\.\d))(\.\d*)?([eE][-+]?\d+)?", re.ASCII)


class Written(str):
    """A number or a date, as it was written."""


def read_text(path: Path, what: str) -> str:
    """The text of a document. `what` begins a message: what was expected, and what cannot be read.

    Raises:
        InputError: if the file cannot be read as UTF-8, or is larger than any document.
    """
    with one_line(what, ValueError):  # ValueError: a path with a NUL
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise InputError(f"{what}: it has more than {LARGEST:,} bytes. Is it another file?")
        return content.decode("utf-8-sig")


def parse_document(text: str, place: str, is_json: bool) -> dict[str, Any]:
    """The values by key: None, bool, str, `Written` for a number or a date, and lists and dicts of these.

    Args:
        text: JSON if `is_json`, else YAML.
        place: begins a message, such as "recipe my.yaml".

    Raises:
        InputError: if the text is not valid, or holds anything but one mapping.
    """
    kind = "JSON" if is_json else "YAML"
    with one_line(f"{place} is not valid {kind}", yaml.YAMLError, ValueError):
        found = _from_json(text) if is_json else _from_yaml(text, place)
    if isinstance(found, dict):
        return found
    kinds = {list: "a list", type(None): "nothing"}
    raise InputError(f"{place} must hold lines 'flag: value', found {kinds.get(type(found), 'a single value')}.")


def typed(value: Any, place: str) -> Any:
    """The value with numbers in place of `Written` text, for what is handed on as JSON.

    Raises:
        InputError: for a number that YAML reads in a way of its own, such as 010, and for one that is not finite.
    """
    if isinstance(value, dict):
        return {key: typed(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item, place) for item in value]
    if not isinstance(value, Written):
        return value
    number = float(value) if NUMBER.fullmatch(value) else math.nan
    if not math.isfinite(number):
        raise InputError(f"{place}: expected a number such as 8 or 1e-5, found {value}. A text needs quotes.")
    return int(value) if value.lstrip("+-").isdigit() else number


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict, for `object_pairs_hook`. Raises ValueError for a key that is given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is given twice. Leave one out")
        found[key] = value
    return found


def _from_json(text: str) -> Any:
    return json.loads(
        text, object_pairs_hook=each_key_once, parse_int=Written, parse_float=Written, parse_constant=_refuse_constant
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"expected a finite number, found {name}")


class _Loader(yaml.SafeLoader):
    """Refuses aliases: they may refer to themselves, or stand for billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"expected a value, found the alias *{event.anchor}. Write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)


def _from_yaml(text: str, place: str) -> Any:
    node = yaml.compose(text, Loader=_Loader)
    return None if node is None else _value(node, place)


def _value(node: yaml.Node, place: str) -> Any:
    if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
        return _mapping(node, place)
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
        return [_value(item, place) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        raise _unknown_tag(node, place)
    is_plain_number = node.style is None and NUMBER.fullmatch(node.value)  # YAML 1.1 takes 1e-5 for a text
    if node.tag in WRITTEN or (node.tag in TEXT and is_plain_number):
        return Written(node.value)
    if node.tag in TEXT:
        return node.value
    if node.tag == f"{TAG}null":
        return None
    if node.tag == f"{TAG}bool" and node.value.lower() in BOOLS:
        return BOOLS[node.value.lower()]
    raise _unknown_tag(node, place)


def _mapping(node: yaml.MappingNode, place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{place}, line {line}: expected a name before the colon, found a list or a mapping.")
        key = key_node.value  # as it was written, so that a key such as no or 1 has a name too
        if key in found:
            both = f"lines {lines[key]} and {line}"
            raise InputError(f"{place}: the key {key!r} is given twice, in {both}. Leave one out.")
        lines[key] = line
        found[key] = _value(value_node, place)
    return found


def _unknown_tag(node: yaml.Node, place: str) -> InputError:
    line = node.start_mark.line + 1
    return InputError(f"{place}, line {line}: expected a plain value, found the tag {node.tag}. Leave it out.")
