"""What steps claim, checked before anything is written: a small model of the same config goes through them and is run.

The small model has the parent's own config.json and numbers; sizes that no step speaks of are cut, so that the whole
takes little. transformers opens it before and after, from files alone and without code of the model.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merganser._facade import open as open_weights
from merganser._facade import save
from merganser.algebra import Weights, axes
from merganser.algebra.axes import reading_of
from merganser.algebra.weights import from_checkpoint
from merganser.architectures import Reading, get_key
from merganser.errors import MerganserError, RequestError, VerificationError, listing
from merganser.methods.steps import Step
from merganser.running.library import quiet, short
from merganser.running.needs import require

SEQUENCES, LENGTH = 2, 24
TOLERANCE = 1e-3
"""The largest difference of an output, over the largest output; sums of f32 run in another order."""
_FREE = 700 << 20
"""What torch and transformers themselves hold."""
_ROWS = 64
"""About how many elements an axis keeps."""
_HEADS = 2
"""How many heads and groups stay, so that their order still counts."""
_INPUTS_AND_LABELS = ("vocab", "labels", "token_types", "positions")
Settings = Mapping[str, Any]
Calls = Sequence[tuple[Step, Settings]]


@dataclass(frozen=True)
class Opened:
    """A model as transformers opened it: what it answers (None where it was not asked), and names that did not fit."""

    answer: np.ndarray[Any, Any] | None
    missing: frozenset[str]
    unexpected: frozenset[str]


def check_steps(weights: Weights, calls: Calls, *, memory: int) -> dict[str, Any]:
    """Take a small model of the same config through the steps, open it before and after, and compare.

    weights: the model before the steps. calls: each step with its settings. memory: bytes that the process may hold.
    Returns what was done, in plain JSON: `sizes` (axes that were cut, from and to), `steps`, `exact` (whether the
    function has to stay), and `largest_difference` and `largest_value` or `not_compared` (why). Raises `RequestError`
    where torch or transformers are missing, transformers does not open the model before the steps, or the check takes
    too much memory; `VerificationError` where the result does not open, lacks tensors, has others, or answers
    something else although the steps claim that the function stays.
    """
    require("torch", "transformers")
    parent = _as_stored(weights)
    cuts = _cuts(reading_of(parent), calls)
    try:
        return _checked(parent, calls, cuts, memory)
    except _StepFailed as failed:
        if not cuts:
            raise failed.error from None
        return _checked(parent, calls, {}, memory)


class _StepFailed(Exception):
    """A step refused the small model, perhaps because it is small."""

    def __init__(self, error: MerganserError) -> None:
        super().__init__(str(error))
        self.error = error


def _checked(
    parent: Weights, calls: Calls, cuts: Mapping[str, tuple[int, int]], memory: int
) -> dict[str, Any]:
    small = _cut(parent, cuts)
    needed = _FREE + 3 * sum(4 * int(np.prod(small[name].shape)) for name in small)
    if needed > memory:
        raise RequestError(
            f"--check takes about {needed / 1e9:.1f} GB for this model and these steps, and --memory is "
            f"{memory / 1e9:.1f} GB; give --memory more, or leave --check away"
        )
    exact = True
    with tempfile.TemporaryDirectory(prefix="merganser-check-") as scratch:
        before, after = Path(scratch) / "before", Path(scratch) / "after"
        save(small, before, dtype="float32", sync=False)
        made = open_weights(before)
        try:
            for step, settings in calls:
                exact = exact and step.claim.exact(made, settings)
                made = step.function(made, **{key: _small(value, cuts) for key, value in settings.items()})
            save(made, after, dtype="float32", sync=False)
        except MerganserError as error:
            raise _StepFailed(error) from error
        silent = _not_compared(parent, calls) if exact else "a step changes the function"
        try:
            first = _opened(before, ask=not silent)
        except Exception as error:
            raise RequestError(
                f"transformers does not run {parent.label!r} as it is, so the steps cannot be checked "
                f"({short(error)}); leave --check away"
            ) from None
        try:
            second = _opened(after, ask=not silent)
        except Exception as error:
            raise VerificationError(
                f"--check: the result does not open or run in transformers: {short(error)}"
            ) from error
    _compare_names(first, second)
    told: dict[str, Any] = {
        "steps": [step.name for step, _ in calls],
        "sizes": {axis: list(pair) for axis, pair in cuts.items()},
        "exact": exact,
    }
    return told | (_compare_answers(first, second) if not silent else {"not_compared": silent})


def _compare_names(before: Opened, after: Opened) -> None:
    lost, extra = after.missing - before.missing, after.unexpected - before.unexpected
    told = [f"it lacks {listing(sorted(lost))}"] if lost else []
    told += [f"it has tensors that the loader does not read: {listing(sorted(extra))}"] if extra else []
    if told:
        raise VerificationError(
            f"--check: the result does not fit its config.json in transformers: {'; '.join(told)}"
        )


def _compare_answers(before: Opened, after: Opened) -> dict[str, Any]:
    old, new = before.answer, after.answer
    if old is None or new is None:
        return {"not_compared": "inputs of this kind of model are not made here"}
    if old.shape != new.shape:
        raise VerificationError(
            f"--check: outputs of shape {list(old.shape)} have become {list(new.shape)}, and the steps claim that the "
            "function stays"
        )
    scale = float(np.abs(old).max(initial=0))
    largest = float(np.abs(old - new).max(initial=0))
    if not largest <= TOLERANCE * max(scale, 1e-6):
        raise VerificationError(
            f"--check: outputs differ by {largest:.3g} (the largest is {scale:.3g}), and the steps claim that the "
            "function stays"
        )
    return {"largest_difference": largest, "largest_value": scale}


def sentence(found: Mapping[str, Any]) -> str:
    """A check in a line."""
    sizes = ", ".join(f"{axis} {new} of {old}" for axis, (old, new) in found["sizes"].items())
    text = "checked on the model" + (f" with {sizes}" if sizes else "") + ": it opens in transformers"
    if "not_compared" in found:
        return f"{text}; outputs not compared: {found['not_compared']}"
    return (
        f"{text}, and outputs differ by at most {found['largest_difference']:.2g} (largest value "
        f"{found['largest_value']:.3g})"
    )


# The small model ------------------------------------------------------------------------------------------------------


def _as_stored(weights: Weights) -> Weights:
    """The model whose config the result of a merge has, with its own numbers: the method need not run for a check."""
    origin = weights.origin
    if (
        origin is None
        or weights.reading is not None
        or weights.files
        or weights.keys() != origin.tensors.keys()
    ):
        return weights
    if any(tuple(weights[name].shape) != tuple(origin.tensors[name].shape) for name in weights):
        return weights
    return from_checkpoint(origin)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _words(key)
            yield from _words(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _words(inner)


def _named(calls: Calls) -> set[str]:
    """Every word in the settings of the steps, the axes that they speak of among them."""
    found: set[str] = set()
    for step, settings in calls:
        for parameter in step.parameters:
            found |= set(_words(settings.get(parameter.name, parameter.default)))
        if "vocabulary" in step.name or "tokenizer" in step.name:
            found.add("vocab")
    return found


def _cuts(reading: Reading, calls: Calls) -> dict[str, tuple[int, int]]:
    """Axes that may be smaller, with their size and the new one.

    Not those that a step names, that have fixed places or are counted by layer; and only as far as config.json can say.
    """
    named = _named(calls)
    family = reading.family
    free: dict[str, int] = {}
    for axis in family.axes:
        sizes = {reading.sizes[one] for one in reading.instances(axis)}
        if (
            axis in family.fixed
            or axis in named
            or len(sizes) != 1
            or axis.startswith(("labels", "positions"))
        ):
            continue
        free[axis] = sizes.pop()
    cuts: dict[str, tuple[int, int]] = {}

    def fits(more: Mapping[str, tuple[int, int]]) -> bool:
        tried = {**cuts, **more}
        changed = {
            one: tried[one.name][1] if one.name in tried else size for one, size in reading.sizes.items()
        }
        try:
            reading.resized(changed, reading.tensors).followed()
        except MerganserError:
            return False
        return True

    heads = [axis for axis in free if axis.endswith(("heads", "groups"))]
    wide = [axis for axis in free if axis.endswith("residual")]
    for axis in wide:
        for head in heads:
            for factor in _divisors(free[head]):
                if free[head] // factor < _HEADS:
                    continue
                both = {axis: (free[axis], free[axis] // factor), head: (free[head], free[head] // factor)}
                if free[axis] % factor == 0 and factor > 1 and both[axis][1] >= 16 and fits(both):
                    cuts |= both
                    break
    for axis, size in free.items():
        if axis in cuts:
            continue
        if axis.endswith("vocab"):
            new = _rows_kept(reading)
        else:
            new = _divided(size, _HEADS if axis in heads else _ROWS)
        if new < size and fits({axis: (size, new)}):
            cuts[axis] = (size, new)
    return cuts


def _divisors(size: int) -> list[int]:
    return [factor for factor in range(size, 0, -1) if size % factor == 0][:64]


def _divided(size: int, wanted: int) -> int:
    """The size over its largest divisor that leaves `wanted` or more: what divided it by two still does, mostly."""
    odd = size
    while odd % 2 == 0:
        odd //= 2
    new = size // odd if size // odd >= wanted else size
    while new % 2 == 0 and new // 2 >= wanted:
        new //= 2
    return new


def _rows_kept(reading: Reading) -> int:
    """Rows of the vocabulary: enough for the tokens that config.json names."""
    ids = [-1]
    for key in reading.config:
        if key.endswith(("token_id", "token_index")):
            value = get_key(reading.config, key)
            ids += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]
    return max(_ROWS, max(ids) + 1)


def _cut(weights: Weights, cuts: Mapping[str, tuple[int, int]]) -> Weights:
    """A model with axes cut, where they have the size that is to be cut."""
    for axis, (old, new) in cuts.items():
        reading = reading_of(weights)
        if axis in reading.family.axes and {reading.sizes[one] for one in reading.instances(axis)} == {old}:
            weights = axes.take(weights, axis, range(new))
    return weights


def _small(value: Any, cuts: Mapping[str, tuple[int, int]]) -> Any:
    """Settings of a step for the small model: other models cut alike."""
    if isinstance(value, Weights):
        return _cut(value, cuts)
    if isinstance(value, Mapping):
        return {key: _small(inner, cuts) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_small(inner, cuts) for inner in value)
    return value


# Running it -----------------------------------------------------------------------------------------------------------


def _not_compared(weights: Weights, calls: Calls) -> str:
    """Why outputs cannot be compared by place although the function stays, "" where they can."""
    named = _named(calls)
    if any(word.startswith(_INPUTS_AND_LABELS) for word in named):
        return "a step gives tokens or labels other numbers"
    classes = [str(name) for name in reading_of(weights).config.get("architectures") or []]
    if not any("For" in name or "LMHead" in name for name in classes) and any(
        word.endswith("residual") for word in named
    ):
        return "the outputs are the residual stream itself, which a step changes"
    return ""


def _opened(directory: Path, *, ask: bool) -> Opened:
    import torch
    import transformers as untyped

    transformers: Any = untyped
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        config = transformers.AutoConfig.from_pretrained(directory, **settings)
        name = next(iter(config.architectures or []), "")
        kind = getattr(transformers, name, transformers.AutoModel)
        model, report = kind.from_pretrained(
            directory,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    model.eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the other kernels do not take sizes as small as these
    wrong = [str(one[0]) for one in report["mismatched_keys"]]
    answer = _answer(model, config) if ask else None
    found = Opened(answer, frozenset([*report["missing_keys"], *wrong]), frozenset(report["unexpected_keys"]))
    del model
    gc.collect()
    return found


def _answer(model: Any, config: Any) -> np.ndarray[Any, Any] | None:
    """The first float output on inputs drawn with seed 0; None where the model takes what is not made here."""
    import torch

    text = config.get_text_config()
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {}
    kind = model.main_input_name
    pictured = hasattr(config, "vision_config") and hasattr(config, "text_config")
    if kind == "input_ids":
        special = set(_special_ids(text))
        plain = [k for k in range(int(text.vocab_size)) if k not in special] or [0]
        most = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or LENGTH
        length = max(1, min(LENGTH, int(most) - 4))
        ids = torch.tensor(rng.choice(plain, (SEQUENCES, length)))
        inputs["input_ids"] = ids
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
    if kind == "pixel_values" or pictured:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None)
        if not isinstance(size, int):
            return None
        shape = (SEQUENCES, int(getattr(vision, "num_channels", 3)), size, size)
        inputs["pixel_values"] = torch.tensor(rng.standard_normal(shape), dtype=torch.float32)
    if not inputs:
        return None
    more = {"use_cache": False} if hasattr(config, "use_cache") else {}
    with torch.no_grad():
        found = model(**inputs, **more)
    values = (v for v in found.values() if torch.is_tensor(v) and v.is_floating_point() and v.dim() > 0)
    first = next(values, None)
    return None if first is None else first.double().numpy().copy()


def _special_ids(config: Any) -> Iterator[int]:
    for key, value in config.to_dict().items():
        if key.endswith("token_id") and value is not None:
            yield from value if isinstance(value, list) else [value]


__all__ = ["check_steps", "sentence"]
