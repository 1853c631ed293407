"""What a probe shows of a model that its mask and its class name do not: padding that counts, tokens seen ahead."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from evaluate.scored_models import write_rows, write_suite

from merganser.cli import run
from merganser.errors import MerganserWarning, RequestError
from merganser.running import batch_size, check_causal, open_model

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = t = pytest.importorskip("transformers")

import tiny_tokenizers  # noqa: E402

SIZES = {"vocab_size": 430, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "max_position_embeddings": 64}
XLNET = {"vocab_size": 430, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 0}
TEXTS = ["the fox", "a quick brown fox over the dog", "dogs", "the sun and the dog and a fox over the hill"]
MODELS = {
    "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**SIZES)),
    "xlnet": lambda: t.XLNetForSequenceClassification(t.XLNetConfig(**XLNET)),
    "convbert": lambda: t.ConvBertForSequenceClassification(t.ConvBertConfig(**SIZES, embedding_size=16)),
    "qwen": lambda: t.Qwen2ForSequenceClassification(t.Qwen2Config(**SIZES, num_key_value_heads=2)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
    "bert that sees ahead": lambda: t.BertLMHeadModel(t.BertConfig(**SIZES)),
    "bert as a decoder": lambda: t.BertLMHeadModel(t.BertConfig(**SIZES, is_decoder=True)),
    "xlnet as a language model": lambda: t.XLNetLMHeadModel(t.XLNetConfig(**XLNET)),
}
PADDING_COUNTS = ("xlnet", "convbert", "qwen")


def saved(name, place):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(place)
    t.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizers.byte_level()).save_pretrained(place)
    return model


@pytest.mark.parametrize("name", ["bert", *PADDING_COUNTS])
def test_scores_do_not_depend_on_the_batch(name, tmp_path, capsys):
    model = saved(name, tmp_path / "m")
    tokenizer = t.AutoTokenizer.from_pretrained(tmp_path / "m")
    write_rows(tmp_path / "d.jsonl", [{"text": text, "label": 0} for text in TEXTS])
    write_suite(tmp_path / "s.yaml", {"name": "t", "kind": "classification", "data": "d.jsonl", "batch": 4})
    assert (
        run(["evaluate", str(tmp_path / "m"), str(tmp_path / "s.yaml"), str(tmp_path / "out"), "--quiet"])
        == 0
    )
    warned = capsys.readouterr().err
    assert ("warning: " in warned and "one by one" in warned) == (name in PADDING_COUNTS)
    from merganser.evaluate import read_results

    found = read_results(tmp_path / "out").tasks["t"].column("log_probabilities")
    for text, row in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([tokenizer(text).input_ids])).logits[0].double().log_softmax(-1)
        np.testing.assert_allclose(row, alone.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["bert that sees ahead", "xlnet as a language model"])
def test_a_language_model_that_sees_ahead_is_refused_by_every_command_that_scores_texts(
    name, tmp_path, capsys
):
    saved(name, tmp_path / "m")
    with pytest.raises(RequestError, match="sees the tokens ahead"):
        check_causal(open_model(tmp_path / "m"))
    write_rows(tmp_path / "d.jsonl", [{"text": text} for text in TEXTS])
    write_suite(tmp_path / "s.yaml", {"name": "t", "kind": "perplexity", "data": "d.jsonl"})
    m, d, s = (str(tmp_path / one) for one in ("m", "d.jsonl", "s.yaml"))
    evaluate, observe = (
        ["evaluate", m, s, str(tmp_path / "o")],
        ["observe", m, d, str(tmp_path / "p"), "--collect", "gram"],
    )
    for command in (evaluate, observe):
        assert run(command) == 2, command
        assert "sees the tokens ahead" in capsys.readouterr().err
        assert not (tmp_path / command[3]).exists()


@pytest.mark.parametrize("name", ["llama", "bert as a decoder"])
def test_causal_models_are_run_in_batches(name, tmp_path):
    saved(name, tmp_path / "m")
    model = open_model(tmp_path / "m")
    check_causal(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MerganserWarning)
        assert batch_size(model, 8) == 8


def test_the_words_of_a_warning_are_json_free(tmp_path, capsys):
    """--json prints one document on standard output, whatever is warned of."""
    saved("qwen", tmp_path / "m")
    write_rows(tmp_path / "d.jsonl", [{"text": text, "label": k % 2} for k, text in enumerate(TEXTS)])
    write_suite(tmp_path / "s.yaml", {"name": "t", "kind": "classification", "data": "d.jsonl"})
    assert (
        run(["evaluate", str(tmp_path / "m"), str(tmp_path / "s.yaml"), str(tmp_path / "o"), "--json"]) == 0
    )
    told = capsys.readouterr()
    assert json.loads(told.out) and "a batch of rows cannot be run" in told.err


@pytest.mark.parametrize(
    "more",
    [{"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}],
    ids=["number", "several"],
)
def test_heads_that_are_no_softmax_are_refused_by_every_command_that_would_take_one(more, tmp_path, capsys):
    for seed, name in enumerate(("m", "tuned")):
        torch.manual_seed(seed)
        t.BertForSequenceClassification(t.BertConfig(**SIZES, **more)).save_pretrained(tmp_path / name)
        tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizers.byte_level())
        tokenizer.save_pretrained(tmp_path / name)
    write_rows(tmp_path / "d.jsonl", [{"text": text, "label": 0} for text in TEXTS])
    write_suite(tmp_path / "s.yaml", {"name": "t", "kind": "classification", "data": "d.jsonl"})
    m, tuned, d, s, out = (str(tmp_path / one) for one in ("m", "tuned", "d.jsonl", "s.yaml", "out"))
    (tmp_path / "r.yaml").write_text(
        f"method: task_arithmetic\nbase_model: {m}\nmodels: [{{model: {tuned}, parameters: {{weight: 1}}}}]\n"
    )
    for command in (
        ["evaluate", m, s, out],
        ["observe", m, d, out, "--collect", "fisher"],
        ["learn", str(tmp_path / "r.yaml"), s, f"{out}.yaml", "--steps", "1"],
        ["localize", m, tuned, d, out],
    ):
        assert run(command) == 2, command
        assert "a softmax of what it gives means nothing" in capsys.readouterr().err, command
        assert not (tmp_path / "out").exists()


def test_learning_goes_through_batch_norm(tmp_path):
    """Running statistics follow the coefficients; torch has no gradient for them."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 3, 32, 32))
    for seed in range(3):
        torch.manual_seed(0)
        config = t.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16],
            depths=[1, 1],
            layer_type="basic",
            num_labels=2,
            image_size=32,
        )
        model = t.ResNetForImageClassification(config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                if value.is_floating_point():
                    value.add_(0.05 * bool(seed) * torch.rand(value.shape))
        model.eval().save_pretrained(tmp_path / f"m{seed}")
    rows = [{"image": (row / 255.0).tolist(), "label": k % 2} for k, row in enumerate(pixels)]
    write_rows(tmp_path / "d.jsonl", rows)
    write_suite(
        tmp_path / "s.yaml", {"name": "t", "kind": "classification", "data": "d.jsonl", "image": "image"}
    )
    models = ", ".join(f"{{model: {tmp_path / f'm{k}'}, parameters: {{weight: 0.3}}}}" for k in (1, 2))
    recipe = f"method: task_arithmetic\nbase_model: {tmp_path / 'm0'}\nmodels: [{models}]\n"
    (tmp_path / "r.yaml").write_text(recipe)
    from merganser.search import learn

    found = learn(tmp_path / "r.yaml", tmp_path / "s.yaml", by="atlas", steps=3)
    assert found.losses[-1] < found.losses[0]
