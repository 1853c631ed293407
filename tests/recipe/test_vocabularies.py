"""Models of several vocabularies in one merge: every rule against a few lines of NumPy."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import BF16, ROOT, files_of, normal, read_model, write_model
from tiny_tokenizers import ENGLISH, RUSSIAN

import merganser as mg
from merganser.errors import AlgebraError, RequestError
from merganser.recipe import build, load
from merganser.recipe.vocabularies import merge_vocabularies, read_vocabulary
from merganser.tokenizer.chat import FORMATS, default_template

WIDTH = 4
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def words_file(tokens: Sequence[str], added: Sequence[str] = ()) -> dict[str, Any]:
    """A tokenizer.json of whole words; `added` are among them or come after them."""
    every = [*tokens, *(token for token in added if token not in tokens)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": every.index(token), "content": token, **flags} for token in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {t: i for i, t in enumerate(tokens)}, "unk_token": tokens[0]},
    }


def model(
    path: Path,
    tokens: Sequence[str] | None,
    *,
    added: Sequence[str] = (),
    spare: int = 0,
    rows: int | None = None,
    tied: bool = False,
    dtype: Any = np.float32,
    width: int = WIDTH,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    template: str | None = None,
    generation: Mapping[str, Any] | None = None,
) -> mg.Weights:
    """A one-layer Llama with a tokenizer of whole words, written and opened."""
    every = [] if tokens is None else [*tokens, *(token for token in added if token not in tokens)]
    rows = len(every) + spare if rows is None else rows
    sides = dict.fromkeys([f"self_attn.{side}_proj" for side in "qkvo"], (width, width))
    shapes = sides | {"mlp.gate_proj": (6, width), "mlp.up_proj": (6, width), "mlp.down_proj": (width, 6)}
    shapes |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (width,))
    tensors = {
        f"model.layers.0.{name}.weight": normal(*shape, seed=seed + 7, dtype=dtype)
        for name, shape in shapes.items()
    }
    tensors |= {NORM: normal(width, seed=seed, dtype=dtype)}
    tensors |= {EMBEDDING: normal(rows, width, seed=seed + 100, dtype=dtype)}
    if not tied:
        tensors[HEAD] = normal(rows, width, seed=seed + 200, dtype=dtype)
    numbers = {"vocab_size": rows, "hidden_size": width, "intermediate_size": 6, "num_hidden_layers": 1}
    write_model(
        path,
        tensors,
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "num_attention_heads": 2,
            "tie_word_embeddings": tied,
            **numbers,
            **(config or {}),
        },
    )
    if tokens is not None:
        (path / "tokenizer.json").write_text(json.dumps(words_file(tokens, added)))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": tokens[0], **(settings or {})}
    if settings:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return mg.open(path, name=path.name)


def read(text: str, names: Mapping[str, int] | None = None):
    """A vocabulary from YAML; `names` are the models that it may name."""
    import yaml

    def resolve(reference: Any, place: str) -> int:
        if not isinstance(reference, str) or reference not in (names or {}):
            raise RequestError(f"{place}: no model {reference!r}")
        return names[reference]

    return read_vocabulary(yaml.safe_load(text), "recipe", resolve)


def merge(text: str, models: Sequence[mg.Weights], base: int | None = None, **options: Any):
    names = {weights.label: i for i, weights in enumerate(models)}
    return merge_vocabularies(read(text, names), models, base, **options)


def tokens_of(files: Mapping[str, bytes | None]) -> list[str]:
    """The tokens of a written tokenizer.json by id, read by hand."""
    document = json.loads(files["tokenizer.json"])
    ids = dict(document["model"]["vocab"]) | {t["content"]: t["id"] for t in document["added_tokens"]}
    assert sorted(ids.values()) == list(range(len(ids)))
    return sorted(ids, key=ids.__getitem__)


def table(weights: mg.Weights, tokens: Sequence[str], name: str) -> dict[str, np.ndarray]:
    """Every token's row of a model as it was stored."""
    stored = read_model(weights.origin.directory)
    array = stored[name if name in stored else EMBEDDING].astype(np.float32)
    return dict(zip(tokens, array, strict=False))


def expected(
    tables: Sequence[Mapping[str, np.ndarray]], out: Sequence[str], base: int | None
) -> list[np.ndarray]:
    """The rows of all models by the rules for tokens that are not listed, one token and model at a time."""
    shape = next(iter(tables[0].values())).shape
    found = [np.zeros((len(out), *shape), np.float32) for _ in tables]
    for at, token in enumerate(out):
        holders = [k for k, rows in enumerate(tables) if token in rows]
        for k, rows in enumerate(tables):
            if token in rows:
                found[k][at] = rows[token]
            elif len(holders) == 1:
                found[k][at] = tables[holders[0]][token]
            elif base in holders:
                found[k][at] = tables[base][token]
            elif holders:
                found[k][at] = sum(tables[h][token] for h in holders) / np.float32(len(holders))
    return found


