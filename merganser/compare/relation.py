"""Relating models by running them: the line between them, their spaces layer by layer, heads that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._progress import Progress
from merganser._version import __version__
from merganser.algebra import Weights
from merganser.compare import cka, few_rows, line, relative, singular, spaces, transfer
from merganser.errors import AlgebraError, CheckpointError, RequestError, did_you_mean, listing
from merganser.running import Head, check_one_label, encode, open_model

if TYPE_CHECKING:
    from merganser.evaluate import Task
    from merganser.evaluate.inputs import Images
    from merganser.running import Model

Row = dict[str, Any]
Aligner = Callable[[Weights, Weights], Weights]
PARTS = ("line", "weights", "cka", "relative", "transfer")
ANCHORS = 128
MOST_ROWS = 2048


@dataclass(frozen=True)
class Data:
    """What models are run on.

    tasks: for losses on the line. texts: the rows of states and spaces, with their labels where they have any, and the
    head of encoders. max_length: tokens a text is cut after. unlabelled: says of rows which column of labels they lack.
    """

    tasks: tuple[Task, ...]
    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    head: Head | None = None
    max_length: int | None = None
    name: str = ""
    digest: str = ""
    unlabelled: str = ""
    pictures: Images | None = None
    """The rows of states and spaces, where they are images and no texts."""

    @property
    def rows(self) -> int:
        """How many rows there are for states and spaces."""
        return len(self.texts) if self.pictures is None else len(self.pictures.marks)


def read_data(
    path: str | Path,
    *,
    text: str = "text",
    label: str | None = None,
    head: str | Path | None = None,
    task: str | None = None,
    max_length: int | None = None,
    rows: int | None = None,
) -> Data:
    """A suite (.yaml), or a file of rows: with labels it is a classification, without it can be a perplexity.

    text and label: columns; label defaults to "label" where there is such a column. head: a linear head for encoders.
    task: of a suite, whose rows the spaces are made of (default: its first one of texts). rows: only the first ones.
    """
    from merganser.evaluate import Suite

    path = Path(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        if head is not None or label is not None:
            raise RequestError(
                f"{path}: a suite says itself which columns and heads it has; leave --head and --label"
            )
        suite = Suite.open(path)
        suite.check()
        return _of_suite(suite.tasks, suite.name, suite.digest, task, rows)
    from merganser.running import read_rows

    if task is not None:
        raise RequestError(f"{path}: is no suite (.yaml), so it has no task {task!r}")
    found = read_rows(path)
    labelled = label or ("label" if "label" in found.columns else None)
    lacking = f"{path}: no column 'label'{did_you_mean('label', found.columns)}; it has {listing(found.columns, 12)}"
    settings: dict[str, Any] = {"name": "data", "data": str(path.resolve()), "text": text}
    if rows is not None:
        settings["limit"] = rows
        found = found.head(rows)
    if labelled is not None:
        settings |= {"kind": "classification", "label": labelled}
        settings |= {} if head is None else {"head": str(Path(head).resolve())}
        settings |= {} if max_length is None else {"max_length": max_length}
    else:
        if head is not None:
            raise RequestError(f"{lacking}. A --head is scored on labels; --label names their column")
        settings |= {"kind": "perplexity"}
    suite = Suite.open({"name": path.name, "tasks": [settings]})
    suite.check()
    texts = tuple(suite.tasks[0].texts(text))
    answers = None if labelled is None else tuple(str(value) for value in found.column(labelled))
    opened = None if head is None else Head.open(head)
    lacking = "" if labelled is not None else lacking
    return Data(suite.tasks, texts, answers, opened, max_length, path.name, found.digest, lacking)


def _of_suite(tasks: Sequence[Task], name: str, digest: str, chosen: str | None, rows: int | None) -> Data:
    from dataclasses import replace

    from merganser.evaluate.classification import Classification

    names = [task.name for task in tasks]
    if chosen is not None and chosen not in names:
        raise RequestError(f"--task: the suite has no task {chosen!r}{did_you_mean(chosen, names)}")
    if rows is not None:
        tasks = [replace(task, limit=min(rows, task.limit or rows)) for task in tasks]
    for task in tasks:
        if (chosen or task.name) != task.name:
            continue
        if isinstance(task, Classification) and task.reads_text:
            column = task.text or "text"
            return Data(
                tuple(tasks),
                tuple(task.texts(column)),
                tuple(task.written),
                task.linear,
                task.max_length,
                name,
                digest,
            )
        if isinstance(task, Classification) and task.image is not None:
            pictures: Any = task.inputs
            labels = tuple(task.written)
            return Data(tuple(tasks), (), labels, None, None, name, digest, pictures=pictures)
        if task.kind == "perplexity":
            return Data(tuple(tasks), tuple(task.texts(task.text)), None, None, None, name, digest)  # type: ignore[attr-defined]
        if chosen is not None:
            raise RequestError(
                f"--task {chosen}: is of the kind {task.kind}; spaces are made of texts or images, one a row"
            )
    return Data(tuple(tasks), name=name, digest=digest)


@dataclass
class _Work:
    """What may be left out, and why; and how far the work is."""

    asked: bool
    progress: Progress | None
    steps: int
    done: int = 0
    left_out: list[Row] = field(default_factory=list)

    def step(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(min(self.done, self.steps), self.steps)

    @contextmanager
    def part(self, what: str, who: str = "") -> Iterator[None]:
        """A part that cannot be done is left out with its reason, or an error where it was asked for by name."""
        try:
            yield
        except (RequestError, AlgebraError, CheckpointError) as error:
            if self.asked:
                raise
            self.left_out.append({"what": what, "of": who, "why": str(error)})


def relate(
    models: Sequence[Weights],
    data: Data,
    *,
    parts: Sequence[str] | None = None,
    aligners: Mapping[str, Aligner] | None = None,
    points: int = 11,
    anchors: int | Sequence[int] | None = None,
    pooling: spaces.Pooling = "mean",
    batch: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Row:
    """Relate two models or more by running them; the document that the command prints and the page shows.

    parts: of line, weights, cka, relative, transfer; None means those that can be done, the others are listed in
    `left_out` with their reasons; one that is named and cannot be done is an error. `warnings` says what is of too few
    rows to mean much (`merganser.compare.few_rows`). aligners: by name, functions that
    bring a second model into the order of a first one: lines and distances are measured as they are and after each.
    points: on a line, ends included. anchors: for relative representations (default: 128, at most half of the rows); of
    several numbers the first is for the whole part, and `sweep` has the likeness of each pair for every number.
    """
    _check(models, parts, points)
    aligners = aligners or {}
    wanted = tuple(PARTS if parts is None else parts)
    pairs = list(combinations(range(len(models)), 2))
    steps = len(models) + len(pairs) * (1 + len(aligners)) * (points if "line" in wanted else 1)
    work = _Work(parts is not None, progress, steps)
    document: Row = {
        "version": __version__,
        "models": [],
        "data": {"name": data.name, "digest": data.digest, "rows": data.rows},
        "lines": [],
        "weights": [],
        "cka": [],
        "relative": None,
        "transfer": None,
        "warnings": [],
        "left_out": work.left_out,
    }
    found = _each(models, data, wanted, pooling, batch, work, document)
    names = [model.label for model in models]
    if {"line", "weights"} & set(wanted):
        for i, j in pairs:
            _pair(models[i], models[j], data, wanted, aligners, points, found[1], work, document)
    held = found[0]
    if "cka" in wanted:
        for i, j in pairs:
            with work.part("cka", f"{names[i]} and {names[j]}"):
                one, two = _space(held, names[i]), _space(held, names[j])
                values = cka.matrix(one.layers, two.layers)
                document["cka"].append({"a": names[i], "b": names[j], "values": values})
    if "relative" in wanted:
        with work.part("relative"):
            document["relative"] = _relative(names, held, data, anchors, seed)
    if "transfer" in wanted:
        with work.part("transfer"):
            document["transfer"] = _transfer(names, held, data, seed)
    document["warnings"] = few_rows.warnings(
        document, min(data.rows, MOST_ROWS), {task.name: len(task.rows) for task in data.tasks}
    )
    return document


def _check(models: Sequence[Weights], parts: Sequence[str] | None, points: int) -> None:
    if len(models) < 2:
        raise RequestError("relating takes two models or more")
    labels = [model.label for model in models]
    if twice := {name for name in labels if labels.count(name) > 1}:
        raise RequestError(f"two models are called {sorted(twice)[0]!r}")
    for part in parts or ():
        if part not in PARTS:
            raise RequestError(
                f"--only: unknown part {part!r}{did_you_mean(part, PARTS)} (known: {', '.join(PARTS)})"
            )
    if points < 3:
        raise RequestError(f"--points must be 3 or more, not {points}")


def _each(
    models: Sequence[Weights],
    data: Data,
    wanted: Sequence[str],
    pooling: spaces.Pooling,
    batch: int,
    work: _Work,
    document: Row,
) -> tuple[dict[str, spaces.Space], dict[str, dict[str, line.Score]]]:
    """Every model once: its spaces, and its scores, which are the ends of lines."""
    held: dict[str, spaces.Space] = {}
    scores: dict[str, dict[str, line.Score]] = {}
    for weights in models:
        model = _opened(weights)
        row: Row = {"model": weights.label, "kind": model.kind, "identity": model.identity}
        if "line" in wanted:
            with work.part("scores", weights.label):
                if data.unlabelled and model.kind != "causal":
                    raise RequestError(
                        f"{data.unlabelled}. {weights.label} is run as {model.kind}, whose losses are of labels; "
                        "--label names their column"
                    )
                scores[weights.label] = {task.name: line.score(model, task) for task in data.tasks}
                row["scores"] = {
                    name: {"loss": one.loss, "right": one.right}
                    for name, one in scores[weights.label].items()
                }
        if {"cka", "relative", "transfer"} & set(wanted):
            with work.part("spaces", weights.label):
                if not data.rows:
                    raise RequestError(
                        "the data have no task of texts or images, one a row, to make spaces of"
                    )
                if "transfer" in wanted and data.head is None:
                    check_one_label(model)
                if data.pictures is not None:
                    given, count = data.pictures.given(model), min(data.rows, MOST_ROWS)
                    held[weights.label] = spaces.of_images(model, given, count, batch=batch)
                else:
                    ids = encode(model, data.texts[:MOST_ROWS], data.max_length)
                    held[weights.label] = spaces.of_texts(
                        model, ids, pooling=pooling, head=data.head, batch=batch
                    )
                row["layers"] = len(held[weights.label].layers)
                row["width"] = int(held[weights.label].layers[-1].shape[1])
        document["models"].append(row)
        work.step()
    return held, scores


def _opened(weights: Weights) -> Model:
    """From its files where it is stored as it is, which keeps its identity; else computed in memory."""
    if weights.origin is not None and weights.origin.loadable is not None and weights.reading is None:
        return open_model(weights.origin.loadable, label=weights.label)
    return open_model(weights, label=weights.label)


def _pair(
    a: Weights,
    b: Weights,
    data: Data,
    wanted: Sequence[str],
    aligners: Mapping[str, Aligner],
    points: int,
    scores: Mapping[str, dict[str, line.Score]],
    work: _Work,
    document: Row,
) -> None:
    """The line and the weights of a pair, as they are and after each alignment."""
    who = f"{a.label} and {b.label}"
    ways: dict[str, Weights] = {"": b}
    with work.part("line and weights", who):
        line.check(a, b)
        for name, aligner in aligners.items():
            with work.part(f"aligned by {name}", who):
                ways[name] = aligner(b, a)
        model = _opened(a) if "line" in wanted and a.label in scores and b.label in scores else None
        for name, second in ways.items():
            head = {"a": a.label, "b": b.label, "aligned": name or None}
            if "weights" in wanted:
                document["weights"].append({**head, **singular.between(a, second)})
            if model is not None:
                ends = scores[a.label], scores[b.label]
                rows = line.line(a, second, model, data.tasks, points, ends, work.step)
                document["lines"] += [{**head, **row} for row in rows]
            else:
                work.step()


def _space(held: Mapping[str, spaces.Space], name: str) -> spaces.Space:
    if name not in held:
        raise RequestError(f"{name} was not run over texts or images")
    return held[name]


def _relative(
    names: Sequence[str],
    held: Mapping[str, spaces.Space],
    data: Data,
    anchors: int | Sequence[int] | None,
    seed: int,
) -> Row:
    last = {name: _space(held, name).layers[-1] for name in names}
    rows = len(last[names[0]])
    counts = (
        [min(ANCHORS, rows // 2)]
        if anchors is None
        else [anchors]
        if isinstance(anchors, int)
        else [*anchors]
    )
    count = counts[0]
    picked, _, test = relative.choose(rows, count, seed)
    wrong = picked[relative.shuffled(count, seed)]
    pairs = []
    for one, two in combinations(names, 2):
        x, y = last[one], last[two]
        first, second = relative.relative(x[test], x[picked]), relative.relative(y[test], y[picked])
        pairs.append(
            {
                "a": one,
                "b": two,
                "relative": relative.similarity(first, second),
                "absolute": relative.similarity(x[test], y[test]) if x.shape[1] == y.shape[1] else None,
                "shuffled": relative.similarity(first, relative.relative(y[test], y[wrong])),
            }
        )
    row: Row = {"anchors": count, "seed": seed, "scored_rows": len(test), "pairs": pairs, "stitched": None}
    if len(counts) > 1:
        row["sweep"] = _sweep(last, counts, rows, seed)
    if data.labels is not None:
        known = sorted(set(data.labels[:rows]))
        if len(known) > 1:
            numbers = np.asarray([known.index(label) for label in data.labels[:rows]])
            row["classes"] = known
            row["most_common"] = float(np.bincount(numbers[test]).max() / len(test))
            row["stitched"] = relative.stitched(last, numbers, len(known), count, seed)
    return row


def _sweep(last: Mapping[str, Any], counts: Sequence[int], rows: int, seed: int) -> list[Row]:
    """By number of anchors and pair: how alike the relative forms are, on the rows that are never anchors."""
    found: list[Row] = []
    for count in counts:
        picked, _, test = relative.choose(rows, count, seed)
        for one, two in combinations(last, 2):
            first, second = (relative.relative(last[name][test], last[name][picked]) for name in (one, two))
            found.append({"anchors": count, "a": one, "b": two, **relative.similarity(first, second)})
    return found


def _transfer(names: Sequence[str], held: Mapping[str, spaces.Space], data: Data, seed: int) -> Row:
    rows: list[Row] = []
    for name in names:
        space = _space(held, name)
        if space.weight is None or space.inputs is None or space.logits is None:
            raise RequestError(
                f"{name} has no linear last layer that says a class: the transfer score is of classifiers, or of "
                "encoders with --head"
            )
        rows.append(
            {"model": name, **transfer.transfer_score(space.weight, space.inputs, space.logits, seed=seed)}
        )
    scores = [float(row["score"]) for row in rows]
    return {"rows": rows, "selected": rows[scores.index(max(scores))]["model"]}


__all__ = ["ANCHORS", "PARTS", "Aligner", "Data", "read_data", "relate"]
