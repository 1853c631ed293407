"""Axes of a plain network without a family's file: Linear and Conv layers in sequence, by their names and shapes.

What a layer gives is what the next one takes, so the two share an axis, and biases and normalisations between them have
it too. Between a Conv and a Linear every channel becomes a block of inputs. That holds for a plain sequence only, which
shapes cannot prove: a connection that skips layers leaves no trace in them. What contradicts a sequence is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import combinations, pairwise

import yaml

from merganser.architectures.family import parse_family
from merganser.architectures.reading import Reading, read_as
from merganser.checkpoint import Checkpoint
from merganser.errors import RequestError, listing

NAME = "inferred"
STATISTICS = ("running_mean", "running_var")
COUNT = "num_batches_tracked"
LEAVES = ("weight", "bias", *STATISTICS, COUNT)
BYPASSES = ("downsample", "shortcut", "skip", "residual", "identity", "lateral")
SPECIAL = {
    "emb": "an embedding is read by rows, not as a matrix",
    "attn": "attention has products of its own outputs",
    "attention": "attention has products of its own outputs",
    "rnn": "recurrent weights read what they wrote",
    "lstm": "recurrent weights read what they wrote",
    "gru": "recurrent weights read what they wrote",
    "transpose": "a transposed convolution has its dimensions in another order",
    "deconv": "a transposed convolution has its dimensions in another order",
}


def infer(checkpoint: Checkpoint) -> Reading:
    """The reading of a plain MLP or CNN, sizes as plain numbers: axes `inputs`, `after_MODULE` and `outputs`.

    Inputs and outputs have fixed places. Raises `RequestError` that says which tensors speak against a plain sequence
    or leave its order open.
    """
    checkpoint.need_numbers()
    return read_with(checkpoint, _Plain(checkpoint).text(), NAME)


def read_with(checkpoint: Checkpoint, text: str, place: str) -> Reading:
    """Read a model through the text of a family's file; sizes may be numbers where there is no config.json."""
    return read_as(checkpoint, parse_family(text, place), checkpoint.config or {})


@dataclass(frozen=True)
class _Module:
    """A layer with a matrix, or the vectors of a normalisation."""

    name: str
    shape: tuple[int, ...]
    leaves: frozenset[str]

    @property
    def wide(self) -> int:
        """What it takes."""
        return self.shape[1] if len(self.shape) > 1 else self.shape[0]

    @property
    def out(self) -> int:
        """What it gives."""
        return self.shape[0]

    @property
    def is_conv(self) -> bool:
        return len(self.shape) > 2


