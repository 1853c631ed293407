"""One case: what both tools wrote, beside each other and beside the f64 reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from differences import refusal
from models import FAMILIES, vocabulary
from recipes import Case, held
from reference import SINGLE, Model, Truth, Unclear, as_model, fused_experts, truths
from tensors import Array, Tensors, is_float, read, rounded, ulp, ulp_distance

OURS, THEIRS, REDUCED = 4, 8, 2000
"""f32 roundings of the terms: allowed to merganser, to mergekit, to mergekit where it sums whole tensors in f32."""
GATE = 2e-6
"""Difference of a router's row from mergekit's, of its length."""
HIDDEN = 2e-2
"""The same where mergekit runs the base model in bf16."""
SUMMING = (
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "sce",
    "ties",
    "breadcrumbs",
    "breadcrumbs_ties",
)
TRIMMING = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")
PROMOTING = ("arcee_fusion", "ramplus_tl")
_CHOICES = {
    "cut": "cut",
    "sign": "sign",
    "divisor": "sign",
    "threshold": "threshold",
    "collinear": "sums in f32",
    "flat weights": "sums in f32",
}


@dataclass
class Outcome:
    """What a case came to. `kind`: equal, excused, differs, refused (by both), ours only, theirs only."""

    id: str
    group: str
    method: str
    family: str
    single: bool
    dtype: str = ""
    kind: str = "equal"
    tensors: int = 0
    elements: int = 0
    identical: int = 0
    within_one: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    worst: int = 0
    rounding: dict[str, float] | None = None
    ours_error: str | None = None
    theirs_error: str | None = None

    def excuse(self, row: str, count: int = 1) -> None:
        """Count what a row of the table of differences explains."""
        if count:
            self.rows[row] = self.rows.get(row, 0) + int(count)


def compare(
    case: Case, home: Path, ours: Path, theirs: Path, ours_error: str | None, theirs_error: str | None
) -> Outcome:
    """Hold the outputs of a case against each other."""
    outcome = Outcome(case.id, case.group, case.method, case.family, case.computes_in_single)
    outcome.ours_error, outcome.theirs_error = ours_error, theirs_error
    if ours_error and theirs_error:
        outcome.kind = "refused"
        return outcome
    if ours_error or theirs_error:
        who = "merganser" if ours_error else "mergekit"
        row = refusal(case, who, ours_error or theirs_error or "")
        outcome.kind = "theirs only" if ours_error else "ours only"
        if row is None:
            outcome.problems.append(f"only {who} refuses: {ours_error or theirs_error}")
        else:
            outcome.rows[row] = 1
        if ours_error:
            return outcome
    with np.errstate(all="ignore"):
        _outputs(case, home, ours, None if theirs_error else theirs, outcome)
    if outcome.problems and outcome.kind != "ours only":
        outcome.kind = "differs"
    elif outcome.kind == "equal" and outcome.rows:
        outcome.kind = "excused"
    return outcome


@dataclass
class _Meant:
    """What each tool's output should be by the reference: the same, but where a row says otherwise."""

    ours: dict[str, Truth]
    theirs: dict[str, Truth]


def _outputs(case: Case, home: Path, ours: Path, theirs: Path | None, outcome: Outcome) -> None:
    mine = read(ours)
    meant: _Meant | None = None
    if case.command in ("yaml", "multi", "pytorch"):
        try:
            meant = _meant(case, home, ours)
        except Unclear as reason:
            outcome.notes.append(f"no reference: {reason}")
    if theirs is None:
        if meant is not None:
            for name, array in mine.items():
                _beside_reference(name, array, meant.ours.get(name), outcome)
        return
    other = read(theirs)
    if case.command != "pytorch":
        _files(case, home, ours, theirs, outcome)
        other = _by_token(case, ours, theirs, other)
        mine = _unpadded(case, ours, mine, other, outcome)
    mine, other = _experts(case, mine, other, meant, outcome)
    for name in sorted(mine.keys() ^ other.keys()):
        outcome.problems.append(f"{name} is only in {'merganser' if name in mine else 'mergekit'}'s output")
    errors = _Errors()
    for name in mine.keys() & other.keys():
        _tensor(case, name, mine[name], other[name], meant, outcome, errors)
    outcome.rounding = errors.summary()


