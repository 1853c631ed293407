"""Layers that move keep what the loader takes from their place, in configs as they were once published.

What the moved model must answer is computed in transformers, from the layers of the model it was made of.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra.axes import reading_of
from merganser.architectures import families
from merganser.architectures.notation import FamilyError, Formula
from merganser.architectures.positions import as_text, parse_positions
from merganser.cli import run
from merganser.errors import AlgebraError
from merganser.methods import get_step

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from shaking import shake  # noqa: E402

IDS = torch.arange(1, 17)[None] % 47
SMALL: dict[str, Any] = {
    "vocab_size": 47, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 64, "sliding_window": 3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 7}
LATENT = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "num_key_value_heads": 4,
          "kv_lora_rank": 8, "q_lora_rank": 9, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5,
          "n_group": 1, "topk_group": 1, "n_shared_experts": 1}  # fmt: skip
OPTIONS = ("--quiet", "--memory", "16GB")
LISTS = ("layer_types", "no_rope_layers")
PUBLISHED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "olmo3": ("olmo3", {}, {}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 2}, {}),
    "vaultgemma": ("vaultgemma", {"query_pre_attn_scalar": 6}, {}),
    "cwm": ("cwm", {}, {}),
    "exaone4": ("exaone4", {"sliding_window_pattern": 3}, {}),
    "qwen3": ("qwen3", {"use_sliding_window": True, "max_window_layers": 3}, {}),
    "qwen2_moe": ("qwen2_moe", EXPERTS | {"use_sliding_window": True, "max_window_layers": 4, "decoder_sparse_step": 2,
                                          "shared_expert_intermediate_size": 9}, {}),
    "qwen3_moe": ("qwen3_moe", EXPERTS | {"decoder_sparse_step": 3, "mlp_only_layers": [2]}, {}),
    "gemma3 every second": ("gemma3_text", {"query_pre_attn_scalar": 6}, {"sliding_window_pattern": 2}),
    "smollm3 windows without rotation": (
        "smollm3", {"use_sliding_window": True, "no_rope_layer_interval": 3}, {}),
    "smollm3 list without kinds": (
        "smollm3", {"use_sliding_window": True}, {"no_rope_layers": [1, 0, 0, 1, 1]}),
    "lfm2": ("lfm2", {"block_auto_adjust_ff_dim": False, "full_attn_idxs": [1, 4]}, {"full_attn_idxs": [1, 4]}),
}  # fmt: skip
"""Model type, what the config says, and what the published config says in place of lists."""


def published(folder: Path, kind: str, config: dict[str, Any], also: dict[str, Any]) -> Path:
    """A tiny model whose config.json has no list of what the layers are."""
    made = transformers.AutoConfig.for_model(kind, **SMALL | config | also)
    shake(transformers.AutoModelForCausalLM.from_config(made).float(), 0.15).save_pretrained(folder)
    edit(folder, lambda told: {key: value for key, value in told.items() if key not in LISTS} | also)
    return folder


def edit(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def opened(folder: Path, kind: Any = None) -> Any:
    """The model as transformers opens it, every tensor accounted for."""
    kind = kind or transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    model.set_experts_implementation("eager")
    return model.eval()


def answer(model: Any, **inputs: Any) -> np.ndarray:
    with torch.no_grad():
        out = model(**(inputs or {"input_ids": IDS, "use_cache": False}))
    return next(v for v in out.values() if torch.is_tensor(v) and v.is_floating_point()).double().numpy()


def by_hand(model: Any, order: list[int], layers: str = "layers") -> Any:
    """The model with its own layers in another order, each as transformers built it for its old place."""
    body = model.base_model
    held = list(getattr(body, layers))
    setattr(body, layers, torch.nn.ModuleList(deepcopy(held[k]) for k in order))
    for config in {id(c): c for c in (model.config, body.config)}.values():
        for key in LISTS:
            if isinstance(getattr(config, key, None), list):
                setattr(config, key, [getattr(config, key)[k] for k in order])
        config.num_hidden_layers = len(order)
    return model


def refused(model: Path, capsys: Any, step: str) -> str:
    """What the command says of a step that it refuses."""
    capsys.readouterr()
    status = run(["reshape", str(model), str(model.parent / "refused"), step, *OPTIONS])
    said = " ".join(capsys.readouterr().err.split())
    assert status in (1, 2) and said.startswith("error:"), said
    return said


def reshaped(model: Path, *steps: str) -> Path:
    out = model.parent / "out"
    assert run(["reshape", str(model), str(out), *steps, *OPTIONS]) == 0
    return out


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-4 * np.abs(b).max())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("order", [[1, 2, 4], [0, 3, 1, 1, 4, 2]], ids=["fewer", "another order"])
def test_layers_that_move_keep_their_kind(name: str, order: list[int], tmp_path: Path) -> None:
    model = published(tmp_path / "model", *PUBLISHED[name])
    get_step("layers").function(mg.open(model), keep=order).save(tmp_path / "out", sync=False)
    assert close(answer(opened(tmp_path / "out")), answer(by_hand(opened(model), order)))
    # and once more, from what was written
    get_step("layers").function(mg.open(tmp_path / "out"), keep=[2, 0]).save(tmp_path / "again", sync=False)
    assert close(answer(opened(tmp_path / "again")), answer(by_hand(opened(model), [order[2], order[0]])))


def test_what_the_loader_fills_in_as_wanted_is_not_written(tmp_path: Path) -> None:
    model = published(tmp_path / "model", "olmo3", {}, {})
    kept = reading_of(get_step("drop_layers").function(mg.open(model), layers=[4])).followed()
    assert kept == config_of(model) | {"num_hidden_layers": 4}


def test_slices_of_two_models_with_other_patterns(tmp_path: Path) -> None:
    one = published(
        tmp_path / "one", "gemma3_text", {"query_pre_attn_scalar": 6}, {"sliding_window_pattern": 2}
    )
    two = published(
        tmp_path / "two", "gemma3_text", {"query_pre_attn_scalar": 6}, {"sliding_window_pattern": 3}
    )
    parts = [{"model": mg.open(one), "layers": "0-2"}, {"model": mg.open(two), "layers": "1-3"}]
    made = reading_of(get_step("stack").function(mg.open(one), parts=parts)).followed()
    a, b = (transformers.AutoConfig.from_pretrained(path).layer_types for path in (one, two))
    assert made["layer_types"] == a[:3] + b[1:4]


# Rules that are numbers -----------------------------------------------------------------------------------------------

COUNTED = {
    "deepseek_v2": (LATENT | {"head_dim": 4}, {"first_k_dense_replace": 2}, "first_k_dense_replace", 1),
    "deepseek_v3": (LATENT | {"head_dim": 4}, {"first_k_dense_replace": 2}, "first_k_dense_replace", 1),
    "glm4_moe": (LATENT, {"first_k_dense_replace": 2}, "first_k_dense_replace", 1),
    "dots1": (LATENT, {"first_k_dense_replace": 2}, "first_k_dense_replace", 1),
    "ernie4_5_moe": ({"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 7, "moe_num_shared_experts": 1},
                     {"moe_layer_start_index": 2, "moe_layer_end_index": -1}, "moe_layer_start_index", 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", COUNTED)
def test_dense_layers_that_come_first_are_counted_anew(kind: str, tmp_path: Path) -> None:
    config, also, key, count = COUNTED[kind]
    model = published(tmp_path / "model", kind, config, also)
    get_step("drop_layers").function(mg.open(model), layers=[0, 3]).save(tmp_path / "out", sync=False)
    assert config_of(tmp_path / "out")[key] == count
    assert close(answer(opened(tmp_path / "out")), answer(by_hand(opened(model), [1, 2, 4])))


@pytest.mark.parametrize("kind", ["deepseek_v3", "ernie4_5_moe"])
def test_an_order_that_no_number_says_is_refused_with_one_that_works(
    kind: str, tmp_path: Path, capsys
) -> None:
    model = published(tmp_path / "model", kind, *COUNTED[kind][:2])
    step = refused(model, capsys, "g_stack: 2").rpartition("It can say this one: ")[2]
    assert step == "layers: 0, 0-1, 1-2, 2-3, 3-4, 4"
    reshaped(model, step)
    order = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert close(answer(opened(tmp_path / "out")), answer(by_hand(opened(model), order)))


def test_layers_after_the_last_with_experts_are_dense(tmp_path: Path) -> None:
    config, also, *_ = COUNTED["ernie4_5_moe"]
    also = also | {"moe_layer_end_index": 3}
    model = published(tmp_path / "model", "ernie4_5_moe", config, also)
    get_step("layers").function(mg.open(model), keep=[1, 2, 2, 3, 4]).save(tmp_path / "out", sync=False)
    assert close(answer(opened(tmp_path / "out")), answer(by_hand(opened(model), [1, 2, 2, 3, 4])))


# Rules that no key says -----------------------------------------------------------------------------------------------


def scaled(folder: Path) -> Path:
    config = transformers.GPT2Config(
        vocab_size=47, n_embd=24, n_layer=4, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True
    )
    shake(transformers.GPT2LMHeadModel(config), 0.3).save_pretrained(folder)
    return folder


def test_scales_by_the_number_of_the_layer_stay_or_the_move_is_refused(tmp_path: Path, capsys) -> None:
    model = scaled(tmp_path / "model")
    said = refused(model, capsys, "drop_layers: 1")
    assert "divided by the number of the layer" in said
    reshaped(model, said.rpartition("It can say this one: ")[2])
    assert close(answer(opened(tmp_path / "out")), answer(by_hand(opened(model), [0, 1, 2], "h")))
    # pieces that end where they were are the model itself
    parts = [{"layers": "0-1"}, {"layers": "2-3"}]
    whole = get_step("stack").function(mg.open(model), parts=parts)
    assert reading_of(whole).followed() == config_of(model)
    edit(model, lambda told: told | {"scale_attn_by_inverse_layer_idx": False})
    reading_of(get_step("drop_layers").function(mg.open(model), layers=[1])).followed()


def test_a_first_layer_unlike_the_others_stays_the_first(tmp_path: Path, capsys) -> None:
    config = transformers.ModernBertConfig(
        vocab_size=47, hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
        local_attention=4, global_attn_every_n_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    model = tmp_path / "model"
    shake(transformers.ModernBertForMaskedLM(config)).save_pretrained(model)
    said = refused(model, capsys, "layers: 3, 0, 2, 1")
    assert "the first layer alone has no norm" in said
    reshaped(model, said.rpartition("It can say this one: ")[2])
    opened(tmp_path / "out", transformers.AutoModelForMaskedLM)


def test_the_convolution_beside_the_first_layer_stays_with_it(tmp_path: Path) -> None:
    config = transformers.DebertaV2Config(
        vocab_size=47, hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=4,
        relative_attention=True, conv_kernel_size=3, conv_act="gelu",
    )  # fmt: skip
    shake(transformers.DebertaV2Model(config)).save_pretrained(tmp_path / "model")
    weights = mg.open(tmp_path / "model")
    with pytest.raises(AlgebraError, match=r"convolution .* layers: 0-2"):
        reading_of(get_step("drop_layers").function(weights, layers=[0])).followed()
    reading_of(get_step("layers").function(weights, keep=[0, 1, 2])).followed()


def test_runs_of_kinds_are_written_as_one(tmp_path: Path) -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=47, hidden_size=24, num_layers=5, num_heads=4, intermediate_size=20, window_size=2,
        attention_types=[[["local", "global"], 1], [["global"], 3]], max_position_embeddings=64,
    )  # fmt: skip
    model = tmp_path / "model"
    shake(transformers.GPTNeoForCausalLM(config), 0.3).save_pretrained(model)
    edit(model, lambda told: {key: value for key, value in told.items() if key != "attention_layers"})
    get_step("layers").function(mg.open(model), keep=[3, 0, 0, 2]).save(tmp_path / "out", sync=False)
    assert config_of(tmp_path / "out")["attention_types"] == [[["global", "local", "local", "global"], 1]]
    assert close(answer(opened(tmp_path / "out")), answer(by_hand(opened(model), [3, 0, 0, 2], "h")))


def test_groups_of_layers_keep_their_runs(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=47, hidden_size=24, embedding_size=12, intermediate_size=20, num_attention_heads=4,
        num_hidden_layers=6, num_hidden_groups=3,
    )  # fmt: skip
    model = tmp_path / "model"
    shake(transformers.AlbertModel(config)).save_pretrained(model)
    get_step("drop_layers").function(mg.open(model), layers=[1], index="group").save(
        tmp_path / "out", sync=False
    )
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 4
    right = opened(model, transformers.AutoModel)
    groups = right.encoder.albert_layer_groups
    right.encoder.albert_layer_groups = torch.nn.ModuleList([groups[0], groups[2]])
    right.config.num_hidden_layers, right.config.num_hidden_groups = 4, 2
    found = opened(tmp_path / "out", transformers.AutoModel)
    assert close(answer(found, input_ids=IDS), answer(right, input_ids=IDS))


# Other names of keys --------------------------------------------------------------------------------------------------

GPT = {"vocab_size": 47, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 64}
NAMED_TWICE = {
    "gpt2": ("CausalLM", GPT, {"num_hidden_layers": 3}, "layer", {"n_layer": 2, "num_hidden_layers": 2}),
    "distilbert": ("MaskedLM", {"vocab_size": 47, "dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 20},
                   {"num_hidden_layers": 3}, "layer", {"n_layers": 2, "num_hidden_layers": 2}),
    "t5": ("Seq2SeqLM", {"vocab_size": 47, "d_model": 24, "num_layers": 3, "num_heads": 4, "d_kv": 6, "d_ff": 20},
           {"num_hidden_layers": 3}, "encoder_layer", {"num_layers": 2, "num_hidden_layers": 2}),
    "blenderbot-small": ("Seq2SeqLM", {"vocab_size": 47, "d_model": 24, "encoder_layers": 3, "decoder_layers": 3,
                         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
                         "decoder_ffn_dim": 20}, {"num_hidden_layers": 3}, "encoder_layer",
                         {"encoder_layers": 2, "num_hidden_layers": 2}),
    "whisper": ("SpeechSeq2Seq", {"vocab_size": 47, "d_model": 24, "encoder_layers": 3, "decoder_layers": 3,
                "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
                "decoder_ffn_dim": 20, "num_mel_bins": 8, "max_source_positions": 10, "pad_token_id": 0,
                "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}, {"num_hidden_layers": 3},
                "encoder_layer", {"encoder_layers": 2, "num_hidden_layers": 2}),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMED_TWICE)
def test_both_names_of_a_key_follow(kind: str, tmp_path: Path) -> None:
    head, config, also, index, wanted = NAMED_TWICE[kind]
    auto = getattr(transformers, f"AutoModelFor{head}")
    model = tmp_path / "model"
    auto.from_config(transformers.AutoConfig.for_model(kind, **config)).save_pretrained(model)
    edit(model, lambda told: told | also)
    get_step("drop_layers").function(mg.open(model), layers=[1], index=index).save(
        tmp_path / "out", sync=False
    )
    assert {key: config_of(tmp_path / "out")[key] for key in wanted} == wanted
    opened(tmp_path / "out", auto)


def test_a_key_under_its_other_name_alone_follows(tmp_path: Path) -> None:
    model = tmp_path / "model"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT)).save_pretrained(model)
    names = {"n_layer": "num_hidden_layers", "n_embd": "hidden_size", "n_head": "num_attention_heads"}
    edit(model, lambda told: {names.get(key, key): value for key, value in told.items()})
    get_step("drop_layers").function(mg.open(model), layers=[1]).save(tmp_path / "out", sync=False)
    made = config_of(tmp_path / "out")
    assert made["num_hidden_layers"] == 2 and "n_layer" not in made
    opened(tmp_path / "out")


def test_every_other_name_that_the_loader_knows_is_in_the_family_file() -> None:
    kinds = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    for family in families().values():
        sizes = (*family.indices.values(), *family.axes.values())
        named = {name for spec in sizes for name in spec.size.names} | set(family.config)
        for kind in family.model_types:
            for alias, key in kinds[kind].attribute_map.items():
                assert key not in named or family.aliases.get(alias) == key, (family.name, alias, key)


# The notation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'a' if layer % 2 == 0 else 'b'", "a"),
        ("layer in listed", True),
        ("layer not in (nothing or [])", True),
        ("window is None", True),
        ("absent is None", False),
        ("not layer and count > -1", False),
    ],
)
def test_formulas_of_places(text: str, value: Any) -> None:
    from merganser.architectures.notation import NULL

    known = {"layer": 2, "listed": [1, 2], "window": NULL, "count": 0}
    assert Formula(text)(known.get) == value


@pytest.mark.parametrize(
    "line",
    [
        {"index": "layer", "entry": "layer"},
        {"index": "layer", "entry": "layer", "list": "a", "runs": "b"},
        {"index": "layer", "entry": "layer", "list": "a", "kind": 1},
        {"list": "a", "entry": "layer"},
    ],
)
def test_wrong_rules_of_places_are_refused(line: dict[str, Any]) -> None:
    with pytest.raises(FamilyError):
        parse_positions([line], "file")


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    model = published(tmp_path / "model", "olmo3", {}, {})
    edit(model, lambda told: told | {"layer_types": ["full_attention"] * 3})
    with pytest.raises(AlgebraError, match="has 3 entries and there are 5 of layer"):
        get_step("drop_layers").function(mg.open(model), layers=[0])


def test_numbers_as_text() -> None:
    assert as_text([0, 1, 2, 5, 5, 4]) == "0-2, 5, 5, 4"
