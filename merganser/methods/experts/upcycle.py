"""From a dense model to a mixture of experts and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from merganser.algebra import Weights, axes
from merganser.algebra.axes import reading_of
from merganser.algebra.rearranged import Array
from merganser.algebra.weights import Entry
from merganser.architectures import (
    Axis,
    Family,
    NamedTensor,
    Reading,
    TensorSpec,
    families,
    family_of,
    with_key,
)
from merganser.architectures.reading import read_tensors
from merganser.errors import RequestError, did_you_mean
from merganser.methods.experts._loaders import biased, config_for, loaders_of, prefix_for
from merganser.methods.steps import STAYS, Claim, step


@step("upcycle", paper="Komatsuzaki et al. 2023, Sparse Upcycling, arXiv:2212.05055", claim=STAYS)
def upcycle(
    weights: Weights,
    *,
    experts: int = 8,
    per_token: int = 2,
    family: str | None = None,
    router: Literal["random", "zeros"] = "random",
    seed: int = 0,
) -> Weights:
    """A dense model as a mixture of experts: every expert a copy of the feed-forward block (sparse upcycling).

    experts: how many, 2 or more (default 8). per_token: how many the router chooses, 1 to experts (default 2).
    family: the mixture's, as `mixtral`; without it the first family whose file names this model type as its dense
    sibling. router: random (normal, standard deviation 0.02, by `seed`; default) or zeros. The shares of the chosen
    experts sum to 1 in these families, so the mixture starts as the same function whatever the router says. What
    config.json leaves to the old loader is written down where the mixture's takes something else; what the mixture
    cannot say (biases, multipliers, windows of some layers) is an error.
    """
    dense = reading_of(weights)
    kind = str(dense.config.get("model_type"))
    target = _target(kind, dense.family.name, family)
    spec = target.experts
    assert spec is not None
    if experts < 2 or not 1 <= per_token <= experts:
        raise RequestError(
            f"upcycle: {experts} experts with {per_token} per token; at least 2, and 1 to all of them"
        )
    backward = {theirs: mine for mine, theirs in spec.modules.items()}
    by_pattern = {tensor.pattern: tensor for tensor in target.tensors}
    entries: dict[str, Entry] = {}
    tensors: dict[str, NamedTensor] = {}
    given = {
        **spec.settings,
        spec.per_token: per_token,
        _key(target, spec.index): experts,
        _key(target, spec.neurons): _size(dense, "neurons"),
    }
    config = config_for(dense, target, target.model_types[0], given, "upcycle", way_out=_other_ways(dense))
    shell = Reading(target, config, {}, {}, prefix_for(dense, target, config), dense.source)
    for name, named in dense.tensors.items():
        module = backward.get(named.spec.module)
        pattern = (
            module + named.spec.pattern.removeprefix(named.spec.module) if module else named.spec.pattern
        )
        if pattern not in by_pattern:
            raise dense.refused(f"upcycle: the family {target.name} has no place for the tensor {name!r}")
        places = (
            [dict(named.at)] if not module else [{**dict(named.at), spec.index: e} for e in range(experts)]
        )
        for at in places:
            made = shell.name(by_pattern[pattern], at)
            entries[made] = weights.entry(name)
            tensors[made] = NamedTensor(
                by_pattern[pattern], tuple((k, at[k]) for k in by_pattern[pattern].indices)
            )
    residual = next(size for one, size in dense.sizes.items() if one.name == "residual")
    generator = np.random.default_rng(seed)
    gate = by_pattern[f"{spec.router}.weight"]
    for layer in range(dense.sizes[Axis("layer")]):
        values = (
            generator.normal(0.0, 0.02, (experts, residual))
            if router == "random"
            else np.zeros((experts, residual))
        )
        made = shell.name(gate, {"layer": layer})
        entries[made] = Entry(Array(values.astype(np.float32)), 1.0)
        tensors[made] = NamedTensor(gate, (("layer", layer),))
    reading = _read(shell, entries, tensors)
    return weights._with(entries, reading=reading).with_note(
        {
            "step": "upcycle",
            "family": target.name,
            "experts": experts,
            "per_token": per_token,
            "router": router,
        }
    )


@step("average_experts", claim=Claim(words="(except where all experts of a layer are equal)"))
def average_experts(weights: Weights, *, scale: float | None = None) -> Weights:
    """A mixture of experts as a dense model: every feed-forward block is the mean of its layer's experts.

    The router is dropped and the model becomes one of the family's dense sibling (Mixtral to Mistral). The function
    changes, except where all experts are equal and the shares of the chosen ones sum to 1.
    scale: a factor of what the mean writes (default 1). Where the shares do not sum to 1 (norm_topk_prob: false) it
    must be given: what they sum to on your texts, on average, or 1.
    """
    if scale is not None and not (math.isfinite(scale) and scale > 0):
        raise RequestError(f"average_experts: scale must be above 0, not {scale}")
    moe = reading_of(weights)
    spec = moe.family.experts
    if spec is None or not spec.dense:
        raise moe.refused("average_experts: this family's file names no dense sibling (experts:)")
    target = family_of(spec.dense)
    if target is None:
        raise moe.refused(f"average_experts: there is no family file for {spec.dense}")
    loader, _ = loaders_of(moe, target, spec.dense, "average_experts")
    if scale is None and not loader.normalises_shares(moe.config):
        raise moe.refused(
            f"average_experts: the shares of the experts that a token gets do not sum to 1 here ({loader.shares}: "
            "false), so the mean of the experts alone would write more than they do together; give scale, what the "
            "shares sum to on your texts, or `scale: 1` for the plain mean"
        )
    by_pattern = {tensor.pattern: tensor for tensor in target.tensors}
    drop = {spec.per_token, *moe.family.indices[spec.index].size.names, *spec.settings}
    given = {_key(target, "neurons"): _size(moe, spec.neurons)}
    config = config_for(moe, target, spec.dense, given, "average_experts")
    config = {key: value for key, value in config.items() if key not in drop}
    shell = Reading(target, config, {}, {}, prefix_for(moe, target, config), moe.source)
    groups: dict[str, list[Entry]] = {}
    tensors: dict[str, NamedTensor] = {}
    scaled: set[str] = set()
    for name, named in moe.tensors.items():
        if named.spec.module == spec.router:
            continue
        theirs = spec.modules.get(named.spec.module)
        pattern = (
            theirs + named.spec.pattern.removeprefix(named.spec.module) if theirs else named.spec.pattern
        )
        if pattern not in by_pattern:
            raise moe.refused(
                f"average_experts: the family {target.name} has no place for the tensor {name!r}"
            )
        at = {k: v for k, v in named.at if k != spec.index}
        made = shell.name(by_pattern[pattern], at)
        groups.setdefault(made, []).append(weights.entry(name))
        if theirs and scale is not None and _writes_stream(by_pattern[pattern]):
            scaled.add(made)
        tensors[made] = NamedTensor(
            by_pattern[pattern], tuple((k, at[k]) for k in by_pattern[pattern].indices)
        )
    entries = {
        name: _mean(group, scale if scale is not None and name in scaled else 1.0)
        for name, group in groups.items()
    }
    reading = _read(shell, entries, tensors)
    note = {"step": "average_experts", "family": target.name}
    return weights._with(entries, reading=reading).with_note(
        note if scale is None else note | {"scale": scale}
    )


@step("split_experts", claim=STAYS)
def split_experts(weights: Weights, *, parts: int = 2) -> Weights:
    """Every expert as several smaller ones that are always chosen together at first; the function stays.

    parts: into how many each is split (default 2); the neurons of an expert must divide by it. The router's rows are
    repeated, `per token` grows by `parts`, and what the parts write is multiplied by `parts`, since the chosen share
    the weight. Ties of the router are broken by the loader; where it cuts through equal rows the function would differ,
    which cannot happen while the parts of one expert stay equal and all are chosen.
    """
    reading = reading_of(weights)
    spec = reading.family.experts
    if spec is None:
        raise reading.refused(
            "split_experts: this family's file does not say how its experts are chosen (experts:)"
        )
    if parts < 2:
        raise RequestError(f"split_experts: parts must be 2 or more, not {parts}")
    sizes = {one: reading.sizes[one] for one in reading.instances(spec.neurons)}
    for one, size in sizes.items():
        if size % parts:
            raise reading.refused(
                f"split_experts: {one} has {size} elements, which {parts} parts cannot share equally"
            )
    grown = axes.repeat(weights, spec.index, parts, interleave=True)
    size = next(iter(sizes.values())) // parts
    keep = {
        one.at: range((one.at[-1] % parts) * size, (one.at[-1] % parts + 1) * size)
        for one in reading_of(grown).instances(spec.neurons)
    }
    grown = axes.take(grown, spec.neurons, keep)
    count = max(reading_of(grown).sizes[one] for one in reading_of(grown).instances(spec.index))
    grown = axes.scale_outputs(grown, spec.index, dict.fromkeys(range(count), float(parts)))
    now = reading_of(grown)
    chosen = int(now.config.get(spec.per_token, 1)) * parts
    config = with_key(now.config, spec.per_token, chosen)
    if spec.alone and chosen == parts:
        config = with_key(config, spec.alone, False)  # the one expert's share was not divided either
    return grown._with(
        {n: grown.entry(n) for n in grown}, reading=now.resized(now.sizes, now.tensors, config)
    )


def _target(kind: str, name: str, wanted: str | None) -> Family:
    known = {f.name: f for f in families().values() if f.experts is not None and f.experts.dense}
    if wanted is not None:
        if wanted not in known:
            raise RequestError(
                f"upcycle: no mixture {wanted!r}{did_you_mean(wanted, known)} (known: {', '.join(known)})"
            )
        return known[wanted]
    for family in known.values():
        sibling = family_of(family.experts.dense) if family.experts else None
        if family.experts and (
            family.experts.dense == kind or (sibling is not None and sibling.name == name)
        ):
            return family
    raise RequestError(
        f"upcycle: no family of mixtures has {kind!r} as its dense sibling (known: {', '.join(known)})"
    )


def _key(family: Family, axis: str) -> str:
    """The config key that says the size of an axis; the first of several that loaders have used."""
    return family.axis(axis).size.names[0]


def _size(reading: Reading, axis: str) -> int:
    sizes = {reading.sizes[one] for one in reading.instances(axis)}
    if len(sizes) != 1:
        raise reading.refused(f"the sizes of {axis} differ: {sorted(sizes)}")
    return sizes.pop()


def _other_ways(dense: Reading) -> str:
    """What can be made of a model with biases in its attention, for which the families of `upcycle` have no place."""
    qkv = {f"self_attn.{side}_proj" for side in "qkv"}
    if biased(dense) != qkv or dense.config.get("model_type") != "qwen2":
        return ""
    return (
        ". A recipe for a mixture (docs/mixtures.md) with `architecture: qwen` and a shared expert has a place for "
        "them"
    )


def _read(shell: Reading, entries: Mapping[str, Entry], tensors: Mapping[str, NamedTensor]) -> Reading:
    """How the result is read. Raises `AlgebraError` where a tensor's shape is not that of its axes."""
    reading = read_tensors(shell.family, shell.config, tensors, shell.prefix, shell.source)
    for name, named in tensors.items():
        shape, expected = entries[name].expression.shape, reading.shape(named)
        if shape != expected:
            raise reading.refused(
                f"tensor {name!r} would have shape {list(shape)}, and as {' '.join(map(str, named.spec.dims))} it "
                f"has {list(expected)}"
            )
    return reading


def _writes_stream(spec: TensorSpec) -> bool:
    """Whether what a tensor writes goes to the residual stream."""
    return spec.writes is not None and "residual" in spec.dims[spec.writes].axes


def _mean(group: list[Entry], factor: float) -> Entry:
    if len(group) == 1 and factor == 1.0:
        return group[0]
    total = group[0].expression
    for entry in group[1:]:
        total = total + entry.expression
    return Entry(total * (factor / len(group)), group[0].degree)
