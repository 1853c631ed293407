"""Tokens that tokenizer.json does not hold: transformers decides which there are, and merganser agrees with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_tokenizers
import torch
import transformers
from makers import read_model
from tokenizers import Tokenizer as Library

import merganser as mg
from merganser import recipe
from merganser.cli import run
from merganser.errors import CheckpointError
from merganser.methods.steps import get_step
from merganser.tokenizer import read_tokenizer

pytestmark = pytest.mark.models
EMBEDDING = "model.embed_tokens.weight"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


def model(folder: Path, rows: int, seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def write(folder: Path, name: str, document: object) -> None:
    (folder / name).write_text(json.dumps(document))


def form(folder: Path, kind: str, *, texts: str = "", seed: int = 0, spare: int = 3) -> Path:
    """A model whose tokens <|tool|> and <|turn|> stand where releases of transformers put them."""
    old = tiny_tokenizers.TEXTS
    try:
        tiny_tokenizers.TEXTS = tiny_tokenizers.ENGLISH * 4 if texts else old
        library = tiny_tokenizers.KINDS["byte_level"]()
    finally:
        tiny_tokenizers.TEXTS = old
    size = library.get_vocab_size()
    model(folder, size + spare, seed)
    library.save(str(folder / "tokenizer.json"))
    held = {
        str(t["id"]): {k: v for k, v in t.items() if k != "id"}
        for t in json.loads(library.to_str())["added_tokens"]
    }
    tool = {"content": "<|tool|>", "normalized": False, "special": True, **FLAGS}
    turn = {"content": "<|turn|>", "normalized": True, "special": False, **FLAGS}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    if kind == "decoder":
        settings["added_tokens_decoder"] = held | {str(size): tool, str(size + 1): turn}
    elif kind == "added":
        write(folder, "added_tokens.json", {"<|turn|>": size + 1, "<|tool|>": size})
        special = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|tool|>"]}
        write(folder, "special_tokens_map.json", special)
    elif kind == "named":
        settings |= {"pad_token": "<|tool|>", "additional_special_tokens": ["<|turn|>"]}
    elif kind == "map":
        write(folder, "special_tokens_map.json", {"pad_token": tool, "sep_token": "<|turn|>"})
    write(folder, "tokenizer_config.json", settings)
    return folder


FORMS = ("decoder", "added", "named", "map")


def live(folder: Path):
    return transformers.AutoTokenizer.from_pretrained(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".json"}


def agree(folder: Path) -> dict[str, int]:
    """All files say the same: transformers, the tokenizers library on tokenizer.json alone, added_tokens.json."""
    ids = live(folder).get_vocab()
    assert Library.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True) == ids
    told = files(folder)
    if "added_tokens.json" in told:
        assert json.loads(told["added_tokens.json"]).items() <= ids.items()
    decoder = json.loads(told["tokenizer_config.json"]).get("added_tokens_decoder") or {}
    assert {token["content"]: int(key) for key, token in decoder.items()}.items() <= ids.items()
    return ids


def rows(folder: Path) -> np.ndarray:
    return read_model(folder)[EMBEDDING]


@pytest.mark.parametrize("kind", FORMS)
def test_the_reading_is_that_of_transformers(kind, tmp_path):
    folder = form(tmp_path / "m", kind)
    found = read_tokenizer(files(folder), "m", len(rows(folder)))
    assert found.ids == live(folder).get_vocab()
    assert set(found.late) == {"<|tool|>", "<|turn|>"}
    special = {t["content"] for t in found.added if t["special"]}
    # transformers 5 forgets that an additional special token of added_tokens.json is special; 4 wrote it so
    assert special - {"<|tool|>"} == {
        str(t) for t in live(folder).added_tokens_decoder.values() if t.special and str(t) != "<|tool|>"
    }
    assert "<|tool|>" in special


@pytest.mark.parametrize("kind", FORMS)
def test_steps_keep_them_with_their_rows(kind, tmp_path):
    folder = form(tmp_path / "m", kind)
    before, held = live(folder).get_vocab(), rows(folder)
    for step in (
        "trim_vocabulary: {most: 300}",
        "extend_vocabulary: {tokens: ['<|new|>'], rows: zeros}",
        "pad_vocabulary: {multiple: 64, rows: mean}",
    ):
        assert run(["reshape", str(folder), str(tmp_path / "out"), step, "--overwrite", "--no-proof"]) == 0
        after = agree(tmp_path / "out")
        found = rows(tmp_path / "out")
        assert {"<|tool|>", "<|turn|>"} <= after.keys()
        for token, id_ in after.items():
            if token != "<|new|>":
                np.testing.assert_array_equal(found[id_], held[before[token]], err_msg=f"{step}: {token}")
        ids = live(tmp_path / "out")("a<|turn|> b<|tool|>").input_ids
        assert {after["<|turn|>"], after["<|tool|>"]} <= set(ids)


@pytest.mark.parametrize("kind", FORMS)
def test_a_donor_gives_them_too(kind, tmp_path):
    form(tmp_path / "own", "none")
    donor = form(tmp_path / "donor", kind, texts="en", seed=1)
    step = f"transplant_tokenizer: {{donor: {donor}, rows: mean}}"
    assert run(["reshape", str(tmp_path / "own"), str(tmp_path / "out"), step]) == 0
    assert agree(tmp_path / "out") == live(donor).get_vocab()


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("place", ["base", "other"])
def test_a_union_has_them_with_the_rows_of_the_model_that_has_them(kind, place, tmp_path):
    late = form(tmp_path / "late", kind, texts="en", seed=1)
    plain = form(tmp_path / "plain", "none", seed=2)
    models = [late, plain] if place == "base" else [plain, late]
    document = {
        "merge_method": "linear",
        "models": [{"model": str(m), "parameters": {"weight": 0.5}} for m in models],
        "tokenizer_source": "union",
    }
    built, _ = recipe.build(recipe.load(document))
    built.save(tmp_path / "out")
    ids, found, own = agree(tmp_path / "out"), rows(tmp_path / "out"), live(late).get_vocab()
    for token in ("<|tool|>", "<|turn|>"):
        np.testing.assert_allclose(found[ids[token]], rows(late)[own[token]], atol=1e-6)
    step = get_step("union_tokenizers").function
    step(mg.open(plain), others=mg.open(late)).save(tmp_path / "step")
    ids = agree(tmp_path / "step")
    np.testing.assert_array_equal(rows(tmp_path / "step")[ids["<|turn|>"]], rows(late)[own["<|turn|>"]])


def test_a_token_of_the_model_that_is_declared_added_stays_so_in_a_union(tmp_path):
    """Its text is found as a whole, although it is no added token of tokenizer.json."""
    late, plain = (
        form(tmp_path / "late", "none", texts="en", seed=1),
        form(tmp_path / "plain", "none", seed=2),
    )
    document = json.loads((late / "tokenizer.json").read_text())
    place = document["model"]["vocab"]
    size = len(place) + len(document["added_tokens"])
    place["<|word|>"] = size
    write(late, "tokenizer.json", document)
    token = {"content": "<|word|>", "normalized": False, "special": True, **FLAGS}
    write(
        late,
        "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {str(size): token}},
    )
    assert live(late)("a<|word|>b").input_ids.count(size) == 1
    get_step("union_tokenizers").function(mg.open(plain), others=mg.open(late)).save(tmp_path / "out")
    ids = agree(tmp_path / "out")
    assert live(tmp_path / "out")("a<|word|>b").input_ids.count(ids["<|word|>"]) == 1


@pytest.mark.parametrize("kind", ["decoder", "added"])
def test_files_that_contradict_each_other_are_refused_and_the_way_out_works(kind, tmp_path, capsys):
    folder = form(tmp_path / "m", kind)
    name = {"decoder": "tokenizer_config.json", "added": "added_tokens.json"}[kind]
    size = live(folder).get_vocab()["<|tool|>"]
    (folder / name).write_text((folder / name).read_text().replace(str(size), str(size + 30)))
    assert run(["reshape", str(folder), str(tmp_path / "out"), "trim_vocabulary: {most: 300}"]) == 1
    told = capsys.readouterr().err
    assert name in told
    assert "save_pretrained" in told
    live(folder).save_pretrained(folder)  # the way out, with the ids that transformers reads
    (folder / "added_tokens.json").unlink(missing_ok=True)
    assert (
        run(["reshape", str(folder), str(tmp_path / "out"), "trim_vocabulary: {most: 300}", "--no-proof"])
        == 0
    )
    agree(tmp_path / "out")


def test_a_named_token_without_a_row_is_none(tmp_path):
    folder = form(tmp_path / "m", "named", spare=0)
    found = read_tokenizer(files(folder), "m", len(rows(folder)))
    assert not found.late
    assert (
        run(["reshape", str(folder), str(tmp_path / "out"), "trim_vocabulary: {most: 300}", "--no-proof"])
        == 0
    )


def test_malformed_tables_are_refused(tmp_path):
    folder = form(tmp_path / "m", "decoder")
    held = files(folder)
    for settings in ({"added_tokens_decoder": [1]}, {"added_tokens_decoder": {"x": {"content": "a"}}}):
        with pytest.raises(CheckpointError, match="added_tokens_decoder"):
            read_tokenizer(held | {"tokenizer_config.json": json.dumps(settings).encode()}, "m")
    broken = {"tokenizer_config.json": b"{}", "added_tokens.json": b'{"a": "b"}'}
    with pytest.raises(CheckpointError, match=r"added_tokens\.json"):
        read_tokenizer(held | broken, "m")


@pytest.mark.parametrize("kind", ["vocab.txt", "vocab.json"])
def test_slow_vocabularies_are_refused_and_the_way_out_works(kind, tmp_path, capsys):
    """A BERT of 2019, a GPT-2 of 2019, and what the message tells to do."""
    folder = tmp_path / "m"
    if kind == "vocab.txt":
        words = tiny_tokenizers.KINDS["word_piece"]()
        names = sorted(words.get_vocab(), key=words.get_vocab().get)
        config = transformers.BertConfig(
            vocab_size=len(names),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        transformers.BertForMaskedLM(config).save_pretrained(folder)
        (folder / kind).write_text("".join(f"{name}\n" for name in names))
    else:
        words = tiny_tokenizers.KINDS["byte_level"]()
        config = transformers.GPT2Config(
            vocab_size=words.get_vocab_size(), n_embd=16, n_layer=1, n_head=2, n_positions=16
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        words.model.save(str(folder))
        vocab = json.loads((folder / "vocab.json").read_text())
        write(folder, "vocab.json", vocab | {"<|endoftext|>": len(vocab)})
        write(
            folder,
            "added_tokens.json",
            {"<|im_start|>": words.get_vocab_size() - 2, "<|im_end|>": words.get_vocab_size() - 1},
        )
    step = "trim_vocabulary: {most: 400}"
    assert run(["reshape", str(folder), str(tmp_path / "out"), step]) == 2
    told = capsys.readouterr().err
    assert kind in told
    assert "AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL)" in told
    live(folder).save_pretrained(folder)
    assert run(["reshape", str(folder), str(tmp_path / "out"), step, "--no-proof"]) == 0
    agree(tmp_path / "out")


def test_a_tokenizer_model_alone_is_read_and_written_as_tokenizer_json(tmp_path):
    """A Llama of 2023: what it becomes cuts texts as transformers cuts them by the old file."""
    folder = tmp_path / "m"
    spm = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")  # transformers reads such files by both
    folder.mkdir()
    (tmp_path / "t.txt").write_text("\n".join(tiny_tokenizers.TEXTS))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "t.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=420, model_type="bpe",
        byte_fallback=True, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    model(folder, 420)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    before = live(folder)
    assert run(["reshape", str(folder), str(tmp_path / "out"), "trim_vocabulary: {most: 400}"]) == 0
    assert not (tmp_path / "out" / "tokenizer.model").exists()
    agree(tmp_path / "out")
    after = live(tmp_path / "out")
    kept = set(after.get_vocab())
    words = {word for text in tiny_tokenizers.TEXTS for word in text.split()}
    texts = [word for word in sorted(words) if set(before.tokenize(word)) <= kept]
    assert len(texts) > 20
    assert [after.tokenize(text) for text in texts] == [before.tokenize(text) for text in texts]