def _meant(case: Case, home: Path, out: Path) -> _Meant:
    trimmed = any(document["merge_method"] in TRIMMING for document in case.documents)
    ours = _truths(case, home, out, fused=False, all_equal=True)
    if not trimmed and case.family != "mixtral":
        return _Meant(ours, ours)
    return _Meant(ours, _truths(case, home, out, fused=case.family == "mixtral", all_equal=False))


def _truths(case: Case, home: Path, out: Path, *, fused: bool, all_equal: bool) -> dict[str, Truth]:
    family = FAMILIES[case.family]
    made: dict[str, Model] = {}
    result: dict[str, Truth] = {}
    for document in case.documents:
        result = truths(
            document,
            family,
            home,
            made=made,
            order=vocabulary(out) or None,
            change=fused_experts if fused else None,
            all_equal=all_equal,
        )
        if "name" in document:
            dtype = ml_dtypes.finfo(
                document.get("out_dtype") or document.get("dtype") or held(document)
            ).dtype
            made[document["name"]] = as_model(result, vocabulary(home / case.family / "base"), dtype)
    return result


# Numbers ----------------------------------------------------------------------------------------------------


class _Errors:
    """Errors against the f64 reference in cases that mergekit rounds at every step."""

    def __init__(self) -> None:
        self.elements = 0
        self.squares = [0.0, 0.0]
        self.best = 0.0
        self.off = [0, 0]
        self.largest = [0.0, 0.0]

    def add(self, mine: Array, other: Array, meant: tuple[Truth, Truth]) -> None:
        """One tensor. Squares count relative to the tensor's mean square, so that every tensor weighs alike."""
        sure = np.ones(mine.shape, bool)
        for truth in meant:
            for mask in truth.tossed.values():
                sure &= ~mask
        self.elements += int(sure.sum())
        for tool, (array, truth) in enumerate(zip((mine, other), meant, strict=True)):
            nearest = rounded(truth.value, array.dtype)
            error = _distance(array, truth)[sure]
            weight = 1.0 / max(float((truth.value**2).mean()), 1e-30)
            self.squares[tool] += float((error**2).sum()) * weight
            self.off[tool] += int((array != nearest)[sure].sum())
            step = ulp(np.maximum(np.abs(truth.value), truth.scale), array.dtype)[sure]
            self.largest[tool] = max(self.largest[tool], float((error / step).max(initial=0)))
            if tool == 0:
                self.best += float((_distance(nearest, truth)[sure] ** 2).sum()) * weight

    def summary(self) -> dict[str, float] | None:
        """Sums over the case; `largest` in units in the last place at the size of the terms."""
        if not self.elements:
            return None
        return {
            "elements": self.elements,
            "best": self.best,
            **dict(zip(("ours_squares", "theirs_squares"), self.squares, strict=True)),
            **dict(zip(("ours_off", "theirs_off"), self.off, strict=True)),
            **dict(zip(("ours_max", "theirs_max"), self.largest, strict=True)),
        }


def _tensor(
    case: Case, name: str, mine: Array, other: Array, meant: _Meant | None, outcome: Outcome, errors: _Errors
) -> None:
    outcome.tensors += 1
    outcome.dtype = str(mine.dtype) if is_float(mine) else outcome.dtype
    promoted = other.dtype == np.float32 and mine.dtype.itemsize == 2
    if promoted and case.method in PROMOTING and not case.computes_in_single:
        outcome.excuse("promoted", mine.size)
        other = other.astype(mine.dtype)
    if mine.shape != other.shape or mine.dtype != other.dtype:
        outcome.problems.append(f"{name}: {mine.dtype}{mine.shape} against {other.dtype}{other.shape}")
        return
    outcome.elements += mine.size
    if not is_float(mine):
        if not np.array_equal(mine, other):
            outcome.problems.append(f"{name}: integers differ")
        return
    distance = ulp_distance(mine, other)
    outcome.identical += int((distance == 0).sum())
    outcome.within_one += int((distance <= 1).sum())
    pair = None if meant is None else (meant.ours.get(name), meant.theirs.get(name))
    if pair is None or pair[0] is None or pair[1] is None:
        if case.command == "moe" and name.endswith("gate.weight"):
            _gate(case, name, mine, other, outcome)
        elif (distance > 1).any() or pair is not None:
            outcome.problems.append(
                f"{name}: {int((distance > 1).sum())} of {mine.size} differ; no reference"
            )
        return
    known = (pair[0], pair[1])
    if not _beside_reference(name, mine, known[0], outcome):
        return
    if not case.computes_in_single:
        errors.add(mine, other, known)
        return
    if (distance > 1).any():
        outcome.worst = max(outcome.worst, int(min(distance.max(), 2**31)))
        _explain(case, name, mine, other, known, distance > 1, outcome)


