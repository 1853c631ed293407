"""Stored names and live names: what a checkpoint calls a tensor, and what the model that transformers builds calls it.

The two differ. A checkpoint keeps the names of the program that first wrote it (`h.0.attn.c_attn.weight`,
`visual.blocks.0.attn.qkv.weight`, `vit.encoder.layer.0.output.dense.weight`), and loading renames them; an adapter
names the modules of the live model. `live_names.json` says for every class of transformers, of the version that it
names, how a stored name becomes a live one, and which weights are no linear layers. It is written by
`python tests/architectures/live_table.py`, which builds every class and asks transformers itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from merganser.errors import RequestError, did_you_mean

RENAME, CONVERT, OTHER = "rename", "convert", "other"
_DIGITS = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, slots=True)
class Transform:
    """One step of transformers' loading: a name whose part matches `pattern` gets `target` in its place.

    `kind`: `rename` keeps the tensor as it is; `convert` makes another tensor (several fused, stacked or cut into one);
    `other` renames by what else is in the file. `scope` is the submodel that it holds in, `prefix` the body's name.
    """

    kind: str
    scope: str | None
    prefix: str
    pattern: re.Pattern[str]
    target: str

    def renamed(self, name: str) -> str | None:
        """The name after this step; None where it does not concern it."""
        before = ""
        if self.scope is not None:
            scope = f"{self.scope}." if self.scope else ""
            body = f"{self.prefix}." if self.prefix else ""
            if name.startswith(body + scope):
                before = body + scope
            elif name.startswith(scope):
                before = scope
            else:
                return None
        rest = name.removeprefix(before)
        found = self.pattern.search(rest)
        if found is None:
            return None
        target = self.target
        if r"\1" in target:
            group = next(key for key, value in found.groupdict().items() if value is not None)
            target = target.replace(r"\1", found.group(self.pattern.groupindex[group] + 1))
        return before + rest.replace(found.group(0), target, 1)


@dataclass(frozen=True)
class LiveClass:
    """A model class of transformers.

    `prefix` is what classes with a head call their body, `own` are the first words of its names, `body` those of the
    names inside the body, where it has one. `kinds` are modules of the body (numbers as `#`) whose 2-D weight is no
    linear layer's: `embedding`, `conv1d`, or `other` for a parameter that PEFT cannot reach as a module.
    """

    name: str
    model_type: str
    prefix: str
    own: frozenset[str]
    body: frozenset[str]
    kinds: Mapping[str, str]
    transforms: tuple[Transform, ...] = field(repr=False)

    @property
    def is_body(self) -> bool:
        """Whether it has no body inside: it is the bare body, or a class that is not made of one."""
        return not self.body

    def live(self, stored: str) -> str | None:
        """The live name of a stored tensor; None where the live model lacks it or holds it in another form."""
        name = stored
        for one in self.transforms:
            renamed = one.renamed(name)
            if renamed is None:
                continue
            if one.kind != RENAME:
                return None
            name = renamed
        return self._placed(name)

    def _placed(self, name: str) -> str | None:
        """A name with the body's prefix added or taken away as the class has it."""
        first, _, rest = name.partition(".")
        if self.is_body:
            if first == self.prefix and rest.partition(".")[0] in self.own:
                return rest
            return name if first in self.own else None
        if first == self.prefix:
            word, dot, _ = rest.partition(".")
            return name if word in self.body or not dot else None
        if first in self.own:
            return name
        return f"{self.prefix}.{name}" if first in self.body else None

    def kind(self, module: str) -> str:
        """What a live module with a 2-D weight is: `linear`, `embedding`, `conv1d` or `other`."""
        return self.kinds.get(_DIGITS.sub("#", module.removeprefix(f"{self.prefix}.")), "linear")


def live_class(
    config: Mapping[str, Any] | None, stored: Collection[str] = (), *, architecture: str | None = None
) -> LiveClass | None:
    """The class that a checkpoint's config says; None where transformers has none for it.

    Without `architectures` in the config: the class of its model_type that has a place for the most of the `stored`
    names and the fewest beside. `architecture` stands above the config. Raises `RequestError` for one that is unknown.
    """
    known = _index()
    if architecture is not None:
        if architecture not in known:
            raise RequestError(
                f"{architecture!r} is no model class of transformers {version()}{did_you_mean(architecture, known)}"
            )
        return _class(architecture)
    told = (config or {}).get("architectures")
    if isinstance(told, list) and told and isinstance(told[0], str) and told[0] in known:
        return _class(told[0])
    classes = classes_of((config or {}).get("model_type"))
    if not classes:
        return None

    def fit(one: LiveClass) -> tuple[int, bool, int]:
        prefixed = any(name.startswith(f"{one.prefix}.") for name in stored)
        return sum(one.live(name) is not None for name in stored), one.is_body != prefixed, -len(one.own)

    return max(classes, key=fit)


