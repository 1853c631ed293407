"""The notation of family files: axes of a tensor, modules, formulas of config keys.

Axes are written as in einops: one word a dimension, `(heads head_dim)` for a dimension that several axes share (the
last one runs fastest), a number for a fixed size, `+` for parts that lie one after the other: `(heads head_dim + 2
state)`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from merganser.errors import MerganserError

Factor = str | int
Term = tuple[Factor, ...]


class FamilyError(MerganserError):
    """A family file that cannot be read."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of a tensor: parts one after the other, each a product of axes and numbers."""

    terms: tuple[Term, ...]

    @property
    def axes(self) -> Iterator[str]:
        """The axes in it, one that is there twice given twice."""
        return (factor for term in self.terms for factor in term if isinstance(factor, str))

    def __str__(self) -> str:
        inner = " + ".join(" ".join(map(str, term)) for term in self.terms)
        return inner if len(self.terms) == 1 and len(self.terms[0]) == 1 else f"({inner})"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One line of a family file, for one tensor.

    `pattern` is the tensor's name with indices in braces. `reads` are the dimensions that a matrix product sums over,
    `writes` those of its result. `module` is the pattern without `.weight` or `.bias`. `group` is the part of the model
    that may be missing as a whole and that the tensor belongs to, "" for none.
    """

    pattern: str
    module: str
    kind: str
    dims: tuple[Dimension, ...]
    reads: int | None
    writes: int | None
    optional: bool
    group: str = ""

    @property
    def indices(self) -> tuple[str, ...]:
        """The indices in the name, in order."""
        return tuple(re.findall(r"\{(\w+)\}", self.pattern))

    def name(self, at: dict[str, int]) -> str:
        """The tensor's name for values of the indices."""
        return self.pattern.format(**at)


def parse_dims(text: str, place: str) -> tuple[Dimension, ...]:
    """`(heads head_dim) residual` as dimensions."""
    dims = []
    for grouped, single in re.findall(r"\(([^()]*)\)|(\S+)", text):
        terms = tuple(tuple(map(_factor, part.split())) for part in (grouped or single).split("+"))
        if not all(terms):
            raise FamilyError(f"{place}: an empty part in {text!r}")
        dims.append(Dimension(terms))
    for factor in (f for dim in dims for term in dim.terms for f in term):
        if isinstance(factor, str) and not factor.isidentifier():
            raise FamilyError(f"{place}: {factor!r} is not the name of an axis in {text!r}")
    if not dims:
        raise FamilyError(f"{place}: no axes")
    return tuple(dims)


def _factor(word: str) -> Factor:
    return int(word) if word.isdigit() else word


NORMS = {"rmsnorm": 0.0, "rmsnorm+1": 1.0, "layernorm": 0.0, "layernorm+1": 1.0}
"""Kinds of normalisation, and what is added to the stored weight before it multiplies."""


def parse_module(name: str, text: str, place: str) -> list[TensorSpec]:
    """The tensors of a module: `linear residual -> neurons` is a weight (neurons, residual) and maybe a bias.

    | kind | tensors |
    |---|---|
    | `linear A -> B` | `weight` B A, `bias` B |
    | `conv1d A -> B` | `weight` A B (as GPT-2 stores it), `bias` B |
    | `conv A k.. -> B` | `weight` B A k.., `bias` B |
    | `embedding A -> B` | `weight` A B |
    | `rmsnorm A`, `layernorm A`, `rmsnorm+1 A`, `layernorm+1 A` | `weight` A, of layernorms `bias` A |
    | `parameter A B ..` | the tensor itself; without axes one number |
    | `scale A ..` | the tensor itself, factors of what passes |
    | `parameter A.. -> B`, `parameter A.. <- B` | the tensor itself, A.. B, a matrix in its last two dimensions |

    A bias may be missing. A name that ends in `?` may be missing as a whole.
    """
    optional = name.endswith("?")
    name = name.rstrip("?")
    kind, _, rest = text.strip().partition(" ")

    def one(suffix: str, dims: tuple[Dimension, ...], reads: int | None, writes: int | None) -> TensorSpec:
        missing = optional or suffix == ".bias"
        return TensorSpec(name + suffix, name, kind, dims, reads, writes, missing)

    if kind == "parameter":
        before, arrow, after = rest.partition("<-" if "<-" in rest else "->")
        if not arrow:
            return [one("", parse_dims(rest, place) if rest.strip() else (), None, None)]
        dims = parse_dims(before, place) + parse_dims(after, place)
        last, other = len(dims) - 1, len(dims) - 2
        return [one("", dims, *((other, last) if arrow == "->" else (last, other)))]
    if kind == "scale":
        return [one("", parse_dims(rest, place), None, None)]
    if kind in NORMS:
        dims = parse_dims(rest, place)
        specs = [one(".weight", dims, None, len(dims) - 1)]
        return (
            specs if not kind.startswith("layernorm") else [*specs, one(".bias", dims, None, len(dims) - 1)]
        )
    before, arrow, after = rest.partition("->")
    if not arrow or kind not in ("linear", "conv1d", "conv", "embedding"):
        raise FamilyError(
            f"{place}: {text!r} is none of linear A -> B, conv1d A -> B, conv A k.. -> B, embedding A -> B, "
            f"{', '.join(f'{norm} A' for norm in NORMS)}, parameter A .."
        )
    source, (target, *more) = parse_dims(before, place), parse_dims(after, place)
    if more or (len(source) != 1 and kind != "conv"):
        raise FamilyError(f"{place}: {kind} takes one dimension on each side of the arrow, not {text!r}")
    if kind == "embedding":
        return [one(".weight", (*source, target), None, 1)]
    bias = one(".bias", (target,), None, 0)
    if kind == "conv1d":
        return [one(".weight", (*source, target), 0, 1), bias]
    return [one(".weight", (target, *source), 1, 0), bias]


