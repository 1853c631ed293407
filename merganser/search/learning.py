"""Learning the coefficients of task vectors by gradients: AdaMerging, aTLAS, Self-Positioning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser.algebra import Weights
from merganser.errors import RequestError, did_you_mean
from merganser.recipe import Mixture, Recipe, as_saved, build
from merganser.recipe.documents import read_documents
from merganser.search.evaluator import Progress
from merganser.search.groups import Group, float_names, groups, setting
from merganser.search.writer import check_out, write_recipe

if TYPE_CHECKING:
    import torch

    from merganser.evaluate import Suite

COEFFICIENTS = ("task", "layer", "tensor")
OBJECTIVES = ("entropy", "labels")
LINEAR_TOLERANCE = 1e-3
"""How far a recipe may be from linear in its weights, as a share of the largest change."""
Arrays = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class Method:
    """How coefficients are learned. `rate` is the learning rate, `start` the coefficients' first value."""

    name: str
    paper: str
    coefficients: str
    objective: str
    optimiser: str
    rate: float
    start: float
    steps: int
    batch: int


METHODS: dict[str, Method] = {
    one.name: one
    for one in (
        Method("adamerging", "P185", "tensor", "entropy", "Adam", 1e-3, 0.3, 500, 16),
        Method("atlas", "P094", "tensor", "labels", "AdamW", 1e-1, 0.0, 100, 128),
        Method("self_positioning", "P457", "task", "labels", "SGD", 1e-1, 1.0, 200, 32),
    )
}
WEIGHT_DECAY, MOST_NORM = 0.1, 1.0
"""Of aTLAS: AdamW's decay, and the norm that gradients are cut to."""


@dataclass(frozen=True)
class Learned:
    """Learned coefficients by model and group (None: one for the whole model), and the recipe that they make.

    `losses` are the sums over tasks by step, before the step was taken; `difference` is the largest one between the
    tensors that were learned and those that the recipe makes, as a share of the largest change of the base.
    """

    method: str
    coefficients: Mapping[str, Mapping[Group | None, float]]
    documents: Sequence[Any]
    losses: Sequence[float]
    difference: float

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "method": self.method,
            "coefficients": {
                model: {"*" if group is None else group.pattern: value for group, value in found.items()}
                for model, found in self.coefficients.items()
            },
            "losses": list(self.losses),
            "difference": self.difference,
        }