A = ["<unk>", "the", "quick", "fox", "a-only"]
B = ["<unk>", "fox", "the", "bear", "honey"]
C = ["<unk>", "quick", "bear", "c-only", "the", "wolf"]


def three(tmp_path: Path, **options: Any) -> list[mg.Weights]:
    return [
        model(tmp_path / name, tokens, seed=k, **options)
        for k, (name, tokens) in enumerate({"a": A, "b": B, "c": C}.items())
    ]


# Rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
@pytest.mark.parametrize("base", [None, 0, 2])
@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_rows_by_the_rules(source: str, base: int | None, tied: bool, dtype: Any, tmp_path: Path) -> None:
    models = three(tmp_path, tied=tied, dtype=dtype)
    made, files = merge(f"tokenizer_source: {source}", models, base)
    lists, first = [A, B, C], base or 0
    out = [*lists[first]]
    if source == "union":
        out += [t for other in lists for t in other if t not in out and other is not lists[first]]
        out = list(dict.fromkeys(out))
    elif source == "b":
        out = B
    assert tokens_of(files) == out
    for name in (EMBEDDING,) if tied else (EMBEDDING, HEAD):
        tables = [table(w, t, name) for w, t in zip(models, lists, strict=True)]
        for weights, rows in zip(made, expected(tables, out, base), strict=True):
            np.testing.assert_array_equal(np.asarray(mg.compute(weights, name)), rows)
    for weights, old in zip(made, models, strict=True):
        assert weights[NORM] is old[NORM] and list(weights) == list(old)
        assert weights.reading is None or weights.reading.followed()["vocab_size"] == len(out)
    note = made[0].notes[-1]
    have = [sum(token in one for one in lists) for token in out]
    assert note["tokens"] == note["rows"] == len(out) and note["shared"] == have.count(3)
    several = [token for token, number in zip(out, have, strict=True) if number == 2]
    averaged = [t for t in several if base is None or t not in lists[base]]
    assert note["averaged"] == len(averaged) and note["zero"] == 0
    assert sum(note["taken_from"].values()) == have.count(1) + len(several) - len(averaged)


def test_a_model_that_has_all_tokens_stays_as_it_is(tmp_path: Path) -> None:
    models = [model(tmp_path / name, A, seed=k, spare=3) for k, name in enumerate("ab")]
    made, files = merge("tokenizer_source: union", models)
    for weights, old in zip(made, models, strict=True):
        assert all(weights[name] is old[name] for name in old) and weights.reading is None
    assert files["tokenizer.json"] == (tmp_path / "a" / "tokenizer.json").read_bytes()
    assert made[0].notes[-1]["shared"] == len(A) and made[0].notes[-1]["padding_rows"] == 3


def test_a_head_of_its_own_where_one_has_it(tmp_path: Path) -> None:
    tied, own = model(tmp_path / "a", A, tied=True), model(tmp_path / "b", B, seed=1)
    made, files = merge("tokenizer_source: union", [tied, own])
    out = tokens_of(files)
    head = np.asarray(mg.compute(made[0], HEAD))
    old, other = table(tied, A, EMBEDDING), table(own, B, HEAD)
    np.testing.assert_array_equal(head, [old[t] if t in old else other[t] for t in out])
    assert made[0].reading.followed()["tie_word_embeddings"] is False and made[0].notes[-1]["untied"]


def test_models_that_only_lend(tmp_path: Path) -> None:
    """A tokenizer of a model of another width, and a row of a model that is not merged."""
    models = [model(tmp_path / "a", A), model(tmp_path / "b", B, seed=1)]
    wide = model(tmp_path / "wide", C, seed=2, width=8)
    extra = model(tmp_path / "extra", C, seed=3, spare=2)
    new = "{kind: model_token, model: extra, token_id: 7}"
    text = f"tokenizer: {{source: wide, tokens: {{wolf: {{source: extra}}, new: {{source: {new}}}}}}}"
    made, files = merge(text, [*models, wide, extra], merged=[0, 1])
    assert made[2] is wide and made[3] is extra
    out = tokens_of(files)
    assert out == [*C, "new"]
    tables = [table(models[0], A, EMBEDDING), table(models[1], B, EMBEDDING)]
    wanted = expected(tables, out, None)
    stored = read_model(tmp_path / "extra")[EMBEDDING]
    for weights, rows in zip(made[:2], wanted, strict=True):
        rows[out.index("wolf")], rows[out.index("new")] = stored[C.index("wolf")], stored[7]
        np.testing.assert_array_equal(np.asarray(mg.compute(weights, EMBEDDING)), rows)
    assert made[0].notes[-1]["zero_tokens"] == ["c-only"]
    text = text.replace("{source: extra}", "{source: wide}")
    with pytest.raises(AlgebraError, match="models of other widths have no rows in common"):
        merge(text, [*models, wide, extra], merged=[0, 1])


