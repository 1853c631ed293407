"""`merganser diff`: what changed from one checkpoint to another, tensor by tensor, streamed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser._progress import Progress
from merganser.cli import console

if TYPE_CHECKING:
    from merganser.algebra import Expression, Weights
    from merganser.checkpoint import StoredTensor

NAME = "diff"
EXAMPLE = "Example: merganser diff models/base models/tuned"


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="The checkpoint to start from.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The checkpoint that may have changed.")],
    allow_pickle: console.ALLOW_PICKLE = False,
    rows: Annotated[int, typer.Option(help="Changed tensors to show; --json has all.", min=0)] = 20,
    as_json: console.JSON = False,
) -> None:
    """Compare two checkpoints: norm of the change, relative norm, cosine, sign flips and maximum of every tensor."""
    from merganser import open as open_weights

    first, second = (open_weights(path, name=path, allow_pickle=allow_pickle) for path in (a, b))
    with console.progress(not as_json, "comparing") as progress:
        found = compare(first, second, progress)
    if as_json:
        console.print_json(found)
        return
    summary = found["summary"]
    console.say(
        f"{summary['tensors']} tensors in both: {summary['equal']} equal, {summary['changed']} changed, "
        f"{summary['different_shape']} of another shape, {summary['different_dtype']} of another dtype; "
        f"{len(found['only_a'])} only in {a}, {len(found['only_b'])} only in {b}"
    )
    console.say(f"change: norm {summary['norm']:.6g}, relative {summary['relative']:.3%} of {a}")
    for key, where in (("only_a", a), ("only_b", b)):
        if found[key]:
            console.say(
                f"only in {where}: {', '.join(found[key][:5])}{' ...' if len(found[key]) > 5 else ''}"
            )
    changed = [t for t in found["tensors"] if not t["equal"]]
    changed.sort(key=lambda t: -(t["relative"] if t["relative"] is not None else math.inf))
    if changed and rows:
        console.say()
        console.table(
            ("tensor", "norm", "relative", "cosine", "sign flips", "max", "note"),
            [
                (
                    t["name"],
                    *(_number(t[key]) for key in ("norm", "relative", "cosine", "sign_flips", "max")),
                    t["note"],
                )
                for t in changed[:rows]
            ],
        )
        if len(changed) > rows:
            console.say(f"... and {len(changed) - rows} more")


def compare(a: Weights, b: Weights, progress: Progress | None = None) -> dict[str, Any]:
    """The document that --json prints. Float tensors are read once each, others by their digest."""
    from merganser import compute_scalars
    from merganser.algebra.labelled import in_label_order, label_order, other_rows
    from merganser.engine.companions import check_filled
    from merganser.errors import RequestError

    check_filled((*a.checkpoints, *b.checkpoints))

    if (a.origin is None) != (b.origin is None):
        adapter, model = (a, b) if a.origin is None else (b, a)
        raise RequestError(
            f"{adapter.label} is a LoRA adapter, a change, and {model.label} a model: compare two of a kind"
        )
    odd = other_rows(b, a)
    order = {} if odd else label_order(b, a)
    stored, b = b, in_label_order(b, a, lenient=True)
    both = [name for name in a if name in b]
    numbers = {name: (a[name], b[name]) for name in both if name not in odd and _comparable(a[name], b[name])}
    targets = {name: _measures(x, y) for name, (x, y) in numbers.items()}
    values = compute_scalars(targets, [*a.checkpoints, *b.checkpoints], progress=progress)
    tensors = [
        _from_numbers(name, values[name], a[name], stored[name])
        if name in numbers
        else _row(name, a[name], stored[name], equal=False, note="rows of other labels")
        if name in odd
        else _other(name, a[name], stored[name])
        for name in both
    ]
    for row in tensors:
        if row["name"] in order:
            row["note"] = "; ".join(filter(None, (row["note"], "rows lined up by label")))
    squares = [(t["norm"] or 0.0) ** 2 for t in tensors]
    before = [values[name][1] for name in numbers]
    norm, base = math.sqrt(math.fsum(squares)), math.sqrt(math.fsum(before))
    return {
        "a": a.label,
        "b": b.label,
        "summary": {
            "tensors": len(both),
            "equal": sum(t["equal"] for t in tensors),
            "changed": sum(not t["equal"] and t["shape_a"] == t["shape_b"] for t in tensors),
            "different_shape": sum(t["shape_a"] != t["shape_b"] for t in tensors),
            "different_dtype": sum(t["dtype_a"] != t["dtype_b"] for t in tensors),
            "norm": norm,
            "relative": norm / base if base else 0.0,
        },
        "tensors": tensors,
        "only_a": [name for name in a if name not in b],
        "only_b": [name for name in b if name not in a],
    }


def _measures(x: Expression, y: Expression) -> list[Expression]:
    """Sums over one pass: change squared, both squared, product, unequal entries, sign flips, largest change."""
    from merganser.algebra import apply, largest, total

    change = y - x
    flips = apply("lt", apply("sign", x) * apply("sign", y), 0.0)
    unequal = apply("not", apply("or", apply("eq", x, y), apply("and", apply("ne", x, x), apply("ne", y, y))))
    return [
        total(change * change),
        total(x * x),
        total(y * y),
        total(x * y),
        total(apply("where", unequal, 1.0, 0.0)),
        total(apply("where", flips, 1.0, 0.0)),
        largest(change),
    ]


def _from_numbers(name: str, values: list[float], x: Expression, y: Expression) -> dict[str, Any]:
    change, before, after, product, unequal, flips, most = values
    norms = math.sqrt(before) * math.sqrt(after) if before >= 0 and after >= 0 else math.nan
    before_dtype, after_dtype = (_stored(e).dtype for e in (x, y))
    relative = None if before == 0 else math.sqrt(change / before) if change >= 0 else math.nan
    return _row(
        name,
        x,
        y,
        equal=unequal == 0,
        norm=math.sqrt(change) if change >= 0 else math.nan,
        relative=relative,
        cosine=product / norms if norms else None,
        sign_flips=int(flips),
        max=most,
        note="" if before_dtype == after_dtype else f"{before_dtype} to {after_dtype}",
    )


def _other(name: str, x: Expression, y: Expression) -> dict[str, Any]:
    from merganser.checkpoint.digest import digest_tensor

    if x.shape != y.shape:
        return _row(name, x, y, equal=False, note=f"shape {list(x.shape)} to {list(y.shape)}")
    left, right = _stored(x), _stored(y)
    equal = left.dtype == right.dtype and digest_tensor(left) == digest_tensor(right)
    return _row(
        name,
        x,
        y,
        equal=equal,
        note=f"{left.dtype}, compared by bits"
        if left.dtype == right.dtype
        else f"{left.dtype} to {right.dtype}",
    )


def _row(
    name: str, x: Expression, y: Expression, *, equal: bool, note: str, **numbers: Any
) -> dict[str, Any]:
    measures = dict.fromkeys(("norm", "relative", "cosine", "sign_flips", "max")) | numbers
    shapes = {"shape_a": list(x.shape), "shape_b": list(y.shape)}
    dtypes = {"dtype_a": _stored(x).dtype.name, "dtype_b": _stored(y).dtype.name}
    return {"name": name, "equal": equal, **measures, **shapes, **dtypes, "note": note}


def _comparable(x: Expression, y: Expression) -> bool:
    from merganser.algebra import Leaf

    floats = all(not isinstance(e, Leaf) or e.dtype.is_float for e in (x, y))
    return floats and x.shape == y.shape


def _stored(e: Expression) -> StoredTensor:
    from merganser.algebra import Leaf, LowRank

    if isinstance(e, LowRank):
        return e.delta.left
    assert isinstance(e, Leaf)
    return e.tensor


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
