"""Which names of a checkpoint mean one matrix: an output head that is the embedding, `shared` under four names.

Four sources say so, in one place here: the family's file (`tied:`, `tie:`), the flags of config.json, the aliases that
safetensors.torch.save_model leaves in a file's metadata, and for model types without a file the usual names. Whether
two stored copies are one matrix only their bytes tell (transformers 5 decides so too).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from merganser.architectures.family import Family, family_of
from merganser.architectures.live_names import live_class
from merganser.checkpoint import Checkpoint, StoredTensor
from merganser.checkpoint.header import name_fault

_FLAGS = ("tie_word_embeddings", "tie_embedding")
_EMBEDDINGS = {
    "shared": ("lm_head.weight",),
    "embed_tokens": ("lm_head.weight", "proj_out.weight", "output_projection.weight"),
    "wte": ("lm_head.weight",),
    "embed_in": ("embed_out.weight",),
    "word_embeddings": ("lm_head.weight",),
    "tok_embeddings": ("lm_head.weight",),
    "tokens_embed": ("lm_head.weight",),
}
"""The usual names of embeddings, and of the heads that share them, where no family file says it."""
_WITH_HEAD = re.compile(
    r"LMHead|ForCausalLM|ForMaskedLM|ForPreTraining|ForConditionalGeneration|WithLMHead|Seq2Seq|MTModel|DoubleHeads"
)
"""Class names of transformers whose models have an output head over the vocabulary."""


@dataclass(frozen=True, slots=True)
class Group:
    """Names of one matrix, the one that the loader copies from first. `heads` are those outside the body."""

    names: tuple[str, ...]
    heads: frozenset[str]


def aliases(checkpoint: Checkpoint) -> dict[str, str]:
    """Other names of the checkpoint's tensors: the name, and the stored tensor that it means.

    A name that is not stored is there where the live model has it and fills it with the other. A name that is stored
    all the same is there where the config ties the two and their shapes agree: a copy, unless its bytes differ.
    """
    config, tensors = checkpoint.config or {}, checkpoint.tensors
    if checkpoint.is_adapter:
        return {}
    found = _left_out(config, tensors)
    if ties_copies(config):
        for group in groups(config, tensors):
            answer, *others = [name for name in group.names if name in tensors] or [""]
            found |= {name: answer for name in others if _alike(tensors[name], tensors[answer])}
    for name, kept in checkpoint.metadata.items():
        if kept in tensors and name not in tensors and name != "format" and name_fault(name) is None:
            found[name] = found.get(kept, kept)
    return found


def certain(checkpoint: Checkpoint) -> frozenset[str]:
    """The aliases that are surely names of the live model: by its family's file, its class or the file's metadata."""
    config, tensors = checkpoint.config or {}, checkpoint.tensors
    told, names = frozenset(checkpoint.metadata) - {"format"}, frozenset(_left_out(config, tensors))
    if family_of(str(config.get("model_type"))) is not None:
        return told | names
    found = live_class(config, tensors) if config.get("architectures") else None
    own = frozenset() if found is None else found.own
    return told | frozenset(name for name in names if name.partition(".")[0] in own)


def left_out(family: Family, prefix: str, config: Mapping[str, Any], names: Container[str]) -> dict[str, str]:
    """The names of a tied matrix that the live model has and `names` lack, and the one that they mean."""
    return _names_of(_of_family(family, prefix, config), config, names, family)


def groups(config: Mapping[str, Any], names: Iterable[str]) -> list[Group]:
    """The names that may mean one matrix in a model with this config and these tensors."""
    held = dict.fromkeys(names)
    family = family_of(str(config.get("model_type")))
    if family is not None:
        return _of_family(family, prefix_of(family, held), config)
    return list(_usual(held, bool(flag(config))))


def prefix_of(family: Family, names: Iterable[str]) -> str:
    """What stands before the names of the body's tensors in this checkpoint, with its dot."""
    starts = {name.split(".", 1)[0] for name in names}
    held = list(names)
    for body in (family.body, *family.wrappers):
        first = body.split(".", 1)[0]
        if body and first in starts and any(name.startswith(f"{body}.") for name in held):
            return f"{body}."
    return ""


def flag(config: Mapping[str, Any]) -> bool | None:
    """What config.json says of ties, beside the sizes of the text model where that has a part of its own.

    None where it says nothing.
    """
    inner = config.get("text_config")
    told = [
        part[key] for part in (config, inner) if isinstance(part, Mapping) for key in _FLAGS if key in part
    ]
    said = [value for value in told if isinstance(value, bool)]
    return any(said) if said else None


def ties_copies(config: Mapping[str, Any]) -> bool:
    """Whether the loader takes two stored copies for one matrix: the config says so, or its default."""
    told = flag(config)
    kind = str(config.get("model_type"))
    family = family_of(kind)
    if family is None:
        return bool(told)
    return kind in family.tie.always or (kind in family.tie.default if told is None else told)


def untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same model with a matrix for every name."""
    made = deepcopy(dict(config))
    family = family_of(str(config.get("model_type")))
    if family is not None and flag(config) is not False:
        for key, value in family.tie.untied.items():
            made.setdefault(key, value)
    inner = made.get("text_config")
    for part in (made, inner):
        if isinstance(part, dict):
            part.update({key: False for key in _FLAGS if part.get(key)})
    made["tie_word_embeddings"] = False
    return made


def settled(
    config: Mapping[str, Any], digests: Mapping[str, str], stored: Container[str]
) -> dict[str, Any] | None:
    """The config that a result needs where its copies of a tied matrix differ and its config says tied, else None.

    digests: of the result's tensors by name. stored: the names in the model whose config it is.
    """
    told = flag(config)
    if told is False or all(
        len({digests[name] for name in group.names if name in digests}) < 2
        for group in groups(config, digests)
    ):
        return None
    new = any(
        name in digests and name not in stored for group in groups(config, digests) for name in group.names
    )
    if not (told or new or ties_copies(config)):
        return None
    family = family_of(str(config.get("model_type")))
    always = family is not None and config.get("model_type") in family.tie.always
    # A loader that ties what a file lacks needs the flag for the names that this one lacks.
    return None if _left_out(config, digests) and not always else untied(config)


def to_write_out(family: Family, config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Of the names that a model leaves out, those that it must store once its head is a matrix of its own."""
    heads = {name: answer for name, answer in names.items() if name in family.heads}
    if config.get("model_type") in family.tie.always:
        return heads
    return dict(names) if heads or ties_copies(config) else {}


# Helpers --------------------------------------------------------------------------------------------------------------


def _alike(a: StoredTensor, b: StoredTensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape)


def _of_family(family: Family, prefix: str, config: Mapping[str, Any]) -> list[Group]:
    def named(pattern: str) -> str:
        return pattern if pattern in family.heads else prefix + pattern

    if family.tie.needs is not None and config.get(family.tie.needs) is False:
        # Each side has a vocabulary of its own; the head is still the decoder's embedding.
        head = next(iter(family.heads & family.tied.keys()))
        return [Group((f"{prefix}decoder.embed_tokens.weight", head), frozenset([head]))]
    found: dict[str, list[str]] = {}
    for other, shared in family.tied.items():
        if "{" not in other and "{" not in shared:
            found.setdefault(shared, [shared]).append(other)
    return [
        Group(tuple(map(named, patterns)), frozenset(n for n in patterns if n in family.heads))
        for patterns in found.values()
    ]


def _left_out(config: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, str]:
    family = family_of(str(config.get("model_type")))
    return _names_of(groups(config, names), config, names, family)


def _names_of(
    of: Iterable[Group], config: Mapping[str, Any], names: Container[str], family: Family | None
) -> dict[str, str]:
    classes = [str(name) for name in config.get("architectures") or []]
    headless = family.tie.headless if family is not None else ()
    headed = not classes or any(_WITH_HEAD.search(name) and name not in headless for name in classes)
    always = family is not None and config.get("model_type") in family.tie.always
    ties_heads = headed and (always or flag(config) is not False)
    held = tuple(names) if isinstance(names, Iterable) else ()
    found = {}
    for group in of:
        answer = next((name for name in group.names if name in names), None)
        if answer is None:
            continue
        for name in group.names:
            if name not in names and (ties_heads if name in group.heads else _has_module(name, held)):
                found[name] = answer
    return found


def _has_module(name: str, held: Iterable[str]) -> bool:
    """Whether the model has the part that a name belongs to: an encoder alone has no decoder's embedding."""
    part = name.rsplit(".", 2)[0] + "."
    return name.count(".") < 2 or any(other.startswith(part) for other in held)


def _usual(names: Mapping[str, Any], told: bool) -> Iterator[Group]:
    """What models without a family file usually tie, by the names of their embedding; `told` that this one does."""
    found = [name for name in names if _word(name) in _EMBEDDINGS and name.endswith(".weight")]
    members = next(([name] for name in found if _word(name) == "shared"), [])
    if members:
        start = members[0].removesuffix("shared.weight")
        members += [f"{start}{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    else:
        members = [name for name in found if ".decoder." in f".{name}"] if len(found) > 1 else found
        if len(members) != 1:
            return
    start = members[0].removesuffix(f"{_word(members[0])}.weight")
    if not start and len(members) == 1 and not told:
        return  # a body by itself has no head
    heads = list(_EMBEDDINGS[_word(members[0])])
    if start.startswith("bert."):
        heads = ["cls.predictions.decoder.weight"]
    elif start.endswith("embeddings."):
        heads = ["lm_head.decoder.weight", *heads]
    places = [f"{place}." for place in ("language_model", "text_model") if start.startswith(f"{place}.")]
    heads = [place + head for place in (places or [""]) for head in heads]
    heads = [head for head in heads if head in names] or heads
    yield Group((*members, *heads), frozenset(heads))


def _word(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]