@pytest.mark.parametrize("force", [False, True])
def test_listed_tokens(force: bool, tmp_path: Path) -> None:
    models = three(tmp_path, spare=1)
    told = str(force).lower()
    text = f"""
    tokenizer:
      source: union
      tokens:
        fox: {{source: b, force: {told}}}
        bear: {{source: {{kind: model_token, model: a, token: quick}}, force: {told}}}
        honey: {{source: {{kind: model_token, model: c, token_id: 6}}, force: {told}}}
        the: {{source: {{kind: zero}}, force: {told}}}
        wolf: {{source: {{kind: zero}}, force: {told}}}
        new: {{source: {{kind: zero}}}}
        plain:
    """
    made, files = merge(text, models, 0)
    out = tokens_of(files)
    assert out[-2:] == ["new", "plain"]
    for name in (EMBEDDING, HEAD):
        tables = [table(w, t, name) for w, t in zip(models, [A, B, C], strict=True)]
        stored = read_model(tmp_path / "c")[name]
        zero = np.zeros(WIDTH, np.float32)
        listed = {
            "fox": tables[1]["fox"],
            "bear": tables[0]["quick"],
            "honey": stored[6],
            "the": zero,
            "wolf": zero,
            "new": zero,
            "plain": zero,
        }
        wanted = expected(tables, out, 0)
        for rows, own in zip(wanted, tables, strict=True):
            for token, row in listed.items():
                if force or token not in own:
                    rows[out.index(token)] = row
        for weights, rows in zip(made, wanted, strict=True):
            np.testing.assert_array_equal(np.asarray(mg.compute(weights, name)), rows)
    added = {t["content"]: t for t in json.loads(files["tokenizer.json"])["added_tokens"]}
    assert not added["new"]["special"] and added["new"]["normalized"]
    assert made[0].notes[-1]["forced"] == (5 if force else 0)


# Padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["keep", "drop"])
@pytest.mark.parametrize("multiple", [None, 4, 16])
def test_padding(multiple: int | None, padding: str, tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", A, spare=9), model(tmp_path / "b", B, seed=1, spare=4)
    rest = "" if multiple is None else f", pad_to_multiple_of: {multiple}"
    made, files = merge(f"tokenizer: {{source: union, padding: {padding}{rest}}}", [a, b], 0)
    out = tokens_of(files)
    kept = 14 - len(out) if padding == "keep" else 0
    total = -(-(len(out) + kept) // (multiple or 1)) * (multiple or 1)
    stored = [read_model(tmp_path / name)[EMBEDDING] for name in "ab"]
    tables = [dict(zip(tokens, rows, strict=False)) for tokens, rows in zip((A, B), stored, strict=True)]
    for k, rows in enumerate(expected(tables, out, 0)):
        got = np.asarray(mg.compute(made[k], EMBEDDING))
        assert got.shape == (total, WIDTH) and made[k].reading.followed()["vocab_size"] == total
        np.testing.assert_array_equal(got[: len(out)], rows)
        for row in range(len(out), len(out) + kept):
            home = k if row < len(stored[k]) else 0
            np.testing.assert_array_equal(got[row], stored[home][row])
        mean = rows.astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(
            got[len(out) + kept :], np.tile(mean, (total - len(out) - kept, 1)), rtol=1e-5, atol=1e-6
        )
    note = made[0].notes[-1]
    own = max(0, min(9, len(stored[1])) - len(out)) if padding == "keep" else 0
    assert note["padding_had_and_kept"] == {"a": [9, kept], "b": [4, own]}
    assert note["padding_rows_of_the_mean"] == total - len(out) - kept


def test_more_tokens_than_rows_and_no_tokenizer_at_all(tmp_path: Path) -> None:
    settings = {"image_token": "<img>", "additional_special_tokens": ["<s>", "<img>"]}
    a = model(tmp_path / "a", A, added=["<s>", "<img>"], rows=6, settings=settings)
    b, bare = model(tmp_path / "b", B, seed=1, rows=4), model(tmp_path / "bare", None, seed=2, rows=6)
    made, files = merge("tokenizer_source: union", [a, b, bare], 0)
    out = tokens_of(files)
    assert out == [*A, "<s>", "bear"]
    tables = [table(a, [*A, "<s>"], HEAD), table(b, B, HEAD), table(bare, [*A, "<s>"], HEAD)]
    for weights, rows in zip(made, expected(tables, out, 0), strict=True):
        np.testing.assert_array_equal(np.asarray(mg.compute(weights, HEAD)), rows)
    note = made[0].notes[-1]
    assert note["tokens_without_row"] == {"a": ["<img>"], "b": ["honey"]}
    assert note["taken_to_have_the_tokenizer_of_the_base"] == ["bare"]
    with pytest.raises(RequestError, match=r"'small' has no tokenizer, and 5 rows where 'a' has 6"):
        merge("tokenizer_source: union", [a, model(tmp_path / "small", None, rows=5)], 0)
    written = json.loads(files["tokenizer_config.json"])
    assert written["additional_special_tokens"] == ["<s>"] and "image_token" not in written


# Ids in configs -------------------------------------------------------------------------------------------------


def test_ids_follow_the_tokenizer(tmp_path: Path) -> None:
    roles = {"eos_token": "fox", "pad_token": "a-only"}
    base = model(
        tmp_path / "base",
        A,
        settings=roles,
        config={"eos_token_id": 3, "pad_token_id": 4, "bos_token_id": 1, "sep_token_id": 4},
        generation={"eos_token_id": [3], "suppress_tokens": [2, 4], "pad_token_id": 4},
    )
    chat = model(
        tmp_path / "chat", C, seed=1, settings={"eos_token": "wolf"}, config={"eos_token_id": [5, 3]}
    )
    made, files = merge("tokenizer_source: chat", [base, chat], 0)
    config = made[0].reading.followed()
    assert config["eos_token_id"] == [5, 3] and config["bos_token_id"] == C.index("the")
    assert config["pad_token_id"] is None and config["sep_token_id"] is None
    generation = json.loads(files["generation_config.json"])
    assert generation["eos_token_id"] == [5, 3] and generation["suppress_tokens"] == [1]
    assert "config.json: eos_token_id" in made[0].notes[-1]["config_changed"]
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "wolf"
    made, files = merge("tokenizer_source: union", [base, chat], 0)
    assert made[0].reading.config["eos_token_id"] == 3 and "generation_config.json" not in files


def test_ids_without_a_token(tmp_path: Path) -> None:
    base = model(tmp_path / "base", A, config={"image_token_id": 4})
    other = model(tmp_path / "other", C, seed=1)
    with pytest.raises(RequestError, match=r"image_token_id is 4 \('a-only'\), which .* does not have"):
        merge("tokenizer_source: other", [base, other], 0)
    made, _ = merge("tokenizer: {source: other, tokens: {a-only: {}}}", [base, other], 0)
    assert made[0].reading.config["image_token_id"] == len(C)
    base = model(tmp_path / "outside", A, config={"pad_token_id": 6})
    with pytest.raises(AlgebraError, match="pad_token_id is 6, beyond the 5 rows"):
        merge("tokenizer_source: union", [base, other], 0)
    base = model(tmp_path / "spare", A, spare=2, config={"image_token_id": 6})
    with pytest.raises(RequestError, match="a row without a token that would be gone"):
        merge("tokenizer: {source: base, padding: drop}", [base, other], 0)


# Chat templates -------------------------------------------------------------------------------------------------

LONG = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_the_most_frequent_template(tmp_path: Path) -> None:
    other = LONG + "!"
    several = [{"name": "tool", "template": "x"}, {"name": "default", "template": other}]
    models = [
        model(tmp_path / "a", A, template=LONG),
        model(tmp_path / "b", B, settings={"chat_template": other + "\n"}),
        model(tmp_path / "c", C, settings={"chat_template": several}),
        model(tmp_path / "d", A),
    ]
    made, files = merge("chat_template: auto", models, 0)
    assert files["chat_template.jinja"] == (other + "\n").encode()
    assert made[0].notes[-1] == {
        "step": "chat_template",
        "chat_template": "auto: that of b, c",
        "other_chat_templates": ["a"],
    }
    assert all(new[name] is old[name] for new, old in zip(made, models, strict=True) for name in old)
    assert merge("chat_template: auto", models[:2], 0)[1] == {}  # equal counts: the base's
    _, files = merge("chat_template: auto", models[:2], 1)
    assert files == {}
    _, files = merge("chat_template: auto", models[3:], 0)
    assert files == {}
    _, files = merge("chat_template: auto", [models[3], models[0]], 0)
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == LONG
    _, files = merge("{chat_template: auto, tokenizer_source: d}", [models[0], models[3]], 0)
    assert files["chat_template.jinja"] is None
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == LONG


def test_a_given_template(tmp_path: Path) -> None:
    models = [model(tmp_path / "a", A, template=LONG), model(tmp_path / "b", B)]
    _, files = merge("chat_template: chatml", models, 0)
    assert files == {"chat_template.jinja": FORMATS["chatml"].encode()}
    made, files = merge("{chat_template: chatml, tokenizer: {tokens: {<|im_start|>: {}}}}", models, 1)
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == FORMATS["chatml"]
    assert made[0].notes[-1]["chat_template_writes_what_is_no_token"] == ["<|im_end|>"]
    _, files = merge(f'chat_template: "{LONG}"', models, 1)
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == LONG
    held = {name: raw for name, raw in files.items() if raw is not None}
    assert default_template(held, "b") == LONG
    bare = model(tmp_path / "bare", None, rows=5)
    with pytest.raises(RequestError, match=r"chat_template: 'bare' has no tokenizer that could hold it"):
        merge("chat_template: chatml", [bare])


# Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{tokenizer_source: union, tokenizer: {source: base}}", "either tokenizer_source or tokenizer"),
        ("tokenizer: union", "tokenizer: expected {source: union, ...}, not 'union'"),
        ("tokenizer: {sourc: union}", "tokenizer.sourc: unknown key; did you mean 'source'?"),
        ("tokenizer_source: nowhere", "tokenizer_source: no model 'nowhere'"),
        ("tokenizer: {source: nowhere}", "tokenizer.source: no model 'nowhere'"),
        ("tokenizer: {tokens: [x]}", "tokenizer.tokens: expected {token: {source: ...}}, not a list"),
        ("tokenizer: {tokens: {x: a}}", "tokens['x']: expected {source: ..., force: ...}, not 'a'"),
        ("tokenizer: {tokens: {x: {forced: true}}}", "tokens['x'].forced: unknown key; did you mean 'force'?"),
        ("tokenizer: {tokens: {x: {source: a, force: 3}}}", "force: expected true or false, not 3"),
        ("tokenizer: {tokens: {x: {force: true}}}", "force needs a source"),
        ("tokenizer: {tokens: {'': {}}}", "no text that can be a token"),
        ("tokenizer: {pad_to_multiple_of: 0}", "pad_to_multiple_of: expected a whole number from 1, not 0"),
        ("tokenizer: {pad_to_multiple_of: true}", "pad_to_multiple_of: expected a whole number from 1, not true"),
        ("tokenizer: {padding: mean}", "padding: expected keep or drop, not 'mean'"),
        ("chat_template: chatlm", "neither a known name nor a template; did you mean 'chatml'?"),
        ("chat_template: 3", "chat_template: expected auto, alpaca, chatml"),
    ],
)  # fmt: skip
def test_what_a_recipe_may_not_say(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        read(text, {"a": 0})
    assert str(caught.value).startswith("recipe: ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kind: zeros", "kind: expected model_token or zero, not 'zeros'; did you mean 'zero'?"),
        ("kind: zero, model: a", ".model: unknown key (known: kind)"),
        ("kind: model_token, token: b", "names no model"),
        ("kind: model_token, model: a", "needs either token or token_id"),
        ("kind: model_token, model: a, token: b, token_id: 1", "needs either token or token_id"),
        ("kind: model_token, model: a, token_id: -1", "token_id: expected a whole number from 0, not -1"),
        ("kind: model_token, model: a, token: 5", "token: expected a token's text, in quotes, not 5"),
    ],
)  # fmt: skip
def test_what_a_token_s_source_may_not_say(source: str, message: str) -> None:
    place = "recipe: tokenizer.tokens['x'].source"
    with pytest.raises(RequestError, match=f"{re.escape(place)}.*{re.escape(message)}"):
        read(f"tokenizer: {{tokens: {{x: {{source: {{{source}}}}}}}}}", {"a": 0})


