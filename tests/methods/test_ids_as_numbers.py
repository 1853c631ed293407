"""Ids of tokens that loaders also use as numbers: what counts from them moves with them, or the step is refused."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
import tiny_tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import merganser as mg
from merganser import recipe
from merganser.architectures import FamilyError, parse_family
from merganser.cli import run
from merganser.errors import AlgebraError
from merganser.methods.vocabulary._shared import rows_moved

pytestmark = pytest.mark.models
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = "the lazy dog sleeps"


def write(
    folder: Path, kind: str, special: list[str], rows: int = 40, *, size: int = 320, seed: int = 0, **more
) -> Path:
    """A body with a tokenizer whose special tokens have the ids of their places; `rows` positions."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    words.train_from_iterator(tiny_tokenizers.ENGLISH * 4, trainer)
    ids = {
        f"{role}_token_id": special.index(t)
        for role, t in (("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
    }
    torch.manual_seed(seed)
    settings = {**TINY, **ids, "vocab_size": words.get_vocab_size(), "max_position_embeddings": rows, **more}
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(kind, **settings))
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named})
    )
    return folder


def states(folder: Path, text: str = TEXT, filled: int = 0):
    """The tokens of a text and their hidden states; `filled` padding tokens behind it."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = words(text, return_tensors="pt").input_ids
    ids = torch.nn.functional.pad(ids, (0, filled), value=model.config.pad_token_id)
    mask = torch.arange(ids.shape[1])[None] < ids.shape[1] - filled
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    return words.convert_ids_to_tokens(ids[0]), found[:, : ids.shape[1] - filled]


def assert_same(one, other):
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1], atol=1e-5, rtol=1e-4)


LOW, HIGH = ["<pad>", "<s>", "</s>"], ["<s>", "</s>", "<mask>", "<x>", "<pad>"]
KINDS = {
    "xlm-roberta": {},
    "roberta-prelayernorm": {},
    "esm": {"position_embedding_type": "absolute", "token_dropout": False},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize(
    "step",
    [
        "union_tokenizers: {{others: {other}, place: 1}}",
        "transplant_tokenizer: {{donor: {other}, rows: mean}}",
    ],
)
def test_the_position_table_moves_with_the_padding_token(kind, way, step, tmp_path):
    mine, theirs = (LOW, HIGH) if way == "up" else (HIGH, LOW)
    own = write(tmp_path / "own", kind, mine, **KINDS[kind])
    other = write(tmp_path / "other", kind, theirs, seed=1, **KINDS[kind])
    assert run(["reshape", str(own), str(tmp_path / "out"), step.format(other=other)]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pad_token_id"] == theirs.index("<pad>")
    usable = {place: json.loads((place / "config.json").read_text()) for place in (own, tmp_path / "out")}
    left = {c["max_position_embeddings"] - c["pad_token_id"] for c in usable.values()}
    assert len(left) == 1  # as many positions as before
    assert_same(states(tmp_path / "out"), states(own))
    assert_same(states(tmp_path / "out", filled=3), states(own, filled=3))


def test_rows_in_another_order_without_a_tokenizer(tmp_path):
    own = write(tmp_path / "own", "xlm-roberta", ["<s>", "<pad>", "</s>"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (own / name).unlink()
    model = transformers.AutoModel.from_pretrained(own)
    order = list(range(model.config.vocab_size))
    order[1], order[7] = 7, 1
    step = f"permute: {{axis: vocab, order: {order}}}"
    assert run(["reshape", str(own), str(tmp_path / "out"), step]) == 0
    moved = transformers.AutoModel.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[0, 9, 13, 7, 21, 2]])
    with torch.no_grad():
        found, wanted = moved(torch.tensor(order)[ids]), model(ids)
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state)
    assert moved.config.pad_token_id == 7


def test_a_merge_with_another_models_tokenizer(tmp_path):
    """All of the second model, in the vocabulary of the first: the second's hidden states."""
    base = write(tmp_path / "base", "xlm-roberta", HIGH, 43)
    other = write(tmp_path / "other", "xlm-roberta", LOW, 39, seed=1)
    document = {
        "method": "linear",
        "models": [
            {"model": str(base), "parameters": {"weight": 0}},
            {"model": str(other), "parameters": {"weight": 1}},
        ],
        "tokenizer_source": "union",
    }
    built, _ = recipe.build(recipe.load(document))
    built.save(tmp_path / "out")
    assert_same(states(tmp_path / "out"), states(other))


