"""Tokenizers as data, against the tokenizers library."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

import tokenizers
from tiny_tokenizers import ENGLISH, KINDS, RUSSIAN, byte_level, word_level

from merganser.errors import CheckpointError, RequestError
from merganser.tokenizer import Tokenizer, count, in_scripts, load, mentioned, ranges_of, texts_of
from merganser.tokenizer.companions import Changes, follow, ids_in, literals, renumber, templates
from merganser.tokenizer.merges import Merges

ALPHABET = st.sampled_from("".join(dict.fromkeys("".join(ENGLISH + RUSSIAN))) + "éZ☃日\n")
TEXT = st.one_of(
    st.text(ALPHABET, max_size=60),
    st.lists(st.sampled_from(" ".join(ENGLISH + RUSSIAN).split()), max_size=12).map(" ".join),
)


@functools.cache
def raw_of(kind: str) -> str:
    return KINDS[kind]().to_str()


@functools.cache
def library_of(kind: str) -> Any:
    made = tokenizers.Tokenizer.from_str(raw_of(kind))
    made.no_padding()
    made.no_truncation()
    return made


@functools.cache
def parsed(kind: str) -> Tokenizer:
    return Tokenizer.parse(raw_of(kind).encode(), kind)


def ids(library: Any, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_the_library_has(kind: str) -> None:
    found, library = parsed(kind), library_of(kind)
    assert found.ids == library.get_vocab(with_added_tokens=True)
    assert found.tokens == [library.id_to_token(k) for k in range(library.get_vocab_size())]
    assert found.unknown == {"byte_level": None, "word_piece": "[UNK]"}.get(kind, "<unk>")


@pytest.mark.parametrize("kind", KINDS)
def test_writing_gives_the_same_file(kind: str) -> None:
    raw = raw_of(kind)
    written = Tokenizer.parse(raw.encode(), kind).to_bytes()
    assert json.loads(written) == json.loads(raw)
    assert (
        tokenizers.Tokenizer.from_str(written.decode()).to_str()
        == tokenizers.Tokenizer.from_str(raw).to_str()
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_kept_tokens_are_written_as_before(kind: str, data: st.DataObject) -> None:
    """The law of trimming, on the tokens that any text uses, their closure and nothing else."""
    full = parsed(kind)
    base = data.draw(st.lists(TEXT, min_size=1, max_size=3))
    seen = {i for text in base for i in ids(library_of(kind), text)}
    named = set(full.special) | set(full.byte_tokens)
    if kind == "unigram":
        named.add(min(full.scores, key=lambda token: full.scores[token]))
    need = {need for i in seen for need in full.needs(full.tokens[i], characters=False)} | named
    keep = {full.ids[token] for token in need}
    small = load(full.restricted(keep))
    assert sorted(small.get_vocab(), key=small.get_vocab().get) == [full.tokens[i] for i in sorted(keep)]
    new = {old: k for k, old in enumerate(sorted(keep))}
    unknown = full.ids.get(full.unknown or "")
    for text in [*base, data.draw(TEXT), *(a + b for a in base for b in base)]:
        before = ids(library_of(kind), text)
        if all(i in new for i in before) and not (kind == "word_piece" and unknown in before):
            assert ids(small, text) == [new[i] for i in before]


def test_word_piece_may_write_what_it_could_not() -> None:
    """The exception that the documentation states."""
    vocab = {"[UNK]": 0, "ab": 1, "a": 2, "##bc": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    full = Tokenizer.parse(made.to_str().encode(), "one")
    assert ids(load(full), "abc") == [0]
    assert ids(load(full.restricted({0, 2, 3})), "abc") == [1, 2]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "suffixed"])
def test_merges_make_what_the_library_makes(kind: str) -> None:
    """Pieces of whole words by Merges.derive, against the library's model."""
    full, library = parsed(kind), library_of(kind)
    words = [w for text in ENGLISH + RUSSIAN for w, _ in _words(library, text)]
    assert len(words) >= 8
    for word in words:
        theirs = [token.value for token in library.model.tokenize(word)]
        spelled = word + full.spelling.suffix
        assert full.merging.derive(spelled)[0] == theirs


def _words(library: Any, text: str) -> list[Any]:
    normal = library.normalizer.normalize_str(text) if library.normalizer else text
    return library.pre_tokenizer.pre_tokenize_str(normal) if library.pre_tokenizer else [(normal, (0, 0))]


