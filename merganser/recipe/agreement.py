"""Models of a recipe whose configs contradict each other: refused, allowed by `allow:`, or named in the report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from merganser.algebra import Weights
from merganser.algebra.agreement import contradictions, in_words
from merganser.architectures.meaning import TOKENIZER_KEY, allowed, check_keys
from merganser.errors import RequestError
from merganser.recipe.settings import shown


def read_allow(raw: Any, place: str) -> tuple[str, ...]:
    """`allow: [rope_theta, sliding_window]`, or one key. Raises `RequestError` for what is no key of a config."""
    keys = [raw] if isinstance(raw, str) else raw
    if keys is None:
        return ()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RequestError(f"{place}: expected a list of keys of config.json, not {shown(raw)}")
    if wrong := check_keys(keys):
        raise RequestError(f"{place}: {wrong}")
    return tuple(dict.fromkeys(keys))


def agreed(
    models: Sequence[Weights],
    merged: Sequence[int],
    reference: int,
    allow: Sequence[str],
    *,
    mergekit: bool,
    besides: Collection[str] = (),
    place: str,
) -> tuple[list[Weights], dict[str, Any] | None]:
    """The models, free to be joined, and what the report says of contradictions that were let by.

    In mergekit's form what mergekit merges and may be meant (a fine-tune with another rotary base) is let by and named;
    what cannot work (another model type, other heads) is refused there too. `besides` are keys
    that do not matter where these models are joined. Raises `RequestError`.
    """
    base = models[reference]
    refused, named, by_place, keys = [], [], [], set(allow)
    for k in merged:
        for one in contradictions(base, models[k], besides):
            told = in_words([one], base, models[k])
            if allowed(one.key, allow) or (mergekit and not one.broken):
                named.append(told)
                if one.key == TOKENIZER_KEY and not allowed(one.key, allow):
                    by_place.append(told)
                keys.add(one.key)
            else:
                refused.append((one.key, told))
    if refused:
        wanted = ", ".join(dict.fromkeys([*allow, *(key for key, _ in refused)]))
        way = (
            "To merge rows token by token, write `tokenizer_source: union` (the tokens of all) or `tokenizer_source: "
            "base` (those of one); if rows by place are meant"
            if refused[-1][0] == TOKENIZER_KEY and len({key for key, _ in refused}) == 1
            else "if this is meant"
        )
        raise RequestError(
            f"{place}: {'; '.join(dict.fromkeys(told for _, told in refused))}. Tensors of such models do not mean the "
            f"same. {way[0].upper()}{way[1:]}, write allow: [{wanted}] in the recipe"
        )
    if not keys:
        return list(models), None
    free = [model._with({n: model.entry(n) for n in model}, allowed=model.allowed | keys) for model in models]
    note = {"step": "parents differ", "in config.json": named, "the result has that of": base.label}
    if by_place:
        note["warning"] = (
            f"rows of embeddings and heads are merged by place, as in mergekit, although {'; '.join(by_place)}. With "
            "tokenizer_source: union (or base) rows of the same tokens meet; allow: [tokenizer] says that places are "
            "meant"
        )
    return free, note if named else None