def test_rotary_positions_count_from_nothing(tmp_path):
    own = write(tmp_path / "own", "esm", LOW, position_embedding_type="rotary", token_dropout=False)
    other = write(
        tmp_path / "other", "esm", HIGH, seed=1, position_embedding_type="rotary", token_dropout=False
    )
    step = f"union_tokenizers: {{others: {other}, place: 1}}"
    assert run(["reshape", str(own), str(tmp_path / "out"), step]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["max_position_embeddings"] == 40
    assert_same(states(tmp_path / "out"), states(own))


def test_what_cannot_move_is_refused_and_the_way_out_works(tmp_path, capsys):
    """MPNet takes token 1 for the padding, whatever its config says."""
    own = write(tmp_path / "own", "mpnet", ["<s>", "<pad>", "</s>"])
    other = write(tmp_path / "other", "mpnet", LOW, seed=1)
    step = f"union_tokenizers: {{others: {other}, place: 1}}"
    assert run(["reshape", str(own), str(tmp_path / "out"), step]) == 2
    assert "put the padding token at 1" in capsys.readouterr().err
    write(tmp_path / "better", "mpnet", ["</s>", "<pad>", "<s>"], seed=1)
    step = f"union_tokenizers: {{others: {tmp_path / 'better'}, place: 1}}"
    assert run(["reshape", str(own), str(tmp_path / "out"), step]) == 0
    assert_same(states(tmp_path / "out"), states(own))


def test_a_text_pooled_at_its_largest_id(tmp_path):
    """CLIP's first configs say eos_token_id 2 and mean the largest id; with the end token's id it is that token."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=31, max_position_embeddings=12, projection_dim=8, eos_token_id=2, **TINY
    )
    model = transformers.CLIPTextModel(config)
    model.save_pretrained(tmp_path / "m")
    order = [30, *range(30)]
    step = f"permute: {{axis: vocab, order: {order}}}"
    assert run(["reshape", str(tmp_path / "m"), str(tmp_path / "out"), step]) == 2
    told = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(told | {"eos_token_id": 30}))  # the way out
    assert run(["reshape", str(tmp_path / "m"), str(tmp_path / "out"), step]) == 0
    moved = transformers.CLIPTextModel.from_pretrained(tmp_path / "out")
    ids = torch.tensor([[4, 9, 13, 30]])
    with torch.no_grad():
        found, wanted = moved((ids + 1) % 31), model(ids)
    torch.testing.assert_close(found.pooler_output, wanted.pooler_output)


def test_a_family_file_names_an_axis_or_a_reason():
    text = files("merganser.architectures").joinpath("families", "roberta.yaml").read_text()
    assert "pad_token_id or 1: positions" in text
    with pytest.raises(FamilyError, match=r"counted: there is no axis 'position'.*positions"):
        parse_family(text.replace("pad_token_id or 1: positions", "pad_token_id or 1: position"), "f.yaml")


def test_an_id_may_not_come_to_be_a_number(tmp_path):
    """The end token must not get the id 2, by which CLIP's loader would pool at the largest id."""
    config = transformers.CLIPTextConfig(
        vocab_size=31, max_position_embeddings=12, projection_dim=8, eos_token_id=30, **TINY
    )
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "m")
    weights = mg.open(tmp_path / "m")
    order = [*range(2), 30, *range(2, 30)]
    with pytest.raises(AlgebraError, match="ids of tokens would change"):
        rows_moved(weights, mg.axes.permute(weights, "vocab", order), order)
