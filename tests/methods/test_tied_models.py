"""Tied matrices: what merganser makes of them opens in transformers as what PEFT and the live models compute."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, write_model

import merganser as mg
from merganser.architectures import families
from merganser.architectures.ties import ties_copies
from merganser.errors import AlgebraError
from merganser.methods import registry

pytestmark = pytest.mark.models

IDS = [[5, 9, 13, 7, 21, 33, 3, 17]]
SEQ = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "max_position_embeddings": 32,
}  # fmt: skip
STACK = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}),
    "bert": ("BertForMaskedLM", STACK),
    "roberta": ("RobertaForMaskedLM", STACK | {"max_position_embeddings": 32}),
    "bert-classifier": ("BertForSequenceClassification", STACK),
    "qwen3": ("Qwen3ForCausalLM", STACK | {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}),
    "bloom": ("BloomForCausalLM", {"vocab_size": 40, "hidden_size": 16, "n_layer": 1, "n_head": 2}),
    "mbart": ("MBartForConditionalGeneration", SEQ),
    "pegasus": ("PegasusForConditionalGeneration", SEQ),
    "marian": ("MarianMTModel", SEQ | {"decoder_vocab_size": 40}),
    "m2m_100": ("M2M100ForConditionalGeneration", SEQ),
    "t5": ("T5ForConditionalGeneration", T5),
    "umt5": ("UMT5ForConditionalGeneration", T5),
    "doge": ("DogeForCausalLM", STACK | {"num_key_value_heads": 2, "tie_word_embeddings": True, "num_experts": 4}),
}  # fmt: skip


def library() -> tuple[Any, Any]:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    return transformers, torch


def make(kind: str, place: Path, seed: int = 0, **more: Any) -> Any:
    """A tiny model with no two weights alike, saved; and as it was."""
    transformers, torch = library()
    name, settings = MODELS[kind]
    cls = getattr(transformers, name)
    torch.manual_seed(seed)
    model = cls(cls.config_class(**{**settings, **more})).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.save_pretrained(place)
    return cls.from_pretrained(place).eval()


def logits(model: Any) -> Any:
    _, torch = library()
    ids = torch.tensor(IDS)
    given = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **given).logits.double().numpy()


def opened(kind: str, place: Path) -> Any:
    """The model that transformers opens, which must find every weight and no other."""
    transformers, _ = library()
    model, told = getattr(transformers, MODELS[kind][0]).from_pretrained(place, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    return model.eval()


def stored(place: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(place / "model.safetensors")


def restore(place: Path, tensors: Mapping[str, Any], **metadata: str) -> None:
    from safetensors.torch import save_file

    whole = {name: value.clone().contiguous() for name, value in tensors.items()}
    save_file(whole, place / "model.safetensors", {"format": "pt", **metadata})


def every_name(model: Any, place: Path) -> None:
    """The files as old releases wrote them: a copy under every name of a tied matrix."""
    held, own = stored(place), model.state_dict()
    names = {n for n in own if any(own[n].data_ptr() == own[kept].data_ptr() for kept in held if kept in own)}
    restore(place, held | {name: own[name] for name in names})


def adapter(model: Any, target: str, place: Path) -> Any:
    """The live PEFT model of a LoRA on one module, and its logits without merging."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=[target], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = peft.get_peft_model(model, config).eval()
        live.save_pretrained(place, save_embedding_layers=False)
    return logits(live)


def config_of(place: Path) -> Any:
    return json.loads((place / "config.json").read_text())


def never_half_tied(kind: str, place: Path) -> None:
    """Copies that differ are two matrices by the config's words too."""
    model, held = opened(kind, place), stored(place)
    if config_of(place).get("tie_word_embeddings", True) is False:
        return
    for module in model.modules():
        for name, source in (getattr(module, "_tied_weights_keys", None) or {}).items():
            if name in held and source in held:
                assert np.array_equal(held[name].numpy(), held[source].numpy()), name


# Adapters -------------------------------------------------------------------------------------------------------------

SIDES = [
    ("gpt2", "wte"), ("gpt2", "lm_head"), ("bert", "word_embeddings"), ("roberta", "lm_head.decoder"),
    ("bloom", "word_embeddings"), ("mbart", "decoder.embed_tokens"), ("t5", "lm_head"),
    ("t5", "encoder.embed_tokens"), ("marian", "lm_head"), ("qwen3", "embed_tokens"),
]  # fmt: skip