def _explain(
    case: Case,
    name: str,
    mine: Array,
    other: Array,
    known: tuple[Truth, Truth],
    beyond: Array,
    outcome: Outcome,
) -> None:
    """Find a row for every element that is more than a unit apart."""
    left = beyond.copy()
    for truth in known:
        for kind, mask in truth.tossed.items():
            outcome.excuse(_CHOICES[kind], (left & mask).sum())
            left &= ~mask
    good = left & (_distance(mine, known[0]) <= _allowed(mine, known[0], OURS))
    theirs = _distance(other, known[1])
    apart = np.abs(known[0].value - known[1].value) > 0.51 * ulp(known[0].value, mine.dtype)
    factor = REDUCED if case.method in SUMMING else THEIRS
    meant = good & apart & (theirs <= _allowed(other, known[1], factor))
    outcome.excuse("cut", meant.sum())
    left &= ~meant
    if known[1].loose:
        near = left.copy()
        for array, truth, roundings in ((mine, known[0], OURS), (other, known[1], factor)):
            near &= (
                _distance(array, truth) <= _allowed(array, truth, roundings) + 2 * truth.loose * truth.scale
            )
        outcome.excuse("cut", near.sum())
        left &= ~near
    for row, factor in (("rounding", THEIRS), ("sums in f32", REDUCED)):
        if row == "rounding" or case.method in SUMMING:
            fits = left & good & (theirs <= _allowed(other, known[1], factor))
            outcome.excuse(row, fits.sum())
            left &= ~fits
    if left.any():
        where = np.unravel_index(np.argmax(np.where(left, theirs, -1)), mine.shape)
        outcome.problems.append(
            f"{name}: {int(left.sum())} of {mine.size} elements differ; at {tuple(map(int, where))} merganser has "
            f"{float(mine[where])!r}, mergekit {float(other[where])!r}, the reference {float(known[1].value[where])!r}"
        )


def _distance(array: Array, truth: Truth) -> Array:
    error: Array = np.abs(array.astype(np.float64) - truth.value)
    return error


def _allowed(array: Array, truth: Truth, roundings: int) -> Array:
    """Half a unit of the dtype, and so many roundings of the terms in f32."""
    allowed: Array = 0.51 * ulp(truth.value, array.dtype) + roundings * SINGLE * truth.scale
    return allowed


def _gate(case: Case, name: str, mine: Array, other: Array, outcome: Outcome) -> None:
    """Rows of routers: drawn ones by their spread, others by the length of the difference."""
    if case.recipe["gate_mode"] == "random":
        outcome.excuse("random gates", mine.size)
        spreads = [float(array.std()) for array in (mine, other)]
        if max(spreads) > 1.5 * min(spreads):
            outcome.problems.append(f"{name}: standard deviations {spreads}")
        return
    apart = np.linalg.norm(mine.astype(np.float64) - other, axis=-1) / np.linalg.norm(other, axis=-1)
    hidden = case.recipe.get("gate_mode", "hidden").startswith("hidden")
    outcome.excuse("hidden gates" if hidden else "sums in f32", int((mine != other).sum()))
    if apart.max() > (HIDDEN if hidden else GATE):
        outcome.problems.append(f"{name}: rows differ by {apart.max():.1e} of their length")


