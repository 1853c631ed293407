"""The layers whose output a vision backbone gives out: `out_indices` and `out_features` of config.json.

Stage 0 is the stem, stage n what the n-th layer gives out. A stage stays with its layer, and the last with the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merganser.architectures.notation import FamilyError
from merganser.errors import MerganserError

STEM = "stem"
_NAMES, _FEATURES = "stage_names", "out_features"


@dataclass(frozen=True)
class StageSpec:
    """The index whose copies are a backbone's stages, and the config keys that hold numbers of stages."""

    index: str
    keys: tuple[str, ...]


def parse_stages(raw: Any, place: str) -> StageSpec | None:
    """A family file's `stages: {layer: [out_indices]}`. Raises `FamilyError`."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise FamilyError(f"{place}: stages: expected one index and its keys, as {{layer: [out_indices]}}")
    ((index, keys),) = raw.items()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FamilyError(f"{place}: stages: expected a list of config keys")
    return StageSpec(str(index), tuple(keys))


def followed(
    spec: StageSpec,
    config: Mapping[str, Any],
    before: int,
    order: Sequence[int] | None,
    count: int,
    refused: Callable[[str], MerganserError],
) -> dict[str, Any]:
    """The config whose stages are those of before, for `count` layers that were `before`.

    `order` holds the old number of each layer, None where several models gave them: then only the last stage is known,
    unless there are as many layers as before. A layer that comes several times has its stage behind the last of them.
    `refused` makes the error where a stage would be gone, or would come in another order.
    """
    order = tuple(order) if order is not None else tuple(range(before)) if count == before else None
    made = dict(config)
    if count == before and order == tuple(range(before)):
        return made
    for key in (*spec.keys, _FEATURES):
        held = config.get(key)
        numbers = _numbers(held, before)
        if numbers is None:
            continue
        moved = [_moved(number, before, order, count) for number in numbers]
        if None in moved or sorted({n for n in moved if n is not None}) != moved:
            layers = ", ".join("the stem" if n == 0 else f"layer {n - 1}" for n in numbers)
            named = " and ".join(name for name in (_FEATURES, *spec.keys) if config.get(name) is not None)
            raise refused(
                f"config.json's {key} {held} gives out {layers}, and of these some would be gone or in another order. "
                f"Leave these layers in their order; or, where nothing reads these stages, take {named} out of "
                "config.json first, and the loader gives out the last layer"
            )
        made[key] = [_name(n) for n in moved if n is not None] if key == _FEATURES else moved
    if isinstance(config.get(_NAMES), list):
        made[_NAMES] = [_name(n) for n in range(count + 1)]
    return made


def _moved(number: int, before: int, order: Sequence[int] | None, count: int) -> int | None:
    """The number that a stage has now, None where its layer is gone."""
    if number == 0:
        return 0
    if number == before:
        return count
    return next(
        (k + 1 for k in range(count - 1, -1, -1) if order is not None and order[k] == number - 1), None
    )


def _name(number: int) -> str:
    return f"stage{number}" if number else STEM


def _numbers(held: Any, before: int) -> list[int] | None:
    """Stages by number; None where a list is none, or names stages that such a model has not."""
    if not isinstance(held, list) or not held:
        return None
    known = {_name(n): n for n in range(before + 1)}
    found = [known.get(one, -before - 2) if isinstance(one, str) else one for one in held]
    if not all(isinstance(n, int) and -before - 1 <= n <= before for n in found):
        return None
    return [n % (before + 1) for n in found]
