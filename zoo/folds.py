"""PocketNet's folds: singles, their ensemble, soups of them, and the lines between them, kept as one JSON.

A soup is computed by merganser and never written. Where one is chosen, it is chosen on the other structures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from alignment.packages import CHECKPOINTS, SDIST_SHA256, WHEEL
from demo.fetch import cache_folder

from zoo.packages import LIGANDS, POCKETNET

FILE = "pocketnet.json"
METHODS = ("linear", "karcher", "multislerp", "geometric_median")
"""Those that take several models and neither a base nor statistics: the folds' common start is not published."""
SINGLES, ENSEMBLE, GREEDY, BEST = "mean of singles", "ensemble", "greedy soup", "best single"
CONTROL = CHECKPOINTS[:2]
POINTS = 5
DRAWS, SEED = 2000, 0
Told = Callable[[str], None]


class Scorer(Protocol):
    """`zoo.pocketnet.PocketNet`, or what a test puts in its place."""

    folds: Sequence[Any]
    surfaces: Mapping[str, Any]

    def logits(self, weights: Any, structure: str) -> Any:
        """One number a point of the structure's surface."""


def key() -> dict[str, Any]:
    """What the figures depend on."""
    from merganser._version import __version__

    return {
        "merganser": __version__,
        "packages": {POCKETNET.name: POCKETNET.sha256, WHEEL.name: WHEEL.sha256, "biopython": SDIST_SHA256},
        "structures": {name: [one.code, one.sha256] for name, one in LIGANDS.items()},
        "methods": METHODS,
        "control": CONTROL,
        "points": POINTS,
        "draws": [DRAWS, SEED],
    }


def kept(root: Path) -> dict[str, Any] | None:
    """The figures; None where there are none, or of something else."""
    try:
        found = json.loads((root / FILE).read_text(encoding="utf-8"))
        return found if found["key"] == json.loads(json.dumps(key())) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run(root: Path, told: Told) -> list[str]:
    """Measure what is not there (ten minutes of one core); a line where that failed."""
    if kept(root) is not None:
        return []
    from zoo.build import write_whole

    try:
        from zoo.pocketnet import PocketNet

        cache = cache_folder()
        found = {"key": key(), **measure(PocketNet(cache), told), "control": control(cache, told)}
    except Exception as problem:
        return [f"pocketnet: {type(problem).__name__}: {problem}"]
    write_whole(root / FILE, json.dumps(found, indent=1) + "\n")
    return []


def measure(net: Scorer, told: Told = lambda _: None) -> dict[str, Any]:
    """All figures of the folds."""
    import numpy as np

    from merganser.compare import diagnose
    from zoo.auc import auc

    names = list(net.surfaces)
    outputs: dict[str, dict[str, Any]] = {}

    def score(weights: Any, structure: str) -> float:
        return auc(net.surfaces[structure].labels, net.logits(weights, structure))

    def add(name: str, output: Callable[[str], Any]) -> None:
        outputs[name] = {structure: output(structure) for structure in names}
        told(
            f"{name}: " + ", ".join(f"{auc(net.surfaces[s].labels, v):.4f}" for s, v in outputs[name].items())
        )

    singles = [f"fold {k}" for k in range(len(net.folds))]
    for name, fold in zip(singles, net.folds, strict=True):
        add(name, lambda structure, fold=fold: net.logits(fold, structure))
    add(ENSEMBLE, lambda structure: together([outputs[name][structure] for name in singles]))
    for name in METHODS:
        soup = merge(name, net.folds)
        add(name, lambda structure, soup=soup: net.logits(soup, structure))
    chosen = {held: greedy(net.folds, [one for one in names if one != held], score) for held in names}
    firsts = {held: one.tried[0][0] for held, one in chosen.items()}
    mixed = {held: merge("linear", [net.folds[k] for k in one.ingredients]) for held, one in chosen.items()}
    add(BEST, lambda held: outputs[singles[firsts[held]]][held])
    add(GREEDY, lambda held: net.logits(mixed[held], held))

    lines = []
    for a, b in combinations(range(len(singles)), 2):
        lines.append({"pair": [a, b], **line(net, net.folds[a], net.folds[b])})
        told(f"line from {singles[a]} to {singles[b]}: barrier {lines[-1]['barrier']:.4f}")
    return {
        "verdict": diagnose(net.folds, rank="none")["verdict"],
        "structures": {
            name: {
                "points": len(one.labels),
                "near": int(one.labels.sum()),
                "residues": int(one.groups.max()) + 1,
                "binding residues": len(np.unique(one.groups[one.labels])),
            }
            for name, one in net.surfaces.items()
        },
        "scores": {
            name: {
                structure: {
                    "auc": auc(net.surfaces[structure].labels, values),
                    "loss": loss(net, structure, values),
                }
                for structure, values in by_structure.items()
            }
            for name, by_structure in outputs.items()
        },
        "chosen": {
            held: {GREEDY: sorted(one.ingredients), BEST: firsts[held]} for held, one in chosen.items()
        },
        "differences": differences(net, outputs, singles),
        "lines": lines,
    }