def classes_of(model_type: Any) -> tuple[LiveClass, ...]:
    """The classes of a model type, the body first."""
    entry = _raw()["types"].get(model_type) if isinstance(model_type, str) else None
    found = [] if entry is None else [_class(name) for name in entry["classes"]]
    return tuple(sorted(found, key=lambda one: not one.is_body))


def stored_names(
    config: Mapping[str, Any] | None, stored: Collection[str], live: Sequence[str]
) -> dict[str, str]:
    """The stored names of tensors that an adapter names, as far as they are certain: by live name, those that differ.

    An adapter may come from any class of the base's model type (a classifier's on a bare body) and from an older
    transformers, whose live names were the stored ones of today. Where the type is not known, or says nothing of a
    name: one prefix more or less that makes all names the base's, if there is just one.
    """
    held = set(stored)
    wanted = [name for name in live if name not in held]
    if not wanted:
        return {}
    found: dict[str, str] = {}
    for one in _variants((config or {}).get("model_type")):
        by_live = _unambiguous(one, stored)
        for name in wanted:
            now = one.live(name)
            for alias in (name, now):
                if name not in found and alias is not None and alias in by_live:
                    found[name] = by_live[alias]
    rest = [name for name in wanted if name not in found]
    return found | _by_prefix(held, rest if found else list(live))


def _variants(model_type: Any) -> list[LiveClass]:
    """Classes of a type that differ in what they make of names."""
    seen: dict[Any, LiveClass] = {}
    for one in classes_of(model_type):
        seen.setdefault((one.transforms, one.is_body, one.prefix, one.own), one)
    return list(seen.values())


def _unambiguous(one: LiveClass, stored: Iterable[str]) -> dict[str, str]:
    """Stored names by live name, without live names that two tensors have."""
    found: dict[str, str] = {}
    twice = set()
    for name in stored:
        alias = one.live(name)
        if alias is not None and found.setdefault(alias, name) != name:
            twice.add(alias)
    return {alias: name for alias, name in found.items() if alias not in twice}


def _by_prefix(held: set[str], names: Sequence[str]) -> dict[str, str]:
    """The names with one prefix more or less, where just one makes all of them names that are held."""
    if not names:
        return {}
    first = names[0]
    added = {name.removesuffix(first) for name in held if name.endswith(f".{first}")}
    ways = [{name: prefix + name for name in names} for prefix in sorted(added)]
    parts = first.split(".")
    for k in range(1, len(parts) - 1):
        prefix = ".".join(parts[:k]) + "."
        if all(name.startswith(prefix) for name in names):
            ways.append({name: name.removeprefix(prefix) for name in names})
    fit = [way for way in ways if held.issuperset(way.values())]
    return fit[0] if len(fit) == 1 else {}


def version() -> str:
    """The version of transformers that the table was made with."""
    return str(_raw()["transformers"])


@cache
def _raw() -> dict[str, Any]:
    text = (files("merganser.architectures") / "live_names.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def _index() -> dict[str, str]:
    """Model types by class."""
    return {name: kind for kind, entry in _raw()["types"].items() for name in entry["classes"]}


@cache
def _class(name: str) -> LiveClass:
    raw = _raw()
    entry = raw["types"][_index()[name]]
    own, number = entry["classes"][name]
    lines = [_transform(line) for line in (*raw["transforms"][number], *raw["legacy"])]
    inside = f"{entry['prefix']}."
    return LiveClass(
        name,
        _index()[name],
        entry["prefix"],
        frozenset(word.partition(".")[0] for word in own),
        frozenset(word.removeprefix(inside) for word in own if word.startswith(inside)),
        {module: kind for kind, modules in entry["kinds"].items() for module in modules},
        (*(one for one in lines if one.kind != CONVERT), *(one for one in lines if one.kind == CONVERT)),
    )


def _transform(line: Sequence[Any]) -> Transform:
    kind, scope, prefix, pattern, target = line
    return Transform(kind, scope, prefix, re.compile(pattern), target)
