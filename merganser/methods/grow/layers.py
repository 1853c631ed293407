"""Depth: layers kept, repeated, stacked and interleaved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from merganser.algebra import Weights, axes
from merganser.algebra.axes import reading_of
from merganser.architectures import Axis
from merganser.errors import RequestError, did_you_mean
from merganser.methods._configs import with_differing_configs
from merganser.methods.steps import Claim, as_numbers, step

_SILENT = Claim("stays", {"silent": True}, words="with silent")


def _all_kept(weights: Weights, settings: Mapping[str, Any]) -> bool:
    """Whether the layers, repetitions left out, are all of the model in their order."""
    count = reading_of(weights).sizes.get(Axis(_index(weights, settings.get("index", "layer"))), 0)
    return list(dict.fromkeys(settings["keep"])) == list(range(count))


@step(
    "layers", claim=Claim("stays", {"silent": True}, _all_kept, "with silent, where all layers stay in order")
)
def layers(weights: Weights, *, keep: Sequence[int], silent: bool = False, index: str = "layer") -> Weights:
    """Layers by number, in any order, any of them more than once: drop, duplicate, reorder.

    keep: layer numbers from 0, as `0-11, 8-19`. silent: every repetition of a layer writes zeros to the residual
    stream, so that a deeper model with all layers in their order starts as the same function (default false; refused
    where the stream itself is normalised). index: which numbered parts are meant, for models with several
    (`decoder_layer`); default layer.
    """
    index = _index(weights, index)
    result = axes.stack([(weights, list(keep))], index)
    if not silent:
        return result
    seen: set[int] = set()
    again = [k for k, old in enumerate(keep) if old in seen or seen.add(old)]  # type: ignore[func-returns-value]
    return axes.silence(result, index, again)


@step("drop_layers")
def drop_layers(weights: Weights, *, layers: Sequence[int], index: str = "layer") -> Weights:
    """All layers but these.

    layers: numbers from 0, as `4-7, 12`. index: as in `layers`.
    """
    return axes.drop(weights, _index(weights, index), layers)


@step("g_stack", paper="P024", claim=_SILENT)
def g_stack(weights: Weights, *, factor: int = 2, silent: bool = False, index: str = "layer") -> Weights:
    """The whole sequence of layers stacked on itself (G_stack): a `factor` times deeper model to train on.

    Layer k of the result is layer `k mod n` of the model. factor: 2 or more (default 2). silent: the added
    copies write zeros, so that the model starts as the same function; the paper's operator does not do this (default
    false). index: as in `layers`. Source: P024, the operator G_stack. Which factor and when: the paper recommends
    factor 4, and to grow early, after a small part of the training tokens, which it fits to the target's parameters and
    compute. Both were found for its language models of up to 7B parameters; nothing here checks them for others. The
    default is 2, the smallest growth.
    """
    _at_least_two(factor)
    index = _index(weights, index)
    count = reading_of(weights).sizes[Axis(index)]
    result = axes.repeat(weights, index, factor)
    return axes.silence(result, index, range(count, count * factor)) if silent else result


@step("interleave", paper="P024", claim=_SILENT)
def interleave(weights: Weights, *, factor: int = 2, silent: bool = False, index: str = "layer") -> Weights:
    """Every layer repeated in place: 0 0 1 1 2 2, the control of P024 (worse there than stacking the whole).

    factor: 2 or more. silent: all but the first of each write zeros, so that the model starts as the same function.
    index: as in `layers`.
    """
    _at_least_two(factor)
    index = _index(weights, index)
    count = reading_of(weights).sizes[Axis(index)]
    result = axes.repeat(weights, index, factor, interleave=True)
    return axes.silence(result, index, [k for k in range(count * factor) if k % factor]) if silent else result


@step("stack")
def stack(weights: Weights, *, parts: Sequence[Mapping[str, Any]], index: str = "layer") -> Weights:
    """Layer ranges of this and other models one after the other (depth up-scaling, frankenmerging).

    parts: a list of `{model: PATH, layers: 0-15, scale: 1.0}`. Without `model` the model at hand is meant. `scale`, one
    number or a list with one per layer, multiplies what the layers write to the residual stream (default 1; 0 makes a
    layer silent). Embeddings are the first part's, final norm and head the last one's (a head that both share with the
    embedding is the first's; where one shares it, the result has a matrix of its own). config.json is the first part's;
    where others say something else (rope_parameters, hidden_act), the report lists it. index: as in `layers`.
    """
    index = _index(weights, index)
    ranges: list[tuple[Weights, Sequence[int]]] = []
    scales: list[float] = []
    for k, part in enumerate(parts):
        known = ("model", "layers", "scale")
        for key in part:
            if key not in known:
                raise RequestError(f"parts[{k}]: unknown key {key!r}{did_you_mean(str(key), known)}")
        model = part.get("model", weights)
        if not isinstance(model, Weights):
            raise RequestError(f"parts[{k}].model: expected a model, not {model!r}")
        count = reading_of(model).sizes.get(Axis(index), 0)
        numbers = as_numbers(part["layers"], f"parts[{k}].layers") if "layers" in part else list(range(count))
        factors = part.get("scale", 1.0)
        many = list(factors) if isinstance(factors, list) else [factors] * len(numbers)
        if len(many) != len(numbers) or not all(
            isinstance(f, int | float) and not isinstance(f, bool) for f in many
        ):
            raise RequestError(
                f"parts[{k}].scale: expected a number or {len(numbers)} numbers, not {factors!r}"
            )
        ranges.append((model, numbers))
        scales += map(float, many)
    result = axes.stack(ranges, index)
    if any(s != 1 for s in scales):
        result = axes.scale_outputs(result, index, dict(enumerate(scales)))
    return with_differing_configs(result, "stack", [model for model, _ in ranges])


def _index(weights: Weights, name: str) -> str:
    """The index that numbers layers, by its name or, for `layer`, the only one of the whole model there is."""
    family = reading_of(weights).family
    known = [spec.name for spec in family.indices.values() if not spec.scope]
    if name in known:
        return name
    if name == "layer" and len(known) == 1:
        return known[0]
    raise RequestError(
        f"the family {family.name} has no index {name!r}{did_you_mean(name, known)}; say which: index: {known}"
    )


MOST = 100_000
"""Times deeper; more is a slip of the pen, and the list of its layers alone would not fit into memory."""


def _at_least_two(factor: int) -> None:
    if not 2 <= factor <= MOST:
        raise RequestError(f"factor must be 2 or more and at most {MOST:,}, not {factor}")


__all__ = ["drop_layers", "g_stack", "interleave", "layers", "stack"]
