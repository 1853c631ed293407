"""`Weights`: an immutable mapping from tensor name to expression, with a degree per tensor.

A checkpoint is a point (degree 1), a difference of two is a vector (degree 0). `+` and `-` add and subtract degrees,
`*` and `/` by a number scale them. Masks, norms and statistics act as coefficients: they have degree 1, and products
and quotients of `Weights` multiply and divide degrees, so `sum(f * w) / sum(f)` has degree 1 again.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from merganser.algebra import spelling
from merganser.algebra.agreement import check_agreement
from merganser.algebra.expression import Expression, Leaf, Load, LowRank, Number, apply, walk
from merganser.algebra.labelled import by_labels, in_label_order, labels_of, with_labels
from merganser.algebra.live import onto
from merganser.algebra.prefixes import told
from merganser.algebra.selection import Coefficient, Pattern, coefficients, is_number, matching
from merganser.algebra.ties import levelled
from merganser.algebra.trained_on import adapters_in, named_base
from merganser.architectures.meaning import check_keys
from merganser.architectures.ties import aliases
from merganser.checkpoint import Checkpoint
from merganser.checkpoint.tensor import same_content
from merganser.errors import AlgebraError, RequestError, SpellingError, did_you_mean, listing

if TYPE_CHECKING:
    from merganser.architectures import Reading

DEGREE_TOLERANCE = 1e-6
MOST_COMPARED = 1 << 16
"""Elements of a buffer that is read when integers in one model meet floats in another."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one name stands for."""

    expression: Expression
    degree: float

    @property
    def carried(self) -> bool:
        """Whether this is an integer or bool tensor or a constant, which arithmetic passes by."""
        return self.expression.carried


