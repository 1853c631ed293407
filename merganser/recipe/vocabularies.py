"""`tokenizer`, `tokenizer_source` and `chat_template` of a recipe: models of several vocabularies come to one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from merganser.algebra import Weights
from merganser.errors import AlgebraError, CheckpointError, RequestError, did_you_mean
from merganser.methods.vocabulary._shared import small_files
from merganser.recipe.keys import Keys
from merganser.recipe.settings import shown
from merganser.recipe.vocabulary_merge import Merge, templated
from merganser.tokenizer.chat import FORMATS

Resolve = Callable[[Any, str], int]
_TOKENIZER = ("source", "tokens", "pad_to_multiple_of", "padding")
_TOKEN = ("source", "force")
_KINDS = {"model_token": ("kind", "model", "token", "token_id"), "zero": ("kind",)}
SHORTEST_TEMPLATE = 20


@dataclass(frozen=True)
class TokenRow:
    """Where a listed token's rows come from.

    kind: "default" (the rules for tokens that are not listed), "model" (that token in `model`), "model_token" (`token`
    or the row `token_id` of `model`) or "zero". force: also for models that have the token.
    """

    kind: Literal["default", "model", "model_token", "zero"]
    force: bool
    place: str
    model: int = -1
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """What a recipe says of the vocabulary. `written` is what it says in plain JSON.

    source: "union", "base", the index of a model, or None where the tokenizer stays as the method leaves it.
    """

    source: str | int | None
    tokens: Mapping[str, TokenRow]
    multiple: int | None
    padding: Literal["keep", "drop"]
    chat_template: str | None
    place: str
    written: Mapping[str, Any]

    @property
    def canonical(self) -> dict[str, Any]:
        """For the manifest."""
        return dict(self.written)


# Reading --------------------------------------------------------------------------------------------------------------


def read_vocabulary(
    raw: Mapping[str, Any], place: str, resolve: Resolve, keys: Keys | None = None
) -> Vocabulary | None:
    """The keys tokenizer_source, tokenizer and chat_template of a recipe, checked; None where it has none of them.

    tokenizer_source: union, base or a model. tokenizer: {source, tokens, pad_to_multiple_of, padding}; the two exclude
    each other. `resolve(reference, place)` gives the index of a model that is named inside. chat_template: auto, the
    name of a known form, or a template. keys: where unknown keys are noted; without it they are errors. Raises
    `RequestError` with the place for anything else.
    """
    keys = keys or Keys(place, mergekit=False)
    given = {key: raw.get(key) for key in ("tokenizer_source", "tokenizer", "chat_template")}
    if all(value is None for value in given.values()):
        return None
    settings: Mapping[str, Any] = {}
    where = "tokenizer"
    if given["tokenizer"] is not None:
        if given["tokenizer_source"] is not None:
            raise RequestError(
                f"{place}: tokenizer_source: a recipe has either tokenizer_source or tokenizer: {{source: ...}}"
            )
        settings = given["tokenizer"]
        if not isinstance(settings, dict):
            raise RequestError(f"{place}: tokenizer: expected {{source: union, ...}}, not {shown(settings)}")
        settings = keys.check(settings, _TOKENIZER, "tokenizer")
        settings = {"source": "union"} | {key: value for key, value in settings.items() if value is not None}
    elif given["tokenizer_source"] is not None:
        settings, where = {"source": given["tokenizer_source"]}, "tokenizer_source"
    template = _template_of(given["chat_template"], f"{place}: chat_template")
    written: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if not settings:
        return Vocabulary(None, {}, None, "keep", template, place, written)
    source = settings["source"]
    at = f"{place}: {where}" if where == "tokenizer_source" else f"{place}: tokenizer.source"
    found = source if source in ("union", "base") else resolve(source, at)
    tokens = settings.get("tokens", {})
    if not isinstance(tokens, dict):
        raise RequestError(
            f"{place}: tokenizer.tokens: expected {{token: {{source: ...}}}}, not {shown(tokens)}"
        )
    rows = {
        token: _token(token, value, f"{place}: tokenizer.tokens[{token!r}]", resolve, keys)
        for token, value in tokens.items()
    }
    padding = settings.get("padding", "keep")
    if padding not in ("keep", "drop"):
        raise RequestError(f"{place}: tokenizer.padding: expected keep or drop, not {shown(padding)}")
    multiple = settings.get("pad_to_multiple_of")
    if multiple is not None and (not _is_whole(multiple) or multiple < 1):
        raise RequestError(
            f"{place}: tokenizer.pad_to_multiple_of: expected a whole number from 1, not {shown(multiple)}"
        )
    return Vocabulary(found, rows, multiple, padding, template, place, written)


def _is_whole(raw: Any) -> bool:
    return isinstance(raw, int) and not isinstance(raw, bool)


def _token(token: str, raw: Any, place: str, resolve: Resolve, keys: Keys) -> TokenRow:
    if not token or token != token.encode(errors="replace").decode():
        raise RequestError(f"{place}: no text that can be a token")
    settings = {} if raw is None else raw
    if not isinstance(settings, dict):
        raise RequestError(f"{place}: expected {{source: ..., force: ...}}, not {shown(raw)}")
    settings = keys.check(settings, _TOKEN, place.removeprefix(f"{keys.source}: "))
    force = settings.get("force")
    if force is not None and not isinstance(force, bool):
        raise RequestError(f"{place}.force: expected true or false, not {shown(force)}")
    source, here = settings.get("source"), f"{place}.source"
    if source is None:
        if force:
            raise RequestError(f"{place}: force needs a source that all models take the rows from")
        return TokenRow("default", False, here)
    if not isinstance(source, dict) or "kind" not in source:
        return TokenRow("model", bool(force), here, resolve(source, here))
    kind = source["kind"]
    if kind not in _KINDS:
        near = did_you_mean(str(kind), _KINDS)
        raise RequestError(f"{here}.kind: expected {' or '.join(_KINDS)}, not {shown(kind)}{near}")
    source = keys.check(source, _KINDS[kind], here.removeprefix(f"{keys.source}: "))
    if kind == "zero":
        return TokenRow("zero", bool(force), here)
    if source.get("model") is None:
        raise RequestError(f"{here}: model_token names no model (model: PATH)")
    word, id_ = source.get("token"), source.get("token_id")
    if (word is None) == (id_ is None):
        raise RequestError(f"{here}: model_token needs either token or token_id")
    if word is not None and not isinstance(word, str):
        raise RequestError(f"{here}.token: expected a token's text, in quotes, not {shown(word)}")
    if id_ is not None and (not _is_whole(id_) or id_ < 0):
        raise RequestError(f"{here}.token_id: expected a whole number from 0, not {shown(id_)}")
    return TokenRow("model_token", bool(force), here, resolve(source["model"], f"{here}.model"), word, id_)


def _template_of(raw: Any, place: str) -> str | None:
    """A template's text, or `auto`."""
    if raw is None or raw == "auto":
        return raw  # type: ignore[no-any-return]
    if not isinstance(raw, str):
        raise RequestError(
            f"{place}: expected auto, {', '.join(FORMATS)} or a Jinja template, not {shown(raw)}"
        )
    if raw in FORMATS:
        return FORMATS[raw]
    if "{" not in raw or len(raw) < SHORTEST_TEMPLATE:
        raise RequestError(
            f"{place}: {raw[:60]!r} is neither a known name nor a template{did_you_mean(raw, ('auto', *FORMATS))} "
            f"(known: auto, {', '.join(FORMATS)}; a template has at least {SHORTEST_TEMPLATE} characters and a '{{')"
        )
    return raw


