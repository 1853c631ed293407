"""Skill localization: the few entries of a fine-tune that carry its task, found by a learned mask (P084).

With base b, fine-tune m and a mask gamma in {0, 1}, the graft is (1 - gamma) b + gamma m. The mask that makes the loss
of the graft on the task's data small, with at most a given share of entries, is searched from that of the largest
|m - b|, gamma_0: gamma = gamma_0 (1 - sigmoid(S)) + (1 - gamma_0) sigmoid(S), S by gradient descent from -bias, then
rounded.

Where this differs from the authors' code: S begins at -bias exactly (there random numbers in [0, 1) are added), it is
kept in [-bias, bias], the learning rate is found (there 1e7), a rounded mask with too many entries is cut to its share
(there it may grow), and of the rounded masks that with the least loss on the rows of the search is taken (there the
most accurate).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._facade import compute
from merganser._facade import open as open_weights
from merganser._facade import save as save_weights
from merganser._progress import Progress
from merganser._version import __version__
from merganser.algebra import Entry, Weights
from merganser.algebra.computed import whole
from merganser.algebra.labelled import in_label_order
from merganser.algebra.rearranged import Array
from merganser.checkpoint.digest import identity
from merganser.checkpoint.dtypes import BOOL
from merganser.engine.workspace import exchange, rename_new
from merganser.errors import OutputError, RequestError
from merganser.lineage import statistics_note
from merganser.running import Head, Model, Rows, open_model, read_rows
from merganser.running.kinds import Kind
from merganser.search._grafted import Grafted, largest, learned
from merganser.search._texts import read_texts
from merganser.search.paths import beside, path_from
from merganser.search.writer import recipe_text

if TYPE_CHECKING:
    import torch

Flat = np.ndarray[Any, Any]
WAYS = ("learned", "largest", "random")


@dataclass(frozen=True, kw_only=True)
class LocalizeOptions:
    """How a mask is learned.

    shares: of the entries that a mask may have, each in (0, 1]; a mask is learned for each. tensors: patterns of the
    parameters that masks cover. text, label: columns. max_length: tokens of a text. batch: rows of a forward pass.
    steps: of gradient descent, each on rows_a_step rows. rate: the learning rate for S; None: such that the first step
    moves the steepest entry by `bias`. bias: S begins at -bias and is kept in [-bias, bias]. keep: the share of the
    gain that the chosen mask is to keep. seed: of random masks and of the order of rows.
    """

    shares: tuple[float, ...] = (0.0001, 0.001, 0.01)
    tensors: tuple[str, ...] = ("*",)
    text: str = "text"
    label: str = "label"
    max_length: int | None = None
    batch: int = 16
    steps: int = 100
    rows_a_step: int = 1024
    rate: float | None = None
    bias: float = 10.0
    keep: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0.0 < share <= 1.0 for share in self.shares):
            raise RequestError(f"shares of a mask must be above 0 and at most 1, not {list(self.shares)}")
        for name in ("batch", "rows_a_step"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps < 0 or (self.rate is not None and self.rate <= 0.0) or self.bias <= 0.0:
            raise RequestError(
                f"steps must be 0 or more, rate and bias above 0, not {self.steps}, {self.rate} and {self.bias}"
            )
        if not 0.0 <= self.keep <= 1.0:
            raise RequestError(f"keep must be in [0, 1], not {self.keep}")


@dataclass(frozen=True, eq=False)
class Localization:
    """A chosen mask (bool, by tensor name), the report, and what the recipe needs. `save` writes them.

    base and model: the paths as they were given.
    """

    masks: Mapping[str, Flat]
    report: Mapping[str, Any]
    base: str
    model: str
    note: Mapping[str, Any] = field(default_factory=dict)

    def mask(self) -> Weights:
        """The mask as weights, of the kind `graft` takes."""
        entries = {}
        for name, values in self.masks.items():
            held = Array(values.astype(np.float32))
            (made,) = whole(_bools, (held,), shapes=[values.shape], workspace=values.size, dtype=BOOL)
            entries[name] = Entry(made, 1.0)
        return Weights(entries, label="mask", origin=None, notes=({"statistics": dict(self.note)},))

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """OUT/mask (a sealed checkpoint), OUT/recipe.yaml and OUT/report.json; OUT appears whole or not at all."""
        out = Path(out)
        check_out(out, overwrite)
        try:
            out.absolute().parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
        folder = partial / "found"
        report = json.dumps(self.report, indent=2, ensure_ascii=False) + "\n"
        try:
            folder.mkdir()
            save_weights(self.mask(), folder / "mask", generator="merganser localize")
            (folder / "recipe.yaml").write_text(self._recipe(out), encoding="utf-8")
            (folder / "report.json").write_text(report, encoding="utf-8")
            if out.exists():
                exchange(folder, out)
            else:
                rename_new(folder, out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _recipe(self, out: Path) -> str:
        document = {
            "method": "graft",
            "base_model": path_from(out, self.base),
            "models": [{"model": path_from(out, self.model), "statistics": beside(out, out / "mask")}],
        }
        provenance = {
            "found by": "merganser localize (P084)",
            **{key: self.report[key] for key in ("data", "data_digest", "chosen", "chosen_kept")},
        }
        return recipe_text([document], provenance)


def check_out(out: Path, overwrite: bool) -> None:
    """Raise `OutputError` where OUT cannot appear."""
    if out.exists() and not (overwrite and (out / "mask").is_dir()):
        remedy = "it is not what localize writes" if overwrite else "pass --overwrite to replace it"
        raise OutputError(f"{out}: already exists; choose another name ({remedy})")
    if not next(place for place in out.absolute().parents if place.exists()).is_dir():
        raise OutputError(f"{out}: a file is in the place of its folder")


def localize(
    base: str | Path,
    model: str | Path,
    data: str | Path | Rows,
    *,
    test: str | Path | Rows | None = None,
    head: str | Path | Head | None = None,
    against: Sequence[str | Path] = (),
    options: LocalizeOptions | None = None,
    progress: Progress | None = None,
) -> Localization:
    """Find the entries of `model`, a fine-tune of `base`, that carry what it learned on `data` (P084, section 2).

    Classifiers, encoders with a linear `head` (accuracy) and causal language models (loss). Grafts of the learned
    mask, of the largest changes and of random entries, in equal numbers, are scored on `test` (default: on `data`);
    kept is (graft - base) / (model - base), of accuracy, or of loss for language models. The chosen mask is the
    smallest that keeps `options.keep` of the gain on `data`; where none does, the one that keeps most, and where the
    fine-tune gained nothing there, the smallest (`chosen_kept`, `kept_enough` in the report). against: masks of other
    tasks, whose overlap with the chosen one is told.

    Raises `RequestError` for models that are not base and fine-tune of one shape, data without labels that the head
    knows, masks of other models; `NonFiniteError` where a model returns NaN.
    """
    options = options or LocalizeOptions()
    rows = data if isinstance(data, Rows) else read_rows(data)
    held = None if test is None else test if isinstance(test, Rows) else read_rows(test)
    layer = Head.open(head) if isinstance(head, str | Path) else head
    others = [_opened_mask(path) for path in against]
    kind: Kind | None = "encoder" if layer is not None else None
    first, second = _opened_base(base, model, kind), open_model(model, kind=kind)
    reading = {
        "text": options.text,
        "label": options.label,
        "head": layer,
        "max_length": options.max_length,
        "batch": options.batch,
    }
    texts = read_texts(first, rows, **reading)  # type: ignore[arg-type]
    measured = texts if held is None else read_texts(first, held, **reading)  # type: ignore[arg-type]
    grafted = Grafted(first, second, options.tensors)
    shapes = {name: shape for name, (_, shape) in grafted.tensors.items()}
    for path, found in others:
        _check_mask(path, found, shapes)

    import torch

    ends = {
        name: (grafted.score(mask, texts), grafted.score(mask, measured))
        for name, mask in (("base", torch.zeros(grafted.size)), ("model", torch.ones(grafted.size)))
    }
    metric = "accuracy" if texts.answers is not None else "loss"
    lines, candidates = [], []
    for number, share in enumerate(sorted(options.shares)):
        mask = learned(
            grafted,
            texts,
            max(1, round(share * grafted.size)),
            steps=options.steps,
            rate=options.rate,
            bias=options.bias,
            rows_a_step=options.rows_a_step,
            seed=options.seed,
            progress=_steps(progress, number, len(options.shares), options.steps),
        )
        count = int(mask.sum())
        candidates.append((share, mask, _kept(grafted.score(mask, texts), ends, 0, metric)))
        for way in WAYS:
            chosen = mask if way == "learned" else _control(way, grafted, count, options.seed)
            scores = grafted.score(chosen, measured)
            lines.append(
                {
                    "asked": share,
                    "mask": way,
                    "entries": count,
                    "share": count / grafted.size,
                    **scores,
                    "kept": _kept(scores, ends, 1, metric),
                }
            )
    share, mask, kept = _chosen(candidates, options.keep)
    flat = mask.numpy().astype(bool)
    masks = {name: flat[stretch].reshape(shape) for name, (stretch, shape) in grafted.tensors.items()}
    report = {
        "merganser": __version__,
        "paper": "P084",
        "base": {"label": first.label, "identity": first.identity, **ends["base"][1]},
        "model": {"label": second.label, "identity": second.identity, **ends["model"][1]},
        "data": rows.path.name,
        "data_digest": rows.digest,
        "rows": len(rows),
        "measured_on": {
            "data": (held or rows).path.name,
            "data_digest": (held or rows).digest,
            "rows": len(measured),
            "rows of the search": held is None,
        },
        "metric": metric,
        "parameters": grafted.size,
        "grafts": lines,
        "chosen": share,
        "chosen_kept": kept,
        "kept_enough": kept is not None and kept >= options.keep,
        "overlaps": [_overlap(path, found, masks) for path, found in others],
        "options": {name: getattr(options, name) for name in options.__dataclass_fields__},
    }
    note = {
        "kind": "mask",
        "model": second.label,
        "identity": second.identity,
        "base": {"label": first.label, "identity": first.identity},
        "data": rows.path.name,
        "data_digest": rows.digest,
        "rows": len(rows),
        "share": share,
        "entries": int(flat.sum()),
    }
    return Localization(masks, report, str(base), str(model), note)


def _opened_base(base: str | Path, model: str | Path, kind: Kind | None) -> Model:
    """The base, its classifier's rows in the order of the fine-tune's labels, as the mask is to be of the fine-tune."""
    held = open_weights(base, name=str(base))
    moved = in_label_order(held, open_weights(model, name=str(model)))
    if moved is held or held.origin is None:
        return open_model(base, kind=kind)
    opened = open_model(moved, kind=kind)
    opened.identity = identity(held.origin.tensors)
    return opened


def _bools(values: Flat) -> Flat:
    return values > 0


def _steps(progress: Progress | None, number: int, count: int, steps: int) -> Callable[[int], None]:
    def done(step: int) -> None:
        if progress is not None:
            progress(number * steps + step, count * steps)

    return done


def _control(way: str, grafted: Grafted, count: int, seed: int) -> torch.Tensor:
    """A mask of as many entries: the largest changes, or random ones."""
    import torch

    values = grafted.change.abs().numpy() if way == "largest" else _draws(grafted.size, seed)
    return torch.from_numpy(largest(values, count)).float()


def _draws(size: int, seed: int) -> Flat:
    return np.random.default_rng([seed, size]).random(size)


def _kept(
    scores: Mapping[str, float],
    ends: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]],
    which: int,
    metric: str,
) -> float | None:
    """The share of the fine-tune's gain; None where it gained nothing."""
    low, high = ends["base"][which][metric], ends["model"][which][metric]
    gain = low - high if metric == "loss" else high - low
    if gain <= 0.0:
        return None
    return (low - scores[metric] if metric == "loss" else scores[metric] - low) / gain