class Weights(Mapping[str, Expression]):
    """Lazy weights. Arithmetic builds expressions; `save` runs them.

    `label` is what errors call these weights and what keys their random draws. `origin` is the checkpoint whose small
    files (config, tokenizer ...) travel with them, and which a saved result must cover. `dropped` are names of the
    origin that were left out on purpose (`select`, `drop`), `passed_over` those that the result need not have.
    `aliases` are names that stand for another tensor because
    the two are tied (an output head that shares the embedding): they answer where another parent holds both; of names
    that are stored all the same, whose copies may have come to differ, see `merganser.algebra.ties`.
    `reading` is what an operation on named axes made of the origin's axes and config; None while they are as they were.
    `allowed` are config keys in which these weights may contradict those that they are joined with (`allow`).
    `files` are small files that stand in for the origin's (None: taken away). `notes` are what operations report of
    themselves; they end in the manifest. `stem` names the tensor file of a saved result: `model`, or `adapter_model`
    for the factors of an adapter, which lie in one file. `row_labels` are the labels of a classifier's rows where
    these came from another model than the origin; None where the config says them (`labels_of`).
    """

    __slots__ = (
        "_entries",
        "aliases",
        "allowed",
        "checkpoints",
        "dropped",
        "files",
        "label",
        "notes",
        "origin",
        "passed_over",
        "reading",
        "row_labels",
        "stem",
    )

    def __init__(
        self,
        entries: Mapping[str, Entry],
        *,
        label: str,
        origin: Checkpoint | None,
        checkpoints: tuple[Checkpoint, ...] = (),
        dropped: frozenset[str] = frozenset(),
        aliases: Mapping[str, str] | None = None,
        reading: Reading | None = None,
        files: Mapping[str, bytes | None] | None = None,
        notes: tuple[Mapping[str, Any], ...] = (),
        stem: str = "model",
        allowed: frozenset[str] = frozenset(),
        row_labels: tuple[str, ...] | None = None,
        passed_over: frozenset[str] = frozenset(),
    ) -> None:
        self._entries = dict(entries)
        self.aliases = dict(aliases or {})
        self.label = label
        self.origin = origin
        self.checkpoints = checkpoints
        self.dropped = dropped
        self.reading = reading
        self.files = dict(files or {})
        self.notes = notes
        self.stem = stem
        self.allowed = allowed
        self.row_labels = row_labels
        self.passed_over = passed_over

    # A mapping ----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Expression:
        try:
            return self._entries[name].expression
        except KeyError:
            raise AlgebraError(
                f"{self.label!r} has no tensor {name!r}{did_you_mean(name, self._entries)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        if isinstance(name, Expression | Weights):
            raise SpellingError(f"{self.label!r} holds tensors by their names: ask 'name' in weights")
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, name: str, default: Any = None) -> Any:
        """The expression of that name, or `default`."""
        return self[name] if name in self else default  # noqa: SIM401

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Weights):
            raise SpellingError(
                f"{self.label!r} and {other.label!r} are not computed, so that == cannot compare them: `a is b` tells "
                "whether they are one object, `merganser diff A B` compares what is saved, and "
                "mg.compute(weights, name) gives a tensor as an array"
            )
        if is_number(other):
            self._refuse_order(other)
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        found = self.__eq__(other)
        return found if found is NotImplemented else not found

    def _refuse_order(self, _: object) -> NoReturn:
        raise SpellingError(
            f"{self.label!r} is compared tensor by tensor: weights.map(lambda name, x: x > 0, degree=1) gives a mask, "
            "and mg.minimum(a, b) and mg.maximum(a, b) choose entry by entry"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _refuse_order

    def __bool__(self) -> NoReturn:
        spelling.no_truth(f"{self.label!r}", "; len(weights) counts its tensors, and `is None` asks for None")

    def __abs__(self) -> Weights:
        return self.map(lambda _, expression: abs(expression))

    def __float__(self) -> NoReturn:
        spelling.no_number(
            f"{self.label!r}", "value", "mg.norm(weights) and mg.total(weights) have one for each tensor"
        )

    __int__ = __index__ = __complex__ = __trunc__ = __floor__ = __ceil__ = __float__

    def __round__(self, digits: int | None = None) -> NoReturn:
        spelling.no_number(
            f"{self.label!r}", "digits", "mg.cast(weights, dtype) rounds to what a dtype holds"
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        spelling.no_array(f"{self.label!r}")

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Weights:
        name = function.__name__
        work = _UFUNCS.get(name)
        if work is None or method != "__call__" or options or any(map(spelling.is_array, inputs)):
            spelling.no_function(f"{self.label!r}", name)
        found: Weights = work(*(float(one) if is_number(one) else one for one in inputs))
        return found

    def __array_function__(self, function: Callable[..., Any], *_: Any) -> NoReturn:
        spelling.no_function(f"{self.label!r}", function.__name__)

    def __repr__(self) -> str:
        return f"<Weights {self.label!r}: {len(self)} tensors, degree {_degree_text(self._entries.values())}>"

    def entry(self, name: str) -> Entry:
        """The expression and the degree of one tensor."""
        self[name]
        return self._entries[name]

    def find(self, name: str) -> Entry | None:
        """The tensor of that name, or the one it is tied to; None where there is neither."""
        return self._entries.get(name) or self._entries.get(self.aliases.get(name, name))

    @property
    def degree(self) -> float:
        """The common degree of the tensors. Raises `AlgebraError` where they differ."""
        degrees = {round(entry.degree, 6) for entry in self._entries.values() if not entry.carried}
        if len(degrees) > 1:
            raise AlgebraError(
                f"the tensors of {self.label!r} have different degrees: {listing(map(str, degrees))}"
            )
        return degrees.pop() if degrees else 1.0

    # Arithmetic ---------------------------------------------------------------------------------------------------

    def __add__(self, other: Weights | Number) -> Weights:
        return _combine("add", self, other)

    def __radd__(self, other: Number) -> Weights:
        return self if other == 0 else _combine("add", self, other)

    def __sub__(self, other: Weights | Number) -> Weights:
        return _combine("sub", self, other)

    def __mul__(self, other: Weights | Coefficient) -> Weights:
        return _combine("mul", self, other) if isinstance(other, Weights) else self._scaled("mul", other)

    def __rmul__(self, other: Coefficient) -> Weights:
        return self._scaled("mul", other)

    def __truediv__(self, other: Weights | Coefficient) -> Weights:
        return _combine("div", self, other) if isinstance(other, Weights) else self._scaled("div", other)

    def __rsub__(self, other: Number) -> Weights:
        return -self + other

    def __rtruediv__(self, other: Number) -> Weights:
        if not is_number(other):
            return NotImplemented
        return self.map(lambda _, expression: apply("div", float(other), expression))

    def __neg__(self) -> Weights:
        return self._scaled("mul", -1.0)

    def _scaled(self, operation: str, value: Coefficient) -> Weights:
        need_numbers(self.checkpoints)
        numbers = coefficients(value, self)
        if operation == "div" and (zero := [name for name, number in numbers.items() if number == 0.0]):
            raise AlgebraError(f"division of {self.label!r} by zero (tensor {zero[0]!r})")

        def scale(name: str, entry: Entry) -> Entry:
            number = numbers[name]
            degree = entry.degree * number if operation == "mul" else entry.degree / number
            if entry.carried:
                return replace(entry, degree=degree)
            return Entry(apply(operation, entry.expression, number), degree)

        return self._with({name: scale(name, entry) for name, entry in self._entries.items()})

    # Names --------------------------------------------------------------------------------------------------------

    def select(self, *patterns: Pattern) -> Weights:
        r"""Only the tensors whose name matches a glob (`*.mlp.*`) or a regular expression (`re:layers\.[0-3]\.`)."""
        chosen = matching(self, patterns)
        kept = {name: self._entries[name] for name in chosen}
        return self._with(kept, dropped=self.dropped | (self._entries.keys() - kept.keys()))

    def drop(self, *patterns: Pattern) -> Weights:
        """All but the tensors whose name matches a pattern."""
        out = set(matching(self, patterns))
        kept = {name: entry for name, entry in self._entries.items() if name not in out}
        return self._with(kept, dropped=self.dropped | out)

    def rename(self, names: Mapping[str, str] | Callable[[str], str]) -> Weights:
        """New names, by a mapping (other names stay) or a function. Two tensors under one name is an `AlgebraError`."""
        if isinstance(names, Mapping) and (unknown := [name for name in names if name not in self._entries]):
            raise AlgebraError(
                f"{self.label!r} has no tensor {unknown[0]!r} to rename{did_you_mean(unknown[0], self._entries)}"
            )
        new_name = names if callable(names) else lambda name: names.get(name, name)
        renamed: dict[str, Entry] = {}
        for name, entry in self._entries.items():
            new = new_name(name)
            if new in renamed:
                raise AlgebraError(f"renaming gives two tensors the name {new!r}")
            renamed[new] = entry
        aliases = {one: new_name(home) for one, home in self.aliases.items()}
        return self._with(
            renamed, aliases=aliases, dropped=self.dropped | (self._entries.keys() - renamed.keys())
        )

    def map(
        self, function: Callable[[str, Expression], Expression | Number], *, degree: float | None = None
    ) -> Weights:
        """`function(name, expression)` on every float tensor.

        The degree is kept unless given: `map` cannot know what the function means. Integer and bool tensors pass by.
        """
        need_numbers(self.checkpoints)

        def one(name: str, entry: Entry) -> Entry:
            if entry.carried:
                return entry
            result = function(name, entry.expression)
            if not isinstance(result, Expression):
                raise AlgebraError(
                    f"map: the function gave {result!r} for tensor {name!r}, not an expression"
                )
            return Entry(result, entry.degree if degree is None else degree)

        return self._with({name: one(name, entry) for name, entry in self._entries.items()})

    def override(self, other: Weights) -> Weights:
        """These weights with the tensors of `other` in place of those of the same name."""
        need_numbers((*self.checkpoints, *other.checkpoints))
        unknown = [name for name in other if name not in self._entries]
        if unknown:
            raise AlgebraError(
                f"{other.label!r} would put in tensors that {self.label!r} lacks: {listing(unknown)}"
                f"{did_you_mean(unknown[0], self._entries)}"
            )
        check_agreement((self, other))
        other = in_label_order(other, self)
        entries = {name: other._entries.get(name, entry) for name, entry in self._entries.items()}
        return self._with(entries, checkpoints=_joined(self.checkpoints, other.checkpoints))

    def relabel(self, label: str) -> Weights:
        """The same weights under another name (in errors, and as the key of random draws)."""
        return self._with(self._entries, label=label)

    def allow(self, *keys: str) -> Weights:
        """The same weights, which may contradict others in these keys of config.json (`rope_theta`, `model_type` ...).

        Weights whose configs give tensors another meaning are joined only so. What the result then takes is the config
        of the weights whose names it has. Raises `RequestError` for a key that no loader has.
        """
        if wrong := check_keys(keys):
            raise RequestError(f"allow: {wrong}")
        return self._with(self._entries, allowed=self.allowed | set(keys))

    def with_files(self, files: Mapping[str, bytes | None]) -> Weights:
        """The same weights with other small files beside them: content by name, None for one to leave out."""
        return self._with(self._entries, files={**self.files, **files})

    def with_note(self, note: Mapping[str, Any]) -> Weights:
        """The same weights with a report (JSON values, its `step` by name) for the manifest."""
        return self._with(self._entries, notes=(*self.notes, note))

    def _with(self, entries: Mapping[str, Entry], **changes: Any) -> Weights:
        kept: dict[str, Any] = {
            "label": self.label,
            "origin": self.origin,
            "checkpoints": self.checkpoints,
            "dropped": self.dropped,
            "aliases": self.aliases,
            "reading": self.reading,
            "files": self.files,
            "notes": self.notes,
            "stem": self.stem,
            "allowed": self.allowed,
            "row_labels": self.row_labels,
            "passed_over": self.passed_over,
        }
        return Weights(entries, **(kept | changes))

    # The doorway: filled in by the facade, which joins the algebra and the engine. -----------------------------------

    def save(self, path: Any, **options: Any) -> Any:
        """Compute and write these weights as a sealed checkpoint; see `merganser.save`."""
        return _through("save")(self, path, **options)

    def compute(self, name: str, *, allow_nonfinite: bool = True) -> Any:
        """One tensor as a NumPy array (f32, or f64 where a parent is F64); see `merganser.compute`."""
        return _through("compute")(self, name, allow_nonfinite=allow_nonfinite)


_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "negative": operator.neg,
    "absolute": abs,
    "fabs": abs,
}
"""NumPy's functions that are arithmetic of weights, by NumPy's name."""
doorway: dict[str, Callable[..., Any]] = {}


def _through(name: str) -> Callable[..., Any]:
    """What the facade put into the doorway. It opens by itself: whoever holds weights need not have imported it."""
    if name not in doorway:
        import_module("merganser._facade")
    return doorway[name]


def need_numbers(checkpoints: Iterable[Checkpoint]) -> None:
    """Raise `QuantizedError` where one of the checkpoints holds codes, with which nothing can be computed."""
    for checkpoint in checkpoints:
        checkpoint.need_numbers()


def from_checkpoint(checkpoint: Checkpoint, degree: float | None = None) -> Weights:
    """The lazy weights of an opened checkpoint: degree 1 for a model, 0 for a LoRA adapter or a saved task vector.

    Raises `CheckpointError` for a file of factors that is not read as an adapter.
    """
    checkpoint.refuse_factors()
    degree = checkpoint.degree if degree is None else degree
    entries = {name: Entry(Leaf(tensor), degree) for name, tensor in checkpoint.tensors.items()}
    entries |= {name: Entry(LowRank(delta), degree) for name, delta in checkpoint.deltas.items()}
    origin = None if checkpoint.is_adapter else checkpoint
    return Weights(
        entries, label=checkpoint.name, origin=origin, checkpoints=(checkpoint,), aliases=aliases(checkpoint)
    )


def combine_all(
    parts: Iterable[Weights], function: Callable[..., Expression], degree: float | None = None
) -> Weights:
    """`function(*expressions)` name by name over several weights, which must have the names of the first.

    The degree of the result is `degree`, or that of the first part.
    """
    return combine_named(parts, lambda _, *expressions: function(*expressions), degree)


def combine_named(
    parts: Iterable[Weights], function: Callable[..., Expression], degree: float | None = None
) -> Weights:
    """`function(name, *expressions)`, otherwise as `combine_all`."""
    parts = by_labels(levelled(*parts))
    first = parts[0]
    need_numbers(checkpoint for part in parts for checkpoint in part.checkpoints)
    check_agreement(parts)
    for part in parts[1:]:
        _need_names(first, part)
    entries = {}
    for name, entry in first._entries.items():
        found = [part.find(name) for part in parts]
        if any(other is not None and other.carried for other in found):
            whole = _carried(name, [(p, e) for p, e in zip(parts, found, strict=True) if e is not None])
            entries[name] = replace(whole, degree=entry.degree)
        else:
            expressions = [_checked(name, first, part) for part in parts]
            made = function(name, *expressions)
            entries[name] = Entry(made, entry.degree if degree is None else degree)
    checkpoints = _joined(*(part.checkpoints for part in parts))
    allowed = frozenset().union(*(part.allowed for part in parts))
    return first._with(entries, checkpoints=checkpoints, allowed=allowed)


def _combine(operation: str, a: Weights, b: Weights | Number) -> Weights:
    if not isinstance(b, Weights):
        if not is_number(b):
            return NotImplemented  # type: ignore[no-any-return]
        number = float(b)
        return a.map(lambda _, expression: apply(operation, expression, number))
    need_numbers((*a.checkpoints, *b.checkpoints))
    if operation in ("add", "sub"):
        check_agreement((a, b))
    a, b = levelled(a, b)
    named, other, sparse = _roles(operation, a, b)
    if sparse and (settled := onto(named, other)) is not other:
        a, b, other = (settled, b, settled) if other is a else (a, settled, settled)
    home = named if labels_of(named) is not None else other
    a, b, named, other = (w if w is home else in_label_order(w, home) for w in (a, b, named, other))
    if not sparse:
        _need_names(named, other, both=operation in ("add", "sub"))
    elif not _is_vector(named):
        _refuse_names(named, other)
    entries = {}
    for name in dict.fromkeys([*named, *other]) if _is_vector(named) and sparse else named:
        x, y = a.find(name), b.find(name)
        if x is None or y is None:
            present = x or _negated(operation, y)
            if present.carried:
                present = replace(
                    present, degree=_degree(operation, x.degree if x else 0.0, y.degree if y else 0.0)
                )
            entries[name] = present
            continue
        degree = _degree(operation, x.degree, y.degree)
        if x.carried or y.carried:
            both = [(a, x), (b, y)]
            kept = _carried(name, both[::-1] if abs(y.degree) > abs(x.degree) else both)
            entries[name] = replace(kept, degree=degree)
            continue
        _same_shape(name, a, b, x.expression, y.expression)
        entries[name] = Entry(apply(operation, x.expression, y.expression), degree)
    result = Weights(
        entries,
        label=named.label if operation != "sub" else a.label,
        origin=_origin(a, b),
        checkpoints=_joined(a.checkpoints, b.checkpoints),
        dropped=named.dropped,
        aliases=named.aliases,
        reading=named.reading,
        files=named.files,
        notes=named.notes,
        allowed=a.allowed | b.allowed,
        passed_over=named.passed_over,
    )
    return with_labels(result, labels_of(home))


def _roles(operation: str, a: Weights, b: Weights) -> tuple[Weights, Weights, bool]:
    """Whose names the result has, who is matched to them, and whether that one may lack some (it then counts as zero).

    A difference of two points has the names of the point it starts at (`b` of `a - b`); a vector may cover only some
    tensors of the point it is added to; two vectors give the union of their names; all else has the names of `a`.
    """
    if operation not in ("add", "sub"):
        return a, b, False
    if _is_vector(b):
        return a, b, True
    if _is_vector(a):
        return b, a, operation == "add"
    return (b, a, False) if operation == "sub" else (a, b, False)


def _negated(operation: str, entry: Entry | None) -> Entry:
    assert entry is not None
    if operation != "sub" or entry.carried:
        return entry
    return Entry(apply("neg", entry.expression), -entry.degree)


def _origin(a: Weights, b: Weights) -> Checkpoint | None:
    """The small files come from the first point; of a difference, from the point it starts at."""
    if _is_vector(a) and not _is_vector(b):
        return b.origin
    return a.origin or b.origin


def _is_vector(weights: Weights) -> bool:
    return all(abs(entry.degree) < DEGREE_TOLERANCE or entry.carried for entry in weights._entries.values())


def _degree(operation: str, x: float, y: float) -> float:
    if operation == "add":
        return x + y
    if operation == "sub":
        return x - y
    if operation == "mul":
        return x * y
    return x / y if y else float("nan")


def _need_names(named: Weights, other: Weights, *, both: bool = True) -> None:
    """Raise `AlgebraError` where `other` lacks a tensor of `named`, or with `both` has one that `named` lacks."""
    # What is carried may be missing: newer libraries no longer store position ids, for one.
    missing = [
        name for name, entry in named._entries.items() if not entry.carried and other.find(name) is None
    ]
    if missing:
        hint = did_you_mean(missing[0], other._entries)
        raise AlgebraError(
            f"{other.label!r} lacks {len(missing)} of the {len(named)} tensors of {named.label!r}: "
            f"{listing(missing)}{told(named, other, other.label) or hint}"
        )
    if both and (extra := extra_names(named, other)):
        wanted = ", ".join(f'"{pattern}"' for pattern in patterns_of(extra))
        count = f"{len(extra)} tensor{'s'[: len(extra) != 1]}"
        raise AlgebraError(
            f"{other.label!r} has {count} that {named.label!r} lacks, and the result would be without: "
            f"{listing(extra)}. To leave that out, join {other.label!r} after .drop({wanted})"
        )


def extra_names(named: Weights, other: Weights) -> list[str]:
    """Tensors of `other` that `named` has under no name and did not leave out on purpose, but what is carried."""
    return [
        name
        for name, entry in other._entries.items()
        if not entry.carried and name not in named.dropped and named.find(name) is None
    ]


def patterns_of(names: Iterable[str]) -> list[str]:
    """Globs that match the names: one for the same tensor of all layers."""
    return list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in names))


