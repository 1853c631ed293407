"""Parents whose tokenizers give the same rows to other tokens: refused, lined up, allowed, or told."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from makers import read_model, write_model
from tiny_llamas import config, llama_arrays
from tokenizers import Tokenizer, models, pre_tokenizers

import merganser as mg
from merganser import recipe
from merganser.algebra import axes
from merganser.cli import run
from merganser.errors import AlgebraError, RequestError
from merganser.methods.steps import get_step
from merganser.tokenizer import token_ids

WORDS = ["<unk>", "</s>", "red", "green", "blue", "one", "two", "three"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def word_level(tokens):
    made = Tokenizer(models.WordLevel({token: k for k, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "</s>"])
    return made.to_str().encode()


def fast(*tokens):
    return {"tokenizer.json": word_level(tokens)}


def pieces(*tokens):
    """A SentencePiece file: a message of protobuf with a message for each piece."""
    raw = b""
    for token in tokens:
        text = token.encode()
        inner = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x80\xbf"
        raw += b"\x0a" + bytes([len(inner)]) + inner
    return {"tokenizer.model": raw + b"\x12\x02\x08\x01"}


def parents(home, ours, theirs, names=("a", "b"), **changes):
    """Two models with these tokenizer files; their tensors by name."""
    found = {}
    for seed, (name, files) in enumerate(zip(names, (ours, theirs), strict=True)):
        sizes = {"num_hidden_layers": 2, "vocab_size": 9} | changes
        found[name] = llama_arrays(seed, **{k: v for k, v in sizes.items() if isinstance(v, int)})
        write_model(home / name, found[name], config(**sizes))
        for file, raw in files.items():
            (home / name / file).write_bytes(raw)
    return found


def swapped(a, b):
    order = list(WORDS)
    i, j = order.index(a), order.index(b)
    order[i], order[j] = order[j], order[i]
    return order


def built(text):
    weights, _ = recipe.build(recipe.load(text))
    return weights


LINEAR = (
    "method: linear\nmodels: [{model: a, parameters: {weight: 0.5}}, {model: b, parameters: {weight: 0.5}}]\n"
)
WAYS = {
    "linear": LINEAR,
    "a task vector": "method: task_arithmetic\nbase_model: a\nmodels: [{model: b, parameters: {weight: 0.5}}]\n",
    "a base that lends its files": "method: linear\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1.0}}]\n",
    "slices": (
        "method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 1]}]\n"
        "- sources: [{model: b, layer_range: [1, 2]}]\n"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe_refuses_and_both_ways_out_work(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    arrays = parents(tmp_path, fast(*WORDS), fast(*swapped("red", "three")))
    with pytest.raises(RequestError, match=r"'red' is token (2 in 'a' and token 7 in 'b'|7 in 'b')") as told:
        built(WAYS[way])
    wanted = re.search(r"allow: \[tokenizer\]", str(told.value))[0]
    built(f"{WAYS[way]}{wanted}\n").save(tmp_path / "by-place", sync=False)
    sources = re.findall(r"`(tokenizer_source: \w+)`", str(told.value))
    assert sources == ["tokenizer_source: union", "tokenizer_source: base"]
    for k, source in enumerate(sources):
        built(f"{WAYS[way]}{source}\n").save(tmp_path / f"lined-up-{k}", sync=False)
        if way == "linear":
            found = read_model(tmp_path / f"lined-up-{k}")
            assert found[EMBEDDING].shape[0] >= len(WORDS)
            ids = Tokenizer.from_file(str(tmp_path / f"lined-up-{k}" / "tokenizer.json")).get_vocab()
            for name in (EMBEDDING, HEAD):
                for token, row in ids.items():
                    other = swapped("red", "three").index(token)
                    mean = (arrays["a"][name][WORDS.index(token)] + arrays["b"][name][other]) / 2
                    np.testing.assert_allclose(found[name][row], mean, rtol=1e-6)
    if way == "linear":
        mean = (arrays["a"][EMBEDDING] + arrays["b"][EMBEDDING]) / 2
        np.testing.assert_allclose(read_model(tmp_path / "by-place")[EMBEDDING], mean, rtol=1e-6)


def test_python_refuses_and_its_ways_out_work(tmp_path):
    parents(tmp_path, fast(*WORDS), fast(*swapped("green", "two")), vocab_size=8)
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    for join in (
        lambda: (a + b) / 2,
        lambda: b - a,
        lambda: axes.stack([(a, range(2)), (b, range(2))], "layer"),
        lambda: a.override(b.select("lm_head.weight")),
        lambda: mg.maximum(a, b),
    ):
        with pytest.raises(
            AlgebraError, match=r"'green' is token \d .*\.allow\('tokenizer'\) on '[ab]'.* allow: "
        ):
            join()
    assert len((a + b.allow("tokenizer")) / 2) == len(a)
    a.override(b.select("*.mlp.*"))  # no row of a token
    assert len(axes.concat([a, b], "neurons")) == len(a)
    step = get_step("union_tokenizers")
    one, two = step.function(a, others=b), step.function(b, others=a, place=1)
    assert len((one + two) / 2) == len(a)
    assert len((a + get_step("transplant_tokenizer").function(b, donor=a)) / 2) == len(a)
    with pytest.raises(AlgebraError, match="'green' is token"):
        (two + b) / 2  # a model that was given another vocabulary and one that was not


SAME = {
    "the same file": (fast(*WORDS), fast(*WORDS)),
    "tokens at the end": (fast(*WORDS[:6]), fast(*WORDS)),
    "no tokenizer": ({}, fast(*WORDS)),
    "no tokenizer at all": ({}, {}),
    "other settings": (
        fast(*WORDS) | {"tokenizer_config.json": b'{"chat_template": "x", "eos_token": "</s>"}'},
        fast(*WORDS) | {"tokenizer_config.json": b'{"model_max_length": 9}'},
    ),
    "what is no tokenizer": ({"tokenizer.json": b"{}"}, fast(*WORDS)),
    "what is no JSON": ({"tokenizer.json": b"\xff"}, fast(*WORDS)),
    "a list and the same in tokenizer.json": ({"vocab.txt": "\n".join(WORDS).encode() + b"\n"}, fast(*WORDS)),
    "pieces and what is numbered by the loader": (pieces("<unk>", "x"), fast(*WORDS)),
    "the same pieces": (pieces(*WORDS), pieces(*WORDS)),
    "tokens beyond the rows": (fast(*WORDS, "z", "x", "y"), fast(*WORDS, "z", "y", "x")),
}
OTHER = {
    "a token more in the middle": (fast(*WORDS[:-1]), fast("<unk>", "</s>", "new", *WORDS[2:-1])),
    "another token in one place": (fast(*WORDS[:-1], "<|user|>"), fast(*WORDS[:-1], "<pad>")),
    "vocab.txt": ({"vocab.txt": "\n".join(WORDS).encode()}, {"vocab.txt": "\n".join(WORDS[::-1]).encode()}),
    "vocab.json": (
        {"vocab.json": json.dumps({t: k for k, t in enumerate(WORDS)}).encode()},
        {"vocab.json": json.dumps({t: k for k, t in enumerate(swapped("one", "two"))}).encode()},
    ),
    "vocab.json and tokenizer.json": (
        {"vocab.json": json.dumps({t: k for k, t in enumerate(WORDS)}).encode()},
        fast(*swapped("one", "two")),
    ),
    "SentencePiece": (pieces(*WORDS), pieces(*swapped("one", "two"))),
    "added_tokens.json": (
        pieces(*WORDS[:6]) | {"added_tokens.json": b'{"<a>": 6, "<b>": 7}'},
        pieces(*WORDS[:6]) | {"added_tokens.json": b'{"<b>": 6, "<a>": 7}'},
    ),
    "added_tokens_decoder": (
        fast(*WORDS[:6])
        | {"tokenizer_config.json": b'{"added_tokens_decoder": {"6": {"content": "<a>"}, "7": {"content": "<b>"}}}'},
        fast(*WORDS[:6])
        | {"tokenizer_config.json": b'{"added_tokens_decoder": {"6": {"content": "<c>"}, "7": {"content": "<b>"}}}'},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME)
def test_tokenizers_that_agree_are_no_reason(tmp_path, case):
    parents(tmp_path, *SAME[case])
    assert len((mg.open(tmp_path / "a") + mg.open(tmp_path / "b")) / 2)
    assert len((mg.open(tmp_path / "b") + mg.open(tmp_path / "a")) / 2)


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("kind", ["llama", "a type without a family"])
def test_tokenizers_that_do_not_agree_are_one_in_every_form(tmp_path, case, kind):
    parents(tmp_path, *OTHER[case], model_type=kind)
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    for one, two in ((a, b), (b, a)):
        with pytest.raises(
            AlgebraError, match=r"the tokenizers give rows to other tokens: .* is token \d in "
        ):
            (one + two) / 2
        assert len(one.drop(EMBEDDING, HEAD) + two.drop(EMBEDDING, HEAD))  # no row of a token is left


def test_the_files_are_read_once_for_a_parent_and_not_without_rows(tmp_path, monkeypatch):
    parents(tmp_path, fast(*WORDS), fast(*WORDS[:6], "three", "two"))
    from merganser.algebra import tokens

    read = []
    plain = tokens.read_small
    monkeypatch.setattr(tokens, "read_small", lambda path: read.append(path.parent.name) or plain(path))
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    a.drop(EMBEDDING, HEAD) + b
    assert not read
    for _ in range(3):
        with pytest.raises(AlgebraError, match="'two' is token 6"):
            a + b
    assert sorted(read) == ["a", "a", "b", "b"]  # for its digest, and then for its tokens


def test_mergekits_form_merges_by_place_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrays = parents(tmp_path, fast(*WORDS), fast(*swapped("red", "blue")))
    (tmp_path / "r.yml").write_text(LINEAR.replace("method", "merge_method"))
    assert run(["merge", "r.yml", "out", "--no-sync"]) == 0
    told = capsys.readouterr()
    assert "warning: rows of embeddings and heads are merged by place" in told.err
    assert "'red' is token 2 in 'a' and token 4 in 'b'" in told.err
    mean = (arrays["a"][EMBEDDING] + arrays["b"][EMBEDDING]) / 2
    np.testing.assert_allclose(read_model(tmp_path / "out")[EMBEDDING], mean, rtol=1e-6)
    assert any(
        "warning" in note for note in json.loads((tmp_path / "out" / "merganser.json").read_text())["notes"]
    )
    text = (tmp_path / "r.yml").read_text()
    for wanted in ("allow: [tokenizer]", "tokenizer_source: union", "tokenizer_source: base"):
        assert wanted in told.err or wanted.endswith("base")
        (tmp_path / "r.yml").write_text(f"{text}{wanted}\n")
        assert run(["merge", "r.yml", "out", "--no-sync", "--overwrite"]) == 0
        assert "warning" not in capsys.readouterr().err


@pytest.mark.models
@pytest.mark.parametrize("kind", ["byte_level", "unigram", "word_piece"])
def test_ids_are_those_of_transformers(tmp_path, kind):
    import tiny_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizers.KINDS[kind](), eos_token="<eos>")
    made.add_tokens(["<tool>", "<|later|>"])
    made.save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    live = AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert token_ids(files, "x", 10_000) == live