def test_nothing_said() -> None:
    assert read("tokenizer: null") is None and read_vocabulary({}, "recipe", lambda *_: 0) is None
    said = read("tokenizer: {source: base, padding: drop}")
    assert said.canonical == {"tokenizer": {"source": "base", "padding": "drop"}}
    assert json.dumps(said.canonical)


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", A), model(tmp_path / "b", B, seed=1)
    with pytest.raises(RequestError, match=r"tokens\['x'\].source: .* has no token 'x'"):
        merge("tokenizer: {tokens: {x: {source: a}}}", [a, b])
    with pytest.raises(RequestError, match=r"has no token 'quikc'; did you mean 'quick'"):
        merge("tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: quikc}}}}", [a, b])
    with pytest.raises(RequestError, match=r"there is no row 5 in 'a', which has 5"):
        merge("tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: 5}}}}", [a, b])
    with pytest.raises(AlgebraError, match=r"needs rows of .* models of other widths"):
        merge("tokenizer_source: union", [a, model(tmp_path / "wide", C, width=8)])
    with pytest.raises(RequestError, match=r"recipe: tokenizer: 'bare' has no tokenizer.json"):
        merge("tokenizer_source: base", [model(tmp_path / "bare", None, rows=5), a])
    (tmp_path / "b" / "tokenizer.json").rename(tmp_path / "b" / "tokenizer.model")
    with pytest.raises(RequestError, match=r"'b' has no tokenizer.json \(it has tokenizer.model\)"):
        merge("tokenizer_source: base", [a, mg.open(tmp_path / "b", name="b")])
    toy = mg.open(write_model(tmp_path / "toy", {"w": normal(3)}), name="toy")
    with pytest.raises(
        RequestError, match=r"recipe: tokenizer: toy: there is no family file .* draft of one"
    ):
        merge("tokenizer_source: union", [a, toy])