def _beside_reference(name: str, mine: Array, truth: Truth | None, outcome: Outcome) -> bool:
    """Whether merganser's numbers are the f64 reference's, rounded once; a problem where they are not."""
    if truth is None:
        outcome.problems.append(f"{name}: not in the reference")
        return False
    if truth.value.shape != mine.shape:
        outcome.problems.append(f"{name}: shape {mine.shape}, in the reference {truth.value.shape}")
        return False
    if not is_float(mine):
        return True
    error = _distance(mine, truth)
    bad = ~(error <= _allowed(mine, truth, OURS) + 2 * truth.loose * truth.scale)
    for mask in truth.tossed.values():
        bad &= ~mask
    if bad.any():
        where = np.unravel_index(np.argmax(np.where(bad, error, -1)), mine.shape)
        outcome.problems.append(
            f"{name}: {int(bad.sum())} of {mine.size} elements of merganser are off the reference; at "
            f"{tuple(map(int, where))} {float(mine[where])!r} for {float(truth.value[where])!r}"
        )
    return not bad.any()


def _theirs(case: Case, name: str, array: Array, truth: Truth | None, outcome: Outcome) -> None:
    """Whether mergekit's numbers are what the reference says of mergekit, so that a row hides nothing else."""
    if truth is None or truth.value.shape != array.shape:
        outcome.problems.append(f"{name}: mergekit's shape {array.shape} is not the reference's")
        return
    if not case.computes_in_single or not is_float(array):
        return
    factor = REDUCED if case.method in SUMMING else THEIRS
    bad = ~(_distance(array, truth) <= _allowed(array, truth, factor) + 2 * truth.loose * truth.scale)
    for mask in truth.tossed.values():
        bad &= ~mask
    if bad.any():
        outcome.problems.append(
            f"{name}: {int(bad.sum())} of {array.size} elements of mergekit are off the reference"
        )


def _experts(
    case: Case, mine: Tensors, other: Tensors, meant: _Meant | None, outcome: Outcome
) -> tuple[Tensors, Tensors]:
    """Hold experts and routers against the reference, each tool in its own layout, and give the other tensors back.

    Where there is no reference, mergekit's layout is made of merganser's tensors.
    """
    own = {name: mine[name] for name in mine.keys() - other.keys() if ".block_sparse_moe." in name}
    fused = {name: other[name] for name in other.keys() - mine.keys() if ".mlp." in name}
    if not own and not fused:
        return mine, other
    if set(fused_experts(own)) != set(fused):
        outcome.problems.append(f"experts are not the same: {sorted(own)} against {sorted(fused)}")
    rest = {name: array for name, array in mine.items() if name not in own}
    outcome.excuse("experts", sum(array.size for array in fused.values()))
    if meant is None:
        return {**rest, **fused_experts(own)}, other
    for name, array in own.items():
        _beside_reference(name, array, meant.ours.get(name), outcome)
    for name, array in fused.items():
        _theirs(case, name, array, meant.theirs.get(name), outcome)
    return rest, {name: array for name, array in other.items() if name not in fused}


# Files ------------------------------------------------------------------------------------------------------

_PASSING = {"transformers_version", "_name_or_path"}


def _files(case: Case, home: Path, ours: Path, theirs: Path, outcome: Outcome) -> None:
    mine, other = (_config(path, outcome) for path in (ours, theirs))
    if mine is not None and other is not None:
        for key in sorted(mine.keys() | other.keys()):
            if case.command == "moe" and not (key in mine and key in other):
                continue  # mergekit carries the dense model's keys along
            if key == "vocab_size" and mine[key] > other[key] == len(vocabulary(ours)):
                continue  # the rows are looked at
            if key not in _PASSING and mine.get(key) != other.get(key):
                outcome.problems.append(
                    f"config.json: {key} is {mine.get(key)!r}, mergekit's {other.get(key)!r}"
                )
    own, his = vocabulary(ours), vocabulary(theirs)
    if own.keys() != his.keys():
        outcome.problems.append(
            f"tokens differ: only merganser {sorted(own.keys() - his.keys())[:5]}, "
            f"only mergekit {sorted(his.keys() - own.keys())[:5]}"
        )
    elif own != his:
        base = vocabulary(home / case.family / "base")
        moved = [token for token in base if token in own and own[token] != his[token]]
        if moved and case.recipe.get("base_model") is None:
            outcome.excuse("no base")
        elif moved:
            outcome.problems.append(f"tokens have other numbers: {moved[:5]}")
        else:
            outcome.excuse("token order")
    if case.group in ("tokenizer", "examples", "experts") and own:
        _tokenizers(case, ours, theirs, outcome)


