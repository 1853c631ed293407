"""`observe`: a model run over data, its statistics sealed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merganser._progress import Progress
from merganser._version import __version__
from merganser.checkpoint.digest import digest_file
from merganser.engine.memory import peak_bytes, resident_bytes
from merganser.errors import RequestError
from merganser.observe import fisher, inputs, stages
from merganser.observe.blocks import Blocks
from merganser.observe.feed import Feed, Texts, open_feed, trusted
from merganser.observe.layers import Layer, layers
from merganser.observe.options import OF_INPUTS, Options, chosen
from merganser.observe.pace import Pace
from merganser.observe.partial import Partial
from merganser.observe.sums import LAYOUT, Sums
from merganser.observe.write import seal
from merganser.running import Head, Model, Rows, check_one_label, open_model, open_skeleton, read_rows


@dataclass(frozen=True, slots=True)
class Report:
    """What was observed. Memory in bytes, time in seconds.

    kinds: by kind the number of tensors and the digest. not_covered: by tensor, why it has no statistics (of inputs).
    no_gradient: tensors that no loss depends on; their Fisher information is 0.
    """

    path: Path
    kinds: Mapping[str, Mapping[str, Any]]
    rows: int
    tokens: int
    layerwise: bool
    not_covered: Mapping[str, str]
    no_gradient: Sequence[str]
    resumed: bool
    seconds: float
    peak_memory: int

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return asdict(self) | {"path": str(self.path)}


def observe(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str] | Rows,
    out: str | os.PathLike[str],
    *,
    collect: str | Iterable[str] = ("absmax", "second_moment", "mean"),
    kind: str | None = None,
    fisher: str | None = None,
    text: str | None = None,
    image: str | None = None,
    values: Iterable[str] = (),
    label: str = "label",
    head: str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    rows: int | None = None,
    batch: int = 16,
    seed: int = 0,
    memory: int | None = None,
    layerwise: bool = False,
    overwrite: bool = False,
    resume: bool = True,
    keep_every: float = 30.0,
    progress: Progress | None = None,
) -> Report:
    """Run a model directory over rows of data and write sealed checkpoints OUT/<kind> under the model's names.

    collect: gram, fisher, absmax, second_moment, mean (`merganser.observe.KINDS`). Statistics of inputs are over the
    tokens that are not padding; x is the input of an nn.Linear, a Conv1D or a patch under an nn.Conv2d:
    gram [in, in] mean of x x^T, second_moment [in] mean of x^2, mean [in], absmax [in] max |x|. fisher has the shape of
    the parameter: mean over rows of the squared gradient of the row's loss (P059, eq. 3), with labels as `fisher` says:
    "true" the expectation over the model's own predictions (default where there are classes), "sampled" one drawn from
    them with `seed` (default for language models), "empirical" those in the column `label`. The loss of a row is minus
    the log-probability of its class, or of its tokens summed.

    text, image, values: the column of texts (default "text"), of image files or bytes, or columns of numbers. head: a
    linear head file, for encoders. kind: what the model is run as, as in `running.open_model`. max_length in tokens.
    rows: only the first so many. batch: rows at a time. memory: bytes the whole process may hold (None: no limit);
    where the model is larger, it is run layer by layer, as `layerwise` asks for in any case. overwrite: replace
    statistics at `out`. resume: go on from what a killed run left. keep_every: seconds between keeping.

    Sums are f32 within 1024 tokens and f64 beyond; another batch size changes results by rounding only (1e-5 relative).
    Raises `RequestError` before anything is run where data, labels, tokenizer, memory or names do not fit, and
    `NonFiniteError` where the model returns NaN or Inf; then nothing is written.
    """
    began = time.perf_counter()
    options = Options(
        collect=chosen(collect),
        kind=kind,
        fisher=fisher,
        text=text,
        image=image,
        values=tuple(values),
        label=label,
        head=None if head is None else Path(head),
        max_length=max_length,
        rows=rows,
        batch=batch,
        seed=seed,
        layerwise=layerwise,
    )
    table = data if isinstance(data, Rows) else read_rows(Path(data))
    table = table if options.rows is None else table.head(options.rows)
    with Partial(Path(out), overwrite=overwrite) as partial:
        return _Observation(Path(model), table, options, memory).run(
            partial, began, resume, keep_every, progress
        )


class _Observation:
    """One request, checked."""

    def __init__(self, path: Path, rows: Rows, options: Options, memory: int | None) -> None:
        self.path, self.rows, self.options, self.memory = path, rows, options, memory
        kind: Any = options.kind
        self.skeleton, self.weights = open_skeleton(path, kind=kind)
        self.feed: Feed = open_feed(self.skeleton, rows, options)
        self.kinds = tuple(one for one in options.collect if one in OF_INPUTS)
        self.found: dict[str, Layer] = {}
        self.not_covered: dict[str, str] = {}
        if self.kinds:
            self.found, self.not_covered = layers(self.skeleton)
            if not self.found:
                raise RequestError(
                    f"{path}: has no layer whose inputs are collected ({', '.join(self.kinds)})"
                )
        self.head: Head | None = None
        self.mode: str | None = None
        self.targets: list[int] | None = None
        if "fisher" in options.collect:
            self._check_fisher()
        elif options.fisher is not None or options.head is not None:
            given = "fisher" if options.fisher is not None else "head"
            raise RequestError(f"--{given} is for the Fisher information, and fisher is not among --collect")
        self.layerwise = self._plan()

    def _check_fisher(self) -> None:
        options, model = self.options, self.skeleton
        if options.head is not None:
            if model.kind != "encoder" or not isinstance(self.feed, Texts):
                raise RequestError(
                    f"{self.path}: --head is for encoders of text, and this is run as {model.kind}"
                )
            self.head = Head.open(options.head)
            if self.head.hidden != model.config.hidden_size:
                raise RequestError(
                    f"{options.head}: is for features of width {self.head.hidden}, and {self.path} has "
                    f"{model.config.hidden_size}"
                )
        if self.head is None:
            check_one_label(model)
        self.mode = fisher.mode_of(model, options, self.head)
        if self.mode == "empirical" and model.kind not in ("causal", "masked"):
            labels = self.head.labels if self.head is not None else model.labels
            self.targets = fisher.answers(self.rows, options.label, labels, str(options.head or self.path))
        self.objective(model)  # its checks of the rows

    def objective(self, model: Model) -> fisher.Objective:
        """What is differentiated."""
        assert self.mode is not None
        return fisher.Objective(
            model, self.feed, self.mode, head=self.head, targets=self.targets, seed=self.options.seed
        )

    def _plan(self) -> bool:
        """Whether to run layer by layer; `RequestError` where memory does not even do for what needs the whole."""
        if self.options.layerwise:
            return True
        if self.memory is None:
            return False
        count = {id(value): value.numel() for value in self.skeleton.module.parameters()}
        model = 4 * sum(count.values())
        stored = sum(tensor.nbytes for one in self.weights.checkpoints for tensor in one.tensors.values())
        needed: int = (
            resident_bytes()
            + stages.RESERVE
            + max(model, stored)
            + stages.activations(self.skeleton, self.feed)
        )
        needed += sum(Sums.bytes_of(layer.width, self.kinds) for layer in self.found.values())
        if self.mode is not None:
            needed += 3 * model + 2 * 4 * max(count.values(), default=0)
            if needed > self.memory:
                raise RequestError(
                    f"--memory {self.memory / 2**20:.0f} MiB is too little for the Fisher information of {self.path}: "
                    f"about {needed / 2**20:.0f} MiB are needed, since a gradient needs all layers at once"
                )
        return needed > self.memory

    def run(
        self, partial: Partial, began: float, resume: bool, keep_every: float, progress: Progress | None
    ) -> Report:
        """Collect, divide, seal."""
        partial.open(self._fingerprint(), resume=resume)
        made = Blocks(self.skeleton, self.weights) if self.layerwise else None
        passes = (len(made.blocks) + 2 if made else 1) if self.kinds else 0
        pace = Pace((passes + (self.mode is not None)) * self.feed.rows, progress, keep_every)
        parts: list[dict[str, Any]] = []
        tokens, still, unread = 0, [], []
        if made is not None:
            staged = stages.Stages(made, self.feed, self.found, self.kinds, partial, pace, self.memory)
            record = staged.all_stages()
            parts, tokens, unread = record["parts"], record["tokens"], record["unread"]
        else:
            model = open_model(self.path, kind=self.skeleton.kind, label=self.skeleton.label)
            self.feed = trusted(model, self.feed)
            if self.kinds:
                record = inputs.collect(model, self.feed, self.found, self.kinds, partial, pace)
                parts, tokens, unread = [record], record["tokens"], record["unread"]
            if self.mode is not None:
                record = fisher.collect(model, self.objective(model), partial, pace)
                parts, still = [*parts, record], record["still"]
            del model
        for checkpoint in self.weights.checkpoints:
            checkpoint.check_unchanged()
        note = self._note(tokens, still)
        kinds = seal(partial, parts, self.options.collect, list(self.weights), note, self.memory)
        partial.seal()
        covered = {name for part in parts for kind in self.kinds for name in part["results"].get(kind, ())}
        reasons = self.not_covered | {self.found[place].tensor: "no pass runs it" for place in unread}
        reasons |= dict.fromkeys(self.skeleton.unnamed, "no single tensor of the checkpoint stands for it")
        return Report(
            path=partial.out,
            kinds=kinds,
            rows=self.feed.rows,
            tokens=tokens,
            layerwise=self.layerwise,
            not_covered={name: reasons[name] for name in sorted(reasons) if name not in covered},
            no_gradient=still,
            resumed=partial.resumed,
            seconds=time.perf_counter() - began,
            peak_memory=peak_bytes(),
        )

    def _note(self, tokens: int, still: Sequence[str]) -> dict[str, Any]:
        """What the statistics say of themselves: whose they are, of what data, and the options that shaped them."""
        options, model = self.options, self.skeleton
        note: dict[str, Any] = {
            "model": model.label,
            "identity": model.identity,
            "run_as": model.kind,
            "data": self.rows.path.name,
            "data_digest": self.rows.digest,
            "rows": self.feed.rows,
            "tokens": tokens,
            "columns": [*options.values] or [options.image or options.text or "text"],
            "max_length": options.max_length,
            "batch": options.batch,
        }
        if self.mode is not None:
            note["fisher"] = {
                "labels": self.mode,
                "seed": options.seed if self.mode == "sampled" or model.kind == "masked" else None,
                "head": options.head.name if options.head else None,
                "no_gradient": list(still),
            }
        return note

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a killed run to be gone on with."""
        options = self.options
        return {
            "version": __version__,
            "layout": LAYOUT,
            "collect": list(options.collect),
            "layerwise": self.layerwise,
            "seed": options.seed,
            "label": options.label if self.targets is not None else None,
            "head": digest_file(options.head) if options.head else None,
            **self._note(0, ()),
        }
