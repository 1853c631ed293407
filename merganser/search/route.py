"""Data-flow space: a route through the layers of several models, as slices of a recipe (P058)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser.errors import RequestError, did_you_mean

if TYPE_CHECKING:
    from merganser.search.space import Dimension

KEYS = ("models", "repeats", "start", "scale")
SCALED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers read the residual stream through an RMSNorm only, and write it by the tensors of WRITERS."""
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
IN, OUT = 0.75, 0.25
"""Units of layers that the search starts with and without."""


class EmptyRoute(RequestError):
    """A route that takes no layer: no model, so the worst there is."""


@dataclass(frozen=True)
class Layer:
    """A layer of a source model."""

    model: str
    number: int


@dataclass(frozen=True)
class Route:
    """Slots: the layers of all models one after the other, `repeats` times over. Each slot is taken or left out.

    With `scale` the stream is multiplied before a layer by W[i, j], where i is the layer that was run before (the first
    layer's is 1) and j the one that is next.
    """

    layers: tuple[Layer, ...]
    repeats: int
    start: str
    scale: tuple[float, float] | None
    key: str

    @classmethod
    def read(cls, raw: Any, place: str, directory: Path | None, called: str = "route") -> Route:
        """From `slices: {route: ...}`; the models' headers are read. Raises `RequestError` naming the place."""
        place = f"{place}.route"
        if not isinstance(raw, dict):
            raise RequestError(f"{place}: expected {{models: [...], repeats: 1}}, not {raw!r}")
        for key in raw:
            if key not in KEYS:
                raise RequestError(
                    f"{place}.{key}: unknown key{did_you_mean(key, KEYS)} (known: {', '.join(KEYS)})"
                )
        models = raw.get("models")
        if not isinstance(models, list) or not models or not all(isinstance(m, str) for m in models):
            raise RequestError(f"{place}.models: expected a list of paths of models, not {models!r}")
        if len(set(models)) < len(models):
            raise RequestError(
                f"{place}.models: a model is listed twice; repeats: runs through all of them again"
            )
        repeats = raw.get("repeats", 1)
        if isinstance(repeats, bool) or not isinstance(repeats, int) or not 1 <= repeats <= 100:
            raise RequestError(f"{place}.repeats: expected a whole number from 1 to 100, not {repeats!r}")
        start = str(raw.get("start", models[0]))
        if start not in models:
            raise RequestError(f"{place}.start: {start!r} is none of the models{did_you_mean(start, models)}")
        scale = _scale(raw.get("scale"), place)
        layers: list[Layer] = []
        for model in models:
            layers += [Layer(model, k) for k in range(_layers(model, place, directory, scale is not None))]
        return cls(tuple(layers), repeats, start, scale, called)

    @property
    def dimensions(self) -> list[Dimension]:
        """An indicator for each slot (taken from 0.5 on), and with `scale` W in its logarithm, row by row."""
        from merganser.search.space import Dimension

        found = []
        for repeat in range(self.repeats):
            for layer in self.layers:
                chosen = repeat == 0 and layer.model == self.start
                key = f"{self.key}.take[{repeat}][{layer.model}][{layer.number}]"
                found.append(Dimension(key, choices=(False, True), start=IN if chosen else OUT))
        if self.scale is not None:
            low, high = self.scale
            one = Dimension("", low, high, True)
            for i in range(len(self.layers)):
                for j in range(len(self.layers)):
                    found.append(
                        Dimension(f"{self.key}.scale[{i}][{j}]", low, high, True, start=one.unit(1.0))
                    )
        return found

    def steps(self, values: Mapping[str, Any]) -> list[tuple[Layer, float]]:
        """The layers of a route in their order, each with what its input is multiplied by."""
        taken = []
        for repeat in range(self.repeats):
            for place, layer in enumerate(self.layers):
                if values[f"{self.key}.take[{repeat}][{layer.model}][{layer.number}]"]:
                    taken.append(place)
        found = []
        for k, place in enumerate(taken):
            by = 1.0
            if self.scale is not None and k:
                by = float(values[f"{self.key}.scale[{taken[k - 1]}][{place}]"])
            found.append((self.layers[place], by))
        return found

    def slices(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Slices of a passthrough recipe that do what the route does. Raises `EmptyRoute` for one without layers.

        A layer that reads the stream through an RMSNorm reads the same from s h as from h (up to the norm's epsilon).
        So instead of multiplying the stream, what the layers write to it is divided by the product of the
        scales so far: with s_t = w_1 ... w_t and g = h / s, g_t = g_(t-1) + f_t(norm(g_(t-1))) / s_t, and the
        final norm sees g.
        """
        steps = self.steps(values)
        if not steps:
            raise EmptyRoute("the route takes no layer")
        runs: list[tuple[str, int, int, float]] = []
        total = 0.0
        for layer, by in steps:
            total += math.log(by)
            if runs and runs[-1][0] == layer.model and runs[-1][2] == layer.number and runs[-1][3] == total:
                runs[-1] = (layer.model, runs[-1][1], layer.number + 1, total)
            else:
                runs.append((layer.model, layer.number, layer.number + 1, total))
        return [_slice(*run) for run in runs]


def _slice(model: str, first: int, end: int, total: float) -> dict[str, Any]:
    source: dict[str, Any] = {"model": model, "layer_range": [first, end]}
    if total:
        value = math.exp(-total)
        source["parameters"] = {
            "scale": [*({"filter": name, "value": value} for name in WRITERS), {"value": 1.0}]
        }
    return {"sources": [source]}


def _scale(raw: Any, place: str) -> tuple[float, float] | None:
    if raw is None:
        return None
    good = isinstance(raw, list) and len(raw) == 2 and all(isinstance(x, int | float) for x in raw)
    if not good or not 0 < raw[0] < 1.0 < raw[1] < math.inf:
        raise RequestError(f"{place}.scale: expected [low, high] with 0 < low < 1 < high, not {raw!r}")
    return float(raw[0]), float(raw[1])


def _layers(model: str, place: str, directory: Path | None, scaled: bool) -> int:
    from merganser._facade import open as open_weights
    from merganser.algebra import axes
    from merganser.recipe.slices import layer_axis

    weights = open_weights(model, name=model, relative_to=directory)
    reading = axes.reading_of(weights)
    kind = str(reading.config.get("model_type"))
    if scaled and kind not in SCALED:
        raise RequestError(
            f"{place}.scale: is folded into what layers write to the stream, which is known of "
            f"{', '.join(SCALED)}, not of {kind}; leave it out"
        )
    return axes.sizes(weights)[layer_axis(reading, None, place)]
