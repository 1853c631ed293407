"""What refusals of steps and adapters tell the user to do, done: afterwards the result is what was meant."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import read_model

import merganser as mg
from merganser.cli import run

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 31, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = torch.tensor([[5, 9, 13, 7, 21]])


def write(place: Path, kind: str, head: str, seed: int = 0, **config: Any) -> Any:
    torch.manual_seed(seed)
    made = transformers.AutoConfig.for_model(kind, **SIZES | config)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(made).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape) * 0.1)
    model.save_pretrained(place)
    return model


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(IDS).logits.numpy()


def command_in(told: str, out: str) -> list[str]:
    """The command between backticks of a message, OUT put in."""
    (text,) = re.findall(r"`merganser (.*?)`", told.replace("\n", " "))
    return [out if word == "OUT" else word for word in shlex.split(text)]


# port -----------------------------------------------------------------------------------------------------------------


def test_port_brings_the_labels_of_the_new_base_into_the_old_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    monkeypatch.chdir(tmp_path)
    names = ("calm", "glad", "cross")
    order = [2, 0, 1]
    told = {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}}
    old = write(Path("old"), "roberta", "TokenClassification", **told)
    turned = [names[k] for k in order]
    told = {"id2label": dict(enumerate(turned)), "label2id": {n: k for k, n in enumerate(turned)}}
    new = write(Path("new"), "roberta", "TokenClassification", seed=1, **told)
    adapter = get_peft_model(old, LoraConfig(r=2, target_modules=["query", "classifier"]))
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape))
    adapter.save_pretrained("patch")

    assert run(["port", "patch", "old", "new", "out"]) == 2
    command = command_in(capsys.readouterr().err, "lined")
    assert run(command) == 0
    assert run(["port", "patch", "old", "lined", "out"]) == 0
    made = read_model(Path("out"))["classifier.weight"]
    state = adapter.state_dict()
    change = next(state[k] for k in state if "classifier.lora_B" in k) @ next(
        state[k] for k in state if "classifier.lora_A" in k
    )
    scale = adapter.peft_config["default"].lora_alpha / 2
    head = new.classifier.weight.detach()[[turned.index(n) for n in names]]
    assert np.allclose(made, (head + scale * change).numpy(), atol=1e-5)


# Vocabularies ---------------------------------------------------------------------------------------------------------


def tokenizer(place: Path, tokens: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({t: k for k, t in enumerate(tokens)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(tokens[:4])
    words.save(str(place / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["m2m_100", "xglm"])
def test_a_padding_token_that_positions_start_from_is_put_at_the_same_id(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """M2M-100 and NLLB compute positions as sines from behind the padding token; XGLM has zeros in its place."""
    words = [f"w{k}" for k in range(27)]
    for name, special in {
        "own": ["<pad>", "<s>", "</s>", "<unk>"],
        "other": ["<s>", "</s>", "<pad>", "<unk>"],
        "better": ["<pad>", "</s>", "<s>", "<unk>"],
    }.items():
        place = tmp_path / name
        places = {
            f"{r}_token_id": special.index(t) for r, t in (("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"))
        }
        sizes = {
            "d_model": 12, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
            "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_layers": 1,
            "attention_heads": 2, "ffn_dim": 16, "decoder_start_token_id": special.index("</s>"),
        }  # fmt: skip
        write(place, kind, "Seq2SeqLM" if kind == "m2m_100" else "CausalLM", **sizes | places)
        tokenizer(place, [*special, *words])

    def union(other: str) -> int:
        step = f"union_tokenizers: {{others: {tmp_path / other}, place: 1}}"
        return run(["reshape", str(tmp_path / "own"), str(tmp_path / "out"), step])

    assert union("other") != 0
    assert "put the padding token at the same id" in capsys.readouterr().err.replace("\n", " ")
    assert union("better") == 0
    auto = transformers.AutoModelForSeq2SeqLM if kind == "m2m_100" else transformers.AutoModelForCausalLM
    before = auto.from_pretrained(tmp_path / "own").eval()
    after, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    text = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if kind == "m2m_100" else {})
    with torch.no_grad():
        one, two = (model(**text).logits for model in (before, after.eval()))
    order = [tokens_of(tmp_path / "out").index(token) for token in tokens_of(tmp_path / "own")]
    assert torch.allclose(two[..., order], one, atol=1e-5)


def tokens_of(place: Path) -> list[str]:
    vocabulary = json.loads((place / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(vocabulary, key=vocabulary.get)


# Layers and adapters --------------------------------------------------------------------------------------------------


def test_biases_of_zeros_are_given_as_the_message_says(tmp_path: Path) -> None:
    config = {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False}
    biased = write(tmp_path / "biased", "llama", "CausalLM", attention_bias=True, **config)
    plain = write(tmp_path / "plain", "llama", "CausalLM", seed=1, attention_bias=False, **config)
    parts = [(mg.open(tmp_path / "biased"), range(1)), (mg.open(tmp_path / "plain"), range(1, 2))]
    with pytest.raises(mg.errors.AlgebraError) as refusal:
        mg.axes.stack(parts)
    assert 'mismatch: {"*.bias": zero}' in str(refusal.value)
    recipe = {
        "method": "linear",
        "models": [
            {"model": str(tmp_path / "biased"), "parameters": {"weight": 0}},
            {"model": str(tmp_path / "plain"), "parameters": {"weight": 1}},
        ],
        "mismatch": {"*.bias": "zero"},
    }
    file = tmp_path / "zeros.yaml"
    file.write_text(json.dumps(recipe))
    more = ["--allow", "attention_bias"] if "attention_bias" in str(refusal.value) else []
    assert run(["merge", str(file), str(tmp_path / "zeros"), *more]) == 0
    with_zeros = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "zeros")
    assert np.allclose(logits(with_zeros), logits(plain), atol=1e-6)
    parts[1] = (mg.open(tmp_path / "zeros"), range(1, 2))
    mg.axes.stack(parts).save(tmp_path / "out", sync=False)
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(
        made.model.layers[0].self_attn.q_proj.bias, biased.model.layers[0].self_attn.q_proj.bias
    )
    assert not made.model.layers[1].self_attn.q_proj.bias.any()


def test_added_tokens_are_given_to_the_base_before_extraction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"num_key_value_heads": 2, "head_dim": 6, "tie_word_embeddings": False}
    base = write(tmp_path / "base", "llama", "CausalLM", **config)
    tuned = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    tuned.resize_token_embeddings(33)
    with torch.no_grad():
        tuned.model.layers[0].mlp.up_proj.weight.add_(torch.ones(20, 1) @ torch.ones(1, 12))
    tuned.save_pretrained(tmp_path / "tuned")

    def extract(first: str) -> int:
        words = ["extract-lora", str(tmp_path / first), str(tmp_path / "tuned"), str(tmp_path / "lora")]
        return run([*words, "--rank", "1", "--embeddings"])

    status = extract("base")
    told = capsys.readouterr().err.replace("\n", " ")
    assert status != 0 and "resize_token_embeddings" in told
    base.resize_token_embeddings(33)
    with torch.no_grad():  # the rows that transformers draws are random
        base.model.embed_tokens.weight.copy_(tuned.model.embed_tokens.weight)
        base.lm_head.weight.copy_(tuned.lm_head.weight)
    base.save_pretrained(tmp_path / "wider")
    assert extract("wider") == 0
    from peft import PeftModel

    live = PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    assert np.allclose(logits(live.eval()), logits(tuned.eval()), atol=1e-4)