class _Plain:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        modules = self._modules()
        self.matrices = [m for m in modules if len(m.shape) > 1]
        self.vectors = [m for m in modules if len(m.shape) == 1]
        self._check_names(modules)
        if len(self.matrices) < 2:
            raise self._refused("has fewer than two Linear or Conv layers, so nothing in it can be permuted")
        self.ordered = checkpoint.format == "torch"
        self.order = {module.name: k for k, module in enumerate(modules)}
        self.chain = self._chain()

    def text(self) -> str:
        """The text of a family's file."""
        chain = self.chain
        names = ["inputs", *_axis_names([module.name for module in chain[:-1]]), "outputs"]
        axes = {"inputs": chain[0].wide}
        axes |= {names[k + 1]: module.out for k, module in enumerate(chain)}
        lines: dict[str, str] = {}
        for k, module in enumerate(chain):
            source = _times(names[k], module.wide // axes[names[k]])
            kernel = "".join(f" {length}" for length in module.shape[2:])
            kind = "conv" if module.is_conv else "linear"
            lines[module.name] = f"{kind} {source}{kernel} -> {names[k + 1]}"
        for vector in self.vectors:
            axis = names[self._after(vector)]
            dim = _times(axis, vector.out // axes[axis])
            for leaf in sorted(vector.leaves):
                lines[f"{vector.name}.{leaf}"] = "parameter" if leaf == COUNT else f"parameter {dim}"
        family = {
            "family": NAME,
            "model_types": [],
            "axes": {name: str(size) for name, size in axes.items()},
            "fixed": {"inputs": "each is an input of the model", "outputs": "each is an output of the model"},
            "modules": lines,
        }
        return yaml.safe_dump(family, sort_keys=False)

    def _modules(self) -> list[_Module]:
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for name, tensor in self.checkpoint.tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf not in LEAVES or not re.fullmatch(r"\w+([.-]\w+)*", module):
                raise self._refused(
                    f"tensor {name!r} is no weight, bias or statistic of a Linear, Conv or BatchNorm layer"
                )
            found.setdefault(module, {})[leaf] = tensor.shape
        modules = []
        for module, leaves in found.items():
            shape = leaves.get("weight")
            if shape is None or not 1 <= len(shape) <= 5 or 0 in shape:
                raise self._refused(
                    f"{module!r} has no weight of 1 to 5 dimensions (found {', '.join(leaves)})"
                )
            for leaf, other in leaves.items():
                expected = shape if leaf == "weight" else () if leaf == COUNT else shape[:1]
                if other != expected:
                    raise self._refused(
                        f"tensor '{module}.{leaf}' has shape {list(other)} beside a weight of {list(shape)}"
                    )
            modules.append(_Module(module, shape, frozenset(leaves)))
        return (
            modules if self.checkpoint.format == "torch" else sorted(modules, key=lambda m: _natural(m.name))
        )

    def _check_names(self, modules: list[_Module]) -> None:
        for module in modules:
            words = re.split(r"[\W_]+", module.name.lower())
            for word in words:
                if any(word.startswith(bypass) for bypass in BYPASSES):
                    raise self._refused(f"{module.name!r} looks like a connection that skips layers")
                for special, why in SPECIAL.items():
                    if word.startswith(special) or (
                        special in ("rnn", "transpose") and word.endswith(special)
                    ):
                        raise self._refused(f"{module.name!r}: {why}")
        blocks: dict[str, set[str]] = {}
        for module in self.matrices:
            for found in re.finditer(r"(?:^|\.)\d+\.", module.name):
                blocks.setdefault(module.name[: found.end()], set()).add(module.name)
        several = [block for block, members in blocks.items() if len(members) > 1]
        alike = Counter(re.sub(r"\.?\d+\.$", "", block) for block in several)
        for parent, count in alike.items():
            if count > 1:
                raise self._refused(
                    f"{parent or 'the model'!r} has {count} numbered blocks of several layers; connections may "
                    "skip such blocks, and names and shapes do not say"
                )

    def _chain(self) -> list[_Module]:
        """The layers in their order."""
        given = self.matrices
        if all(_follows(a, b) for a, b in pairwise(given)):
            self._check_unique(given)
            return given
        found = self._paths()
        if not found:
            a, b = next((a, b) for a, b in pairwise(given) if not _follows(a, b))
            raise self._refused(
                f"no order of its layers lets each take what the one before gives: {a.name!r} gives {a.out} and "
                f"{b.name!r} takes {b.wide}. It has branches, connections that skip layers, or grouped convolutions"
            )
        if len(found) > 1:
            raise self._open(found[0], found[1])
        return found[0]

    def _check_unique(self, given: list[_Module]) -> None:
        """An order that hangs on the names alone must be told by numbers in them."""
        if self.ordered:
            return
        for a, b in combinations(given, 2):
            if (a.shape[:2], a.is_conv) == (b.shape[:2], b.is_conv) and _shape_of(a.name) != _shape_of(
                b.name
            ):
                raise self._refused(
                    f"the order of its layers is open: {a.name!r} and {b.name!r} could change places"
                )
        for path in self._paths():
            moved = [(a, b) for a, b in zip(given, path, strict=True) if a.name != b.name]
            if any(_shape_of(a.name) != _shape_of(b.name) for a, b in moved):
                raise self._open(given, path)

    def _paths(self) -> list[list[_Module]]:
        """Orders of the layers that their sizes allow, at most 64 of them."""
        found: list[list[_Module]] = []
        budget = [20_000]

        def extend(path: list[_Module], rest: list[_Module]) -> None:
            budget[0] -= 1
            if len(found) == 64 or budget[0] < 0:
                return
            if not rest:
                found.append(path)
            for k, module in enumerate(rest):
                if not path or _follows(path[-1], module):
                    extend([*path, module], rest[:k] + rest[k + 1 :])

        extend([], self.matrices)
        if budget[0] < 0:
            raise self._refused("too many orders of its layers fit their sizes")
        return found

    def _after(self, vector: _Module) -> int:
        """Which axis a normalisation has: 0 for the inputs, k for what layer k gives (from 1)."""
        if self.chain == self.matrices and (self.ordered or self._numbered()):
            after = sum(self.order[module.name] < self.order[vector.name] for module in self.chain)
            if self._fits(vector, after):
                return after
            raise self._refused(f"{vector.name!r} has {vector.out} elements, and its neighbours have not")
        number = _number(vector.name)
        same = [k for k, m in enumerate(self.chain, 1) if m.out == vector.out and _number(m.name) == number]
        if len(same) == 1 and self._fits(vector, same[0]) and not self._all_before():
            return same[0]
        sizes = [k for k in range(len(self.chain)) if self._fits(vector, k)]
        if len(sizes) == 1:
            return sizes[0]
        raise self._refused(f"names and shapes do not say which layer {vector.name!r} belongs to")

    def _all_before(self) -> bool:
        """Whether all normalisations could as well stand before the layer of their number."""
        wide = {_number(module.name): module.wide for module in self.chain}
        return all(wide.get(_number(vector.name)) == vector.out for vector in self.vectors)

    def _numbered(self) -> bool:
        """Whether all modules are numbered in one list, as those of a Sequential."""
        return len({_shape_of(module.name) for module in (*self.chain, *self.vectors)}) == 1

    def _fits(self, vector: _Module, after: int) -> bool:
        before = self.chain[after - 1] if after else None
        size = before.out if before is not None else self.chain[0].wide
        if (
            before is not None
            and before.is_conv
            and vector.out == size
            and not vector.leaves.issuperset(STATISTICS)
        ):
            raise self._refused(
                f"{vector.name!r} may be a GroupNorm, whose groups of channels must stay together"
            )
        return vector.out == size or (after < len(self.chain) and vector.out == self.chain[after].wide)

    def _refused(self, why: str) -> RequestError:
        return RequestError(
            f"{self.checkpoint.name}: its axes cannot be inferred: {why}. Write them down in a family's file"
        )

    def _open(self, one: list[_Module], other: list[_Module]) -> RequestError:
        first, second = (listing((m.name for m in path), 6) for path in (one, other))
        return self._refused(f"the order of its layers is open: {first}, or {second}")


def _follows(a: _Module, b: _Module) -> bool:
    """Whether b can take what a gives."""
    if b.is_conv:
        return len(a.shape) == len(b.shape) and a.out == b.wide
    return b.wide % a.out == 0 if a.is_conv else b.wide == a.out


def _times(axis: str, block: int) -> str:
    return axis if block == 1 else f"({axis} {block})"


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their value."""
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]


def _shape_of(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _number(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _axis_names(modules: list[str]) -> list[str]:
    names: list[str] = []
    for module in modules:
        name = "after_" + re.sub(r"\W", "_", module)
        while name in names:
            name += "_"
        names.append(name)
    return names