def _config(path: Path, outcome: Outcome) -> dict[str, Any] | None:
    import transformers

    try:
        found: dict[str, Any] = transformers.AutoConfig.from_pretrained(path).to_dict()
    except Exception as error:
        outcome.notes.append(f"config.json of {path.parent.name} does not load: {error}")
        return None
    return found


_TEXTS = (
    "the code",
    "and in the end of 2026!",
    "<|im_start|>user who?<|im_end|>",
    "bring it out - once more",
)

_TALK = [
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "the code"},
    {"role": "user", "content": "and?"},
]


def _words(text: str) -> str:
    return "".join(text.replace("</s>", "").split())


def _said(tokenizer: Any, prompt: bool) -> str:
    try:
        return str(tokenizer.apply_chat_template(_TALK, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _tokenizers(case: Case, ours: Path, theirs: Path, outcome: Outcome) -> None:
    import transformers

    mine, other = (transformers.AutoTokenizer.from_pretrained(path) for path in (ours, theirs))
    special = set(mine.all_special_tokens), set(other.all_special_tokens)
    if case.recipe.get("base_model") is None and (
        mine.chat_template != other.chat_template or special[0] != special[1]
    ):
        outcome.excuse("no base")
        return
    if (mine.chat_template is None) != (other.chat_template is None):
        outcome.problems.append(f"chat template {mine.chat_template!r}, mergekit's {other.chat_template!r}")
    elif mine.chat_template is not None:
        for prompt in (False, True):
            first, second = (_said(tokenizer, prompt) for tokenizer in (mine, other))
            if (
                first != second
                and _words(first) == _words(second)
                and case.id.startswith("tokenizer-template-")
            ):
                outcome.excuse("templates")
            elif first != second:
                outcome.problems.append(f"the chat template gives {first!r}, mergekit's {second!r}")
    for text in _TEXTS:
        found = mine.tokenize(text), other.tokenize(text)
        if (
            found[0] != found[1]
            and case.command == "moe"
            and [t for t in found[0] if t != "<unk>"] == found[1]
        ):
            outcome.excuse("saved again")
            break
        if found[0] != found[1]:
            outcome.problems.append(f"{text!r} is {found[0]}, with mergekit's tokenizer {found[1]}")
            break
    if special[0] != special[1]:
        outcome.problems.append(f"special tokens {special[0] ^ special[1]} are not in both")


def _unpadded(case: Case, ours: Path, mine: Tensors, other: Tensors, outcome: Outcome) -> Tensors:
    """The tensors of merganser without rows behind the last token, where mergekit dropped these."""
    count = len(vocabulary(ours))
    result = dict(mine)
    for name in FAMILIES[case.family].embeddings:
        if name in mine and name in other and len(mine[name]) > len(other[name]) == count:
            result[name] = mine[name][:count]
            outcome.excuse("padding rows")
    return result


def _by_token(case: Case, ours: Path, theirs: Path, other: Tensors) -> Tensors:
    """The embeddings that mergekit wrote with rows in merganser's order of tokens."""
    own, his = vocabulary(ours), vocabulary(theirs)
    if own == his or own.keys() != his.keys():
        return other
    moved = dict(other)
    for name in FAMILIES[case.family].embeddings:
        if name in other:
            table = other[name].copy()
            for token, row in own.items():
                if row < len(table) and his[token] < len(table):
                    table[row] = other[name][his[token]]
            moved[name] = table
    return moved


def as_json(outcome: Outcome) -> Mapping[str, Any]:
    """For results.json: long lists of problems are cut."""
    data = dict(vars(outcome))
    data["problems"] = outcome.problems[:6] + (
        [f"and {len(outcome.problems) - 6} more"] if len(outcome.problems) > 6 else []
    )
    return json.loads(json.dumps(data))