class Missing(Exception):
    """A config key that a formula needs is not there."""


NULL = object()
"""What a lookup may return for a key that is there and holds null, which `key is None` asks for."""

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.LtE: operator.le,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.Gt: operator.gt,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Formula:
    """Arithmetic on names: `+ - * // %`, `==`, `<=`, parentheses, and `a or b` for a name that may be missing or null.

    Names may be dotted (`vision_config.hidden_size`); the name of a list or a mapping stands for its
    length, and `depths[0]` for the first of a list. Rules say more: `a and b`, `not a`, `a if b else c`, words in
    quotes, `layer in mlp_only_layers`, `no_rope_layers[layer]`, and `key is None` where the key is there and null.
    Nothing else is understood, so nothing else can happen.
    """

    text: str

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            raise FamilyError(f"the formula {self.text!r} cannot be read: {error.msg}") from None

    @property
    def key(self) -> str | None:
        """The name, where the formula is nothing but one."""
        return (
            _dotted(self._tree) if isinstance(self._tree, ast.Name | ast.Attribute | ast.Subscript) else None
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names in it."""
        found: dict[str, None] = {}

        def look(node: ast.AST) -> None:
            if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
                found[_dotted(node).partition("[")[0]] = None
            else:
                for child in ast.iter_child_nodes(node):
                    look(child)

        look(self._tree)
        return tuple(found)

    def __call__(self, lookup: Callable[[str], Any]) -> Any:
        """The value, with names looked up; `Missing` where one has no value and no `or` stands in."""
        return self._value(self._tree, lookup)

    def _value(self, node: ast.expr, lookup: Callable[[str], Any]) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
            return node.value
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            value = self._found(node, lookup)
            return len(value) if isinstance(value, dict | list) else value
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            for part in node.values[:-1]:
                try:
                    return self._value(part, lookup)
                except Missing:
                    continue
            return self._value(node.values[-1], lookup)
        if isinstance(node, ast.BoolOp):
            return all(self._value(part, lookup) for part in node.values)
        if isinstance(node, ast.IfExp):
            return self._value(node.body if self._value(node.test, lookup) else node.orelse, lookup)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._value(node.operand, lookup)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self._value(node.operand, lookup)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._value(node.left, lookup), self._value(node.right, lookup)
            if isinstance(node.op, ast.FloorDiv | ast.Mod) and not right:
                raise FamilyError(f"division by zero in {self.text!r}")
            return _OPERATORS[type(node.op)](left, right)
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            (kind,), (other,) = node.ops, node.comparators
            if type(kind) in _OPERATORS:
                return _OPERATORS[type(kind)](self._value(node.left, lookup), self._value(other, lookup))
            if isinstance(kind, ast.In | ast.NotIn):
                return (self._value(node.left, lookup) in self._list(other, lookup)) == isinstance(
                    kind, ast.In
                )
            if (
                isinstance(kind, ast.Is | ast.IsNot)
                and isinstance(other, ast.Constant)
                and other.value is None
            ):
                return (lookup(_dotted(node.left)) is NULL) == isinstance(kind, ast.Is)
        raise FamilyError(f"the formula {self.text!r} has something that formulas cannot say")

    def _found(self, node: ast.expr, lookup: Callable[[str], Any]) -> Any:
        name = _dotted(node)
        value = lookup(name)
        if value is None or value is NULL:
            raise Missing(name)
        return value

    def _list(self, node: ast.expr, lookup: Callable[[str], Any]) -> list[Any]:
        """A list that a key holds, `key or []` for one that may be missing."""
        if isinstance(node, ast.List) and not node.elts:
            return []
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            try:
                return self._list(node.values[0], lookup)
            except Missing:
                return self._list(node.values[-1], lookup)
        value = self._found(node, lookup)
        if not isinstance(value, list):
            raise FamilyError(f"the formula {self.text!r} asks for a list, and config.json has {value!r}")
        return value

    def __str__(self) -> str:
        return self.text


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, int)
    ):
        return f"{_dotted(node.value)}.{node.slice.value}"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name):
        return f"{_dotted(node.value)}[{node.slice.id}]"
    raise FamilyError(
        "a formula names config keys, key.key or key[0], and nothing else before a dot or a bracket"
    )
