"""Models of two numbers, so that merges can be done by hand: base (0, 0), a (1, 0), b (0, 1), c (-1, 4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from makers import write_model

from merganser.search import CallableFitness

PLACES = {"base": (0.0, 0.0), "a": (1.0, 0.0), "b": (0.0, 1.0), "c": (-1.0, 4.0)}
NAMES = ("net.0.x", "net.1.y", "out.z")


def toys(folder: Path) -> Path:
    for name, (x, y) in PLACES.items():
        tensors = {"net.0.x": [x], "net.1.y": [y], "out.z": [x + y]}
        write_model(folder / name, {n: np.array(v, np.float32) for n, v in tensors.items()})
    return folder


def near(x: float, y: float, calls: list[tuple[float, float]] | None = None) -> CallableFitness:
    """Minus the squared distance of a merge from (x, y)."""

    def fitness(weights) -> float:
        place = float(weights.compute("net.0.x")[0]), float(weights.compute("net.1.y")[0])
        if calls is not None:
            calls.append(place)
        return -((place[0] - x) ** 2) - (place[1] - y) ** 2

    return CallableFitness(fitness, f"near {x} {y}")


def arithmetic(a: object, b: object, **more: object) -> dict:
    return {
        "method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "a", "parameters": {"weight": a}}, {"model": "b", "parameters": {"weight": b}}],
        **more,
    }


def written(folder: Path, document: object, name: str = "open.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
