"""What a stock loader takes from the number of a copy (a layer): its kind of attention, dense or experts, a scale.

A family's file says it as formulas of that number. When copies move, each keeps what it had: the values move with it,
and config.json says them by the key that the loader reads, or the plan is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from merganser.architectures.notation import NULL, FamilyError, Formula, Missing
from merganser.errors import AlgebraError, MerganserError, did_you_mean

if TYPE_CHECKING:
    from merganser.architectures.family import Family

LIST, NUMBERS, RUNS, COUNTS, NOWHERE = "list", "numbers", "runs", "counts", "nowhere"
WAYS = (LIST, NUMBERS, RUNS, COUNTS, NOWHERE)
KEYS = {"index", "of", "entry", "sets", *WAYS}
Values = tuple[Any, ...]
Refused = Callable[["PositionRule", str], MerganserError]


@dataclass(frozen=True)
class PositionRule:
    """One thing that the loader takes from a copy's number, and where config.json can say it.

    `entry` is its value for the copy whose number is `index`. `way` says how `keys` hold it: "list" has one entry a
    copy, "numbers" the numbers of copies for which it is true, "runs" pairs of a list and how often it comes, "counts"
    numbers in the formula itself. "nowhere" means that no key says it, and `reason` what it is. `sets` are other keys
    that must be so once the key is written. `model_types` are those of the file that it is about, none meaning all.
    """

    index: str
    entry: Formula
    way: str
    keys: tuple[str, ...]
    sets: tuple[tuple[str, Any], ...] = ()
    model_types: tuple[str, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str:
        """What tells it from the other rules of a model: its keys, or its formula."""
        return ", ".join(self.keys) or self.entry.text


def parse_positions(raw: Any, place: str) -> tuple[PositionRule, ...]:
    """The rules of a family file's `positions:`, a list of mappings. Raises `FamilyError`."""
    if not isinstance(raw, list) or not all(isinstance(line, Mapping) for line in raw):
        raise FamilyError(f"{place}: positions: expected a list of mappings")
    return tuple(_rule(line, f"{place}: positions[{k}]") for k, line in enumerate(raw))


def _rule(line: Mapping[str, Any], place: str) -> PositionRule:
    if unknown := sorted(set(line) - KEYS):
        raise FamilyError(f"{place}: unknown key {unknown[0]!r}{did_you_mean(unknown[0], KEYS)}")
    ways = [way for way in WAYS if way in line]
    if len(ways) != 1 or not isinstance(line.get("index"), str) or "entry" not in line:
        raise FamilyError(f"{place}: needs index, entry and one of {', '.join(WAYS)}")
    (way,) = ways
    keys = line[way] if isinstance(line[way], list) else [line[way]]
    sets = line.get("sets", {})
    if not isinstance(sets, Mapping) or not all(isinstance(key, str) for key in keys):
        raise FamilyError(f"{place}: {way} names config keys, and sets is a mapping")
    return PositionRule(
        line["index"],
        Formula(str(line["entry"])),
        way,
        () if way == NOWHERE else tuple(keys),
        tuple(sets.items()),
        tuple(line.get("of", ())),
        str(line[way]) if way == NOWHERE else "",
    )


def rules_of(family: Family, config: Mapping[str, Any], index: str | None = None) -> Iterator[PositionRule]:
    """The rules for a model with this config, all or those of one index."""
    kind = config.get("model_type")
    for rule in family.positions:
        if index in (None, rule.index) and (not rule.model_types or kind in rule.model_types):
            yield rule


def values_of(family: Family, config: Mapping[str, Any], rule: PositionRule, count: int) -> Values | None:
    """What the loader takes for each of `count` copies; None where the rule does not bear on this config.

    Raises `AlgebraError` where a list in config.json has another length, or is none.
    """
    key = rule.keys[0] if rule.keys else ""
    held = family.value(config, key) if rule.way in (LIST, RUNS) else None
    if held is not None:
        values = _unrolled(held, key) if rule.way == RUNS else held
        if not isinstance(values, list):
            raise AlgebraError(f"config.json's {key} is no list")
        if len(values) != count:
            raise AlgebraError(
                f"config.json's {key} has {len(values)} entries and there are {count} of {rule.index}"
            )
        return tuple(values)
    try:
        return tuple(_entry(family, config, rule, k, count) for k in range(count))
    except Missing:
        return None
    except TypeError:
        raise AlgebraError(
            f"config.json does not give numbers for {', '.join(rule.entry.names)} (in {rule.entry})"
        ) from None


def _entry(family: Family, config: Mapping[str, Any], rule: PositionRule, number: int, count: int) -> Any:
    counted = family.indices[rule.index].size.names

    def looked_up(name: str) -> Any:
        if name == rule.index:
            return number
        if name in counted:
            return count
        if name.endswith(f"[{rule.index}]"):
            return _of_copy(family, config, name.partition("[")[0], number, count)
        value = family.value(config, name)
        return NULL if value is None and name in config else value

    return rule.entry(looked_up)


def _of_copy(family: Family, config: Mapping[str, Any], key: str, number: int, count: int) -> Any:
    """One entry of a list, or what the loader would put there."""
    held = family.value(config, key)
    if held is None:
        rule = next((rule for rule in rules_of(family, config) if key in rule.keys), None)
        return None if rule is None else _entry(family, config, rule, number, count)
    return held[number] if isinstance(held, list) and number < len(held) else None


