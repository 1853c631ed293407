"""One vocabulary for several models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merganser.algebra import Weights
from merganser.errors import RequestError
from merganser.methods.steps import step
from merganser.methods.vocabulary._shared import Vocabulary, same_tie
from merganser.tokenizer import follow, load

GENERATION = "generation_config.json"


@step("union_tokenizers")
def union_tokenizers(weights: Weights, *, others: Weights | Sequence[Weights], place: int = 0) -> Weights:
    """The vocabulary of this model and the tokens of others that it lacks; rows come from the model that has the token.

    others: models of the same family and widths whose tokenizers are of the same kind (BPE, Unigram, WordPiece,
    WordLevel) and spelling. place: where this model stands among them, from 0. The first one's tokens keep their ids,
    and its normaliser, pre-tokenizer and chat template are the union's; then come the others' new tokens in order. So
    for models A and B: on A `others: B` (place 0), on B `others: A, place: 1` give one vocabulary, and the two can be
    merged. A token's row is this model's own where it has the token, else that of the first other that has it.

    BPE: the first one's merges, then for each new token a merge of the two pieces that the merges so far leave of it:
    the other's own merge where both split alike. Tokens left in more pieces can only be produced as whole words by
    tokenizers that ignore merges; they are counted as unreachable. Unigram: pieces keep their own model's scores. The
    union writes texts in the new tokens where it can, so even the first model's texts may be written differently.

    Rows without a token are dropped. Where one model has a head of its own and another shares the embedding, all get
    one. Raises `RequestError` for other kinds or spellings (transplant_tokenizer brings a model to another's),
    `AlgebraError` for other widths.
    """
    more = [others] if isinstance(others, Weights) else list(others)
    if not more:
        raise RequestError("union_tokenizers needs at least one other model")
    if not 0 <= place <= len(more):
        raise RequestError(f"place must be from 0 to {len(more)}, not {place}")
    models = same_tie([weights, *more])
    known = [Vocabulary.of(model) for model in models]
    own, *rest = known
    order = [*rest[:place], own, *rest[place:]]
    union = order[0].tokenizer
    unreachable: list[str] = []
    for other in order[1:]:
        union, lost = union.joined(other.tokenizer)
        unreachable += lost
    load(union)
    starts = np.cumsum([0, *(one.rows for one in known[:-1])]).tolist()
    index, sources = [], [0] * len(known)
    for token in union.tokens:
        k = next(k for k, one in enumerate(known) if token in one.tokenizer.ids)
        sources[k] += 1
        index.append(starts[k] + known[k].tokenizer.ids[token])
    first = order[0]
    differs = [
        f"{part} of {one.weights.label}"
        for one in order[1:]
        for part in ("normalizer", "pre_tokenizer")
        if one.tokenizer.document.get(part) != first.tokenizer.document.get(part)
    ]
    old = own.tokenizer.tokens
    moved = {i: union.ids[token] for i, token in enumerate(old)}
    note = {
        "step": "union_tokenizers",
        "tokenizer_of": first.weights.label,
        "added": len(union) - len(own.tokenizer),
        "rows_from": {one.weights.label: n for one, n in zip(known, sources, strict=True)},
        "moved": sum(i != k for i, k in moved.items()),
        "unreachable": unreachable,
        "other_than_the_union": differs,
        "dropped_padding_rows": own.padding,
        "special_tokens": {t: [own.tokenizer.ids.get(t), union.ids[t]] for t in union.special},
        "untied": models[0] is not weights,
    }
    remedy = "Correct the file: an id below the number of rows must be of a token"
    changed = own.put_together([one.weights for one in rest], index)
    result = own.finished(changed, union, moved.get, note, remedy=remedy)
    if first is own:
        return result
    # The other files are the first one's, whose tokens keep their ids.
    theirs = follow(first.files, first.reading.config, first.tokenizer, union, lambda i: i, first.rows).files
    files: dict[str, bytes | None] = dict.fromkeys(own.files)
    files |= {**first.files, **theirs}
    files[GENERATION] = result.files.get(GENERATION, own.files.get(GENERATION))
    return result.with_files(files)