def _refuse_names(named: Weights, vector: Weights) -> None:
    extra = [name for name in vector if name not in named._entries]
    if extra:
        adapter = any(checkpoint.is_adapter for checkpoint in vector.checkpoints)
        remedy = (
            ". If it was made on this model, merge it there in PEFT (merge_and_unload) and open the result"
        )
        raise AlgebraError(
            f"{vector.label!r} changes {len(extra)} tensors that {named.label!r} does not have: {listing(extra)}"
            f"{did_you_mean(extra[0], named._entries)}{remedy if adapter else ''}"
        )


def _checked(name: str, first: Weights, part: Weights) -> Expression:
    x, y = first._entries[name], part.find(name)
    assert y is not None
    _same_shape(name, first, part, x.expression, y.expression)
    return y.expression


def _carried(name: str, held: Sequence[tuple[Weights, Entry]]) -> Entry:
    """The entry that is carried: the first one of integers, for floats are another way of storing them; else the first.

    Raises `AlgebraError` where shapes differ, or floats say something else than the integers.
    """
    carried = [(weights, entry) for weights, entry in held if entry.carried]
    home, kept = next(((w, e) for w, e in carried if _integers(e)), carried[0])
    for weights, entry in held:
        if entry is kept or entry.expression.is_scalar:
            continue
        _same_shape(name, home, weights, kept.expression, entry.expression)
        if entry.carried:
            _same_bits(name, home, weights, kept.expression, entry.expression)
        elif why := _other_values(kept.expression, entry.expression):
            raise AlgebraError(
                f"tensor {name!r} is an integer or bool tensor in {home.label!r} and a float tensor in "
                f"{weights.label!r}, {why}"
            )
    return kept


