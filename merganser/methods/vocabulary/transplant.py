"""Another model's tokenizer in place of a model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from merganser._facade import compute
from merganser.algebra import Weights, axes
from merganser.errors import RequestError, listing
from merganser.methods.steps import step
from merganser.methods.vocabulary._pursuit import Matrix, pursue
from merganser.methods.vocabulary._shared import (
    VOCAB,
    Vocabulary,
    recounted,
    refuse_grown,
    take_over,
    told,
    with_files,
)
from merganser.tokenizer import Followed, Tokenizer, encode_texts, follow, load, mentioned
from merganser.tokenizer.companions import (
    NUMBERED,
    ROLES,
    Changes,
    Ids,
    as_json,
    is_template,
    json_of,
    renumber,
    special_roles,
    templates,
)

Rows = np.ndarray[Any, np.dtype[np.int64]]
MOST_ATOMS = 64
CHUNK = 64
READ = 4096
TOKENIZER_CONFIG = "tokenizer_config.json"


@step("transplant_tokenizer")
def transplant_tokenizer(
    weights: Weights,
    *,
    donor: Weights,
    rows: Literal["pursuit", "subtokens", "mean"] = "pursuit",
    k: int = MOST_ATOMS,
    chat_template: Literal["donor", "own", "none"] = "donor",
) -> Weights:
    """The donor's tokenizer on this model: rows of shared tokens are copied, the others are approximated.

    donor: a model of any family and width with a tokenizer.json. Tokens are shared where they stand for the same bytes
    (a space before a word counted, whatever sign is written for it); added tokens where their text is equal or both
    have the same part (bos, eos, unk, sep, pad, cls, mask).

    rows: where the others' rows come from, in the embedding, the head and its bias alike.
    "pursuit" (default): orthogonal matching pursuit. In the donor's embedding a token's row is written as a sum of at
    most `k` (1 to 64, default 64) shared tokens' rows; the same sum over this model's rows is its new row. "subtokens":
    the mean of the rows of the tokens in which this model's old tokenizer writes it. "mean": the mean of all rows.
    Where pursuit has no shared token and subtokens finds nothing (a part of a character), it is the mean; how often is
    in the report.

    The tokenizer's files become the donor's. Ids in configs: the donor's own where its config has the key, else of the
    token with the same text or part; bos, eos, unk, sep, pad, cls and mask become null where there is none.
    chat_template: the donor's (default; where it has none, none), this model's "own", or "none"; tokens that an own
    template writes must be in the donor's vocabulary.

    Nothing is exact but the copied rows. Memory for pursuit: the donor's s x d numbers of the shared tokens, 64 (s +
    k d) while it works, and 2 k for each token that is not shared, of 4 to 8 bytes each; 0.7 GB for s = 30,000, d =
    4,096, k = 64 and 50,000 tokens. Time: 2 s d k operations for each of those (s = 10,000, d = 384, k = 64: 10 ms on
    one core). Which of two equally near atoms is taken depends on the BLAS library.

    Raises `RequestError` for k out of range, a template's token that is missing, a config id that cannot be placed;
    `AlgebraError` where a tokenizer and its embedding disagree.
    """
    if not 1 <= k <= MOST_ATOMS:
        raise RequestError(f"k must be from 1 to {MOST_ATOMS}, not {k}")
    own, other = Vocabulary.of(weights), Vocabulary.of(donor)
    library = load(own.tokenizer)
    load(other.tokenizer)
    roles = special_roles(own.files, own.tokenizer), special_roles(other.files, other.tokenizer)
    shared = _shared(own.tokenizer, other.tokenizer, *roles)
    size = len(other.tokenizer)
    missing = np.array([i for i in range(size) if i not in shared], np.int64)
    source = np.full(size, -1, np.int64)
    source[list(shared)] = list(shared.values())
    parts: list[Weights] = []
    report: dict[str, Any] = {}
    averaged = missing
    if rows != "mean" and len(missing):
        if rows == "pursuit":
            made, shares, residual = _pursued(other, missing, source, k)
            report["residual_share"] = {"mean": float(residual.mean()), "largest": float(residual.max())}
        else:
            made, shares = _written(own.tokenizer, other.tokenizer, library, missing)
        held = (made >= 0).any(axis=1)
        averaged = missing[~held]
        if held.any():
            source[missing[held]] = own.rows + np.arange(int(held.sum()))
            parts.append(axes.mix(weights, VOCAB, made[held], shares[held]))
    if len(averaged):
        source[averaged] = own.rows + len(missing) - len(averaged)
        parts.append(own.mean())
    changed = own.put_together(parts, source)
    followed, ids = _followed(own, other, shared, roles, chat_template)
    changed = recounted(changed, own.reading, followed.config, ids, grown=True)
    texts = templates({n: c for n, c in followed.files.items() if c is not None}, donor.label)
    note = {
        "step": "transplant_tokenizer",
        "donor": donor.label,
        "copied": len(shared),
        "approximated": len(missing) - len(averaged),
        "by_mean": len(averaged),
        "rows_from": rows,
        **report,
        "dropped": len(own.tokenizer) - len(set(shared.values())),
        "dropped_padding_rows": own.padding,
        "tokens": [len(own.tokenizer), size],
        "rows": [own.rows, size],
        "chat_template": chat_template if texts else "none",
        **told(followed),
    }
    result = with_files(changed, followed)
    checkpoints = {id(c): c for c in (*result.checkpoints, *donor.checkpoints)}
    entries = {name: result.entry(name) for name in result}
    return result._with(entries, checkpoints=tuple(checkpoints.values())).with_note(note)


def _shared(
    own: Tokenizer, other: Tokenizer, own_roles: Mapping[str, str], other_roles: Mapping[str, str]
) -> dict[int, int]:
    """For each of the donor's ids that has one, the id of this model's token that stands for the same."""
    mine, theirs = set(own.added_contents), set(other.added_contents)
    by_text: dict[bytes, int] = {}
    plain = [token for token in own.ids if token not in mine]
    for token in sorted(plain, key=lambda t: own.spelling.fallback and own.spelling.byte_of(t) is not None):
        by_text.setdefault(own.spelling.text(token), own.ids[token])
    parts: dict[str, str] = {}
    for role in ("eos", "bos", "unk", "sep", "pad", "cls", "mask"):
        if role in other_roles and own_roles.get(role) in own.ids:
            parts.setdefault(other_roles[role], own_roles[role])
    found: dict[int, int] = {}
    for token, id_ in other.ids.items():
        if token not in theirs:
            same = by_text.get(other.spelling.text(token))
        else:
            same = own.ids.get(token)
            if same is None and token in parts:
                same = own.ids[parts[token]]
        if same is not None:
            found[id_] = same
    return found


def _pursued(other: Vocabulary, missing: Rows, source: Rows, k: int) -> tuple[Rows, Matrix, Matrix]:
    """Rows of this model and coefficients for each missing token, and how much of the donor's row they miss."""
    atoms_of = np.flatnonzero(source >= 0)
    rows, shares = np.full((len(missing), k), -1, np.int64), np.zeros((len(missing), k))
    residual = np.ones(len(missing))
    if not len(atoms_of):
        return rows, shares, residual

    def read(ids: Rows) -> Matrix:
        values = compute(axes.take(other.weights, VOCAB, ids), other.embedding, allow_nonfinite=False)
        return values.astype(np.float32, copy=False)

    atoms = read(atoms_of)
    for begin in range(0, len(missing), READ):
        targets = read(missing[begin : begin + READ])
        for at in range(0, len(targets), CHUNK):
            made, share, rest = pursue(targets[at : at + CHUNK], atoms, k)
            place = slice(begin + at, begin + at + len(made))
            rows[place, : made.shape[1]] = np.where(made >= 0, source[atoms_of[np.maximum(made, 0)]], -1)
            shares[place, : made.shape[1]] = share
            residual[place] = rest
    return rows, shares, residual


