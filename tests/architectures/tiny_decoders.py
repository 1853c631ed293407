"""Tiny decoder-only language models, one case or more for each model type, every axis of another size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shaking import shake

VOCAB, RESIDUAL, NEURONS, LAYERS, POSITIONS, LABELS = 61, 30, 37, 2, 29, 5
LLAMA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": RESIDUAL,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": POSITIONS,
    "sliding_window": 4,
}
SPLIT: dict[str, Any] = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {
    "hidden_size": 24
}
"""For loaders that take head_dim from the residual stream."""
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1]}
"""Rotary pairs that turn by time, and those that turn by the row and the column of an image."""
GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 24,
    "n_layer": LAYERS,
    "n_head": 6,
    "n_positions": POSITIONS,
}
EXPERTS: dict[str, Any] = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 13}
LATENT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": RESIDUAL,
    "intermediate_size": NEURONS,
    "moe_intermediate_size": 13,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 3,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 14,
    "q_lora_rank": 17,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 10,
    "v_head_dim": 5,
    "max_position_embeddings": POSITIONS,
}
MAMBA: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": RESIDUAL,
    "num_hidden_layers": LAYERS,
    "state_size": 7,
    "conv_kernel": 3,
    "use_bias": True,
}
MODELS: dict[str, Callable[[], Any]] = {}


def add(name: str, kind: str, config: dict[str, Any], head: str = "CausalLM", **more: Any) -> None:
    """A case: the model type `kind` with a head, or without one for "Body"."""

    def build() -> Any:
        import torch
        import transformers

        wanted = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
        wanted |= config | more
        if head in ("SequenceClassification", "TokenClassification"):
            wanted["num_labels"] = LABELS
        auto = transformers.AutoModel if head == "Body" else getattr(transformers, f"AutoModelFor{head}")
        torch.manual_seed(0)
        return shake(auto.from_config(transformers.AutoConfig.for_model(kind, **wanted)))

    assert name not in MODELS, name
    MODELS[name] = build


def add_heads(kind: str, config: dict[str, Any], heads: str = "", **more: Any) -> None:
    """The causal model, and cases of other heads: s(core), t(okens), q(uestions)."""
    add(kind, kind, config, **more)
    names = {"s": "SequenceClassification", "t": "TokenClassification", "q": "QuestionAnswering"}
    for letter in heads:
        add(f"{kind}-{names[letter]}", kind, config, names[letter], **more)


add_heads("llama", LLAMA, "stq")
add("llama-tied", "llama", LLAMA, tie_word_embeddings=True)
add("llama-body", "llama", LLAMA, "Body")
add("llama-bias", "llama", LLAMA, attention_bias=True, mlp_bias=True)
add("llama-split", "llama", SPLIT)
add("mistral", "mistral", LLAMA)
add("ministral", "ministral", LLAMA)
add("ministral3", "ministral3", LLAMA)
add("qwen2", "qwen2", SPLIT, use_sliding_window=True, max_window_layers=1)
add("granite", "granite", SPLIT, attention_bias=True, residual_multiplier=0.7, logits_scaling=3.0)
add("smollm3", "smollm3", SPLIT, no_rope_layer_interval=2)
add("seed_oss", "seed_oss", LLAMA)
add("cwm", "cwm", LLAMA)
add("ernie4_5", "ernie4_5", LLAMA, use_bias=True)
add_heads("qwen3", LLAMA, "sq", attention_bias=True)
add_heads("hunyuan_v1_dense", LLAMA, "s")
for kind in ("qwen2_vl_text", "qwen2_5_vl_text"):
    add(kind, kind, SPLIT, "Body", use_sliding_window=True, max_window_layers=1, rope_parameters=SECTIONS)
add_heads("gemma", LLAMA, "s")
add_heads("gemma2", LLAMA, "s", query_pre_attn_scalar=4)
add_heads("gemma3_text", LLAMA, "s", query_pre_attn_scalar=4)
add_heads("vaultgemma", LLAMA, query_pre_attn_scalar=4)
add_heads("phi3", SPLIT, "s")
add_heads("glm", LLAMA, "s")
add_heads("glm4", LLAMA, "s")
add_heads("exaone4", SPLIT, "sq")
add_heads("olmo", SPLIT, "s", clip_qkv=2.0)
add_heads("olmo2", SPLIT, "s")
add("olmo3", "olmo3", SPLIT)
add_heads("phi", SPLIT, "s")
add("phi-norms", "phi", SPLIT, qk_layernorm=True)
add_heads("starcoder2", SPLIT, "s")
add_heads("arcee", LLAMA, "sq", mlp_bias=True)
add_heads("jais2", LLAMA)
add_heads("nemotron", LLAMA, "sq")
add_heads("apertus", SPLIT)
add("apertus-tokens", "apertus", SPLIT, "TokenClassification")
add_heads("helium", {**LLAMA, "hidden_size": 24}, "s")
add_heads("stablelm", SPLIT, "s", use_qkv_bias=True)
add_heads("cohere", SPLIT)
add("cohere-norms", "cohere", SPLIT, use_qk_norm=True, attention_bias=True)
add("cohere2", "cohere2", SPLIT)
add_heads("persimmon", SPLIT, "s", num_key_value_heads=6)
add("persimmon-plain", "persimmon", SPLIT, num_key_value_heads=6, qk_layernorm=False)

add_heads("mixtral", LLAMA, "sq", num_local_experts=7, num_experts_per_tok=3)
add_heads("phimoe", SPLIT, "s", num_local_experts=7, num_experts_per_tok=2, attention_bias=True)
add("phimoe-bias", "phimoe", SPLIT, num_local_experts=7, lm_head_bias=True)
add_heads("minimax_m2", LLAMA, num_local_experts=7, num_experts_per_tok=3)
add_heads("qwen2_moe", SPLIT, "sq", **EXPERTS, shared_expert_intermediate_size=19, mlp_only_layers=[1])
add_heads("qwen3_moe", LLAMA, "sq", **EXPERTS, mlp_only_layers=[1])
add_heads("olmoe", SPLIT, num_experts=7, num_experts_per_tok=3)
add_heads("flex_olmo", SPLIT, num_experts=7, num_experts_per_tok=3)
add_heads("glm4_moe", {**LATENT, **LLAMA}, use_qk_norm=True, attention_bias=True)
add("glm4_moe-plain", "glm4_moe", {**LATENT, **LLAMA})
add("dots1", "dots1", {**LATENT, **LLAMA})
add_heads("deepseek_v3", LATENT, "s", attention_bias=True)
add("deepseek_v3-direct", "deepseek_v3", LATENT, q_lora_rank=None)
add("deepseek_v2", "deepseek_v2", LATENT, topk_method="group_limited_greedy")
add("deepseek_v2-direct", "deepseek_v2", LATENT, q_lora_rank=None)
add_heads("granitemoe", SPLIT, num_local_experts=7, num_experts_per_tok=3)
add("granitemoeshared", "granitemoeshared", SPLIT, num_local_experts=7, shared_intermediate_size=19)
add_heads("gpt_oss", LLAMA, "s", num_local_experts=7, num_experts_per_tok=3)

add_heads("gpt2", GPT, "stq")
add("gpt2-tied", "gpt2", GPT, tie_word_embeddings=True)
add("gpt2-body", "gpt2", GPT, "Body")
add("gpt2-inner", "gpt2", GPT, n_inner=NEURONS)
add_heads("openai-gpt", GPT, "s")
add_heads("gpt_bigcode", GPT, "st")
add("gpt_bigcode-inner", "gpt_bigcode", GPT, n_inner=NEURONS)
add_heads("gptj", {**GPT, "rotary_dim": 2, "n_inner": NEURONS}, "sq")
add_heads("codegen", {**GPT, "n_embd": 48, "n_head": 12, "rotary_dim": 2, "n_inner": NEURONS})
NEOX = {key: value for key, value in SPLIT.items() if key not in ("num_key_value_heads", "sliding_window")}
add_heads("gpt_neox", NEOX, "stq")
NEO = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_layers": LAYERS,
    "num_heads": 6,
    "max_position_embeddings": POSITIONS,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
}
add_heads("gpt_neo", NEO, "stq")
add("gpt_neo-inner", "gpt_neo", NEO, intermediate_size=NEURONS)
OPT = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "ffn_dim": NEURONS,
    "max_position_embeddings": POSITIONS,
}
add_heads("opt", OPT, "sq")
add("opt-plain", "opt", OPT, enable_bias=False, layer_norm_elementwise_affine=True)
BLOOM = {"vocab_size": VOCAB, "hidden_size": 24, "n_layer": LAYERS, "n_head": 6}
add_heads("bloom", BLOOM, "stq")
FALCON = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 6}
add_heads(
    "falcon", FALCON, "stq", num_kv_heads=2, new_decoder_architecture=True, bias=True, ffn_hidden_size=NEURONS
)
add(
    "falcon-one-norm",
    "falcon",
    FALCON,
    num_kv_heads=2,
    new_decoder_architecture=True,
    num_ln_in_parallel_attn=1,
)
add("falcon-old", "falcon", FALCON)
XGLM = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "ffn_dim": NEURONS,
    "num_layers": LAYERS,
    "attention_heads": 6,
    "max_position_embeddings": POSITIONS,
}
add_heads("xglm", XGLM)
add_heads("biogpt", NEOX, "st")
add_heads("mamba", MAMBA, time_step_rank=5)
add_heads("falcon_mamba", MAMBA, time_step_rank=5)
add_heads("mamba2", MAMBA, expand=2, num_heads=6, head_dim=10, n_groups=2, chunk_size=4)
add(
    "ernie4_5_moe",
    "ernie4_5_moe",
    SPLIT,
    use_bias=True,
    moe_num_experts=7,
    moe_k=3,
    moe_intermediate_size=13,
    moe_num_shared_experts=3,
    moe_layer_start_index=1,
)
add("lfm2", "lfm2", SPLIT, layer_types=["conv", "full_attention"], conv_bias=True, block_multiple_of=7)
add("lfm2-plain", "lfm2", SPLIT, layer_types=["full_attention", "conv"], block_auto_adjust_ff_dim=False)