def test_closure_holds_the_way_that_merging_takes() -> None:
    # abc is made of a and bc, for b c is the stronger merge, though ab c could make it too.
    merges = Merges([("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")])
    assert merges.derive("abc") == (["abc"], {"a", "b", "c", "bc", "abc"})
    assert Merges([("a", "b")]).derive("abc")[0] == ["ab", "c"]
    assert Merges([("a", "a")]).derive("aaa")[0] == ["aa", "a"]
    inside = Merges([("a", "##b")], prefix="##")
    assert inside.derive("ab") == (["ab"], {"a", "##b", "ab"})
    assert inside.derive("##ab")[0] == ["##a", "##b"]


def test_post_processor_padding_and_unknown_follow() -> None:
    full = parsed("word_piece")
    keep = [i for token, i in full.ids.items() if not token.startswith("[unused")]
    made = load(full.restricted(keep))
    assert made.encode("the dog", add_special_tokens=True).tokens == ["[CLS]", "the", "dog", "[SEP]"]
    document = json.loads(full.restricted(keep).to_bytes())
    assert document["padding"]["pad_id"] == 0
    assert document["post_processor"]["special_tokens"]["[CLS]"]["ids"] == [made.token_to_id("[CLS]")] == [2]
    uni = parsed("unigram")
    cut = uni.restricted([i for i in uni.ids.values() if i != 0])
    assert json.loads(cut.to_bytes())["model"]["unk_id"] == uni.document["model"]["unk_id"] - 1


def test_old_processors_follow() -> None:
    document = json.loads(byte_level().to_str())
    end = next(t["id"] for t in document["added_tokens"] if t["content"] == "<|im_end|>")
    pair = ["<|im_end|>", end]
    document["post_processor"] = {
        "type": "Sequence",
        "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            {
                "type": "RobertaProcessing",
                "sep": pair,
                "cls": pair,
                "trim_offsets": True,
                "add_prefix_space": False,
            },
        ],
    }
    full = Tokenizer.parse(json.dumps(document).encode(), "one")
    keep = [full.ids[t] for t in (*full.special, *full.byte_tokens)]
    made = load(full.restricted(keep))
    assert made.encode("a", add_special_tokens=True).tokens == ["<|im_end|>", "a", "<|im_end|>"]