def _written(own: Tokenizer, other: Tokenizer, library: Any, missing: Rows) -> tuple[Rows, Matrix]:
    """The tokens in which the old tokenizer writes each missing one, in equal shares."""
    added = set(other.added_contents)
    unknown = own.ids.get(own.unknown or "")
    lists = []
    for one in missing.tolist():
        token = other.tokens[one]
        ids = [] if token in added else _pieces(own, other, library, token)
        if token in added:
            ids = encode_texts(library, [token])[0]
        lists.append([i for i in ids if i != unknown])
    rows = np.full((len(lists), max(1, *map(len, lists))), -1, np.int64)
    shares = np.zeros(rows.shape)
    for k, ids in enumerate(lists):
        rows[k, : len(ids)] = ids
        shares[k, : len(ids)] = 1 / max(1, len(ids))
    return rows, shares


def _pieces(own: Tokenizer, other: Tokenizer, library: Any, token: str) -> list[int]:
    text = other.spelling.letters(token)
    raw = other.spelling.text(token) if not other.spelling.suffix else (text or "").encode()
    if own.kind in ("WordPiece", "WordLevel") or own.spelling.suffix:
        return encode_texts(library, [text.strip()])[0] if text is not None else []
    written = own.spelling.written(raw)
    return [piece.id for piece in library.model.tokenize(written)] if written else []