def merge(method: str, folds: Sequence[Any]) -> Any:
    """Folds of equal weight, lazily."""
    from merganser import methods

    return methods.get(method)(None, list(folds))


def greedy(folds: Sequence[Any], structures: Iterable[str], score: Callable[[Any, str], float]) -> Any:
    """The greedy soup of `merganser.search`, by the mean score over these structures and no other."""
    from merganser.search import CallableFitness, soup

    given = list(structures)

    def mean(weights: Any) -> float:
        return sum(score(weights, structure) for structure in given) / len(given)

    return soup(folds, CallableFitness(mean, f"AUC on {', '.join(given)}"))


def together(logits: Sequence[Any]) -> Any:
    """The logits of the mean of several models' probabilities."""
    import numpy as np

    ups, downs = (np.mean([1 / (1 + np.exp(sign * one)) for one in logits], 0) for sign in (-1, 1))
    return np.log(ups) - np.log(downs)


def loss(net: Scorer, structure: str, logits: Any) -> float:
    """Binary cross-entropy in nats, the mean over points."""
    import numpy as np

    return float(np.mean(np.logaddexp(0, logits) - net.surfaces[structure].labels * logits))


def differences(
    net: Scorer, outputs: Mapping[str, Mapping[str, Any]], singles: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """AUC of everything that is made of several folds, less the mean of the singles' and less the ensemble's.

    interval: 2.5 and 97.5 % of bootstrap draws of the mean over structures. A draw takes residues with all points of
    theirs, each structure by itself, the same ones for all models; one without a binding residue is left out.
    """
    import numpy as np

    from zoo.auc import auc, resample, resampled

    whole: dict[str, Any] = {}
    draws: dict[str, Any] = {}
    for name, by_structure in outputs.items():
        found = []
        for number, (structure, values) in enumerate(by_structure.items()):
            one = net.surfaces[structure]
            counts = resample(int(one.groups.max()) + 1, DRAWS, SEED + number)
            found.append(resampled(one.labels, values, one.groups, counts))
        draws[name] = np.array(found)
        whole[name] = np.array([auc(net.surfaces[s].labels, values) for s, values in by_structure.items()])
    for which in (whole, draws):
        which[SINGLES] = np.mean([which[name] for name in singles], 0)
    made = [name for name in outputs if name not in singles]
    return {
        name: {
            other: {
                "by structure": (whole[name] - whole[other]).tolist(),
                "interval": np.nanpercentile((draws[name] - draws[other]).mean(0), [2.5, 97.5]).tolist(),
            }
            for other in (SINGLES, ENSEMBLE)
            if other != name
        }
        for name in made
    }


def line(net: Scorer, a: Any, b: Any) -> dict[str, Any]:
    """Loss and AUC, means over structures, at equal steps from a to b, and what is worse than on the straight line."""
    from merganser.compare.line import barrier
    from zoo.auc import auc

    shares = [k / (POINTS - 1) for k in range(POINTS)]
    losses, aucs = [], []
    for share in shares:
        outputs = {s: net.logits(_between(a, b, share), s) for s in net.surfaces}
        losses.append(sum(loss(net, s, values) for s, values in outputs.items()) / len(outputs))
        aucs.append(sum(auc(net.surfaces[s].labels, values) for s, values in outputs.items()) / len(outputs))
    return {
        "shares": shares,
        "losses": losses,
        "aucs": aucs,
        "barrier": barrier(shares, losses)[0],
        "auc lost": barrier(shares, [-value for value in aucs])[0],
    }


def _between(a: Any, b: Any, share: float) -> Any:
    return a if share == 0 else b if share == 1 else a * (1 - share) + b * share


def control(
    cache: Path, told: Told = lambda _: None, structures: Sequence[str] = tuple(LIGANDS)
) -> dict[str, Any]:
    """The line between two models of ProteinMPNN from independent starts, on the same structures."""
    from alignment import proteins
    from alignment.line import state

    from merganser.compare import diagnose
    from merganser.compare.line import barrier

    code, models = proteins.models(cache)
    score = proteins.scorer(code, proteins.structures(cache, structures))
    a, b = (models[name] for name in CONTROL)
    shares = [k / (POINTS - 1) for k in range(POINTS)]
    found = [score(state(_between(a, b, share))) for share in shares]
    losses, right = [one.loss for one in found], [one.right for one in found]
    told(f"line from {CONTROL[0]} to {CONTROL[1]}: " + ", ".join(f"{value:.3f}" for value in losses))
    return {
        "verdict": diagnose([a, b], rank="none")["verdict"],
        "pair": list(CONTROL),
        "shares": shares,
        "losses": losses,
        "right": right,
        "barrier": barrier(shares, losses)[0],
        "right lost": barrier(shares, [-value for value in right])[0],
    }