# Joining ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_level", "suffixed", "word_piece", "unigram", "word_level"])
def test_a_union_holds_both(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_tokenizers

    first = {}
    for name, lines in (("a", ENGLISH), ("b", RUSSIAN)):
        monkeypatch.setattr(tiny_tokenizers, "TEXTS", lines * 4)
        first[name] = Tokenizer.parse(KINDS[kind]().to_str().encode(), name)
    a, b = first["a"], first["b"]
    union, lost = a.joined(b)
    made = load(union)
    assert set(union.ids) == set(a.ids) | set(b.ids)
    assert all(union.ids[token] == i for token, i in a.ids.items())
    assert [t for t in union.ids if t not in a.ids] == [
        t for t in b.tokens if t not in a.ids and t in b.model
    ] + [t for t in b.tokens if t not in a.ids and t not in b.model]
    for own, lines in ((a, ENGLISH), (b, RUSSIAN)):
        for text in lines:
            tokens = made.encode(text, add_special_tokens=False).tokens
            assert "<unk>" not in tokens
            assert len(tokens) <= len(ids(load(own), text)) * 1.2
    if union.kind == "BPE":
        for token in union.model:
            if token not in a.special and token not in b.special and token not in lost:
                assert union.produces(token) or not (a if token in a.ids else b).produces(token)
        assert len(lost) < len(b.ids) / 10


def test_kinds_that_cannot_be_joined() -> None:
    with pytest.raises(
        RequestError, match=r"byte_level is BPE \(byte-level\) and unigram is Unigram .*transplant"
    ):
        parsed("byte_level").joined(parsed("unigram"))
    with pytest.raises(RequestError, match="cannot be joined"):
        parsed("byte_level").joined(parsed("byte_fallback"))


# Files from outside -----------------------------------------------------------------------------------------


def broken(**changes: Any) -> bytes:
    document = json.loads(word_level().to_str())
    for path, value in changes.items():
        *outer, last = path.split("__")
        inner = document
        for key in outer:
            inner = inner[key]
        inner[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[]", "not an object"),
        (b'{"model": {}, "model": {}}', "stands twice"),
        (b"{}", "no model with a vocab"),
        (broken(model__type="Magic"), "of the kind 'Magic'"),
        (broken(model__vocab={"a": -1}), "not a map from tokens to ids"),
        (broken(model__vocab={"a": True}), "not a map from tokens to ids"),
        (broken(model__vocab={"a": 2**40}), "not a map from tokens to ids"),
        (broken(model__vocab={"a": 1, "b": 1}), "two tokens of its vocabulary have one id"),
        (broken(model__vocab=["a"]), "not a map"),
        (broken(added_tokens=[{"id": 1}]), "added_tokens is not a list"),
        (
            broken(added_tokens=[{"id": 1, "content": "<pad>"}]),
            "'<pad>' has the id 0 in the vocabulary and 1",
        ),
        (broken(added_tokens=[{"id": 0, "content": "<new>"}]), "the id 0 is of '<pad>' and of '<new>'"),
        (broken(model__vocab={"\ud800": 1}), "not acceptable JSON"),
        (
            broken(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}),
            "the merge of 'a' and 'b' needs",
        ),
        (broken(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]}), "not a merge of two tokens"),
        (broken(model={"type": "Unigram", "vocab": [["a", 0.0], ["a", 1.0]], "unk_id": 0}), "'a' is twice"),
        (broken(model={"type": "Unigram", "vocab": [["a"]], "unk_id": 0}), "not a list of pieces and scores"),
    ],
)
def test_malformed_files_are_refused(raw: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.parse(raw, "model/tokenizer.json")


def test_what_the_library_refuses_or_numbers_differently() -> None:
    bad = Tokenizer.parse(broken(normalizer={"type": "Magic"}), "it")
    with pytest.raises(CheckpointError, match="the tokenizers library refuses it"):
        load(bad)
    vocab = {"<unk>": 0, "a": 1, "b": 3, "c": 4}
    odd = Tokenizer.parse(broken(model__vocab=vocab, added_tokens=[_added("<x>", 2)]), "it")
    assert odd.holes == []
    with pytest.raises(CheckpointError, match="gives '<x>' the id 2, and the tokenizers library reads it as"):
        load(odd)


def _added(content: str, id_: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id_, "content": content, **flags}


def test_holes() -> None:
    full = Tokenizer.parse(broken(model__vocab={"<unk>": 0, "a": 2, "b": 5}, added_tokens=[]), "it")
    assert full.holes == [1, 3, 4]
    with pytest.raises(CheckpointError, match="it: 3 tokens have ids up to 5; no token has the id 1, 3, 4"):
        _ = full.tokens


# Companions -------------------------------------------------------------------------------------------------


def test_ids_in_configs_follow() -> None:
    config = {
        "eos_token_id": [5, 6],
        "pad_token_id": 0,
        "bos_token_id": None,
        "vocab_size": 9,
        "num_hidden_layers": 5,
        "pad_token_type_id": 0,
        "image_token_index": 7,
        "text_config": {"decoder_start_token_id": 5, "sep_token_id": -1},
        "suppress_tokens": [1, 5, 6],
        "forced_decoder_ids": [[1, 5], [2, None]],
        "bad_words_ids": [[5, 6], [1, 5]],
        "sequence_bias": [[[5], -1.0]],
        "lang_to_id": {"<|de|>": 6},
        "eos_coefficient": 5,
        "mask_token_id": 40,
    }
    changes = Changes()
    new = renumber(config, {0: 0, 5: 1, 6: 2, 7: 3}.get, 9, changes)
    assert new == {
        **config,
        "eos_token_id": [1, 2],
        "image_token_index": 3,
        "text_config": {"decoder_start_token_id": 1, "sep_token_id": -1},
        "suppress_tokens": [1, 2],
        "forced_decoder_ids": [[1, 1], [2, None]],
        "bad_words_ids": [[1, 2]],
        "sequence_bias": [[[1], -1.0]],
        "lang_to_id": {"<|de|>": 2},
    }
    assert changes.outside == {"mask_token_id": 40} and not changes.lost
    assert changes.changed["eos_token_id"] == [[5, 6], [1, 2]]
    assert "text_config.decoder_start_token_id" in changes.changed and "pad_token_id" not in changes.changed
    assert renumber({"pad_token_id": 3}, {}.get, 9, changes) == {"pad_token_id": None}
    assert changes.lost == {"pad_token_id": 3}
    found = ids_in(config)
    assert found["eos_token_id"] == [5, 6] and found["text_config.decoder_start_token_id"] == [5]
    assert not any("suppress" in key or "type" in key for key in found)


def test_old_vocabulary_files_follow() -> None:
    full = parsed("byte_level")
    end = full.ids["<|im_end|>"]
    files = {
        "tokenizer_config.json": json.dumps({
            "eos_token": "<|im_end|>", "added_tokens_decoder": {str(end): {"content": "<|im_end|>", "special": True}},
        }).encode(),
        "added_tokens.json": json.dumps({"<|im_end|>": end}).encode(),
        "vocab.json": b"{}",
        "merges.txt": b"#version: 0.2\na b\n",
        "tokenizer.model": b"\0",
        "special_tokens_map.json": b"{}",
    }  # fmt: skip
    keep = sorted(
        full.ids[t] for t in (*full.special, *full.byte_tokens, "th", "he", "the", "h", "e") if t in full.ids
    )
    small = full.restricted(keep)
    new = {old: k for k, old in enumerate(keep)}
    found = follow(files, {"vocab_size": len(full)}, full, small, new.get, len(full))
    told = json.loads(found.files["tokenizer_config.json"])["added_tokens_decoder"]
    assert told[str(new[end])] == {"content": "<|im_end|>", "special": True} and len(told) == 3
    assert json.loads(found.files["added_tokens.json"])["<|im_end|>"] == new[end] == small.ids["<|im_end|>"]
    assert json.loads(found.files["vocab.json"]) == dict(small.model)
    lines = found.files["merges.txt"].decode().splitlines()
    assert lines[0] == "#version: 0.2" and [tuple(x.split(" ")) for x in lines[1:]] == list(small.merges)
    assert found.files["tokenizer.model"] is None and found.removed == ["tokenizer.model"]
    assert "special_tokens_map.json" not in found.files
    # The class of the model knows another number for eos, so the key is written.
    assert found.config == {"vocab_size": len(full), "eos_token_id": new[end]}
    assert found.changes["config.json"].changed == {"eos_token_id": [None, new[end]]}


def test_chat_templates_and_what_they_write() -> None:
    files = {
        "tokenizer_config.json": json.dumps(
            {"chat_template": [{"name": "tools", "template": "[INST]{{ x }}"}]}
        ).encode(),
        "chat_template.jinja": b"<|im_start|>user {{ content }}<|im_end|><|new|>",
    }
    texts = templates(files, "it")
    assert set(texts) == {"tokenizer_config.json tools", "chat_template.jinja"}
    assert set(mentioned(texts, parsed("byte_level"))) == {"<|im_start|>", "<|im_end|>", "<|new|>", "[INST]"}


def test_the_plain_text_of_templates() -> None:
    text = "<s>{# no #}{% if m == 'user' %}\nHi {{ \"a\\n\" + x }}{% endif %}"
    assert set(literals({"t": text})) == {"<s>", "user", "\nHi ", "Hi ", "Hi", "a\n"}


# Corpora and scripts ----------------------------------------------------------------------------------------


def test_counting_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_text("the dog\n\n\nthe\r\nend")
    assert list(texts_of(path)) == ["the dog\n\n\n", "the\r\n", "end"]
    library = library_of("byte_level")
    found = count(load(parsed("byte_level")), texts_of(path), library.get_vocab_size())
    expected = [0] * library.get_vocab_size()
    for forms in (["the dog", "the", "end"], ["the dog\n\n\n", "the\r\n", "end"]):
        one = [0] * len(expected)
        for text in forms:
            for i in ids(library, text):
                one[i] += 1
        expected = [max(pair) for pair in zip(expected, one, strict=True)]
    assert found.tolist() == expected and found[library.token_to_id("Ċ")] == 4


def test_a_corpus_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"abc \xff\xfe")
    with pytest.raises(CheckpointError, match="not UTF-8 text"):
        list(texts_of(path))
    path.write_text("x" * 3_000_000)
    assert [len(text) for text in texts_of(path)] == [1 << 20, 1 << 20, 3_000_000 - (1 << 21)]