# Whole recipes --------------------------------------------------------------------------------------------------


def test_the_same_bytes_for_any_threads_and_tiles(tmp_path: Path) -> None:
    for name, tokens in {"a": A, "b": B, "c": C}.items():
        model(tmp_path / name, tokens, seed=ord(name), spare=1, dtype=BF16)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "merge_method: linear\nmodels:\n"
        + "".join(f"  - {{model: {tmp_path / name}, parameters: {{weight: 1}}}}\n" for name in "abc")
        + "tokenizer: {source: union, pad_to_multiple_of: 8}\ndtype: float32\n"
    )
    found = []
    for number, options in enumerate(({"threads": 1}, {"threads": 2}, {"threads": 2, "tile": 2**16})):
        weights, fields = build(load(recipe))
        weights.save(tmp_path / f"out{number}", **fields, **options)
        found.append(files_of(tmp_path / f"out{number}"))
    assert found[0] == found[1]
    # Digests are made of whole chunks, which such tiles cut.
    same = found[2].keys() - {"merganser.json"}
    assert all(found[2][name] == found[0][name] for name in same) and "model.safetensors" in same
    got = read_model(tmp_path / "out0")
    out = tokens_of({n: raw for n, raw in found[0].items() if n == "tokenizer.json"})
    for name in (EMBEDDING, HEAD):
        tables = [table(mg.open(tmp_path / n), t, name) for n, t in {"a": A, "b": B, "c": C}.items()]
        wanted = np.mean(np.array(expected(tables, out, None), np.float64), axis=0)
        np.testing.assert_allclose(got[name][: len(out)], wanted, rtol=1e-5, atol=1e-6)
        assert got[name].shape[0] == 16
    assert json.loads(found[0]["config.json"])["vocab_size"] == 16
    manifest = json.loads(found[0]["merganser.json"])
    assert sum(note["step"] == "tokenizer" for note in manifest["notes"]) == 1


def test_task_vectors_in_one_vocabulary(tmp_path: Path) -> None:
    paths = {"base": A, "chat": [*A, "<|im_start|>"], "code": [*A, "<tool>"]}
    for k, (name, tokens) in enumerate(paths.items()):
        model(tmp_path / name, tokens, seed=k)
    text = f"""
merge_method: task_arithmetic
base_model: {tmp_path / "base"}
models:
  - {{model: {tmp_path / "chat"}, parameters: {{weight: 0.5}}}}
  - {{model: {tmp_path / "code"}, parameters: {{weight: 0.25}}}}
tokenizer_source: union
dtype: float32
"""
    weights, fields = build(load(text))
    weights.save(tmp_path / "out", **fields, threads=1)
    got = read_model(tmp_path / "out")[EMBEDDING].astype(np.float64)
    files = {"tokenizer.json": (tmp_path / "out" / "tokenizer.json").read_bytes()}
    out = tokens_of(files)
    assert out == [*A, "<|im_start|>", "<tool>"]
    tables = [table(mg.open(tmp_path / n), t, EMBEDDING) for n, t in paths.items()]
    base, chat, code = (rows.astype(np.float64) for rows in expected(tables, out, 0))
    np.testing.assert_allclose(got, base + 0.5 * (chat - base) + 0.25 * (code - base), atol=1e-6)
    mg.verify(tmp_path / "out")


# What transformers makes of it ------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The makers of models with trained tokenizers; what they write is removed afterwards."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(ROOT / "tests" / "methods")
    monkeypatch.chdir(tmp_path)
    import vocabulary_models

    yield vocabulary_models
    vocabulary_models.clean()


def saved(text: str, out: Path) -> Path:
    weights, fields = build(load(text))
    weights.save(out, **fields, threads=1)
    mg.verify(out)
    return out


PAIR = """
merge_method: linear
models:
  - {{model: {0}, parameters: {{weight: 0.75}}}}
  - {{model: {1}, parameters: {{weight: 0.25}}}}
dtype: float32
"""


