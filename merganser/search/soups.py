"""Model soups: averages of fine-tunes of one base, chosen by scores on validation data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merganser._progress import Progress
from merganser.algebra import Weights
from merganser.errors import RequestError, did_you_mean
from merganser.recipe import as_saved
from merganser.search.evaluator import Evaluator, Score
from merganser.search.fitness import Fitness
from merganser.search.writer import check_out, journal_of, write_recipe

KINDS = ("greedy", "uniform")


@dataclass(frozen=True)
class Soup:
    """`ingredients` are indices of models as they went in; `tried` says of each model what it would have made, and
    of one that failed by itself its own score.

    `singles` are the models' own scores, `uniform` that of the average of all, `score` the soup's.
    """

    kind: str
    ingredients: tuple[int, ...]
    score: Score
    singles: tuple[Score, ...]
    uniform: Score
    tried: tuple[tuple[int, Score, bool], ...]

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For --json."""
        return {
            "kind": self.kind,
            "ingredients": [names[k] for k in self.ingredients],
            "soup": self.score.as_json(),
            "uniform": self.uniform.as_json(),
            "models": [{"model": names[k], **score.as_json()} for k, score in enumerate(self.singles)],
            "tried": [
                {"model": names[k], **score.as_json(), "added": added} for k, score, added in self.tried
            ],
        }


def average(models: Sequence[Weights]) -> Weights:
    """The uniform average, rounded as it would be when it is saved."""
    from merganser.methods import get

    return as_saved(get("linear")(None, list(models)), None)


def soup(
    models: Sequence[Weights],
    fitness: Fitness,
    *,
    kind: str = "greedy",
    journal: Path | None = None,
    progress: Progress | None = None,
) -> Soup:
    """A soup of models that were fine-tuned from one base (Wortsman et al. 2022, arXiv:2203.05482).

    uniform: the average of all. greedy (Recipe 1): models in the order of their scores, the best first; each
    is kept where the average of those kept and it scores no lower than that of those kept. Equal scores keep
    the given order. A model that failed by itself is left out untried.

    Raises `RequestError` for fewer than two models, an unknown kind, and where every model failed.
    """
    if kind not in KINDS:
        raise RequestError(f"unknown soup {kind!r}{did_you_mean(kind, KINDS)} (known: {', '.join(KINDS)})")
    if len(models) < 2:
        raise RequestError(f"a soup takes at least two models; there {'is 1' if models else 'are 0'}")
    averaged = average(models)
    fitness.check()
    evaluator = Evaluator(fitness, journal)
    total, done = 2 * len(models), 0

    def score(chosen: Sequence[int]) -> Score:
        nonlocal done
        if len(chosen) == 1:
            weights = as_saved(models[chosen[0]], None)
        else:
            weights = averaged if len(chosen) == len(models) else average([models[k] for k in chosen])
        found = evaluator(weights, {"average": len(chosen)}, {"models": [models[k].label for k in chosen]})
        done += 1
        if progress is not None:
            progress(done, total)
        return found

    singles = tuple(score([k]) for k in range(len(models)))
    if all(one.failed for one in singles):
        raise RequestError(f"none of the models can be scored; the first says: {singles[0].failed}")
    uniform = score(range(len(models)))
    if kind == "uniform":
        return Soup(kind, tuple(range(len(models))), uniform, singles, uniform, ())
    order = sorted(range(len(models)), key=lambda k: -singles[k].fitness)
    kept, best = [order[0]], singles[order[0]]
    tried: list[tuple[int, Score, bool]] = [(order[0], best, True)]
    for k in order[1:]:
        if singles[k].failed:
            tried.append((k, singles[k], False))
            continue
        # Sorted, so that the sum is that of the recipe, term by term.
        one = score(sorted([*kept, k]))
        added = one.fitness >= best.fitness
        tried.append((k, one, added))
        if added:
            kept.append(k)
            best = one
    return Soup(kind, tuple(kept), best, singles, uniform, tuple(tried))


def soup_into(
    paths: Sequence[str],
    fitness: Fitness,
    out: str | Path,
    *,
    kind: str = "greedy",
    allow: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Soup:
    """`soup` of models at paths, and the linear recipe of it written to `out`, the journal beside it.

    allow: keys of config.json in which the models may contradict each other, as in a recipe.
    """
    from merganser import open as open_weights

    out = Path(out)
    check_out(out, overwrite)
    if twice := [
        path for k, path in enumerate(paths) if os.path.normpath(path) in map(os.path.normpath, paths[:k])
    ]:
        raise RequestError(f"{twice[0]} is given twice; a soup averages different models")
    models = [open_weights(path, name=path).allow(*allow) for path in paths]
    found = soup(models, fitness, kind=kind, journal=journal_of(out), progress=progress)
    document: dict[str, Any] = {
        "method": "linear",
        "models": [{"model": paths[k]} for k in sorted(found.ingredients)],
    }
    if allow:
        document["allow"] = list(allow)
    provenance = {
        "found by": f"merganser soup ({kind})",
        **fitness.told,
        "out of": len(paths),
        "best": found.score.fitness,
        "tasks": dict(found.score.tasks),
    }
    write_recipe(out, [document], provenance, source=None, overwrite=overwrite)
    return found
