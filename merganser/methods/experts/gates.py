"""The rows of routers: from prompts, by the input embedding or by hidden states, or drawn at random."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from merganser.algebra import Expression, Leaf, Weights
from merganser.algebra.axes import reading_of
from merganser.algebra.computed import by_rows, column_sums
from merganser.algebra.expression import Draw
from merganser.algebra.rearranged import Array, joined, reshaped, taken
from merganser.architectures import Axis
from merganser.errors import AlgebraError, RequestError
from merganser.methods.vocabulary._shared import small_files
from merganser.tokenizer import encode_texts, load, read_tokenizer
from merganser.tokenizer.companions import special_roles
from merganser.tokenizer.converted import with_json

RANDOM = ("random", "uniform_random")
MODES = ("hidden", "cheap_embed", *RANDOM, "hidden_avg", "hidden_last")
SMALLEST = 1e-8
"""Lengths count as no less than this, so that a vector of zeros stays one."""

Values = np.ndarray[Any, Any]
Text = tuple[int, ...]
"""A text as ids of tokens."""


@dataclass(frozen=True)
class Prompts:
    """Texts that a router should send to an expert, and texts that it should not."""

    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()


# At random ------------------------------------------------------------------------------------------------------------


def random_rows(name: str, shape: tuple[int, int], mode: str, seed: int) -> Expression:
    """The rows of a router, drawn by (seed, tensor name, index) and nothing else.

    random: independent standard normal numbers, N(0, 1). uniform_random: uniform in [-b, b), b = 1 / sqrt(columns),
    the range in which torch starts a linear layer.
    """
    key = (str(seed), "mixture", "gate", name)
    if mode == "random":
        return normal(key, shape)
    return (Draw(key, shape) * 2.0 - 1.0) * float(1.0 / np.sqrt(shape[1]))


def normal(key: tuple[str, ...], shape: tuple[int, ...]) -> Expression:
    """Independent standard normal numbers, a function of the key and the element's index.

    sqrt(-2 ln(1 - u)) cos(2 pi v) of two uniform numbers (Box and Muller 1958), in f64, rounded to f32.
    """
    return by_rows(box_muller, [Draw((*key, part), shape) for part in ("radius", "angle")])


def box_muller(u: Values, v: Values) -> Values:
    """Normal numbers from two uniform ones in [0, 1)."""
    radius: Values = np.sqrt(-2.0 * np.log1p(-u.astype(np.float64)))
    return radius * np.cos(2.0 * np.pi * v.astype(np.float64))


# From prompts ---------------------------------------------------------------------------------------------------------


def prompt_rows(base: Weights, groups: Sequence[Sequence[Prompts]], mode: str) -> list[list[Expression]]:
    """For each group and each layer a node [prompts of the group, residual], one row for each of the prompts.

    With u(x) = x / max(|x|, 1e-8), a row is u(u(P) - u(N)) for cheap_embed and u(P - N) for the hidden modes; without
    negative prompts N is 0. A prompt is tokenized with the text of the bos token before it (where the tokenizer's files
    name one) and no other special tokens.

    cheap_embed: P is the sum of the input embeddings of all tokens of the positive prompts, the same for all layers. It
    stays lazy: only the rows of those tokens are read.

    hidden, hidden_last: P of a layer is the mean over the prompts of what the base model feeds into that layer at the
    prompt's last token; hidden_avg: at the mean of its tokens. The base model runs here: torch and transformers, on the
    CPU, in the dtype it is stored in, one prompt at a time; means are taken in f64.

    Raises `RequestError` without a tokenizer.json, for a prompt without tokens, and for the hidden modes without torch
    and transformers; `AlgebraError` for a token that has no row in the embedding and for hidden states that are not
    finite.
    """
    layers = reading_of(base).sizes[Axis("layer")]
    embedding = _embedding(base)
    write = _writer(base, embedding)
    texts = [[(write(one.positive), write(one.negative)) for one in group] for group in groups]
    if mode == "cheap_embed":
        return [[_embedded(base[embedding], group)] * layers for group in texts]
    every = list(dict.fromkeys(text for group in texts for sides in group for side in sides for text in side))
    states = dict(zip(every, _hidden_states(base, every, mode), strict=True))
    none = np.zeros((layers, 1))
    found: list[list[Expression]] = []
    for group in texts:
        means = [
            [np.mean([states[text] for text in side], axis=0) if side else none for side in sides]
            for sides in group
        ]
        rows = np.stack([_unit(positive - negative) for positive, negative in means], axis=1)
        found.append([Array(np.ascontiguousarray(rows[layer], np.float32)) for layer in range(layers)])
    return found


def _embedding(base: Weights) -> str:
    reading = reading_of(base)
    for name, named in reading.tensors.items():
        if named.spec.kind == "embedding" and "vocab" in named.spec.dims[0].axes:
            return name
    raise reading.refused("this model has no embedding of tokens, which gates of prompts need")


def _writer(base: Weights, embedding: str) -> Callable[[Sequence[str]], list[Text]]:
    """What writes prompts in tokens."""
    why = ", which gates of prompts need (gate_mode random does not)"
    files = with_json(small_files(base), base.label, why)
    rows = base[embedding].shape[0]
    tokenizer = read_tokenizer(files, base.label, rows)
    library = load(tokenizer)
    start = special_roles(files, tokenizer).get("bos", "")

    def write(prompts: Sequence[str]) -> list[Text]:
        texts = [tuple(ids) for ids in encode_texts(library, [start + prompt for prompt in prompts])]
        for prompt, text in zip(prompts, texts, strict=True):
            if not text:
                raise RequestError(f"{tokenizer.source} writes the prompt {prompt[:40]!r} in no tokens")
            if max(text) >= rows:
                raise AlgebraError(
                    f"{tokenizer.source} writes the prompt {prompt[:40]!r} with the token {max(text)}, and "
                    f"{embedding!r} has {rows} rows; take the tokenizer that belongs to the model"
                )
        return texts

    return write


# By the embedding -----------------------------------------------------------------------------------------------------


def _embedded(embedding: Expression, group: Sequence[tuple[list[Text], list[Text]]]) -> Expression:
    """The rows of one group: sums of embeddings (in f64), then their direction."""
    positive, negative = (joined([_sum(embedding, sides[k]) for sides in group], 0) for k in (0, 1))
    return by_rows(direction, [positive, negative])


def _sum(embedding: Expression, texts: list[Text]) -> Expression:
    """The sum of the embeddings of all tokens, [1, residual]."""
    width = embedding.shape[1]
    if not texts:
        return Array(np.zeros((1, width), np.float32))
    tokens = np.array([token for text in texts for token in text], np.int64)
    return reshaped(column_sums(taken(embedding, [tokens, None])), (1, width))


def direction(positive: Values, negative: Values) -> Values:
    """u(u(positive) - u(negative)), row by row."""
    return _unit(_unit(positive.astype(np.float64)) - _unit(negative.astype(np.float64)))


def _unit(x: Values) -> Values:
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    made: Values = x / np.maximum(length, SMALLEST)
    return made


# By hidden states -----------------------------------------------------------------------------------------------------


def _hidden_states(base: Weights, texts: Sequence[Text], mode: str) -> list[Values]:
    """For each text what goes into every layer, [layers, residual] in f64."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as library_logging
    except ImportError as error:
        raise RequestError(
            f"gate_mode {mode} runs the base model, which needs torch and transformers ({error}); install "
            "merganser[models], or use gate_mode cheap_embed"
        ) from error
    found = []
    with tempfile.TemporaryDirectory(prefix="merganser-gates-") as scratch:
        place = _stored(base, Path(scratch))
        logging: Any = library_logging
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                place, dtype="auto", local_files_only=True, trust_remote_code=False
            )
        finally:
            if shown:
                logging.enable_progress_bar()
        body = model.base_model
        with torch.no_grad():
            for text in texts:
                out = body(torch.tensor([text]), output_hidden_states=True, use_cache=False)
                states = np.stack([state[0].double().numpy() for state in out.hidden_states[:-1]])
                if not np.isfinite(states).all():
                    raise AlgebraError(f"{base.label!r}: the hidden states of a prompt hold NaN or Inf")
                found.append(states.mean(axis=1) if mode == "hidden_avg" else states[:, -1])
    return found


def _stored(base: Weights, scratch: Path) -> Path:
    """Where the model lies: its own directory, or where it is a formula (a LoRA adapter on a base) a copy for now."""
    origin = base.origin
    assert origin is not None
    untouched = (
        base.reading is None
        and not base.files
        and origin.format == "safetensors"
        and base.keys() == origin.tensors.keys()
        and all(isinstance(e, Leaf) and e.tensor is origin.tensors[name] for name, e in base.items())
    )
    if untouched and origin.loadable is not None:
        return origin.loadable
    base.save(scratch / "base", sync=False)
    return scratch / "base"


__all__ = ["MODES", "RANDOM", "Prompts", "normal", "prompt_rows", "random_rows"]
