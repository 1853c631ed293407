"""A LoRA adapter made of any change to a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from merganser._facade import compute_scalars
from merganser.algebra import Expression, LowRank, Weights, axes, total
from merganser.algebra.computed import whole
from merganser.algebra.selection import matching
from merganser.algebra.ties import one_matrix
from merganser.architectures.live_names import LiveClass, live_class, stored_names, version
from merganser.errors import AlgebraError, MerganserError, RequestError, listing
from merganser.methods.adapters import _svd
from merganser.methods.adapters._layout import Factors, Kind, module_of, sides, written
from merganser.methods.adapters.combine import check_sizes, told

Array = np.ndarray[Any, Any]
RANK = 32
_EMBEDDINGS = ("embed", "wte", "wpe", "shared", "relative_attention_bias")
"""What the last part of an embedding's name begins with or contains, where no family file says it."""


def difference(model: Weights, base: Weights) -> tuple[Weights, dict[str, str]]:
    """`model - base` where both hold a tensor of one shape, under the base's names; of the others by name why not.

    Names that differ as stored and live names do, or by one prefix, mean the same (`stored_names`). The others are what
    `extract` takes as `unlike`: an embedding that was resized for added tokens, a head that only the fine-tune has.
    """
    config = None if base.origin is None else base.origin.config
    names = stored_names(config, list(base), list(model))
    if names and len({names.get(name, name) for name in model}) == len(model):
        model = model.rename(names)
    unlike: dict[str, str] = {}
    for name in base:
        found = model.find(name)
        if found is None:
            if not base.entry(name).carried:
                unlike[name] = "is not in the fine-tune"
        elif found.expression.shape != base[name].shape:
            own, other = list(found.expression.shape), list(base[name].shape)
            why = f"has shape {own} in the fine-tune and {other} in the base"
            unlike[name] = f"{why}, as after tokens were added" if _is_vocabulary(name, base) else why
    for name in model:
        if base.find(name) is None and not model.entry(name).carried:
            unlike[name] = "is only in the fine-tune"
    if not unlike:
        return model - base, {}
    return _but(model, unlike) - _but(base, unlike), unlike


def _but(weights: Weights, names: Collection[str]) -> Weights:
    return weights._with({name: weights.entry(name) for name in weights if name not in names})


def _is_vocabulary(name: str, base: Weights) -> bool:
    return name in _embeddings(base) or name.rpartition(".")[0].endswith("head")