def learn(
    recipe: str | Path | Mapping[str, Any],
    suite: Suite | str | Path | Mapping[str, Any],
    *,
    by: str = "adamerging",
    coefficients: str | None = None,
    objective: str | None = None,
    steps: int | None = None,
    rate: float | None = None,
    batch: int | None = None,
    start: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Learned:
    """Learn the models' weights in a recipe that is linear in them, theta = theta0 + sum_k c_k tau_k.

    recipe: one on task vectors (task_arithmetic; ties with election: unweighted and normalize: false,
    AdaMerging++); any weights that it has are replaced. suite: the tasks whose data are learned from, with their heads.

    adamerging (P185): the entropy of the predictions, summed over the tasks, one batch of each a step; labels are not
    read. Adam at 1e-3, coefficients from 0.3, kept in [0, 1]. atlas (P094): cross-entropy, or entropy (objective), the
    mean over tasks; AdamW at 0.1 with a cosine to 0, decay 0.1, gradients cut to norm 1, coefficients from 0.
    self_positioning (P457): the loss on a probe set with as many rows of each task a step, SGD at 0.1; theta = theta0 +
    s sum_k a_k tau_k with a = softmax and s free, from equal a and s = 1, the average of the models.

    coefficients: one for each "task" vector, "layer" (and module outside the layers) of it, or "tensor", which
    is what the authors of adamerging call layer-wise and of atlas a parameter block. objective: "entropy" or
    "labels"; of language models and pairs only labels are known. steps, rate, batch (rows of a task a step), start:
    defaults by method.

    Differences from the papers: docs/search.md. Memory: (2 + models) x 4 bytes a parameter, and the activations of a
    batch. Raises `RequestError` where the recipe or the suite cannot be used, `NonFiniteError` where the loss is NaN.
    """
    from merganser.evaluate import Suite
    from merganser.running import require

    require("torch", "transformers")
    method = _method(by)
    chosen = _one_of("coefficients", coefficients or method.coefficients, COEFFICIENTS)
    goal = _one_of("objective", objective or method.objective, OBJECTIVES)
    if by == "adamerging" and goal == "labels":
        raise RequestError("adamerging learns from entropy; for labels take atlas or self_positioning")
    if by == "self_positioning" and chosen != "task":
        raise RequestError("self_positioning has one coefficient a task vector, so coefficients is task")
    settings = _Settings(
        method,
        goal == "entropy",
        _count("steps", method.steps if steps is None else steps),
        _positive("rate", method.rate if rate is None else rate),
        _count("batch", method.batch if batch is None else batch),
        method.start if start is None else start,
        seed,
    )
    source = _Source.open(recipe)
    opened = suite if isinstance(suite, Suite) else Suite.open(suite)
    from merganser.search.objectives import check

    for task in opened.tasks:
        check(task, goal == "entropy")
    base, taus, zero = source.vectors()
    found = groups(float_names(zero), chosen) if chosen != "task" else dict.fromkeys(float_names(zero))
    raw, losses, tensors = _train(base, taus, zero, found, opened, settings, progress)
    order = list(dict.fromkeys(found.values()))
    values = [dict(zip(order, row, strict=True)) for row in raw]
    document = source.document(values)
    made = source.computed(document)
    size = max((float(np.abs(tensors[n] - base[n]).max(initial=0.0)) for n in tensors), default=0.0) or 1.0
    off = max((float(np.abs(tensors[n] - made[n]).max(initial=0.0)) for n in tensors), default=0.0) / size
    if off > LINEAR_TOLERANCE:
        raise source.not_linear(off)
    return Learned(by, dict(zip(source.labels, values, strict=True)), [document], losses, off)


def learn_into(
    recipe: str | Path, suite: Any, out: str | Path, *, overwrite: bool = False, **settings: Any
) -> Learned:
    """`learn`, and the recipe with the learned weights written to `out`."""
    from merganser.evaluate import Suite

    out = Path(out)
    check_out(out, overwrite)
    opened = suite if isinstance(suite, Suite) else Suite.open(suite)
    found = learn(recipe, opened, **settings)
    provenance = {
        "found by": f"merganser learn ({found.method}, {METHODS[found.method].paper})",
        "of": Path(recipe).name,
        "suite": opened.name,
        "suite_digest": opened.digest,
        **{
            key: value
            for key, value in sorted(settings.items())
            if key not in ("by", "progress") and value is not None
        },
        "loss": [found.losses[0], found.losses[-1]],
    }
    write_recipe(
        out, found.documents, provenance, source=Path(recipe).expanduser().parent, overwrite=overwrite
    )
    return found


@dataclass(frozen=True)
class _Settings:
    method: Method
    entropy: bool
    steps: int
    rate: float
    batch: int
    start: float
    seed: int


class _Source:
    """A recipe whose weights are learned."""

    def __init__(self, raw: dict[str, Any], name: str, directory: Path | None, recipe: Recipe) -> None:
        self.raw = raw
        self.name = name
        self.directory = directory
        self.recipe = recipe
        only = recipe.parts[0].slices[0]
        self.places = [source.place for source in only.inputs(recipe.method)]
        self.labels = [recipe.models[source.model].label for source in only.inputs(recipe.method)]

    @classmethod
    def open(cls, source: str | Path | Mapping[str, Any]) -> _Source:
        from merganser.document import parse_all, read_file

        if isinstance(source, Mapping):
            documents, name, directory = [dict(source)], "recipe", None
        else:
            path = Path(source).expanduser()
            documents, name, directory = parse_all(read_file(path), str(path)), str(path), path.parent
        if len(documents) > 1:
            raise RequestError(
                f"{name}: coefficients are learned of recipes of one document; this has {len(documents)}"
            )
        recipe = read_documents(documents, name, directory)
        if isinstance(recipe, Mixture) or not recipe.simple or recipe.steps:
            raise RequestError(
                f"{name}: coefficients are learned of recipes with base_model and models, without steps"
            )
        named = {p.name: p for p in recipe.method.parameters}
        if (
            recipe.base is None
            or recipe.method.base != "required"
            or not getattr(named.get("weight"), "per_model", False)
        ):
            raise RequestError(
                f"{name}: coefficients are learned of task vectors, by a method such as task_arithmetic with "
                f"a base_model, not of {recipe.method.name}"
            )
        return cls(documents[0], name, directory, recipe)

    def document(self, values: Sequence[Any]) -> dict[str, Any]:
        """The recipe with a weight for each merged model: a number, or numbers by group."""
        raw = dict(self.raw)
        shared = {key: one for key, one in (raw.get("parameters") or {}).items() if key != "weight"}
        raw.pop("parameters", None)
        models = []
        at = {place: k for k, place in enumerate(self.places)}
        for k, entry in enumerate(raw["models"]):
            entry = dict(entry)
            if (number := at.get(f"models[{k}]")) is not None:
                value = values[number]
                if isinstance(value, Mapping):
                    value = (
                        value[None] if None in value else setting(value, patterns=not self.recipe.mergekit)
                    )
                entry["parameters"] = {**(entry.get("parameters") or {}), "weight": value}
            models.append(entry)
        raw["models"] = models
        if shared:
            raw["parameters"] = shared
        return raw

    def weights(self, document: Mapping[str, Any]) -> Weights:
        """The lazy merge of a document, in f32."""
        weights, _ = build(read_documents([dict(document)], self.name, self.directory))
        return weights

    def computed(self, document: Mapping[str, Any]) -> Arrays:
        """Its tensors."""
        from merganser.running import live_tensors

        return live_tensors(self.weights(document))

    def vectors(self) -> tuple[Arrays, list[Arrays], Weights]:
        """theta0, the vectors (what a weight of 1 for one model adds), and theta0 as lazy weights.

        Raises `RequestError` where the recipe is not linear in its weights.
        """
        count = len(self.places)
        zero = self.weights(self.document([0.0] * count))
        base = self.computed(self.document([0.0] * count))
        names = dict.fromkeys(float_names(zero))
        base |= {name: base[name].astype(np.float32, copy=False) for name in names}
        taus: list[Arrays] = []
        for k in range(count):
            one = self.computed(self.document([float(k == j) for j in range(count)]))
            taus.append({name: one[name].astype(np.float32, copy=False) - base[name] for name in names})
        trial = [0.3 + 0.4 * k / count for k in range(count)]
        made = self.computed(self.document(trial))
        size = max((float(np.abs(tau[n]).max(initial=0.0)) for tau in taus for n in names), default=0.0)
        if size == 0.0:
            raise RequestError(
                f"{self.name}: the models do not differ from the base, so there is nothing to learn"
            )
        for name in names:
            sum_ = base[name] + sum(w * tau[name] for w, tau in zip(trial, taus, strict=True))
            off = float(np.abs(sum_ - made[name]).max(initial=0.0)) / size
            if off > LINEAR_TOLERANCE:
                raise self.not_linear(off)
        return base, taus, zero

    def not_linear(self, off: float) -> RequestError:
        """The error of a recipe whose weights do more than scale vectors."""
        return RequestError(
            f"{self.name}: {self.recipe.method.name} as it is set here is not linear in its weights (off by "
            f"{off:.2g} of the "
            "largest change), so their gradients are not those of vectors. Take task_arithmetic, or ties with "
            "{election: unweighted, normalize: false}; normalize is false everywhere"
        )


def _train(
    base: Arrays,
    taus: Sequence[Arrays],
    zero: Weights,
    found: Mapping[str, Group | None],
    suite: Suite,
    settings: _Settings,
    progress: Progress | None,
) -> tuple[list[list[float]], list[float], Arrays]:
    """Coefficients [vectors, groups], losses by step, and the tensors that they make."""
    import torch

    from merganser.running import open_model
    from merganser.search.coefficients import Running, Vectors
    from merganser.search.objectives import Batches, Objective

    vectors = Vectors(base, taus, found)
    model = open_model(as_saved(zero, "float32"))
    running = Running(model)
    objectives = [Objective(task, model, settings.entropy) for task in suite.tasks]
    data = [Batches(one.rows, settings.batch, (settings.seed, k)) for k, one in enumerate(objectives)]
    head = _Positions(settings, len(taus), len(vectors.groups))
    step = _Stepper(settings, head.parameters)
    losses: list[float] = []
    share = 1.0 if settings.method.name == "adamerging" else 1.0 / len(objectives)
    for number in range(settings.steps):
        total = 0.0
        step.zero()
        for one, rows in zip(objectives, data, strict=True):
            # One task at a time, so that one task's activations are held; gradients add up.
            loss = running(vectors.merged(head()), partial(one, rows.next())) * share
            torch.autograd.backward(loss)
            total += float(loss.detach())
        step(number)
        losses.append(total)
        if progress is not None:
            progress(number + 1, settings.steps)
    with torch.no_grad():
        values = head()
        tensors = {name: tensor.numpy() for name, tensor in vectors.merged(values).items()}
    return values.detach().tolist(), losses, tensors


class _Positions:
    """From what is learned to coefficients [vectors, groups]."""

    def __init__(self, settings: _Settings, vectors: int, count: int) -> None:
        import torch

        self.method = settings.method.name
        if self.method == "self_positioning":
            self.logits = torch.zeros(vectors, 1, requires_grad=True)
            self.scale = torch.full((1,), float(settings.start), requires_grad=True)
            self.parameters = [self.logits, self.scale]
        else:
            self.raw = torch.full((vectors, count), float(settings.start), requires_grad=True)
            self.parameters = [self.raw]

    def __call__(self) -> torch.Tensor:
        if self.method == "self_positioning":
            return self.logits.softmax(0) * self.scale
        return self.raw.clamp(0.0, 1.0) if self.method == "adamerging" else self.raw


class _Stepper:
    """The optimiser of a method, and its schedule."""

    def __init__(self, settings: _Settings, parameters: list[torch.Tensor]) -> None:
        import torch

        self.settings = settings
        self.parameters = parameters
        kinds: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "Adam": lambda: torch.optim.Adam(parameters, lr=settings.rate),
            "AdamW": lambda: torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=WEIGHT_DECAY),
            "SGD": lambda: torch.optim.SGD(parameters, lr=settings.rate),
        }
        self.optimiser = kinds[settings.method.optimiser]()

    def zero(self) -> None:
        self.optimiser.zero_grad()

    def __call__(self, number: int) -> None:
        import torch

        if self.settings.method.optimiser == "AdamW":
            rate = self.settings.rate * (1 + math.cos(math.pi * number / self.settings.steps)) / 2
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            torch.nn.utils.clip_grad_norm_(self.parameters, MOST_NORM)
        self.optimiser.step()


def _method(by: str) -> Method:
    if by not in METHODS:
        raise RequestError(
            f"unknown way to learn {by!r}{did_you_mean(by, METHODS)} (known: {', '.join(METHODS)})"
        )
    return METHODS[by]


def _one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise RequestError(
            f"{what}: {value!r} is unknown{did_you_mean(value, known)} (known: {', '.join(known)})"
        )
    return value


def _count(what: str, value: int) -> int:
    if isinstance(value, bool) or value < 1:
        raise RequestError(f"{what}: expected a whole number from 1, not {value}")
    return value


def _positive(what: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{what}: expected a number above 0, not {value}")
    return value


__all__ = ["COEFFICIENTS", "METHODS", "OBJECTIVES", "Learned", "learn", "learn_into"]