@pytest.mark.parametrize("form", ["one name", "every name"])
@pytest.mark.parametrize(("kind", "target"), SIDES, ids=[f"{k} {t}" for k, t in SIDES])
def test_an_adapter_on_one_side_of_a_tie_changes_that_side_alone(
    kind: str, target: str, form: str, tmp_path: Path
) -> None:
    model = make(kind, tmp_path / "base")
    if form == "every name":
        every_name(model, tmp_path / "base")
    before = logits(model)
    live = adapter(model, target, tmp_path / "adapter")
    (mg.open(tmp_path / "base") + mg.open(tmp_path / "adapter")).save(tmp_path / "out")
    found = logits(opened(kind, tmp_path / "out"))
    assert np.abs(found - live).max() < 1e-5 < 0.01 < np.abs(found - before).max()
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False


def test_a_model_without_the_head_stays_as_it_is(tmp_path: Path) -> None:
    model = make("bert-classifier", tmp_path / "base")
    live = adapter(model, "word_embeddings", tmp_path / "adapter")
    merge = registry.get("task_arithmetic")
    merge(mg.open(tmp_path / "base"), [mg.open(tmp_path / "adapter")]).save(tmp_path / "out")
    assert np.abs(logits(opened("bert-classifier", tmp_path / "out")) - live).max() < 1e-5
    assert stored(tmp_path / "out").keys() == stored(tmp_path / "base").keys()
    assert config_of(tmp_path / "out").get("tie_word_embeddings", True)


def test_where_the_name_of_the_head_is_not_known_the_remedy_leads_out(tmp_path: Path) -> None:
    transformers, torch = library()
    model = make("doge", tmp_path / "base")
    live = adapter(model, "embed_tokens", tmp_path / "adapter")
    (mg.open(tmp_path / "base") + mg.open(tmp_path / "adapter")).save(tmp_path / "known")
    assert (
        np.abs(logits(opened("doge", tmp_path / "known")) - live).max() < 1e-5
    )  # its class is in config.json
    unsaid = {key: value for key, value in config_of(tmp_path / "base").items() if key != "architectures"}
    (tmp_path / "base/config.json").write_text(json.dumps(unsaid))
    with pytest.raises(AlgebraError, match=r"shares it .*not known for model_type 'doge'.*save_pretrained"):
        mg.open(tmp_path / "base") + mg.open(tmp_path / "adapter")
    own = transformers.DogeForCausalLM.from_pretrained(tmp_path / "base")
    own.config.tie_word_embeddings = False
    own.get_output_embeddings().weight = torch.nn.Parameter(own.get_input_embeddings().weight.clone())
    own.save_pretrained(tmp_path / "own")
    (mg.open(tmp_path / "own") + mg.open(tmp_path / "adapter")).save(tmp_path / "out")
    assert np.abs(logits(opened("doge", tmp_path / "out")) - live).max() < 1e-5


# A head of its own ----------------------------------------------------------------------------------------------------


def own_head(kind: str, base: Any, place: Path) -> Any:
    """A fine-tune whose head was trained apart from the embedding."""
    _, torch = library()
    make(kind, place, seed=0, tie_word_embeddings=False)
    model = type(base).from_pretrained(place)
    model.load_state_dict(base.state_dict())
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    model.save_pretrained(place)
    return model.eval()


WHOLE: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.0, 1.0]},
    "task_arithmetic": {},
    "slerp": {"t": 1.0},
    "ties": {"density": 1.0},
    "dare_linear": {"density": 1.0},
    "breadcrumbs": {"density": 1.0, "gamma": 0.0},
}
"""Methods, with settings that make them give the second model."""


@pytest.mark.parametrize("method", WHOLE)
def test_a_head_of_its_own_over_a_tied_base_is_kept(method: str, tmp_path: Path) -> None:
    base = make("qwen3", tmp_path / "base")
    tuned = own_head("qwen3", base, tmp_path / "tuned")
    models = [mg.open(tmp_path / name) for name in ("base", "tuned")]
    lead = () if method == "linear" else models[:1]
    made = registry.get(method)(*(lead or [None]), models[len(lead) :], **WHOLE[method])
    report = made.save(tmp_path / "out")
    assert np.abs(logits(opened("qwen3", tmp_path / "out")) - logits(tuned)).max() < 1e-4
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    assert "tuned" not in report.unused