def extract(
    vector: Weights,
    *,
    rank: int | None = None,
    energy: float | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: bool = False,
    allow_loss: bool = False,
    base: str | None = None,
    task_type: str | None = None,
    architecture: str | None = None,
    unlike: Mapping[str, str] | None = None,
    threads: int = 0,
    memory: int | None = None,
) -> Weights:
    """A LoRA adapter nearest to a change D: `B @ A`, the leading part of the SVD of D, for every linear layer.

    vector: weights of degree 0, such as `model - base`, a task vector or a merged one. rank: at most so many per
    module, default 32. energy: the share of ||D||^2 to keep per module, in (0, 1]; the least rank that does (at most
    `rank` where given); the spectra are then read in a pass before the plan is made. include: name patterns of the
    tensors to take (default: the 2-D `.weight` of every linear layer, output head among them); exclude: those to
    leave. embeddings: take embeddings too. base: for the config. task_type: for the config, `CAUSAL_LM` for instance.
    architecture: the class of transformers that the adapter is for (`BertForSequenceClassification`), default what
    config.json says. The adapter's modules are named as that class names them, which the files often do not (see
    `merganser.architectures.live_names`); what it does not hold as a module of its own is not taken. unlike: tensors
    that the difference leaves out and why, as `difference` tells them; they count as changes. threads, memory (bytes):
    of the readings before the plan, as in `merganser.save`.

    What a LoRA cannot carry (norms, biases, convolutions, embeddings unless asked for) is read first. Where such a
    tensor has changed, this is an `AlgebraError` that names it and its norm; with allow_loss it is in the note of the
    result. What include and exclude leave out is in the note too.

    Accuracy: singular vectors by block Krylov iteration that stops when a step adds less than 1e-5 of the kept
    energy, by the f64 Gram matrix where it does not converge or the rank is above a sixth of the smaller side (see
    `_svd`). Singular values lie half in A and half in B. The result is as that of `lora`.

    Raises `AlgebraError` for weights of another degree, `RequestError` for settings out of range.
    """
    check_sizes(rank, energy)
    if abs(vector.degree) > 1e-6:
        raise AlgebraError(
            f"extract works on a change (degree 0), but {vector.label!r} has degree {vector.degree:g}; "
            "subtract the base first"
        )
    unlike = unlike or {}
    vector = vector._with({name: vector.entry(name) for name in vector}, aliases=one_matrix(vector))
    names = [*vector, *unlike]
    out = set(matching(names, tuple(exclude))) if exclude else set()
    wanted = (set(matching(names, tuple(include))) if include else set(names)) - out
    modules_of = _live_modules(vector, architecture)
    kinds = _kinds(vector, modules_of, wanted, bool(include), embeddings)
    norms = _norms(vector, threads, memory)
    lost, excluded, zero = _left_out(norms, vector, modules_of, kinds, wanted)
    for name, why in unlike.items():
        if name in wanted:
            lost[name] = {"norm": None, "why": why}
        else:
            excluded[name] = why
    if lost and not allow_loss:
        _refuse_loss(vector, lost, unlike)
    chosen = {name: kind for name, kind in kinds.items() if name not in zero}
    if not chosen:
        raise AlgebraError(f"{vector.label!r} changes no linear layer, so there is nothing to extract")
    most = rank if rank is not None else RANK if energy is None else None
    ranks = {name: min(vector[name].shape[:2]) for name in chosen}
    if most is not None:
        ranks = {name: min(most, own) for name, own in ranks.items()}
    note: dict[str, Any] = {"step": "extract_lora"}
    if energy is not None:
        needed = _by_energy(vector, chosen, energy, threads, memory)
        ranks = {name: min(own, needed[name][0]) for name, own in ranks.items()}
    modules = {
        modules_of.name(name): _extracted(vector[name], kind, ranks[name]) for name, kind in chosen.items()
    }
    distinct = sorted(set(ranks.values()))
    note |= {
        "modules": len(modules),
        "rank": distinct[0] if len(distinct) == 1 else [distinct[0], distinct[-1]],
        "energy": energy,
        "norms": {name: norms[name] for name in chosen},
        "live_class": None
        if modules_of.live is None
        else f"{modules_of.live.name} (transformers {version()})",
        "live_modules": {name: live for name in chosen if (live := modules_of.name(name)) != module_of(name)},
        "modules_without_change": [module_of(name) for name in zero],
        "lost": lost,
        "left_out": excluded,
    }
    return written(modules, vector, note, base=base, task_type=task_type)


def _refuse_loss(vector: Weights, lost: Mapping[str, dict[str, Any]], unlike: Mapping[str, str]) -> NoReturn:
    worst = sorted(lost.items(), key=lambda item: -math.inf if item[1]["norm"] is None else -item[1]["norm"])
    told_of = listing(
        (
            f"{name} ({entry['why']})"
            if entry["norm"] is None
            else f"{name} (norm {entry['norm']:.4g}, {entry['why']})"
            for name, entry in worst
        ),
        6,
    )
    resized = any("tokens were added" in why for why in unlike.values())
    remedy = (
        ". For an adapter with the added tokens, bring the base to the fine-tune's vocabulary first: load it in "
        "transformers, resize_token_embeddings, save_pretrained, and extract against that"
    )
    raise AlgebraError(
        f"{vector.label!r} changes {len(lost)} tensors that the adapter would not carry: {told_of}. "
        "--allow-loss (allow_loss=True) leaves them out and lists them in the report"
        f"{remedy if resized else ''}"
    )