def test_scripts() -> None:
    latin = ranges_of(["latin"])
    assert in_scripts("déjà-vu, 12 €", latin) and in_scripts("e\u0301 …", latin)
    assert not in_scripts("a я", latin)
    assert in_scripts("я 5", ranges_of(["U+0400-U+04FF"])) and not in_scripts("z", ranges_of(["Cyrillic"]))
    assert in_scripts("漢字かなカナ", ranges_of(["japanese"])) and not in_scripts(
        "한", ranges_of(["japanese"])
    )
    with pytest.raises(RequestError, match="did you mean 'cyrillic'"):
        ranges_of(["cyrilic"])
    with pytest.raises(RequestError, match="backwards"):
        ranges_of(["U+0500-U+0400"])


def test_letters_of_a_token() -> None:
    byte = parsed("byte_level").spelling
    assert byte.letters("Ġthe") == " the" and byte.letters("Ð") is None and byte.text("Ð") == b"\xd0"
    assert (
        byte.written("жa b".encode())
        == "".join(token for token in library_of("byte_level").pre_tokenizer.pre_tokenize_str("жa")[0][0])
        + "Ġb"
    )
    llama = parsed("byte_fallback").spelling
    assert llama.letters("▁the") == " the" and llama.text("<0x0A>") == b"\n" and llama.byte_of("<0x0A>") == 10
    bert = parsed("word_piece").spelling
    assert bert.text("##ing") == b"ing" and bert.text("the") == b" the"
    clip = parsed("suffixed").spelling
    assert clip.letters("the</w>") == "the" and clip.text("the</w>") != byte.text("the")