@pytest.mark.parametrize("name", sorted(n for n, m in registry.all_methods().items() if m.statistics is None))
def test_every_method_gives_the_head_that_one_of_its_models_has(name: str, tmp_path: Path) -> None:
    config = {"model_type": "llama", "tie_word_embeddings": True}
    tied = {"model.embed_tokens.weight": normal(12, 8), "model.norm.weight": normal(8, seed=9)}
    own = {n: t + normal(*t.shape, seed=1) for n, t in tied.items()} | {
        "lm_head.weight": normal(12, 8, seed=2)
    }
    base = mg.open(write_model(tmp_path / "base", tied, config))
    models = [mg.open(write_model(tmp_path / "tied", {n: t * 2 for n, t in tied.items()}, config))]
    models.append(mg.open(write_model(tmp_path / "own", own, config | {"tie_word_embeddings": False})))
    method = registry.get(name)
    if method.max_models == 1:
        models = models[1:]
    needed = {p.name: 0.5 for p in method.parameters if p.required}
    made = method(base if method.base in ("required", "origin") else None, models, **needed)
    assert "lm_head.weight" in made
    assert not np.array_equal(made.compute("lm_head.weight"), made.compute("model.embed_tokens.weight"))


@pytest.mark.parametrize("kind", ["gpt2", "mbart", "t5", "bert"])
@pytest.mark.parametrize("turn", [1, -1])
def test_a_mean_with_a_tied_model_in_either_order(kind: str, turn: int, tmp_path: Path) -> None:
    _, torch = library()
    base = make(kind, tmp_path / "base")
    before = logits(base)
    live = adapter(base, "lm_head" if kind != "bert" else "cls.predictions.decoder", tmp_path / "adapter")
    (mg.open(tmp_path / "base") + mg.open(tmp_path / "adapter")).save(tmp_path / "own")
    assert np.abs(live - before).max() > 0.01
    first, second = [mg.open(tmp_path / name) for name in ("base", "own")][::turn]
    ((first + second) / 2).save(tmp_path / "out")
    head = opened(kind, tmp_path / "own").get_output_embeddings().weight
    due = opened(kind, tmp_path / "base")
    due.get_output_embeddings().weight = torch.nn.Parameter((head + due.get_output_embeddings().weight) / 2)
    assert np.abs(logits(opened(kind, tmp_path / "out")) - logits(due)).max() < 1e-5
    never_half_tied(kind, tmp_path / "out")


# Siblings -------------------------------------------------------------------------------------------------------------


def hub(model: Any, place: Path) -> None:
    """Stored under another name than transformers 5 chooses, with the aliases that safetensors' save_model writes."""
    every_name(model, place)
    held = stored(place)
    kept = next(name for name in held if name.endswith("decoder.embed_tokens.weight"))
    gone = [name for name in held if name.endswith(("shared.weight", "encoder.embed_tokens.weight"))]
    restore(place, {n: t for n, t in held.items() if n not in gone}, **dict.fromkeys(gone, kept))


FORMS: dict[str, Callable[[Any, Path], None]] = {"new": lambda *_: None, "old": every_name, "hub": hub}


@pytest.mark.parametrize("kind", ["mbart", "pegasus", "m2m_100", "umt5"])
@pytest.mark.parametrize(("first", "second"), [("new", "old"), ("old", "hub"), ("hub", "new")])
def test_siblings_under_other_names_have_one_mean(kind: str, first: str, second: str, tmp_path: Path) -> None:
    parts = [make(kind, tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    for seed, form in ((1, first), (2, second)):
        FORMS[form](parts[seed - 1], tmp_path / str(seed))
    due = type(parts[0])(parts[0].config).eval()
    states = [part.state_dict() for part in parts]
    due.load_state_dict({name: (value + states[1][name]) / 2 for name, value in states[0].items()})
    for turn in (1, -1):
        models = [mg.open(tmp_path / name) for name in ("1", "2")][::turn]
        out = tmp_path / f"out{turn}"
        registry.get("linear")(None, models).save(out)
        assert np.abs(logits(opened(kind, out)) - logits(due)).max() < 1e-5
        never_half_tied(kind, out)


# What the files say ---------------------------------------------------------------------------------------------------


def test_the_family_files_know_what_each_loader_ties_by_default() -> None:
    transformers, _ = library()
    for family in families().values():
        for kind in family.model_types if family.tied else ():
            config = transformers.CONFIG_MAPPING[kind]()
            assert ties_copies({"model_type": kind}) == bool(getattr(config, "tie_word_embeddings", False)), (
                kind
            )