def kept_energy(adapter: Weights) -> dict[str, float]:
    """By tensor the energy `||B A||^2` that an extracted adapter holds.

    Over the square of the change's norm, which is in the note of `extract`, this is the share that was kept. For
    adapters of `extract` and `resize` only, whose factors have orthogonal rows and columns.
    """
    found = {}
    for name in adapter:
        node = adapter[name]
        if not isinstance(node, LowRank):
            raise AlgebraError(f"{adapter.label!r} is no LoRA adapter: open it anew")
        a, b = (stored.numpy().astype(np.float64) for stored in sides(node.delta))
        found[name] = float(np.sum(np.square(a).sum(axis=1) * np.square(b).sum(axis=0))) * node.delta.scale**2
    return found


@dataclass(frozen=True)
class _Modules:
    """What the live model calls the modules of a change's tensors, and what they are there."""

    live: LiveClass | None

    def name(self, tensor: str) -> str:
        """The live module of a stored tensor; as it is stored where transformers has no class for the model."""
        named = tensor if self.live is None else self.live.live(tensor)
        return module_of(tensor if named is None else named)

    def kind(self, tensor: str) -> str | None:
        """`linear`, `embedding`, `conv1d`; None where the names alone must tell."""
        return None if self.live is None else self.live.kind(self.name(tensor))

    def why_not(self, tensor: str) -> str:
        """Why the live model has no module that a LoRA could change for this tensor, or an empty string."""
        if self.live is None:
            return ""
        if self.live.live(tensor) is None:
            return f"is no module of its own in {self.live.name}"
        return f"is no layer that PEFT takes in {self.live.name}" if self.kind(tensor) == "other" else ""


def _live_modules(vector: Weights, architecture: str | None) -> _Modules:
    config = None if vector.origin is None else vector.origin.config
    return _Modules(live_class(config, list(vector), architecture=architecture))


def _kinds(
    vector: Weights, modules: _Modules, wanted: Collection[str], asked_for: bool, embeddings: bool
) -> dict[str, Kind]:
    """The tensors to factor, and what layer each belongs to."""
    embedding = _embeddings(vector)
    conv1d = _has_conv1d(vector)
    found: dict[str, Kind] = {}
    for name in vector:
        if name not in wanted or _why_not(vector, name) or modules.why_not(name):
            continue
        kind = modules.kind(name)
        if kind == "embedding" or (kind is None and name in embedding):
            if embeddings:
                _free_of_ties(vector, name)
                found[name] = "embedding"
        elif kind is not None and not conv1d:
            found[name] = "linear" if kind == "linear" else "conv1d"
        elif not conv1d:
            found[name] = "linear"
        elif _is_conv1d(name):
            found[name] = "conv1d"
        elif asked_for:
            found[name] = "linear"
    if asked_for and (fit := [name for name in vector if name in wanted and name not in found]):
        reasons = {
            name: _why_not(vector, name) or modules.why_not(name) or "it is an embedding: pass --embeddings"
            for name in fit
        }
        if len(fit) == len(wanted):
            raise RequestError(
                f"no tensor that --include matches can be factored: {fit[0]}: {reasons[fit[0]]}"
            )
    return found


def _why_not(vector: Weights, name: str) -> str:
    """Why a tensor is no weight of a linear layer or an embedding, or an empty string."""
    expression = vector[name]
    if expression.carried:
        return "holds integers or constants"
    if name in vector.aliases:
        return "is tied to the embedding"
    if len(expression.shape) != 2 or 0 in expression.shape:
        return f"has shape {list(expression.shape)}"
    return "" if name.endswith(".weight") else "is no weight of a module"


def _embeddings(vector: Weights) -> set[str]:
    """The embeddings, by the family file where there is one and by their names."""
    found = set()
    for name in vector:
        last = module_of(name).rpartition(".")[2]
        if "embed" in last or last in _EMBEDDINGS:
            found.add(name)
    try:
        reading = axes.reading_of(vector)
    except MerganserError:
        return found
    return found | {name for name, named in reading.tensors.items() if named.spec.kind == "embedding"}