# Merging --------------------------------------------------------------------------------------------------------------


def merge_vocabularies(
    vocabulary: Vocabulary,
    models: Sequence[Weights],
    base: int | None,
    *,
    merged: Collection[int] | None = None,
    ends: tuple[Collection[int], Collection[int]] | None = None,
) -> tuple[list[Weights], dict[str, bytes | None]]:
    """The models with their rows arranged for one output tokenizer, and the tokenizer's files that the result gets.

    models: all that the recipe opens; base: the index of its base model; merged: the indices of the models that are
    merged, the base among them (default: all). The others only lend a tokenizer or rows, and come back as they were.
    Nothing but headers and tokenizers is read.

    Output tokenizer. source "base": the base's (without a base the first merged model's). "union": the base's, then
    what the other merged models add, in their order; tokens of the base keep their ids. A model: that model's. Listed
    `tokens` that it lacks are added at its end. Tokens of a model beyond its last row count as not there. A merged
    model without any tokenizer is taken to have the base's where it has as many rows.

    Rows, for every tensor with a row per token. A model keeps its own row of a token that it has, unless the token is
    listed with `force`. Else it gets, where the token is listed with a source, that row; where one model alone has the
    token, that model's; where the base has it, the base's; where several others have it, their mean; where no model has
    it, zeros. Without a base in the recipe, the mean counts all models. ends: the models that count so for what stands
    before the layers and for what stands after them, where a recipe takes layers of several (default: all).

    Padding. Rows after the last token of the model whose tokenizer it is stay ("keep"), as many as there is room for
    below its old number of rows: every model's own where it has a row without a token at that place, else that of the
    tokenizer's model, else of the first model that has one. "drop": none stay. With a multiple, rows are then added up
    to the next multiple; they are the mean of the model's tokens.

    config.json and generation_config.json follow: an id becomes that of the same token; where the tokenizer is another
    model's, ids that both configs name become that model's.

    chat_template. "auto": the most frequent one among the merged models (at equal counts the base's, then the earlier
    model's); where none has one, the tokenizer's own stays. A text: that text.

    mergekit 0.1.5 differs. Its union makes every new token an added token, found in the text before the model's own
    tokens are, in the order of a hash; here they become tokens of the model with merges, and kinds must agree. It
    drops padding rows silently (here `padding: drop`), leaves ids in configs as they were, takes the first model by the
    hash of its path where there is no base, averages in the dtype of the models, and fails on tokens beyond the last
    row of a model that is not the base.

    Raises `RequestError` for models whose axes are not known, tokenizers that cannot be joined, sources without the
    token, a config's id without a token; `AlgebraError` for other widths and for tokenizers that disagree with their
    embedding; `CheckpointError` for malformed tokenizers.
    """
    everyone = list(models)
    chosen = sorted(set(range(len(everyone)) if merged is None else merged))
    lender = chosen[0] if base is None else base
    if lender not in chosen:
        chosen = sorted({lender, *chosen})
    order = [lender, *(i for i in chosen if i != lender)]
    try:
        if vocabulary.source is None:
            files = small_files(everyone[lender])
            note, changed = templated(vocabulary, files, everyone, order, [])
            told = {"step": "chat_template", **note}
            return [w.with_note(told) if i in chosen else w for i, w in enumerate(everyone)], changed
        return Merge(vocabulary, everyone, order, base, ends).result()
    except (RequestError, AlgebraError, CheckpointError) as error:
        if str(error).startswith(vocabulary.place):
            raise
        raise type(error)(f"{vocabulary.place}: tokenizer: {error}") from error


__all__ = ["TokenRow", "Vocabulary", "merge_vocabularies", "read_vocabulary"]
