"""Searching the open numbers of a recipe for the best merge."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merganser._progress import Progress
from merganser.algebra import Weights
from merganser.errors import MerganserError, MerganserWarning, RequestError, listing
from merganser.methods import get
from merganser.recipe import Mixture, Recipe, as_saved, build
from merganser.recipe.build import open_models
from merganser.search.evaluator import Evaluator, Score
from merganser.search.fitness import Fitness, SuiteFitness
from merganser.search.optimisers import Point, optimise, optimiser
from merganser.search.route import EmptyRoute
from merganser.search.space import Space, Values
from merganser.search.writer import check_out, journal_of, write_recipe


@dataclass(frozen=True)
class Found:
    """One candidate: what it is, its score, and its score on a suite that nothing was chosen on."""

    name: str
    score: Score
    test: Score | None = None

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        found = {"name": self.name, **self.score.as_json()}
        return found if self.test is None else found | {"test": self.test.as_json()}


@dataclass(frozen=True)
class Searched:
    """What a search found: the best values, the recipe that they make, and what stands beside it.

    `evaluations` were asked for by the optimiser, of which `made` were run now and `taken` came from the
    journal (points that make the same recipe count as taken, too); `failed` gave no model, or one that
    returned NaN or has no score.
    """

    best: Found
    values: Values
    documents: Sequence[Any]
    by: str
    seed: int
    evaluations: int
    made: int
    taken: int
    failed: int
    baselines: Sequence[Found] = field(default_factory=tuple)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "best": self.best.as_json(),
            "values": dict(self.values),
            "by": self.by,
            "seed": self.seed,
            "evaluations": self.evaluations,
            "made": self.made,
            "taken_from_journal": self.taken,
            "failed": self.failed,
            "baselines": [one.as_json() for one in self.baselines],
        }


def search(
    recipe: str | Path | Space,
    fitness: Fitness,
    *,
    by: str = "cma",
    evaluations: int = 100,
    seed: int = 0,
    baseline: bool = False,
    test: Fitness | None = None,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Search the open numbers of a recipe; candidates are computed in memory, nothing is written but the journal.

    by: "grid", "random" or "cma"; evaluations: how many candidates are scored (a grid may need fewer); seed: of random
    draws; of equal candidates the first counts. baseline: score the parents, their uniform average, and the best of as
    many random candidates too. test: a fitness by which the result and the baselines are scored once nothing is to be
    chosen any more. journal: a file of the evaluations made; those that it holds of the same recipe, models
    and data are not made again, so a search that was killed goes on where it stopped.

    A candidate that holds or returns NaN, or whose metric is undefined, is worth -inf. Raises `RequestError` for marks
    and requests that cannot be, for a `test` that reads the same data, and where every candidate failed.
    """
    space = recipe if isinstance(recipe, Space) else Space.open(recipe)
    optimiser(by, space.dimensions, evaluations, seed)
    fitness.check()
    if test is not None:
        test.check()
        _apart(fitness, test)
    evaluator = Evaluator(fitness, journal)
    hunt = _Hunt(space, evaluator, evaluations * (2 if baseline and by != "random" else 1), progress)
    values, score, count = hunt.run(by, evaluations, seed)
    failed = hunt.failed
    scorer = None if test is None else Evaluator(test)
    documents = space.plain(values)
    best = Found("found", score, hunt.tested(values, scorer))
    rows: list[Found] = []
    if baseline:
        for name, weights in parents_of(space.recipe(values)):
            rows.append(_found(name, weights, evaluator, scorer))
        if by != "random":
            values_, score_, _ = hunt.run("random", evaluations, seed)
            rows.append(Found("random search", score_, hunt.tested(values_, scorer)))
    return Searched(
        best,
        values,
        documents,
        by,
        seed,
        count,
        evaluator.journal.made,
        evaluator.journal.taken,
        failed,
        rows,
    )


def search_into(
    recipe: str | Path | Space,
    fitness: Fitness,
    out: str | Path,
    *,
    overwrite: bool = False,
    **settings: Any,
) -> Searched:
    """`search`, and the best recipe written to `out`; the journal lies beside it (best.yaml: best.journal.jsonl)."""
    out = Path(out)
    check_out(out, overwrite)
    space = recipe if isinstance(recipe, Space) else Space.open(recipe)
    found = search(space, fitness, journal=journal_of(out), **settings)
    provenance: dict[str, Any] = {
        "found by": "merganser search",
        "of": Path(space.source).name,
        **fitness.told,
        "by": found.by,
        "seed": found.seed,
        "evaluations": found.evaluations,
        "best": found.best.score.fitness,
        "tasks": dict(found.best.score.tasks),
    }
    if found.best.test is not None:
        provenance |= {"test": found.best.test.fitness, "test tasks": dict(found.best.test.tasks)}
    if found.baselines:
        provenance["baselines"] = {
            one.name: one.score.fitness
            if one.test is None
            else {"search": one.score.fitness, "test": one.test.fitness}
            for one in found.baselines
        }
    write_recipe(out, found.documents, provenance, source=space.directory, overwrite=overwrite)
    return found