def _has_conv1d(vector: Weights) -> bool:
    """Whether the model has transformers' Conv1D layers: an expanding one then has more columns than rows."""
    for name in vector:
        shape = vector[name].shape
        if (
            module_of(name).rpartition(".")[2] in ("c_attn", "c_fc")
            and len(shape) == 2
            and shape[0] < shape[1]
        ):
            return True
    return False


def _is_conv1d(name: str) -> bool:
    from merganser.checkpoint.adapter import CONV1D_NAMES

    return module_of(name).rpartition(".")[2] in CONV1D_NAMES


def _free_of_ties(vector: Weights, name: str) -> None:
    heads = [head for head, embedding in vector.aliases.items() if embedding == name]
    if heads:
        raise RequestError(
            f"{name!r} is tied to {heads[0]!r}, and a LoRA of the embedding would change the embedding alone; extract "
            "without --embeddings, and where it has changed with --allow-loss (allow_loss=True), which leaves that out"
        )


def _norms(vector: Weights, threads: int, memory: int | None) -> dict[str, float]:
    """By name the norm of every change, read in one pass."""
    names = [name for name in vector if not vector[name].carried and name not in vector.aliases]
    targets = {name: [total(vector[name] * vector[name])] for name in names}
    values = compute_scalars(targets, vector.checkpoints, threads=threads, memory=memory)
    return {name: math.sqrt(own) for name, (own,) in values.items()}


def _left_out(
    norms: dict[str, float],
    vector: Weights,
    modules: _Modules,
    kinds: dict[str, Kind],
    wanted: Collection[str],
) -> tuple[dict[str, dict[str, Any]], dict[str, float | str], list[str]]:
    """Changes that the adapter lacks, those left out by a pattern (by norm), and chosen tensors without change."""
    embedding = _embeddings(vector)
    lost: dict[str, dict[str, Any]] = {}
    excluded: dict[str, float | str] = {}
    for name in norms:
        if name in kinds or norms[name] == 0.0:
            continue
        if name not in wanted:
            excluded[name] = float(f"{norms[name]:.6g}")
        else:
            kind = modules.kind(name)
            is_embedding = name in embedding if kind is None else kind == "embedding"
            why = _why_not(vector, name) or modules.why_not(name)
            if is_embedding and name in vector.aliases.values():
                why = why or "is an embedding that the head shares: a LoRA would change one side alone"
            why = why or ("is an embedding: --embeddings takes it" if is_embedding else "is no Conv1D layer")
            lost[name] = {"norm": float(f"{norms[name]:.6g}"), "why": why}
    return lost, excluded, [name for name in kinds if norms[name] == 0.0]


def _extracted(change: Expression, kind: Kind, rank: int) -> Factors:
    m, n = change.shape
    turned = kind != "linear"
    inputs, outputs = (m, n) if turned else (n, m)
    a, b = whole(
        factored,
        [change],
        rank,
        turned,
        shapes=[(rank, inputs), (outputs, rank)],
        workspace=_svd.workspace(change.shape, rank),
    )
    return Factors(a, b, kind, change.shape)


def factored(change: Array, rank: int, turned: bool) -> tuple[Array, Array]:
    """(A, B) of a change; `turned` where its weight is (in, out), so that the change is (B A)'."""
    left, values, right = _svd.leading(change.T if turned else change, rank)
    return _svd.balanced(left, values, right)


def spectrum(change: Array, energy: float) -> tuple[Array, Array, Array]:
    """([least rank], [kept energy], [energy]) of a change."""
    squares = np.maximum(np.linalg.eigvalsh(_svd.gram(change))[::-1], 0.0)
    return told(squares, energy)


def _by_energy(
    vector: Weights, chosen: dict[str, Kind], energy: float, threads: int, memory: int | None
) -> dict[str, tuple[int, float, float]]:
    targets = {}
    for name in chosen:
        space = _svd.gram_workspace(vector[name].shape)
        made = whole(spectrum, [vector[name]], energy, shapes=[(1,)] * 3, workspace=space)
        targets[name] = [total(number) for number in made]
    values = compute_scalars(targets, vector.checkpoints, threads=threads, memory=memory)
    return {name: (int(rank), kept, own) for name, (rank, kept, own) in values.items()}
