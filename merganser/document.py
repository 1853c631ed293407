"""Reading YAML that may be hostile: bounded, plain values only, no key twice."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml

from merganser.errors import RequestError

MAX_BYTES = 1_000_000
MAX_NODES = 100_000
MAX_DEPTH = 32
MAX_BITS = 1000
"""Of a whole number: one that is longer is beyond f64 and, written out, beyond what Python turns into text."""
_SCALARS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp")}
_MAP, _LIST = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


def read_file(path: Path, what: str = "recipe") -> str:
    """The text of a small file; `what` it should be is said in errors.

    Raises `RequestError` where it is missing, not text or longer than MAX_BYTES.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RequestError(f"there is no {what} at {str(path)!r}{neighbour(path)}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"the {what} {str(path)!r} cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise RequestError(f"{path}: longer than the {MAX_BYTES:,} bytes a {what} may have")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: not UTF-8 text (byte {error.start})") from None


def parse(text: str, source: str, what: str = "recipe") -> Any:
    """The value of one YAML document, as `parse_all`; several are an error."""
    found = parse_all(text, source, what)
    if len(found) > 1:
        raise RequestError(f"{source}: expected a single document, not {len(found)} (separated by ---)")
    return found[0]


def parse_all(
    text: str, source: str, what: str = "recipe", loose: list[tuple[int, RequestError]] | None = None
) -> list[Any]:
    """The values of YAML documents: mappings with text keys, lists and scalars. No document at all is one None.

    loose: where it is a list, a key given twice and merge keys (`<<`) mean what PyYAML's own loaders take them for (the
    last one counts; the keys of the merged mapping that the mapping itself lacks), and the list gets the error that
    each would be, with the number of its document among those returned.

    Raises `RequestError`, with the line, for malformed YAML, a key given twice, tags, merge keys, recursion,
    and documents beyond MAX_BYTES, MAX_NODES (aliases counted as often as they are used) or MAX_DEPTH.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RequestError(f"{source}: longer than the {MAX_BYTES:,} bytes a {what} may have")
    loader = None
    try:
        loader = _loader(text)
        reader, found = _Reader(source, loader, what, loose), list[Any]()
        while loader.check_node():
            node = loader.get_node()
            reader.document = len(found)
            if node is not None and (value := reader.value(node, 0)) is not None:
                found.append(value)
        return found or [None]
    except yaml.YAMLError as error:
        raise RequestError(f"{source}: not acceptable YAML: {_told(error)}") from None
    except RecursionError:
        raise RequestError(f"{source}: nested deeper than the {MAX_DEPTH} levels a {what} may have") from None
    finally:
        if loader is not None:
            loader.dispose()


def _loader(text: str) -> Any:
    """Libyaml's loader where PyYAML has it: ten times as fast for long lists of tokens or numbers.

    It recurses in C, so the depth is checked on its events first.
    """
    fast = getattr(yaml, "CSafeLoader", None)
    if fast is None:
        return yaml.SafeLoader(text)
    depth = 0
    for event in yaml.parse(text, Loader=fast):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH + 1:
                raise RecursionError
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return fast(text)


class _Reader:
    def __init__(
        self, source: str, loader: Any, what: str, loose: list[tuple[int, RequestError]] | None = None
    ) -> None:
        self.source = source
        self.loose = loose
        self.document = 0
        self.loader = loader
        self.what = what
        self.nodes = 0

    def value(self, node: yaml.Node, depth: int) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self.error(
                node, f"more than {MAX_NODES:,} values (aliases count as often as they are used)"
            )
        if depth > MAX_DEPTH:
            raise self.error(node, f"nested deeper than the {MAX_DEPTH} levels a {self.what} may have")
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self.mapping(node, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
            return [self.value(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self.scalar(node)
        raise self.error(node, f"the tag {node.tag!r} has no meaning in a {self.what}")

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag.endswith(":merge"):
                self.let(key_node, "keys must be plain text (no merge keys, lists or mappings)")
                merged = self.merged(value_node, depth) | merged
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, "keys must be plain text (no merge keys, lists or mappings)")
            key = key_node.value
            if key in result:
                self.let(key_node, f"the key {key!r} is given twice")
            result[key] = self.value(value_node, depth + 1)
        return merged | result

    def merged(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        """What `<<` brings: a mapping, or several, of which the first that has a key counts."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        found: dict[str, Any] = {}
        for part in parts:
            if not isinstance(part, yaml.MappingNode):
                raise self.error(part, "<< merges mappings, and this is none")
            found = self.mapping(part, depth + 1) | found
        return found

    def let(self, node: yaml.Node, text: str) -> None:
        """An error, unless such things are let by."""
        if self.loose is None:
            raise self.error(node, text)
        self.loose.append((self.document, self.error(node, text)))

    def scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag.endswith(":timestamp"):
            return node.value
        kind = node.tag.rpartition(":")[2]
        try:
            value = self.loader.construct_object(node)
        except Exception:  # PyYAML fails in many ways on text that a tag calls a number or a truth value
            raise self.error(
                node,
                f"{node.value[:40]!r} is no value of the kind {kind}; in quotes and without a tag it is text",
            ) from None
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise self.error(
                node, f"expected a number: a whole number of {len(node.value)} characters is too long"
            )
        return value

    def error(self, node: yaml.Node, text: str) -> RequestError:
        return RequestError(f"{self.source}: line {node.start_mark.line + 1}: {text}")


def _told(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        return line + ", ".join(part for part in (error.context, error.problem) if part)
    return str(error).partition("\n")[0]


def neighbour(path: Path) -> str:
    """`"; did you mean ...?"` for the file of the same folder whose name is nearest, else an empty string."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