class _Hunt:
    """Candidates of one space, scored."""

    def __init__(self, space: Space, evaluator: Evaluator, total: int, progress: Progress | None) -> None:
        self.space = space
        self.evaluator = evaluator
        self.total = total
        self.progress = progress
        self.done = 0
        self.failed = 0
        self.scores: dict[Point, Score] = {}

    def run(self, by: str, evaluations: int, seed: int) -> tuple[Values, Score, int]:
        """The best values by one optimiser."""
        point, value, count = optimise(
            self.space.dimensions, self.value, by=by, evaluations=evaluations, seed=seed
        )
        if value == -math.inf:
            raise RequestError(
                f"{self.space.source}: none of {count} candidates gave a model that can be scored; the last says: "
                f"{self.scores[point].failed}"
            )
        return self.space.values(point), self.scores[point], count

    def value(self, point: Point) -> float:
        """What a point is worth."""
        values = self.space.values(point)
        try:
            weights, canonical = built(self.space.recipe(values))
            score = self.evaluator(weights, canonical, values)
        except EmptyRoute as error:
            score = Score(-math.inf, {}, str(error))
        except RequestError as error:
            error.add_note(
                f"with {', '.join(f'{key} = {value}' for key, value in list(values.items())[:20])}"
            )
            raise
        self.failed += score.failed is not None
        self.scores[point] = score
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
        return score.fitness

    def tested(self, values: Values, scorer: Evaluator | None) -> Score | None:
        """The score on data that nothing was chosen on."""
        return None if scorer is None else scorer(*built(self.space.recipe(values)))


def built(recipe: Recipe | Mixture) -> tuple[Weights, Any]:
    """The lazy merge as it will be when it was saved and opened again, and its canonical form."""
    weights, fields = build(recipe)
    return as_saved(weights, fields["dtype"]), fields["recipe"] | {"dtype": fields["dtype"]}


def parents_of(recipe: Recipe | Mixture) -> list[tuple[str, Weights]]:
    """The models of a recipe (of adapters: what they make of the base), and their uniform average if they have one.

    The base comes first where it is no parent itself.
    """
    if isinstance(recipe, Mixture):
        raise RequestError(f"{recipe.source}: a mixture of experts has no parents that it is an average of")
    opened = open_models(recipe)
    base = None if recipe.base is None else opened[recipe.base]
    found: list[tuple[str, Weights]] = []
    merged: list[Weights] = []
    for k in recipe.merged:
        weights, label = opened[k], recipe.models[k].label
        if weights.origin is None and abs(weights.degree) < 1e-6:
            if base is None:
                raise RequestError(
                    f"{recipe.source}: {label!r} is an adapter, and the recipe has no base to run it on"
                )
            weights = (base + weights).relabel(label)
        if k == recipe.base and recipe.method.base_apart:
            found.insert(0, (f"base {label}", weights))
            continue
        found.append((f"parent {label}", weights))
        merged.append(weights)
    if len(merged) > 1:
        with contextlib.suppress(MerganserError):  # parents of several shapes have no average
            found.append(("uniform average", get("linear")(base, merged)))
    return found


def _found(name: str, weights: Weights, evaluator: Evaluator, scorer: Evaluator | None) -> Found:
    weights = as_saved(weights, None)
    recipe = {"baseline": name.split(" ")[0], "labels": name}
    score = evaluator(weights, recipe, {"baseline": name})
    return Found(name, score, None if scorer is None or score.failed else scorer(weights, recipe))


def _apart(fitness: Fitness, test: Fitness) -> None:
    if isinstance(fitness, SuiteFitness) and isinstance(test, SuiteFitness) and (same := fitness.same(test)):
        raise RequestError(
            f"the test suite reads data that is searched on ({listing(same)}); what was chosen on data looks "
            "better there than it is"
        )
    if not (isinstance(fitness, SuiteFitness) and isinstance(test, SuiteFitness)):
        return
    for path, count, rows in fitness.shared(test):
        told = f"{path}: {count} of its {rows} samples are among those that are searched on"
        if 2 * count > rows:
            raise RequestError(
                f"{told}, in another order or file; what was chosen on data looks better there than it is. Test on "
                "other samples"
            )
        warnings.warn(f"{told}; the score on it is too good by that much", MerganserWarning, stacklevel=3)
