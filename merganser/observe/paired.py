"""Two models on the same rows: joint second moments of what each linear layer takes in, in both models at once.

For a linear layer let v = [x_A, x_B, 1] for one token, x_A and x_B being its inputs in A and in B. What is kept is the
mean of v v^T over tokens, [in_A + in_B + 1, in_A + in_B + 1]. It holds both Gram matrices, both means and the products
of A's inputs with B's; since outputs of a linear layer are linear in its inputs, it holds theirs too. So units can be
matched and layers fitted from these numbers alone, without running a model again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from merganser._progress import Progress
from merganser.algebra.rearranged import Array
from merganser.algebra.weights import Entry, Weights
from merganser.errors import NonFiniteError, RequestError, listing
from merganser.lineage import PAIRED
from merganser.observe import forward
from merganser.observe.feed import Batch
from merganser.running import Model, batch_size, batches, encode, pad

if TYPE_CHECKING:
    import torch

Values = np.ndarray[Any, Any]
BATCH = 16


@dataclass(frozen=True, eq=False)
class Paired:
    """Joint second moments by the names of A's weights.

    joint: f64 [in_A + in_B + 1] squared, one array for all layers that take in the same; shared: names of layers, and
    the first one that takes in the same; note: what is written beside them.
    """

    joint: Mapping[str, Values]
    shared: Mapping[str, str]
    note: Mapping[str, Any] = field(default_factory=dict)

    def weights(self) -> Weights:
        """As weights, to be saved or handed to a step: f32, each distinct array under its first name."""
        entries = {
            name: Entry(Array(np.ascontiguousarray(array, np.float32)), 1.0)
            for name, array in self.joint.items()
            if name not in self.shared
        }
        note = {"statistics": {"kind": PAIRED, "shared": dict(self.shared), **self.note}}
        return Weights(entries, label=PAIRED, origin=None, notes=(note,))

    def save(self, out: str | Path, **options: Any) -> Any:
        """Seal them at `out`, a directory; `options` are those of `Weights.save`."""
        return self.weights().save(out, dtype="F32", **options)


def pair_texts(
    a: Model,
    b: Model,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch: int = BATCH,
    memory: int | None = None,
    note: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Paired:
    """Run both models over texts. `memory`: bytes that the moments may take (default: no limit).

    Raises `RequestError` where the tokenizers differ on a row, the models have other layers, or memory is too little,
    and `NonFiniteError` as `pair` does.
    """
    ids, other = encode(a, texts, max_length), encode(b, texts, max_length)
    for number, (one, two) in enumerate(zip(ids, other, strict=True), 1):
        if one != two:
            raise RequestError(
                f"row {number} has other tokens in {b.label} ({two[:6]} ...) than in {a.label} ({one[:6]} ...); models "
                "can be paired on the same inputs only"
            )

    parts = batches([len(one) for one in ids], min(batch_size(one, batch) for one in (a, b)))

    def inputs() -> Iterable[dict[str, torch.Tensor]]:
        for part in parts:
            tokens, mask = pad([ids[row] for row in part], a.pad_id)
            yield {"input_ids": tokens, "attention_mask": mask}

    whole = {
        **(note or {}),
        "models": [
            {"label": a.label, "identity": a.identity},
            {"label": b.label, "identity": b.identity},
        ],
        "max_length": max_length,
        "rows": len(texts),
        "tokens": sum(map(len, ids)),
    }
    return pair(a, b, inputs(), rows=parts, note=whole, memory=memory, progress=progress, total=len(texts))


def pair(
    a: Model,
    b: Model,
    inputs: Iterable[Mapping[str, torch.Tensor]],
    *,
    rows: Iterable[Sequence[int]] | None = None,
    note: Mapping[str, Any] | None = None,
    memory: int | None = None,
    progress: Progress | None = None,
    total: int = 0,
) -> Paired:
    """Run both models over batches of keyword arguments of their forward method; tokens masked out are left out.

    Only modules that are Linear (or GPT-2's Conv1D) with a weight of their own are observed: not convolutions, not
    experts that transformers keeps in one tensor, not an output head that shares the embedding. `rows`: what errors
    call the rows of each batch (default: in order, from 0).

    Raises `NonFiniteError` that names the model, the layer and the row where a model takes in or returns NaN or Inf.
    """
    import torch

    layers = _layers(a), _layers(b)
    if layers[0].keys() != layers[1].keys():
        odd = sorted(layers[0].keys() ^ layers[1].keys())
        raise RequestError(f"{a.label} and {b.label} have other linear layers: {listing(odd)}")
    sums: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    done = 0
    named = None if rows is None else iter(rows)
    for number, arguments in enumerate(inputs):
        size = len(next(iter(arguments.values())))
        mask = arguments.get("attention_mask")
        batch = Batch(
            range(done, done + size) if named is None else next(named),
            dict(arguments),
            None if mask is None else mask.bool(),
        )
        ran = [_run(model, own, batch) for model, own in zip((a, b), layers, strict=True)]
        taken = [inputs for inputs, _ in ran]
        if number == 0:
            same = _same(*taken)
            _check_room([x for x in taken[0] if x not in same], taken[0], taken[1], memory)
        for place in taken[0]:
            if place in same:
                continue
            joint = torch.cat([_flat(one[place], batch.counts) for one in taken], 1)
            joint = torch.cat([joint, torch.ones(len(joint), 1)], 1)
            found = (joint.T @ joint).double()
            if not bool(found.isfinite().all()):
                raise _not_finite((a, b), layers[0][place], [one[place] for one in taken], batch)
            sums[place] = sums[place] + found if place in sums else found
        for model, (_, output) in zip((a, b), ran, strict=True):
            forward.check(model, output, batch, "the outputs")
        done += size
        if progress is not None:
            progress(done, total)
    if not sums:
        raise RequestError("there are no rows to run")
    joint_by_name: dict[str, Values] = {}
    for place, name in layers[0].items():
        if (first := same.get(place, place)) not in sums:
            continue  # a layer that these inputs do not pass through
        if place == first:
            moments = (sums[place] / sums[place][-1, -1]).numpy()
            joint_by_name[name] = (moments + moments.T) / 2
    shared = {layers[0][place]: layers[0][first] for place, first in same.items()}
    joint_by_name |= {name: joint_by_name[first] for name, first in shared.items()}
    return Paired(joint_by_name, shared, note or {})


def _layers(model: Model) -> dict[str, str]:
    """Linear modules by their place, and the tensor each one's weight is."""
    import torch
    from transformers.pytorch_utils import Conv1D

    uses: dict[str, int] = {}
    for tensor in model.names.values():
        uses[tensor] = uses.get(tensor, 0) + 1
    found = {}
    for place, module in model.module.named_modules():
        name = model.names.get(f"{place}.weight")
        if isinstance(module, torch.nn.Linear | Conv1D) and name is not None and uses[name] == 1:
            found[place] = name
    return found


def _run(
    model: Model, layers: Mapping[str, str], batch: Batch
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What each layer takes in, by its place, and what the model returns."""
    taken: dict[str, torch.Tensor] = {}
    hooks = []
    for place in layers:

        def hook(_module: Any, inputs: Sequence[torch.Tensor], place: str = place) -> None:
            if place in taken:
                raise RequestError(f"{model.label}: the layer {place} runs more than once for a row")
            taken[place] = inputs[0]

        hooks.append(model.module.get_submodule(place).register_forward_pre_hook(hook))
    try:
        output = forward.run(model, batch)
    finally:
        for one in hooks:
            one.remove()
    return taken, output


def _not_finite(
    models: Sequence[Model], name: str, taken: Sequence[torch.Tensor], batch: Batch
) -> NonFiniteError:
    """The error of moments that are not finite: which model's inputs of a layer, in which row."""
    for model, values in zip(models, taken, strict=True):
        try:
            forward.check(model, values, batch, f"the inputs of {name}")
        except NonFiniteError as error:
            return error
    labels = " and ".join(model.label for model in models)
    first, last = min(batch.rows) + 1, max(batch.rows) + 1
    return NonFiniteError(
        f"{labels}: products of the inputs of {name} are beyond what f32 holds (in rows {first} to {last})"
    )


def _same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Layers that take in the very tensor that another took in before them, in both models."""
    found: dict[str, str] = {}
    seen: dict[tuple[int, int], str] = {}
    for place in first:
        key = (id(first[place]), id(second[place]))
        if key in seen:
            found[place] = seen[key]
        else:
            seen[key] = place
    return found


def _flat(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Tokens that are not padding, [tokens, in]."""
    if mask is not None and values.dim() == 3 and values.shape[:2] == mask.shape:
        return values[mask].float()
    return values.reshape(-1, values.shape[-1]).float()


def _check_room(
    places: Iterable[str],
    first: Mapping[str, torch.Tensor],
    second: Mapping[str, torch.Tensor],
    memory: int | None,
) -> None:
    needed = sum(8 * (first[p].shape[-1] + second[p].shape[-1] + 1) ** 2 for p in places)
    if memory is not None and needed > memory:
        raise RequestError(
            f"the joint moments take {needed / 2**30:.2f} GiB and --memory is {memory / 2**30:.2f} GiB"
        )
