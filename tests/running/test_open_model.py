"""Models that run: the same as transformers opens, names that lead back to the checkpoint, values put in."""

from __future__ import annotations

import numpy as np
import pytest

import merganser as mg
from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.digest import identity
from merganser.errors import AlgebraError, CheckpointError, NonFiniteError, RequestError
from merganser.running import Head, encode, finite, live_tensors, open_model, pooled
from tests.tiny_tokenizers import word_piece

pytestmark = pytest.mark.models
SIZES = {
    "vocab_size": 320,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
FAMILIES = ["bert", "bert_classifier", "bert_masked", "llama", "llama_tied", "gpt2", "mixtral", "vit"]


def make(kind, folder, seed=0):
    import torch
    import transformers as t

    torch.manual_seed(seed)
    model = {
        "bert": lambda: t.BertModel(t.BertConfig(**SIZES)),
        "bert_classifier": lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES, num_labels=3)),
        "bert_masked": lambda: t.BertForMaskedLM(t.BertConfig(**SIZES)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, num_key_value_heads=1)),
        "llama_tied": lambda: t.LlamaForCausalLM(
            t.LlamaConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True)
        ),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
        ),
        "mixtral": lambda: t.MixtralForCausalLM(
            t.MixtralConfig(**SIZES, num_key_value_heads=1, num_local_experts=2)
        ),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=8,
                patch_size=4,
                num_labels=3,
            )
        ),
    }[kind]()
    model.eval().save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_directory_and_lazy_weights_run_as_in_transformers(kind, tmp_path):
    import torch

    model = make(kind, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    lazy = open_model(mg.open(tmp_path / "model"))
    for ours in (opened, lazy):
        for name, value in model.state_dict().items():
            assert torch.equal(ours.module.state_dict()[name], value), name
    assert lazy.identity is None
    assert opened.identity == identity(open_checkpoint(tmp_path / "model").tensors)
    stored = open_checkpoint(tmp_path / "model").tensors
    places = dict(opened.module.named_parameters(remove_duplicate=False))
    assert set(opened.names.values()) <= set(stored)
    if kind == "mixtral":
        assert opened.unnamed and all("experts" in name for name in opened.unnamed)
    else:
        assert not opened.unnamed and set(places) <= set(opened.names)
        assert set(opened.names.values()) == set(stored)
    for place, name in opened.names.items():
        if place in places:
            assert np.array_equal(places[place].detach().numpy(), stored[name].numpy()), name


@pytest.mark.parametrize("kind", ["bert_classifier", "llama_tied", "mixtral", "vit"])
def test_other_values_are_put_in(kind, tmp_path):
    import torch

    make(kind, tmp_path / "a", seed=1)
    wanted = make(kind, tmp_path / "b", seed=2)
    model = open_model(tmp_path / "a")
    model.fill(live_tensors(mg.open(tmp_path / "b")))
    assert model.identity is None
    for name, value in wanted.state_dict().items():
        assert torch.equal(model.module.state_dict()[name], value), name
    values = live_tensors(mg.open(tmp_path / "b"))
    first = sorted(values)[0]
    with pytest.raises(RequestError, match="no values for"):
        model.fill({name: value for name, value in values.items() if name != first})


def test_values_of_other_ties_are_put_in(tmp_path):
    """A head of its own goes into a module that ties it, and a tied one into a module that does not."""
    import torch

    tied = make("llama_tied", tmp_path / "tied", seed=1)
    untied = make("llama", tmp_path / "untied", seed=2)
    with torch.no_grad():
        assert not torch.equal(untied.lm_head.weight, untied.model.embed_tokens.weight)
    values = live_tensors(mg.open(tmp_path / "untied"))
    both = {**live_tensors(mg.open(tmp_path / "tied")), "lm_head.weight": values["lm_head.weight"]}
    model = open_model(tmp_path / "tied")
    model.fill(both)
    state = model.module.state_dict()
    assert torch.equal(state["lm_head.weight"], untied.lm_head.weight)
    assert torch.equal(state["model.embed_tokens.weight"], tied.model.embed_tokens.weight)
    model.fill(live_tensors(mg.open(tmp_path / "tied")))
    assert torch.equal(model.module.state_dict()["lm_head.weight"], tied.lm_head.weight)
    model = open_model(tmp_path / "untied")
    with pytest.raises(RequestError, match=r"no values for lm_head\.weight"):
        model.fill(live_tensors(mg.open(tmp_path / "tied")))


def test_kinds(tmp_path):
    make("bert", tmp_path / "bert")
    make("bert_classifier", tmp_path / "classifier")
    assert open_model(tmp_path / "bert").kind == "encoder"
    model = open_model(tmp_path / "classifier")
    assert model.kind == "classifier" and model.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    encoder = open_model(tmp_path / "classifier", kind="encoder")
    assert encoder.kind == "encoder" and all(name.startswith("bert.") for name in encoder.names.values())
    with pytest.raises(RequestError, match=r"no weights for classifier.bias, classifier.weight"):
        open_model(tmp_path / "bert", kind="classifier")
    with pytest.raises(RequestError, match="has no image_classifier for models of type 'bert'"):
        open_model(tmp_path / "bert", kind="image_classifier")


def test_what_cannot_run(tmp_path):
    make("bert", tmp_path / "bert")
    with pytest.raises(RequestError, match=r"has no tokenizer \(no tokenizer.json"):
        _ = open_model(tmp_path / "bert").tokenizer
    with pytest.raises(AlgebraError, match="sums to 2"):
        open_model(mg.open(tmp_path / "bert") * 2)
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(CheckpointError, match=r"does not know its config.json"):
        open_model(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").unlink()
    with pytest.raises(RequestError, match=r"has no config.json"):
        open_model(tmp_path / "bert")


def tokenized(folder, vocabulary=300):
    from transformers import PreTrainedTokenizerFast

    make("bert", folder)
    PreTrainedTokenizerFast(
        tokenizer_object=word_piece(vocabulary), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return folder


def test_a_tokenizer_must_fit(tmp_path):
    folder = tokenized(tmp_path / "bert")
    model = open_model(folder)
    ids = encode(model, ["the quick brown fox", "jumps"], max_length=3)
    assert all(0 < len(row) <= 3 for row in ids)
    with pytest.raises(RequestError, match="row 2 is no text but int"):
        encode(model, ["a", 3])
    make_small = open_model(folder)
    make_small.module.set_input_embeddings(__import__("torch").nn.Embedding(10, 16))
    with pytest.raises(RequestError, match="do not belong together"):
        _ = make_small.tokenizer


def test_pooled_features_and_a_head(tmp_path):
    import torch

    model = open_model(tokenized(tmp_path / "bert"))
    ids = encode(model, ["the quick brown fox jumps over", "the lazy dog"])
    for pooling, normalize in (("mean", False), ("cls", True)):
        together = pooled(model, ids, pooling=pooling, normalize=normalize)
        for row, one in enumerate(ids):
            states = model.module(input_ids=torch.tensor([one])).last_hidden_state[0].double()
            wanted = states.mean(0) if pooling == "mean" else states[0]
            wanted = wanted / wanted.norm() if normalize else wanted
            assert torch.allclose(together[row].double(), wanted, atol=1e-5)
    head = Head(
        np.eye(2, 16, dtype=np.float32), np.array([0.0, 1.0], np.float32), ("no", "yes"), "cls", False
    )
    head.save(tmp_path / "head.safetensors")
    again = Head.open(tmp_path / "head.safetensors")
    assert (again.labels, again.pooling, again.normalize) == (("no", "yes"), "cls", False)
    features = torch.arange(32.0).reshape(2, 16)
    assert again(features).tolist() == [[0.0, 2.0], [16.0, 18.0]]
    with pytest.raises(RequestError, match="two labels of the head are the same"):
        Head(head.weight, head.bias, ("a", "a"))
    with pytest.raises(RequestError, match=r"needs weight \[3, hidden\]"):
        Head(head.weight, head.bias, ("a", "b", "c"))
    with pytest.raises(RequestError, match="a head holds the tensors weight and bias"):
        Head.open(tmp_path / "bert" / "model.safetensors")


def test_logits_of_classes_by_whatever_name():
    import torch
    from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

    from merganser.running import class_logits

    logits = torch.ones(2, 3)
    assert class_logits(SequenceClassifierOutput(logits=logits)) is logits
    with pytest.raises(RequestError, match="BaseModelOutput gives no logits of classes"):
        class_logits(BaseModelOutput(last_hidden_state=logits))


def test_nan_is_told_with_the_row():
    import torch

    values = torch.zeros(3, 2)
    assert finite(values, what="logits", model="m", rows=[4, 5, 6]) is values
    values[1, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="m: logits of row 6 hold NaN"):
        finite(values, what="logits", model="m", rows=[4, 5, 6])
    values[2, 1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"row 3 hold Inf \(2 of 3 rows"):  # the first in the data
        finite(values, what="logits", model="m", rows=[4, 5, 2])


def test_identity_knows_fine_tunes_apart_and_not_shards(tmp_path):
    make("bert", tmp_path / "a", seed=1)
    make("bert", tmp_path / "b", seed=2)
    mg.open(tmp_path / "a").save(tmp_path / "c", shard_size=10_000)
    a, b, c = (identity(open_checkpoint(tmp_path / name).tensors) for name in "abc")
    assert a == c != b