def _chosen(
    candidates: Sequence[tuple[float, torch.Tensor, float | None]], keep: float
) -> tuple[float, torch.Tensor, float | None]:
    """The smallest share that keeps enough, else that which keeps most, else (nothing was gained) the smallest."""
    enough = [one for one in candidates if one[2] is not None and one[2] >= keep]
    if enough:
        return enough[0]
    return max(candidates, key=lambda one: -np.inf if one[2] is None else one[2])


def _opened_mask(path: str | Path) -> tuple[str, Weights]:
    place = Path(path)
    place = place / "mask" if (place / "mask").is_dir() else place
    found = open_weights(place)
    note = statistics_note(found.checkpoints[0])
    if note is None or note.kind != "mask":
        raise RequestError(f"{path}: is no mask that merganser localize wrote")
    return str(path), found


def _check_mask(path: str, found: Weights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in found:
        if name in shapes and found[name].shape != shapes[name]:
            raise RequestError(
                f"{path}: the mask of {name} has shape {list(found[name].shape)}, and here it is {list(shapes[name])}"
            )
    if not set(found) & set(shapes):
        raise RequestError(f"{path}: is a mask of another model: no tensor is in both")


def _overlap(path: str, found: Weights, masks: Mapping[str, Flat]) -> dict[str, Any]:
    """How many entries two masks share, as a share of each, of both together, and as chance would have it."""
    mine = sum(int(mask.sum()) for mask in masks.values())
    size = sum(mask.size for mask in masks.values())
    theirs, both = 0, 0
    for name in found:
        values = compute(found, name, allow_nonfinite=False) != 0
        theirs += int(values.sum())
        if name in masks:
            both += int((values & masks[name]).sum())
    return {
        "mask": path,
        "entries": theirs,
        "shared": both,
        "of_this": both / max(mine, 1),
        "of_that": both / max(theirs, 1),
        "of_both": both / max(mine + theirs - both, 1),
        "by_chance_of_this": theirs / max(size, 1),
    }
