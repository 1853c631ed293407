"""What a recipe of mergekit's means, computed in f64 with NumPy: the third opinion.

Written from the formulas, apart from both tools: how parameters are found (sources, slices, modules, gradients,
filters), how vocabularies are aligned, and every deterministic method.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from models import Family, vocabulary
from tensors import Array, Tensors, is_float, read, rounded

SINGLE = 2.0**-24
"""Half a unit in the last place of 1 in f32."""


@dataclass
class Truth:
    """The exact value of a tensor (to f64), and how far a careful f32 computation may be from it.

    `scale`: the sum of the magnitudes of the terms that are added, so that rounding every step in f32 gives an error of
    a few SINGLE * scale. `tossed`: elements at which rounding decides a choice (which of two equal magnitudes is kept,
    the sign of a sum that cancels), by the kind of choice. `loose`: relative error that such choices cause elsewhere.
    """

    value: Array
    scale: Array
    tossed: dict[str, Array] = field(default_factory=dict)
    loose: float = 0.0


@dataclass
class Model:
    """Weights in f64, with what a recipe needs to know about them."""

    tensors: dict[str, Array]
    tokens: dict[str, int]
    noise: dict[str, Array] = field(default_factory=dict)
    """Magnitudes of terms that were added before the merge (an adapter's), by tensor."""

    def layers(self, family: Family) -> int:
        """How many layers it has."""
        pattern = re.compile(re.escape(family.layer).replace(r"\{\}", r"(\d+)"))
        numbers = [int(found[1]) for name in self.tensors if (found := pattern.match(name))]
        return 1 + max(numbers, default=-1)


class Unclear(Exception):
    """The recipe has no result by the formulas, or this reference does not know it."""


def truths(
    recipe: Mapping[str, Any],
    family: Family,
    home: Path,
    *,
    made: Mapping[str, Model] | None = None,
    order: Mapping[str, int] | None = None,
    change: Callable[[dict[str, Array]], dict[str, Array]] | None = None,
    all_equal: bool = False,
) -> dict[str, Truth]:
    """Every tensor of the result.

    `all_equal`: whether all entries that equal the smallest kept one are kept too.

    `made`: results of earlier documents by name. `order`: token to row of the vocabulary that came out. `change`: how
    a tool lays out the tensors of a model before it merges them.
    """
    library = _Library(home, family, dict(made or {}), change)
    results: dict[str, Truth] = {}
    for job in _jobs(recipe, family, library):
        results[job.name] = _computed(recipe, family, job, order, all_equal)
    return results


class _Library:
    def __init__(
        self,
        home: Path,
        family: Family,
        made: dict[str, Model],
        change: Callable[[dict[str, Array]], dict[str, Array]] | None,
    ) -> None:
        self.home = home
        self.family = family
        self.known = made
        self.change = change

    def __call__(self, reference: Any) -> Model:
        key = key_of(reference)
        if key not in self.known:
            model = load(self.home, key)
            if self.change is not None:
                model.tensors = self.change(model.tensors)
            self.known[key] = model
        return self.known[key]


def key_of(reference: Any) -> str:
    """`path` or `path+lora` of a model written as text or as a mapping."""
    if isinstance(reference, Mapping):
        inner = reference.get("model", reference)
        path = key_of(inner) if isinstance(inner, str) else str(inner["path"])
        lora = reference.get("lora")
        if lora is None:
            return path
        return f"{path}+{lora if isinstance(lora, str) else lora['path']}"
    return str(reference)


def load(home: Path, key: str) -> Model:
    """A model, with its adapter applied where it has one."""
    path, _, lora = key.partition("+")
    where = home / path
    tensors = {name: _exact(array) for name, array in read(where).items()}
    noise = _adapt(tensors, home / lora) if lora else {}
    return Model(tensors, vocabulary(where if where.is_dir() else where.parent), noise)


def _exact(array: Array) -> Array:
    return array.astype(np.float64) if is_float(array) else array


def _adapt(tensors: dict[str, Array], adapter: Path) -> dict[str, Array]:
    """Add an adapter in place; the magnitudes of what was added up."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = config["r"]
    factor = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    parts: dict[str, dict[str, Array]] = {}
    for name, array in read(adapter).items():
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B)\.weight", name)
        if found is None:
            raise Unclear(f"{name} in {adapter.name}")
        parts.setdefault(found[1], {})[found[2]] = _exact(array)
    noise = {}
    for module, pair in parts.items():
        name = f"{module}.weight"
        change, size = (factor * (f(pair["B"]) @ f(pair["A"])) for f in (np.asarray, np.abs))
        turned = bool(config.get("fan_in_fan_out"))
        noise[name] = np.abs(tensors[name]) + (size.T if turned else size)
        tensors[name] = tensors[name] + (change.T if turned else change)
    return noise


# Which tensors, from where ----------------------------------------------------------------------------------


@dataclass
class _Source:
    key: str
    model: Model
    name: str
    parameters: Mapping[str, Any]


@dataclass
class _Job:
    name: str
    sources: list[_Source]
    scopes: tuple[Mapping[str, Any], ...]
    depth: float
    base: str | None


def _jobs(recipe: Mapping[str, Any], family: Family, library: _Library) -> Iterator[_Job]:
    module = next(iter((recipe.get("modules") or {}).values()), recipe)
    above = () if module is recipe else (module.get("parameters") or {},)
    scopes = (*above, recipe.get("parameters") or {})
    base = recipe.get("base_model")
    slices = module.get("slices") or [_whole(module["models"], base, family, library)]
    first, last = slices[0], slices[-1]
    for name in library(first["sources"][0]["model"]).tensors:
        if not _in_layer(name, family) and not name.startswith(family.last):
            yield _job(name, first, [name] * len(first["sources"]), scopes, 0.0, base, library)
    number = 0
    for piece in slices:
        ranges = [source["layer_range"] for source in piece["sources"]]
        count = ranges[0][1] - ranges[0][0]
        if any(stop - start != count for start, stop in ranges):
            raise Unclear("slices of different lengths")
        for offset in range(count):
            depth = offset / (count - 1) if count > 1 else 1.0
            inside = family.layer.format(ranges[0][0] + offset)
            names = [n for n in library(piece["sources"][0]["model"]).tensors if n.startswith(inside)]
            if not names:
                raise Unclear("a layer that is not there")
            for name in names:
                rest = name.removeprefix(inside)
                inputs = [family.layer.format(start + offset) + rest for start, _ in ranges]
                yield _job(family.layer.format(number) + rest, piece, inputs, scopes, depth, base, library)
            number += 1
    for name in library(last["sources"][0]["model"]).tensors:
        if name.startswith(family.last):
            yield _job(name, last, [name] * len(last["sources"]), scopes, 0.0, base, library)


def _whole(
    models: Sequence[Mapping[str, Any]], base: Any, family: Family, library: _Library
) -> dict[str, Any]:
    """`models:` is one slice with all layers; a base that is not among them comes last."""
    listed = list(models)
    if base is not None and key_of(base) not in [key_of(entry["model"]) for entry in listed]:
        listed.append({"model": base})
    return {
        "sources": [{**entry, "layer_range": [0, library(entry["model"]).layers(family)]} for entry in listed]
    }


def _in_layer(name: str, family: Family) -> bool:
    return re.match(re.escape(family.layer).replace(r"\{\}", r"\d+"), name) is not None


def _job(
    name: str,
    piece: Mapping[str, Any],
    inputs: Sequence[str],
    scopes: tuple[Mapping[str, Any], ...],
    depth: float,
    base: Any,
    library: _Library,
) -> _Job:
    own = piece.get("base_model") or base
    sources = [
        _Source(key_of(entry["model"]), library(entry["model"]), name_in, entry.get("parameters") or {})
        for entry, name_in in zip(piece["sources"], inputs, strict=True)
    ]
    return _Job(
        name, sources, (piece.get("parameters") or {}, *scopes), depth, None if own is None else key_of(own)
    )


# Parameters -------------------------------------------------------------------------------------------------

_VECTOR = {"normalize": False, "rescale": False, "int8_mask": False, "lambda": 1.0}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "linear": {"normalize": True},
    "slerp": {},
    "nuslerp": {"nuslerp_row_wise": False, "nuslerp_flatten": True},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "passthrough": {"scale": 1.0},
    "model_stock": {"filter_wise": False},
    "arcee_fusion": {},
    "nearswap": {},
    "sce": {"int8_mask": False, "select_topk": 1.0},
    "ram": {"epsilon": 1e-5},
    "ramplus_tl": {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5},
    "task_arithmetic": _VECTOR,
    "ties": {**_VECTOR, "normalize": True, "density": 1.0},
    "breadcrumbs": {**_VECTOR, "density": 1.0, "gamma": 0.01},
    "breadcrumbs_ties": {**_VECTOR, "density": 1.0, "gamma": 0.01},
    "dare_linear": {**_VECTOR, "rescale": True, "density": 1.0},
    "dare_ties": {**_VECTOR, "rescale": True, "density": 1.0},
    "della": {**_VECTOR, "rescale": True, "normalize": True, "density": 1.0},
    "della_linear": {**_VECTOR, "rescale": True, "density": 1.0},
}
_OWN = {"weight", "density", "gamma", "scale"}
_SWITCHES = {
    "normalize",
    "rescale",
    "int8_mask",
    "filter_wise",
    "normalize_weights",
    "nuslerp_row_wise",
    "nuslerp_flatten",
}


def value_of(setting: Any, key: str, name: str, depth: float) -> Any:
    """A setting's value for a tensor at a depth from 0 to 1, or None where no filter lets it through."""
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return _plain(setting, key)
    if setting and isinstance(setting[0], Mapping):
        for rule in setting:
            if rule.get("filter") in (None, "*") or rule["filter"] in name:
                return value_of(rule["value"], key, name, depth)
        return None
    points = [_plain(point, key) for point in setting]
    place = depth * (len(points) - 1)
    left = int(place)
    if key in _SWITCHES:
        return points[left]
    right = min(left + 1, len(points) - 1)
    return points[left] + (place - left) * (points[right] - points[left])


def _plain(setting: Any, key: str) -> Any:
    return bool(setting) if key in _SWITCHES else float(setting)


class _Values:
    """The parameters of one tensor."""

    def __init__(self, method: str, job: _Job, all_equal: bool) -> None:
        self.method = method
        self.job = job
        self.all_equal = all_equal

    def __getitem__(self, key: str) -> Any:
        return self._first(key, self.job.scopes, self.job.name)

    def of(self, source: _Source, key: str) -> Any:
        """A parameter that may differ by model."""
        return self._first(key, (source.parameters, *self.job.scopes), source.name)

    def _first(self, key: str, scopes: Sequence[Mapping[str, Any]], name: str) -> Any:
        for scope in scopes:
            if key in scope and (found := value_of(scope[key], key, name, self.job.depth)) is not None:
                return found
        if key not in DEFAULTS[self.method]:
            raise Unclear(f"no {key} for {name}")
        return DEFAULTS[self.method][key]


# Vocabularies -----------------------------------------------------------------------------------------------


def aligned(
    tables: Sequence[Array],
    tokens: Sequence[Mapping[str, int]],
    order: Mapping[str, int],
    wishes: Mapping[str, Any],
    keys: Sequence[str],
    base: str | None,
    multiple: int | None,
) -> list[Array]:
    """Every table under one vocabulary, with rows for the tokens a model lacks, as mergekit's README tells."""
    length = len(order)
    total = -(-length // multiple) * multiple if multiple else length
    results = [np.zeros((total, *table.shape[1:])) for table in tables]

    def row(owner: str, token: str) -> Array:
        i = keys.index(owner)
        return tables[i][tokens[i][token]]

    for token, place in order.items():
        having = [key for key, known in zip(keys, tokens, strict=True) if token in known]
        wish = wishes.get(token)
        if wish is not None:
            source = wish["source"]
            if isinstance(source, Mapping) and source.get("kind") == "zero":
                spare = np.zeros(tables[0].shape[1:])
            elif isinstance(source, Mapping) and source.get("kind") == "model_token":
                owner = key_of(source["model"])
                if "token_id" in source:
                    spare = tables[keys.index(owner)][source["token_id"]]
                else:
                    spare = row(owner, source["token"])
            elif len(having) < len(keys) or wish.get("force"):
                spare = row(key_of(source), token)
            else:
                spare = np.zeros(tables[0].shape[1:])
        elif len(having) == 1:
            spare = row(having[0], token)
        elif not having:
            spare = np.zeros(tables[0].shape[1:])
        elif base in having and base is not None:
            spare = row(base, token)
        else:
            spare = np.mean([row(key, token) for key in having], axis=0)
        forced = wish is not None and bool(wish.get("force"))
        for key, table, known, result in zip(keys, tables, tokens, results, strict=True):
            del key
            result[place] = table[known[token]] if token in known and not forced else spare
    for result in results:
        result[length:] = result[:length].mean(axis=0)
    return results


def _computed(
    recipe: Mapping[str, Any], family: Family, job: _Job, order: Mapping[str, int] | None, all_equal: bool
) -> Truth:
    try:
        inputs = [source.model.tensors[source.name] for source in job.sources]
    except KeyError as missing:
        raise Unclear(f"{missing} is not in every model") from None
    if inputs[0].dtype != np.float64:
        return Truth(inputs[0], np.zeros(inputs[0].shape))
    wanted = recipe.get("tokenizer") or ({} if recipe.get("tokenizer_source") else None)
    padding = 0
    if wanted is not None and job.name in family.embeddings:
        if order is None:
            raise Unclear("no vocabulary came out")
        inputs = aligned(
            inputs,
            [source.model.tokens for source in job.sources],
            order,
            wanted.get("tokens") or {},
            [source.key for source in job.sources],
            job.base,
            wanted.get("pad_to_multiple_of"),
        )
        padding = len(inputs[0]) - len(order)
    if any(array.shape != inputs[0].shape for array in inputs):
        raise Unclear("shapes differ")
    method = recipe["merge_method"]
    truth = METHODS[method](inputs, job, _Values(method, job, all_equal))
    noise = [source.model.noise[source.name] for source in job.sources if source.name in source.model.noise]
    if noise:
        truth.scale = truth.scale + np.max(noise, axis=0)
    if padding:
        truth.scale[-padding:] = np.abs(np.stack(inputs)[:, :-padding]).mean(axis=(0, 1))
    return truth


# Methods ----------------------------------------------------------------------------------------------------

_Method = Callable[[list[Array], _Job, _Values], Truth]


def _parted(inputs: list[Array], job: _Job) -> tuple[Array | None, list[Array], list[_Source]]:
    """The base, the others, and where the others come from."""
    base = None
    others, sources = [], []
    for array, source in zip(inputs, job.sources, strict=True):
        if source.key == job.base:
            base = array
        else:
            others.append(array)
            sources.append(source)
    return base, others, sources


def _needs_base(base: Array | None) -> Array:
    if base is None:
        raise Unclear("no base")
    return base


def _linear(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    weights = [values.of(source, "weight") for source in job.sources]
    total = sum(weights) if values["normalize"] else 1.0
    if total == 0:
        raise Unclear("weights sum to zero")
    terms = [w * x / total for w, x in zip(weights, inputs, strict=True)]
    return _summed(terms)


def _summed(terms: Sequence[Array]) -> Truth:
    return Truth(np.sum(terms, axis=0), np.sum(np.abs(terms), axis=0))


def _slerp(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, _ = _parted(inputs, job)
    first, second = _needs_base(base), others[0]
    t = values["t"]
    lengths = [float(n) if (n := np.linalg.norm(x)) > 1e-8 else 1.0 for x in (first, second)]
    cosine = float(np.clip(np.sum(first / lengths[0] * (second / lengths[1])), -1, 1))
    if abs(cosine) > 0.9995:
        parts = (1 - t, t)
    else:
        angle = math.acos(cosine)
        parts = (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))
    result = _summed([parts[0] * first, parts[1] * second])
    if abs(abs(cosine) - 0.9995) < 1e-6:
        result.tossed["collinear"] = np.ones(first.shape, bool)
    return result


def _nuslerp(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, sources = _parted(inputs, job)
    weights = [values.of(source, "weight") for source in sources]
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    first, second = others if base is None else (others[0] - base, others[1] - base)
    shape = first.shape
    if values["nuslerp_flatten"]:
        rows = [first.reshape(1, -1), second.reshape(1, -1)]
    else:
        dim = 0 if values["nuslerp_row_wise"] else -1
        rows = [np.swapaxes(x, dim, -1) for x in (first, second)]
    units = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-7) for x in rows]
    cosine = np.clip(np.sum(units[0] * units[1], axis=-1, keepdims=True), -1, 1)
    straight = 1 - cosine**2 <= 1e-16
    angle = np.arccos(np.where(straight, 0.0, cosine))
    parts = [
        np.where(straight, 1 - t, np.sin((1 - t) * angle) / np.sin(angle)),
        np.where(straight, t, np.sin(t * angle) / np.sin(angle)),
    ]
    terms = [part * x for part, x in zip(parts, rows, strict=True)]
    if values["nuslerp_flatten"]:
        terms = [x.reshape(shape) for x in terms]
    else:
        terms = [np.swapaxes(x, dim, -1) for x in terms]
    return _summed(terms if base is None else [base, *terms])


def _multislerp(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, sources = _parted(inputs, job)
    if len(others) == 1:
        return _summed([others[0]])
    weights = np.array([values.of(source, "weight") for source in sources])
    if values["normalize_weights"]:
        weights = weights / weights.sum()
    shape = others[0].shape
    points = np.stack([(x if base is None else x - base).reshape(-1) for x in others])
    lengths = np.linalg.norm(points, axis=1)
    units = points / (lengths + values["eps"])[:, None]
    mean = weights @ units
    size = np.linalg.norm(mean)
    if size < values["eps"]:
        if len(others) != 2:
            raise Unclear("the weighted sum is zero")
        terms = [w * x.reshape(shape) for w, x in zip(weights, points, strict=True)]
        return _summed(terms if base is None else [base, *terms])
    mean = mean / size
    tangents = units - (units @ mean)[:, None] * mean
    tangent = weights @ tangents
    angle = np.linalg.norm(tangent) + values["eps"]
    radius = float(lengths @ weights)
    terms = [radius * math.cos(angle) * mean, radius * math.sin(angle) / angle * tangent]
    # Every unit vector enters the mean and the tangent: that is what is rounded.
    scale = radius * (np.abs(weights)[:, None] * np.abs(units)).sum(0) / size
    result = _summed([x.reshape(shape) for x in (terms if base is None else [base.reshape(-1), *terms])])
    result.scale = np.maximum(result.scale, scale.reshape(shape))
    return result


def _karcher(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    if len(inputs) == 1:
        return _summed([inputs[0]])
    tol = values["tol"]
    share = 1.0 / len(inputs)
    lengths = [float(np.linalg.norm(x)) for x in inputs]
    units = [x / n for x, n in zip(inputs, lengths, strict=True) if n > tol]
    if not units:
        return _summed([np.zeros(inputs[0].shape)])
    weight = 1.0 / len(units)
    mean = np.sum(units, axis=0) * weight
    size = np.linalg.norm(mean)
    mean = units[0] if size < tol else mean / size
    for _ in range(int(values["max_iter"])):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = float(np.clip(np.sum(mean * unit), -1, 1))
            angle = math.acos(cosine)
            if angle >= tol:
                tangent = tangent + weight * angle / math.sin(angle) * (unit - cosine * mean)
        step = float(np.linalg.norm(tangent))
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean = mean / np.linalg.norm(mean)
    radius = share * sum(lengths)
    scale = radius * np.mean([np.abs(unit) for unit in units], axis=0)
    return Truth(radius * mean, np.maximum(scale, np.abs(radius * mean)))


def _passthrough(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    if len(inputs) != 1:
        raise Unclear("passthrough takes one model")
    return _summed([inputs[0] * values.of(job.sources[0], "scale")])


def _model_stock(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, _ = _parted(inputs, job)
    base = _needs_base(base)
    rows = (lambda x: x if x.ndim > 1 else x[None]) if values["filter_wise"] else (lambda x: x.reshape(1, -1))
    vectors = [rows(x - base) for x in others]
    lengths = [np.linalg.norm(v, axis=-1) for v in vectors]
    cosines = []
    for i, first in enumerate(vectors):
        for j in range(i + 1, len(vectors)):
            product = np.maximum(lengths[i] * lengths[j], 1e-6)
            cosines.append(np.clip((first * vectors[j]).sum(-1) / product, -1, 1))
    if not cosines:
        raise Unclear("one model")
    cosine = np.mean(cosines, axis=0)[..., None]
    count = len(others)
    below = 1 + (count - 1) * cosine
    flat = np.abs(below) < 1e-6
    t = np.where(flat, 0.0, count * cosine / np.where(flat, 1.0, below))
    mean = np.mean(others, axis=0)
    shape = base.shape
    result = _summed([(t * rows(mean)).reshape(shape), ((1 - t) * rows(base)).reshape(shape)])
    # The cosine of differences that are rounded to f32 is known to a rounding or two, and moves along mean - base.
    moved = np.abs(t) * rows(np.mean(np.abs(others), axis=0)) + count * np.abs(rows(mean - base))
    result.scale = result.scale + moved.reshape(shape)
    return result


def _arcee_fusion(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, _ = _parted(inputs, job)
    base, other = _needs_base(base), others[0]
    change = other - base
    p, q = _softmax(other) + 1e-8, _softmax(base) + 1e-8
    spread = np.sum(p * np.log(p / q), axis=-1, keepdims=True)
    importance = np.abs(change) * spread
    # In f32 each row's sum of terms p log(p/q), which nearly cancel, is known to a few units of its largest terms.
    noise = np.abs(change) * 16 * SINGLE * (np.sum(p * (1 + np.abs(np.log(p / q))), axis=-1, keepdims=True))
    order = np.sort(importance.reshape(-1))
    quarter, half, most = (order[int(share * (order.size - 1))] for share in (0.25, 0.5, 0.75))
    threshold = half + 1.5 * (most - quarter)
    kept = importance >= threshold
    result = _summed([base, change * kept])
    shaky = float(noise.max())
    result.tossed["threshold"] = (np.abs(importance - threshold) <= noise + 4 * shaky) & (change != 0)
    return result


def _softmax(x: Array) -> Array:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = raised / raised.sum(axis=-1, keepdims=True)
    return result


def _nearswap(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, _ = _parted(inputs, job)
    base, other = _needs_base(base), others[0]
    share = np.clip(values["t"] / np.maximum(np.abs(base - other), 1e-6), 0, 1)
    return _summed([share * other, (1 - share) * base, share * base, -share * base])


def _sce(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, _ = _parted(inputs, job)
    base = _needs_base(base)
    if not others:
        return _summed([base])
    vectors = np.stack([x - base for x in others])
    tossed: dict[str, Array] = {}
    loose = 0.0
    share = values["select_topk"]
    if share < 1:
        spread = vectors.var(axis=0)
        # A product of f32 in mergekit, whose rounding decides the count.
        count = int(np.float32(np.count_nonzero(spread)) * np.float32(share)) if share > 0 else 0
        kept, at_cut = _largest(spread, count, 1e-6, values.all_equal)
        energy = (vectors**2).sum()
        if at_cut is not None:
            tossed["cut"] = at_cut
            loose = float((vectors**2 * at_cut).sum() / energy)
        vectors = vectors * kept
    squares = (vectors**2).reshape(len(others), -1).mean(axis=1)
    weights = squares / squares.sum() if squares.sum() >= 1e-6 else np.full(len(others), 1 / len(others))
    if abs(squares.sum() - 1e-6) < 1e-9:
        tossed["flat weights"] = np.ones(base.shape, bool)
    agree, undecided = _agreement(vectors)
    if undecided is not None:
        tossed["sign"] = undecided
    each = weights.reshape(-1, *[1] * base.ndim) * agree
    below = np.maximum(each.sum(axis=0), 1e-6)
    terms = [base, *(vectors * each / below)]
    result = _summed(terms)
    return Truth(result.value, result.scale, tossed, loose)


def _largest(sizes: Array, count: int, near: float, all_equal: bool) -> tuple[Array, Array | None]:
    """A mask of the `count` largest (and of all equal to the least of them), and those that rounding may exchange."""
    kept = np.zeros(sizes.shape, bool)
    if count <= 0:
        return kept, None
    if count >= sizes.size:
        return ~kept, None
    flat = sizes.reshape(-1)
    order = np.argsort(-flat, kind="stable")
    inside, outside = flat[order[count - 1]], flat[order[count]]
    if all_equal:
        kept = sizes >= inside
    else:
        kept.reshape(-1)[order[:count]] = True
    if inside - outside > near * inside or inside == 0:
        return kept, None
    return kept, np.abs(sizes - inside) <= 2 * near * inside


def _agreement(terms: Array) -> tuple[Array, Array | None]:
    """Where each term has the sign of their sum (0 counts as plus), and where rounding decides that sign."""
    total = terms.sum(axis=0)
    agree = np.sign(terms) == np.where(total >= 0, 1.0, -1.0)
    size = np.abs(terms).sum(axis=0)
    undecided = (np.abs(total) <= 4 * SINGLE * size) & (size > 0)
    return agree, undecided if undecided.any() else None


def _ram(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, _ = _parted(inputs, job)
    base = _needs_base(base)
    if not others:
        return _summed([base])
    vectors = np.stack([x - base for x in others])
    limit = values["epsilon"]
    moved = np.abs(vectors) > limit
    count = moved.sum(axis=0)
    boost = np.ones(len(others))
    if values.method == "ramplus_tl":
        axes = tuple(range(1, vectors.ndim))
        shared, alone = (moved & (count > 1)).sum(axis=axes), (moved & (count == 1)).sum(axis=axes)
        rho = shared / np.maximum(alone, limit)
        boost = 1 + values["r"] * np.clip(rho, 0, values["alpha"])
    boost = boost.reshape(-1, *[1] * base.ndim)
    factors = np.where(count == 1, boost, 1.0 / np.maximum(count, 1)) * moved
    result = _summed([base, *(vectors * factors)])
    near = (np.abs(np.abs(vectors) - limit) <= 4 * SINGLE * (limit + np.abs(base))).any(axis=0)
    if near.any():
        result.tossed["threshold"] = near
    return result


def _task_vectors(inputs: list[Array], job: _Job, values: _Values) -> Truth:
    base, others, sources = _parted(inputs, job)
    base = _needs_base(base)
    if not others:
        return _summed([base])
    method = values.method
    weights = [values.of(source, "weight") for source in sources]
    tossed: dict[str, Array] = {}
    kept = []
    for other, source in zip(others, sources, strict=True):
        change = other - base
        if method != "task_arithmetic":
            change, at_cut = _sparse(change, base, other, method, source, values)
            if at_cut is not None:
                tossed["cut"] = tossed.get("cut", False) | at_cut
        kept.append(change)
    terms = np.stack([w * v for w, v in zip(weights, kept, strict=True)])
    column = np.array(weights).reshape(-1, *[1] * base.ndim)
    if method in ("ties", "breadcrumbs_ties", "dare_ties", "della"):
        agree, undecided = _agreement(terms)
        if undecided is not None:
            tossed["sign"] = undecided
        terms = terms * agree
        below = (column * agree).sum(axis=0)
        size = (np.abs(column) * agree).sum(axis=0)
        if values["normalize"]:
            slight = (np.abs(below) <= 4 * SINGLE * size) & (size > 0)
            if slight.any():
                tossed["divisor"] = slight
        below = np.where(below == 0, 1.0, below)
    else:
        below = sum(weights)
        below = 1.0 if abs(below) < 1e-8 else below
    factor = values["lambda"] / below if values["normalize"] else values["lambda"]
    result = _summed([base, *(terms * factor)])
    return Truth(result.value, result.scale, tossed)


def _sparse(
    change: Array, base: Array, other: Array, method: str, source: _Source, values: _Values
) -> tuple[Array, Array | None]:
    density = values.of(source, "density")
    if density >= 1:
        return change, None
    if method in ("dare_linear", "dare_ties", "della", "della_linear"):
        raise Unclear("drawn at random")
    # Ranks are those of the f32 difference, which both tools take; f64 would tell equal ones apart.
    sizes = np.abs(other.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
    number = sizes.size
    if method == "ties":
        if density <= 0:
            return np.zeros_like(change), None
        kept, at_cut = _largest(sizes, max(1, int(density * number)), 1e-6, values.all_equal)
    else:
        keep, top = int(density * number), int(values.of(source, "gamma") * number)
        if keep == 0:
            return np.zeros_like(change), None
        top = min(top, number - keep)
        within, low_cut = _largest(sizes, top + keep, 1e-6, values.all_equal)
        above, high_cut = _largest(sizes, top, 1e-6, False)
        kept = within & ~above
        if values.all_equal and high_cut is not None:
            kept |= high_cut
        at_cut = low_cut if high_cut is None else high_cut if low_cut is None else low_cut | high_cut
    masked = change * kept
    if values["rescale"]:
        before, after = np.abs(change).sum(), np.abs(masked).sum()
        if before >= 1e-7 and after >= 1e-7:
            masked = masked * (before / after)
    return masked, at_cut


METHODS: Mapping[str, _Method] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "passthrough": _passthrough,
    "model_stock": _model_stock,
    "arcee_fusion": _arcee_fusion,
    "nearswap": _nearswap,
    "sce": _sce,
    "ram": _ram,
    "ramplus_tl": _ram,
    "task_arithmetic": _task_vectors,
    "ties": _task_vectors,
    "breadcrumbs": _task_vectors,
    "breadcrumbs_ties": _task_vectors,
    "dare_linear": _task_vectors,
    "dare_ties": _task_vectors,
    "della": _task_vectors,
    "della_linear": _task_vectors,
}


def as_model(found: Mapping[str, Truth], tokens: dict[str, int], dtype: Any) -> Model:
    """The result of a document, rounded to its dtype, for the documents that build on it."""
    tensors, noise = {}, {}
    for name, truth in found.items():
        tensors[name] = _exact(rounded(truth.value, dtype))
        # Where f32 may round to the other neighbour, that is what later documents cannot know better.
        slack = 4 * SINGLE * truth.scale
        low, high = (_exact(rounded(truth.value + sign * slack, dtype)) for sign in (-1, 1))
        noise[name] = (high - low) / (4 * SINGLE)
    return Model(tensors, tokens, noise)


def fused_experts(tensors: Mapping[str, Array]) -> Tensors:
    """Mixtral's experts in one tensor for all, as transformers holds them in memory (and mergekit merges them)."""
    pattern = re.compile(r"(.+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")
    found: dict[str, dict[int, dict[str, Array]]] = {}
    result: Tensors = {}
    for name, array in tensors.items():
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = array
        else:
            result[name.replace(".block_sparse_moe.gate.", ".mlp.gate.")] = array
    for layer, experts in found.items():
        each = [experts[i] for i in range(len(experts))]
        result[f"{layer}.mlp.experts.gate_up_proj"] = np.stack(
            [np.concatenate([e["w1"], e["w3"]]) for e in each]
        )
        result[f"{layer}.mlp.experts.down_proj"] = np.stack([e["w2"] for e in each])
    return result