@pytest.mark.models
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "word_piece", "unigram"])
def test_a_union_that_transformers_opens(kind: str, trained: Any, tmp_path: Path) -> None:
    places = [trained.make(kind, texts=texts, seed=k) for k, texts in enumerate(("en", "ru"))]
    text = PAIR.format(*places) + "tokenizer: {source: union, tokens: {'<|tool|>': {}}}\n"
    new = trained.Model(saved(text, tmp_path / "out"))
    olds = [trained.Model(place) for place in places]
    vocabularies = [old.tokenizer.get_vocab() for old in olds]
    made = new.tokenizer.get_vocab()
    assert set(made) == set().union(*vocabularies) | {"<|tool|>"}
    assert all(made[token] == i for token, i in vocabularies[0].items())
    for part in ("embedding", "head"):
        for token, i in made.items():
            rows = [getattr(o, part)[v[token]] for o, v in zip(olds, vocabularies, strict=True) if token in v]
            first, second = rows if len(rows) == 2 else (rows or [np.zeros(16)]) * 2
            np.testing.assert_allclose(getattr(new, part)[i], 0.75 * first + 0.25 * second, atol=1e-6)
    for line in (*ENGLISH, *RUSSIAN):
        assert new.tokenizer.unk_token is None or new.tokenizer.unk_token_id not in new.ids(line)
    assert made["<|tool|>"] in new.ids("of <|tool|> data")
    assert np.isfinite(new.logits(new.ids(ENGLISH[0]))).all()


FAMILIES = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "qwen2": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    },
    "bart": {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 32,
    },
}
CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "qwen2": "Qwen2ForCausalLM",
    "bart": "BartForConditionalGeneration",
}


@pytest.mark.models
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_with_a_row_per_token(family: str, trained: Any, tmp_path: Path) -> None:
    """Tied heads, heads of their own in bf16, and a bias whose tokens are the second dimension."""
    import torch
    import transformers

    places = []
    for k, texts in enumerate(("en", "ru", "")):
        words = transformers.AutoTokenizer.from_pretrained(trained.make("byte_level", texts=texts))
        config = transformers.AutoConfig.for_model(
            family,
            vocab_size=len(words) + 2 * k,
            **dict.fromkeys(("bos_token_id", "decoder_start_token_id"), 0),
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            forced_eos_token_id=None,
            **FAMILIES[family],
        )
        torch.manual_seed(k)
        made = getattr(transformers, CLASSES[family])(config).to(config.dtype or torch.float32)
        for tensor in made.state_dict().values():
            tensor.normal_()
        made.save_pretrained(tmp_path / f"m{k}")
        words.save_pretrained(tmp_path / f"m{k}")
        places.append(tmp_path / f"m{k}")
    text = PAIR.format(*places).replace("0.75", "0.5") + "tokenizer: {source: union, padding: drop}\n"
    text = text.replace("dtype", f"  - {{model: {places[2]}, parameters: {{weight: 0.25}}}}\ndtype", 1)
    new = trained.Model(saved(text, tmp_path / "out"))
    out = new.tokenizer.convert_ids_to_tokens(range(len(new.tokenizer)))
    olds = [trained.Model(place) for place in places]
    vocabularies = [old.tokenizer.get_vocab() for old in olds]
    found = 0
    for name, got in new.tensors.items():
        if len(out) not in got.shape:
            continue
        found += 1
        dim = got.shape.index(len(out))
        tables = []
        for old, ids in zip(olds, vocabularies, strict=True):
            rows = np.moveaxis(old.tensors[name].astype(np.float32), dim, 0)
            tables.append({token: rows[i] for token, i in ids.items()})
        first, second, third = expected(tables, out, None)
        wanted = 0.5 * first + 0.25 * second + 0.25 * third
        np.testing.assert_allclose(np.moveaxis(got, dim, 0), wanted, atol=1e-6)
    assert found == {"gpt2": 1, "qwen2": 2, "bart": 2}[family] and new.config["vocab_size"] == len(out)
    assert any(0 < sum(t in ids for ids in vocabularies) < 3 for t in out)


@pytest.mark.models
def test_another_model_s_tokenizer_and_template(trained: Any, tmp_path: Path) -> None:
    places = [trained.make("byte_level", texts="en", seed=1), trained.make("byte_level", texts="ru", seed=2)]
    donor = trained.make("byte_level", spare=5, hidden=24, seed=3)
    text = PAIR.format(*places) + f"tokenizer: {{source: {donor}}}\nchat_template: chatml\n"
    new, other = trained.Model(saved(text, tmp_path / "out")), trained.Model(donor)
    assert new.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert new.config["vocab_size"] == len(other.embedding) == len(other.tokenizer) + 5
    said = [{"role": "user", "content": "hello"}]
    shown = new.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    assert shown == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert "<|im_start|>" in new.tokenizer.convert_ids_to_tokens(new.ids(shown))
    assert np.isfinite(new.logits(new.ids(ENGLISH[0]))).all()