def _unrolled(runs: Any, key: str) -> list[Any]:
    """`[[["global", "local"], 2]]` as a list with one entry a copy."""
    try:
        found = [entry for kinds, times in runs for _ in range(min(times, 100_000)) for entry in kinds]
    except (TypeError, ValueError):
        raise AlgebraError(f"config.json's {key} is no list of pairs of a list and a number") from None
    return found


# Saying it ------------------------------------------------------------------------------------------------------------


def said(
    family: Family, config: Mapping[str, Any], wanted: Mapping[PositionRule, Values], refused: Refused | None
) -> dict[str, Any]:
    """The config by which the loader takes the wanted values for every copy.

    A key that says so already, or that the loader fills in as wanted, stays as it is. Where no key can say it,
    `refused` makes the error; with None the config says as much as it can.
    """
    made = dict(config)
    for rule in rules_of(family, config):
        values = wanted.get(rule)
        if values is None or (
            _agrees(family, made, rule, values) and (rule.way != RUNS or rule.keys[0] in made)
        ):
            continue
        if rule.way == LIST:
            made = family.put(made, rule.keys[0], list(values))
        elif rule.way == RUNS:
            made = family.put(made, rule.keys[0], [[list(values), 1]])
        elif rule.way == NUMBERS:
            numbers = [k for k, value in enumerate(values) if value]
            for key, value in ((rule.keys[0], numbers), *rule.sets):
                made = family.put(made, key, value)
        else:
            found = _counted(family, made, rule, values) if rule.way == COUNTS else None
            if found is None and refused is not None:
                raise refused(rule, _cannot(rule))
            made = found or made
    return made


def _agrees(family: Family, config: Mapping[str, Any], rule: PositionRule, values: Values) -> bool:
    try:
        return values_of(family, config, rule, len(values)) == values
    except AlgebraError:
        return False


def _counted(
    family: Family, config: Mapping[str, Any], rule: PositionRule, values: Values
) -> dict[str, Any] | None:
    """The config with numbers in its keys that give the values, the nearest to what is there; None where none do.

    A number can only matter where the values change, so few are tried.
    """
    turns = [k for k in range(1, len(values)) if values[k] != values[k - 1]]
    tried = sorted({0, len(values), len(values) - 1, *turns, *(k - 1 for k in turns)})
    held = [family.value(config, key) for key in rule.keys]
    choices = [[old, *(k for k in tried if k != old)] for old in held]
    for sets in ({}, dict(rule.sets)):
        for numbers in sorted(
            product(*choices), key=lambda n: sum(a != b for a, b in zip(n, held, strict=True))
        ):
            made = dict(config)
            for key, value in (*zip(rule.keys, numbers, strict=True), *sets.items()):
                made = family.put(made, key, value) if value is not None else made
            if _agrees(family, made, rule, values):
                return made
    return None


def _cannot(rule: PositionRule) -> str:
    if rule.way == NOWHERE:
        return f"{rule.reason}: the stock loader goes by the {rule.index}'s number, and no key says it for this order"
    keys = " and ".join(rule.keys)
    return (
        f"the stock loader tells one {rule.index} from another by {rule.entry}, and no {keys} says this order"
    )


# Moving ---------------------------------------------------------------------------------------------------------------


def taken(values: Mapping[PositionRule, Values], order: Sequence[int]) -> dict[PositionRule, Values]:
    """The values of copies in another order."""
    return {rule: tuple(held[k] for k in order) for rule, held in values.items()}


@dataclass(frozen=True)
class Move:
    """How copies have moved: `order` holds their numbers in the model `source`, None where several models gave them.

    `config` and `values` are what that model said of its copies before.
    """

    source: str
    config: Mapping[str, Any]
    values: Mapping[PositionRule, Values]
    order: tuple[int, ...] | None

    def taken(self, order: Sequence[int]) -> Move:
        """The move and another one after it."""
        held = self.order
        return replace(self, order=None if held is None else tuple(held[k] for k in order))

    def sayable(self, family: Family) -> list[int] | None:
        """An order near to this one that config.json can say; None where none of those that are tried is."""
        if self.order is None:
            return None
        count = min(map(len, self.values.values()), default=0)
        size = len(self.order)
        first = [0, *(k for k in self.order if k)][:size]
        for tried in (first, sorted(self.order), sorted(first), [*range(min(size, count))]):
            if not tried or max(tried) >= count:
                continue
            wanted = taken(self.values, tried)
            made = said(family, self.config, wanted, None)
            if all(_agrees(family, made, rule, values) for rule, values in wanted.items()):
                return tried
        return None


def followed_moves(moves: Sequence[Move]) -> Move:
    """The moves of parts that lie one after the other, as one; parts of several models have no common order."""
    first, *more = moves
    if any(move.source != first.source or move.order is None for move in (first, *more)):
        return replace(first, order=None)
    return replace(first, order=tuple(k for move in moves for k in move.order or ()))


def as_text(numbers: Iterable[int]) -> str:
    """Numbers as steps take them: `0-3, 5, 5`."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
