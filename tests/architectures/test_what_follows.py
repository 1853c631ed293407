"""What a loader takes for granted of sizes, in config.json and beside it: asked by every step, and followed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra import axes
from merganser.algebra.axes import reading_of
from merganser.architectures import Axis
from merganser.engine.plan import plan_weights
from merganser.errors import AlgebraError, MerganserError
from merganser.methods import get_step
from merganser.recipe import build, load

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from shaking import shake  # noqa: E402

IDS = torch.arange(1, 15)[None] % 47
SMALL: dict[str, Any] = {
    "vocab_size": 47, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MIXTURE = {
    "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 7, "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 8, "q_lora_rank": 9, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5, "n_group": 4,
    "topk_group": 3,
}  # fmt: skip


def model_of(folder: Path, kind: str, **config: Any) -> Path:
    made = transformers.AutoConfig.for_model(kind, **SMALL | config)
    shake(transformers.AutoModelForCausalLM.from_config(made).float(), 0.15).save_pretrained(folder)
    return folder


def opened(folder: Path) -> Any:
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    model.set_experts_implementation("eager")
    return model.eval()


def answer(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits.double().numpy()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-4 * np.abs(b).max())


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


# Elements whose number is part of what they mean ----------------------------------------------------------------------

ROTARY = {
    "glm": {"head_dim": 6, "partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},
    "bloom": {"n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize(
    ("kind", "axis"), [("glm", "head_dim"), ("gpt_neox", "head_dim"), ("bloom", "heads")]
)
def test_elements_that_depend_on_their_number_are_neither_cut_nor_added(
    kind: str, axis: str, tmp_path: Path
) -> None:
    weights = mg.open(model_of(tmp_path / "model", kind, **ROTARY[kind]))
    size = max(reading_of(weights).sizes[one] for one in reading_of(weights).instances(axis))
    for change in (
        lambda: axes.take(weights, axis, range(size // 2)),
        lambda: axes.resize(weights, axis, 2 * size),
        lambda: axes.pad(weights, axis, 2 * size),
        lambda: axes.concat([weights, weights], axis),
        lambda: get_step("narrow").function(weights, axis=axis, size=size // 2),
    ):
        with pytest.raises(AlgebraError, match="fixed places"):
            change()


def test_zeros_under_a_norm_over_all_heads_are_asked_for(tmp_path: Path) -> None:
    weights = mg.open(model_of(tmp_path / "model", "olmo2", num_key_value_heads=2))
    pad = get_step("pad").function
    with pytest.raises(AlgebraError, match="allow_inexact: true"):
        pad(weights, axis="kv_heads", size=4)
    plan_weights(pad(weights, axis="kv_heads", size=4, allow_inexact=True))
    plan_weights(pad(weights, axis="neurons", size=22))


# Groups of experts ----------------------------------------------------------------------------------------------------


def test_whole_groups_of_experts_go_and_their_number_follows(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model", "deepseek_v3", **MIXTURE | LATENT, head_dim=4)
    fewer = axes.take(mg.open(model), "expert", range(4))
    fewer.save(tmp_path / "out", sync=False)
    config = config_of(tmp_path / "out")
    assert (config["n_routed_experts"], config["n_group"], config["topk_group"]) == (4, 2, 2)
    answer(opened(tmp_path / "out"))
    with pytest.raises(AlgebraError, match=r"groups of 2 .*n_group.* are 4 and 6"):
        reading_of(axes.take(mg.open(model), "expert", range(5))).followed()


# The layer after the last ---------------------------------------------------------------------------------------------


def with_extra_layer(folder: Path, kind: str, **config: Any) -> Path:
    """A checkpoint as released: one layer more than config.json counts, to predict a second token."""
    model_of(folder, kind, **MIXTURE | config)
    tensors = load_file(folder / "model.safetensors")
    extra = {n.replace("layers.2.", "layers.3."): v.clone() for n, v in tensors.items() if ".layers.2." in n}
    parts = {
        "eh_proj": (24, 48), "enorm": (24,), "hnorm": (24,), "shared_head.norm": (24,), "shared_head.head": (47, 24),
        "embed_tokens": (47, 24),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    extra |= {f"model.layers.3.{n}.weight": torch.randn(s, generator=generator) for n, s in parts.items()}
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    told = config_of(folder) | {"num_nextn_predict_layers": 1}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def test_the_layer_that_predicts_more_follows_in_width_and_number(tmp_path: Path) -> None:
    model = with_extra_layer(tmp_path / "model", "glm4_moe", head_dim=6, n_group=1, topk_group=1)
    before = load_file(model / "model.safetensors")
    wider = get_step("widen").function(mg.open(model), axis="expert_neurons", factor=2)
    wider.save(tmp_path / "wider", sync=False)
    assert close(answer(opened(tmp_path / "wider")), answer(opened(model)))

    get_step("drop_layers").function(mg.open(model), layers=[1]).save(tmp_path / "fewer", sync=False)
    made = load_file(tmp_path / "fewer" / "model.safetensors")
    kept = {n.replace("layers.3.", "layers.2."): v for n, v in before.items() if ".layers.3." in n}
    assert all(torch.equal(made[name], value) for name, value in kept.items())
    assert not any(".layers.3." in name for name in made)
    opened(tmp_path / "fewer")

    parts = [{"layers": "0-1"}, {"layers": "1-2"}]
    deeper = get_step("stack").function(mg.open(model), parts=parts)
    assert {n for n in deeper if ".layers.4." in n} == {
        n.replace("layers.3.", "layers.4.") for n in before if ".layers.3." in n
    }
    assert reading_of(deeper).sizes[Axis("layer")] == 4


def test_its_norms_fold_into_the_matrix_that_reads_both(tmp_path: Path) -> None:
    model = with_extra_layer(tmp_path / "model", "deepseek_v3", **LATENT, head_dim=4)
    before = load_file(model / "model.safetensors")
    mg.axes.fold_norms(mg.open(model)).save(tmp_path / "out", sync=False)
    made = load_file(tmp_path / "out" / "model.safetensors")
    norms = torch.cat([before[f"model.layers.3.{name}.weight"] for name in ("enorm", "hnorm")])
    right = before["model.layers.3.eh_proj.weight"] * norms
    assert torch.allclose(made["model.layers.3.eh_proj.weight"], right, atol=1e-6)
    assert close(answer(opened(tmp_path / "out")), answer(opened(model)))


# Slices without layers ------------------------------------------------------------------------------------------------


def test_a_slice_without_layers_gives_what_stands_around_them(tmp_path: Path) -> None:
    sizes = {"head_dim": 6, "tie_word_embeddings": False}
    for k, name in enumerate(("a", "b")):
        torch.manual_seed(k)
        model_of(tmp_path / name, "qwen3", **sizes)
    two = tmp_path / "b" / "model.safetensors"
    save_file({n: v + 1 for n, v in load_file(two).items()}, two, {"format": "pt"})
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("a", "b"))

    def made(*slices: tuple[str, list[int]]) -> Any:
        parts = [{"sources": [{"model": str(tmp_path / m), "layer_range": r}]} for m, r in slices]
        weights, _ = build(load({"merge_method": "passthrough", "slices": parts}))
        weights.save(tmp_path / "out", overwrite=True, sync=False)
        return load_file(tmp_path / "out" / "model.safetensors")

    first = made(("b", [2, 2]), ("a", [0, 3]))
    assert torch.equal(first["model.embed_tokens.weight"], b["model.embed_tokens.weight"])
    assert torch.equal(first["lm_head.weight"], a["lm_head.weight"])
    last = made(("a", [0, 2]), ("b", [0, 0]))
    assert torch.equal(last["model.norm.weight"], b["model.norm.weight"])
    assert config_of(tmp_path / "out")["num_hidden_layers"] == 2
    with pytest.raises(AlgebraError, match="no layer is left"):
        made(("a", [1, 1]), ("b", [0, 0]))


# Files beside config.json ---------------------------------------------------------------------------------------------


def encoder(folder: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=47, hidden_size=24, intermediate_size=20, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    shake(transformers.BertModel(config)).save_pretrained(folder)
    return folder


def with_module(folder: Path, name: str, kind: str, config: dict[str, Any]) -> Path:
    """A module as sentence-transformers wrote it years ago."""
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text(json.dumps(config))
    path = folder / "modules.json"
    start = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    held = json.loads(path.read_text()) if path.exists() else start
    held.append(
        {
            "idx": len(held),
            "name": str(len(held)),
            "path": name,
            "type": f"sentence_transformers.models.{kind}",
        }
    )
    path.write_text(json.dumps(held))
    return folder


@pytest.mark.parametrize("key", ["word_embedding_dimension", "embedding_dimension"])
def test_the_width_of_a_pooling_follows_the_residual(key: str, tmp_path: Path) -> None:
    model = with_module(
        encoder(tmp_path / "model"), "1_Pooling", "Pooling", {key: 24, "pooling_mode_cls_token": True}
    )
    weights = mg.open(model)
    for axis in ("heads", "residual"):
        weights = get_step("widen").function(weights, axis=axis, factor=2)
    weights.save(tmp_path / "out", sync=False)
    made = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert made == {key: 48, "pooling_mode_cls_token": True}


def test_a_module_with_weights_for_the_old_width_is_refused_and_the_way_out_works(tmp_path: Path) -> None:
    model = with_module(encoder(tmp_path / "model"), "1_Pooling", "Pooling", {"word_embedding_dimension": 24})
    with_module(model, "2_Dense", "Dense", {"in_features": 24, "out_features": 8, "bias": True})

    def widened() -> mg.Weights:
        weights = get_step("widen").function(mg.open(model), axis="heads", factor=2)
        return get_step("widen").function(weights, axis="residual", factor=2)

    with pytest.raises(AlgebraError, match=r"2_Dense .*take 2_Dense out of modules\.json"):
        plan_weights(widened())
    path = model / "modules.json"
    path.write_text(json.dumps([m for m in json.loads(path.read_text()) if m["path"] != "2_Dense"]))
    plan_weights(widened())


def whisper(folder: Path) -> Path:
    config = transformers.WhisperConfig(
        vocab_size=47, d_model=24, encoder_layers=2, decoder_layers=4, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=20, decoder_ffn_dim=20, num_mel_bins=8, max_source_positions=10,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    path = folder / "generation_config.json"
    told = json.loads(path.read_text()) | {"alignment_heads": [[1, 3], [2, 0], [2, 2], [3, 1]]}
    path.write_text(json.dumps(told))
    return folder


def test_alignment_heads_follow_the_layers_of_the_decoder(tmp_path: Path) -> None:
    weights = mg.open(whisper(tmp_path / "model"))

    def heads(changed: mg.Weights) -> Any:
        changed.save(tmp_path / "out", overwrite=True, sync=False)
        return json.loads((tmp_path / "out" / "generation_config.json").read_text()).get("alignment_heads")

    step = get_step("layers").function
    assert heads(step(weights, keep=[0, 2, 3], index="decoder_layer")) == [[1, 0], [1, 2], [2, 1]]
    assert heads(step(weights, keep=[1, 1, 3], index="decoder_layer")) == [[0, 3], [1, 3], [2, 1]]
    assert heads(step(weights, keep=[1, 0], index="encoder_layer")) == [[1, 3], [2, 0], [2, 2], [3, 1]]
    assert heads(step(weights, keep=[0], index="decoder_layer")) is None
    permuted = get_step("permute").function(weights, axis="cross_heads", order=[1, 0, 2, 3])
    assert heads(permuted) is None
    note = next(note for note in plan_weights(permuted).notes if note.get("key") == "alignment_heads")
    assert note["is"] == "taken away"


# A head that reads something of every layer ---------------------------------------------------------------------------


def protein_model(folder: Path, seed: int = 0) -> Path:
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=3,
        max_position_embeddings=32, position_embedding_type="rotary", pad_token_id=1, mask_token_id=32,
    )  # fmt: skip
    torch.manual_seed(seed)
    shake(transformers.EsmForMaskedLM(config)).save_pretrained(folder)
    return folder


def contacts(folder: Path) -> np.ndarray:
    model, info = transformers.EsmForMaskedLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    ids = torch.arange(4, 16)[None]
    with torch.no_grad():
        return model.eval().esm.predict_contacts(ids, torch.ones_like(ids)).numpy()


def test_the_contact_head_follows_heads_and_layers(tmp_path: Path) -> None:
    model = protein_model(tmp_path / "model")
    weights = mg.open(model)
    get_step("permute").function(weights, axis="heads", order=[2, 0, 1]).save(tmp_path / "turned", sync=False)
    assert np.allclose(contacts(tmp_path / "turned"), contacts(model), atol=1e-5)
    axes.stack([(weights, range(3)), (weights, range(3, 4))]).save(tmp_path / "same", sync=False)
    assert np.array_equal(contacts(tmp_path / "same"), contacts(model))

    get_step("layers").function(weights, keep=[3, 0, 0]).save(tmp_path / "fewer", sync=False)
    contacts(tmp_path / "fewer")
    name = "esm.contact_head.regression.weight"
    before = load_file(model / "model.safetensors")[name].reshape(4, 3)
    after = load_file(tmp_path / "fewer" / "model.safetensors")[name].reshape(3, 3)
    assert torch.equal(after, before[[3, 0, 0]])


def test_a_contact_head_that_one_model_lacks_is_left_out_of_all(tmp_path: Path) -> None:
    model, other = protein_model(tmp_path / "model"), protein_model(tmp_path / "other", 1)
    mg.open(other).drop("*contact_head*").save(tmp_path / "bare", partial=True, sync=False)

    def stacked(first: Path, second: Path = tmp_path / "bare") -> Any:
        return axes.stack([(mg.open(first), range(3)), (mg.open(second), range(1, 4))])

    for order in ((model,), (tmp_path / "bare", model)):
        with pytest.raises(AlgebraError, match=r"bare.* has no .*contact_head") as refusal:
            stacked(*order)
    pattern = str(refusal.value).partition(".drop('")[2].partition("')")[0]
    mg.open(model).drop(pattern).save(tmp_path / "less", partial=True, sync=False)
    stacked(tmp_path / "less").save(tmp_path / "out", sync=False)
    made, info = transformers.EsmForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert all("contact_head" in name for name in info["missing_keys"]) and len(made.esm.encoder.layer) == 6


# Text models inside others --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "vision"),
    [("paligemma", "gemma", "siglip_vision_model"), ("llava", "qwen2", "clip_vision_model")],
)
def test_the_text_part_of_a_model_of_images_is_worked_on_alone(
    kind: str, text: str, vision: str, tmp_path: Path
) -> None:
    small = {key: value for key, value in SMALL.items() if not key.endswith("token_id")}
    pictures = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 16, "patch_size": 8}  # fmt: skip
    config = transformers.AutoConfig.for_model(
        kind, text_config=small | {"model_type": text}, vision_config=pictures | {"model_type": vision}
    )
    auto = transformers.AutoModelForImageTextToText
    auto.from_config(config).save_pretrained(tmp_path / "model")
    shutil.copytree(tmp_path / "model", tmp_path / "again")
    weights = {"model": [0, 1], "again": [1, 0]}
    models = [{"model": str(tmp_path / n), "parameters": {"weight": w}} for n, w in weights.items()]
    gradient = {"merge_method": "linear", "models": models}
    step = {"model": str(tmp_path / "model"), "steps": [{"drop_layers": "1"}]}
    for recipe in (gradient, step):
        with pytest.raises(MerganserError, match=r"get_decoder\(\)\.save_pretrained") as refusal:
            plan_weights(build(load(recipe))[0])
        assert text in str(refusal.value)
    # the way out, followed
    auto.from_pretrained(tmp_path / "model").get_decoder().save_pretrained(tmp_path / "text")
    get_step("drop_layers").function(mg.open(tmp_path / "text"), layers=[1]).save(
        tmp_path / "out", sync=False
    )
    assert len(transformers.AutoModel.from_pretrained(tmp_path / "out").layers) == 2