TURNS = [
    {"role": "user", "content": "One? "},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]
SHOWN = {
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\nOne?\n\n### Response:\nTwo.</s>\n\n### Instruction:\nThree?\n\n### Response:\n",
    "chatml": "<|im_start|>user\nOne? <|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
    "<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|][|endofturn|]\n[|user|]One? \n[|assistant|]Two.[|endofturn|]\n[|user|]Three?\n[|assistant|]",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nThree?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] One?  [/INST] Two.</s> [INST] Three? [/INST]",
}
TOLD = {
    "alpaca": "Be brief.\n\n### Instruction:\nOne?\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne? <|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|]Be brief.[|endofturn|]\n[|user|]One? \n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be brief.\n\nOne?  [/INST]",
}


@pytest.mark.models
@pytest.mark.parametrize("name", FORMATS)
def test_what_the_named_templates_write(name: str, trained: Any, tmp_path: Path) -> None:
    place = trained.make("byte_fallback", texts="en")
    text = f"merge_method: passthrough\nmodels:\n  - model: {place}\nchat_template: {name}\n"
    new = trained.Model(saved(text, tmp_path / "out"))
    for turns, shown in (
        (TURNS, SHOWN[name]),
        ([{"role": "system", "content": "Be brief."}, TURNS[0]], TOLD[name]),
    ):
        got = new.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert got == shown
    if name == "mistral":
        with pytest.raises(Exception, match="must take turns"):
            new.tokenizer.apply_chat_template(TURNS[:1] * 2, tokenize=False)


@pytest.mark.models
def test_the_recipes_of_the_page(trained: Any, tmp_path: Path) -> None:
    places = {"base": "", "math": "en", "code": "ru"}
    for k, (name, texts) in enumerate(places.items()):
        shutil.copytree(trained.make("byte_level", texts=texts, seed=k), tmp_path / name)
    page = (ROOT / "docs" / "vocabulary.md").read_text()
    texts = re.findall(r"```yml\n(.*?)```", page, re.DOTALL)
    assert len(texts) == 2
    for number, text in enumerate(texts):
        new = trained.Model(saved(text, tmp_path / f"out{number}"))
        assert new.ids(ENGLISH[0]) and len(new.embedding) == new.config["vocab_size"] >= len(new.tokenizer)


@pytest.mark.parametrize("base", [None, "c"])
def test_rows_at_the_ends_of_slices_come_from_the_models_of_their_slice(
    base: str | None, tmp_path: Path
) -> None:
    """mergekit 0.1.5 (PermutedEmbeddings): a token that a slice's models lack gets their rows alone, else zeros."""
    words = {"a": ["u", "x", "y"], "b": ["u", "y", "z", "both"], "c": ["u", "both", "w", "x"]}
    opened = {k: model(tmp_path / k, tokens, seed=9 * i) for i, (k, tokens) in enumerate(words.items())}
    slices = [["a", "b"], ["b", "c"]]
    text = "merge_method: linear\ntokenizer_source: union\n"
    text += (f"base_model: {tmp_path / base}\n" if base else "") + "slices:\n"
    for sources in slices:
        entries = ", ".join(
            f"{{model: {tmp_path / k}, layer_range: [0, 1], parameters: {{weight: 1}}}}" for k in sources
        )
        text += f"- sources: [{entries}]\n"
    weights, fields = build(load(text))
    mg.save(weights, tmp_path / "out", sync=False, **fields)
    made = read_model(tmp_path / "out")
    raw = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    ids = raw["model"]["vocab"] | {one["content"]: one["id"] for one in raw["added_tokens"]}
    assert set(ids) == {word for tokens in words.values() for word in tokens}
    for name, sources in ((EMBEDDING, slices[0]), (HEAD, slices[1])):
        rows = {k: {w: mg.compute(opened[k], name)[i] for i, w in enumerate(words[k])} for k in sources}
        for word, at in ids.items():
            held = [rows[k][word] for k in sources if word in rows[k]]
            given = (
                np.zeros(WIDTH)
                if not held
                else rows[base][word]
                if base in sources and word in rows[base]
                else np.mean(held, axis=0)
            )
            exact = np.mean([rows[k].get(word, given) for k in sources], axis=0)
            np.testing.assert_allclose(made[name][at], exact, rtol=1e-5, atol=1e-6, err_msg=f"{name} {word}")