def _followed(
    own: Vocabulary,
    other: Vocabulary,
    shared: Mapping[int, int],
    roles: tuple[Mapping[str, str], Mapping[str, str]],
    chat_template: str,
) -> tuple[Followed, Ids]:
    """The donor's tokenizer files, the chosen chat template, configs with ids of the donor's vocabulary, and these ids
    by old ones.
    """
    label = own.weights.label
    files: dict[str, bytes | None] = {
        n: None for n in own.files if n not in NUMBERED or n == TOKENIZER_CONFIG
    }
    files |= {n: c for n, c in other.files.items() if n not in NUMBERED or n == TOKENIZER_CONFIG}
    if other.tokenizer.late:  # its files come to agree
        whole = follow(other.files, {}, other.tokenizer, other.tokenizer, lambda i: i, other.rows).files
        files |= {n: c for n, c in whole.items() if n not in NUMBERED or n == TOKENIZER_CONFIG}
    _template(files, own, other, chat_template)
    back = {mine: theirs for theirs, mine in reversed(list(shared.items()))}
    by_role = {
        own.tokenizer.ids[token]: other.tokenizer.ids[roles[1][role]]
        for role, token in roles[0].items()
        if token in own.tokenizer.ids and roles[1].get(role) in other.tokenizer.ids
    }
    ids = {**by_role, **back}.get
    changes: dict[str, Changes] = {}
    made: dict[str, dict[str, Any]] = {}
    for name in ("config.json", *(n for n in NUMBERED if n != TOKENIZER_CONFIG and n in own.files)):
        before = dict(own.reading.config) if name == "config.json" else json_of(own.files, name, label)
        theirs = dict(other.reading.config) | json_of(other.files, name, other.weights.label)
        changes[name] = Changes()
        made[name] = renumber(before, ids, own.rows, changes[name])
        take_over(before, made[name], theirs, changes[name], len(other.tokenizer))
        _settle(made[name], changes[name], name, own, other)
    config = made.pop("config.json")
    for role in ("bos", "eos", "pad"):
        key = f"{role}_token_id"
        if role in roles[0] and key not in config and roles[1].get(role) in other.tokenizer.ids:
            config[key] = other.tokenizer.ids[roles[1][role]]
            changes["config.json"].changed[key] = [None, config[key]]
    files |= {name: as_json(document) for name, document in made.items()}
    followed = Followed(files, config, changes, [n for n, c in files.items() if c is None])
    refuse_grown(followed, own.rows, len(other.tokenizer), label)
    return followed, ids


def _settle(made: Mapping[str, Any], changes: Changes, name: str, own: Vocabulary, other: Vocabulary) -> None:
    """Rows of parts that a vocabulary need not have are null now; others cannot be left out."""
    for key, value in changes.lost.items():
        if key.rpartition(".")[2] not in {f"{role}_token_id" for role in ROLES}:
            token = own.tokenizer.tokens[value] if value < len(own.tokenizer) else "a row without a token"
            raise RequestError(
                f"{own.weights.label}, {name}: {key} is {value} ({token!r}), which {other.tokenizer.source} does not "
                "have. Extend the donor's vocabulary by it first (extend_vocabulary)"
            )
    changes.lost.clear()


def _template(files: dict[str, bytes | None], own: Vocabulary, other: Vocabulary, choice: str) -> None:
    if choice == "donor":
        return
    label = own.weights.label
    for name in [name for name in files if is_template(name)]:
        files[name] = None
    document = json_of(other.files, TOKENIZER_CONFIG, other.weights.label)
    document.pop("chat_template", None)
    if choice == "own":
        texts = templates(own.files, label)
        if not texts:
            raise RequestError(f"{label!r} has no chat template to keep (chat_template: own)")
        needed = [token for token in mentioned(texts, own.tokenizer) if token in own.tokenizer.ids]
        if lost := [token for token in needed if token not in other.tokenizer.ids]:
            raise RequestError(
                f"the chat template of {label!r} writes {listing(lost)}, which are no tokens of "
                f"{other.tokenizer.source}. Extend the donor's vocabulary first (extend_vocabulary), or take "
                "chat_template: donor"
            )
        mine = json_of(own.files, TOKENIZER_CONFIG, label)
        if "chat_template" in mine:
            document["chat_template"] = mine["chat_template"]
        files.update({name: raw for name, raw in own.files.items() if is_template(name)})
    if document or TOKENIZER_CONFIG in other.files:
        files[TOKENIZER_CONFIG] = as_json(document)