def agree(x: Entry, y: Entry) -> bool:
    """Whether two tensors of one name are of one shape and kind; integers may be stored as floats of their values."""
    if not x.expression.is_scalar and not y.expression.is_scalar and x.expression.shape != y.expression.shape:
        return False
    if x.carried == y.carried:
        return True
    whole, floats = (x, y) if x.carried else (y, x)
    return _other_values(whole.expression, floats.expression) is None


def _integers(entry: Entry) -> bool:
    return isinstance(entry.expression, Load) and not entry.expression.dtype.is_float


def _other_values(whole: Expression, floats: Expression) -> str | None:
    """Why floats are not the integers `whole` in another dtype, or None where they are. Reads both, being small."""
    if not _integers(Entry(whole, 1.0)):  # a constant
        return None
    stored = [node for node in walk([floats]) if isinstance(node, Leaf)]
    if whole.size > MOST_COMPARED or not isinstance(whole, Leaf) or not stored:
        return "and is no small buffer that one of them stores in another dtype"
    values = whole.tensor.numpy()
    for leaf in stored:
        found = leaf.tensor.numpy()
        if found.shape != values.shape or not np.array_equal(values.astype(found.dtype), found):
            return "with other values"
    return None


def _same_bits(name: str, a: Weights, b: Weights, x: Expression, y: Expression) -> None:
    """Elements of a type that is not computed with may be carried where both have the very same ones."""
    if not (isinstance(x, Leaf) and isinstance(y, Leaf)) or x.tensor is y.tensor:
        return
    types = x.tensor.dtype, y.tensor.dtype
    if not any(dtype.opaque for dtype in types) or same_content(x.tensor, y.tensor):
        return
    found = f"{types[0]}" if types[0] == types[1] else f"{types[0]} and {types[1]}"
    raise AlgebraError(
        f"tensor {name!r} is {found} and differs between {a.label!r} and {b.label!r}: no arithmetic is done with that "
        "type, so the two cannot be combined. Convert the tensor in both (torch: tensor.to(torch.float32), of complex "
        "numbers torch.view_as_real(tensor)) and save them again"
    )


def _same_shape(name: str, a: Weights, b: Weights, x: Expression, y: Expression) -> None:
    if x.is_scalar or y.is_scalar or x.shape == y.shape:
        return
    other = next((one for one in (a, b) if adapters_in(one)), None)
    base = None if other is None else named_base(other)
    hint = (
        f". {other.label!r} was trained on a model of other sizes{f' ({base})' if base else ''}: add it to that one"
        if other is not None
        else ""
    )
    raise AlgebraError(
        f"tensor {name!r} has shape {list(x.shape)} in {a.label!r} and {list(y.shape)} in {b.label!r}; "
        f"element by element they cannot be combined{hint}"
    )


def _joined(*groups: tuple[Checkpoint, ...]) -> tuple[Checkpoint, ...]:
    seen: dict[int, Checkpoint] = {}
    for group in groups:
        for checkpoint in group:
            seen.setdefault(id(checkpoint), checkpoint)
    return tuple(seen.values())


def _degree_text(entries: Iterable[Entry]) -> str:
    degrees = sorted({round(entry.degree, 6) for entry in entries if not entry.carried})
    return " to ".join(f"{d:g}" for d in dict.fromkeys([degrees[0], degrees[-1]])) if degrees else "1"
