"""Tiny encoders, encoder-decoders, vision and audio models, every axis of another size, and how to call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shaking import shake

VOCAB, NEURONS, LAYERS, POSITIONS, LABELS, TEXT = 61, 37, 2, 29, 6, 11
MODELS: dict[str, Callable[[], Any]] = {}
INPUTS: dict[str, Callable[[], dict[str, Any]]] = {}
"""How to call a case that takes anything but `input_ids`."""


def add(
    name: str,
    kind: str,
    config: dict[str, Any],
    head: str,
    inputs: Any = None,
    *,
    old: Any = None,
    made: Any = None,
    **more: Any,
) -> None:
    """A case: the class `head` of transformers for the model type `kind`.

    `made` builds it otherwise; `old` makes of what is saved now what an older release would have saved.
    """

    def build() -> Any:
        import torch
        import transformers

        model = getattr(transformers, head)
        settings = config | more
        if "Classification" in head or head.endswith("WithTeacher"):
            settings["num_labels"] = LABELS
        torch.manual_seed(0)
        built = shake(
            (made or (lambda kind, config: kind(config)))(
                model, transformers.AutoConfig.for_model(kind, **settings)
            )
        )
        for module in built.modules():
            if hasattr(module, "create_weight"):  # positions that are computed, whatever a checkpoint says
                module.weight.data.copy_(module.create_weight())
        return built if old is None else saved_as(built, old)

    assert name not in MODELS, name
    MODELS[name] = build
    if inputs is not None:
        INPUTS[name] = inputs


def saved_as(model: Any, old: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The model, whose files hold what `old` makes of its tensors."""
    save = model.save_pretrained

    def save_pretrained(folder: Any, **options: Any) -> None:
        from pathlib import Path

        from safetensors.torch import load_file, save_file

        save(folder, **options)
        path = Path(folder) / "model.safetensors"
        save_file(
            {n: t.contiguous() for n, t in old(load_file(path)).items()}, path, metadata={"format": "pt"}
        )

    model.save_pretrained = save_pretrained
    return model


def renamed(**parts: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Tensors under names with some parts replaced."""

    def old(tensors: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, tensor in tensors.items():
            for part, other in parts.items():
                name = name.replace(part, other)
            found[name] = tensor
        return found

    return old


def drawn(*shape: int, seed: int = 3) -> Any:
    """Random numbers: pixels, sound."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(length: int = TEXT, seed: int = 5) -> Any:
    """Random tokens, none of the first few, which are special."""
    import torch

    return torch.randint(5, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def placed() -> dict[str, Any]:
    """Tokens with their places given, for models that would count what is not padding."""
    import torch

    return {
        "input_ids": words(),
        "attention_mask": torch.ones(2, TEXT, dtype=torch.long),
        "position_ids": torch.arange(3, TEXT + 3).expand(2, TEXT),
    }


def both() -> dict[str, Any]:
    """For an encoder and a decoder."""
    return {"input_ids": words(), "decoder_input_ids": words(6, seed=6)}


def pixels() -> dict[str, Any]:
    """Images of 9 patches."""
    return {"pixel_values": drawn(2, 8, 12, 12)}


def pixels_and_text() -> dict[str, Any]:
    """Images and texts."""
    return {"input_ids": words(), "pixel_values": drawn(2, 8, 12, 12)}


BERT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 35,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 5,
    "intermediate_size": NEURONS,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MPNET = {**BERT, "relative_attention_num_buckets": 32}
HEADS = {
    "mlm": "ForMaskedLM",
    "labels": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "qa": "ForQuestionAnswering",
}


def with_places(tensors: dict[str, Any]) -> dict[str, Any]:
    """With the buffer of positions that older releases saved."""
    import torch

    table = next(name for name in tensors if name.endswith("embeddings.position_embeddings.weight"))
    places = torch.arange(len(tensors[table])).reshape(1, -1)
    return {**tensors, table.replace("position_embeddings.weight", "position_ids"): places}


def add_text(
    kind: str, name: str, heads: str, inputs: Any = None, config: dict[str, Any] = BERT, **more: Any
) -> None:
    """The body, and models with the heads named."""
    add(kind, kind, config, f"{name}Model", inputs, **more)
    for head in heads.split():
        add(f"{kind}-{head}", kind, config, name + HEADS[head], inputs, **more)


add_text("bert", "Bert", "mlm labels tokens qa")
add("bert-pretraining", "bert", BERT, "BertForPreTraining")
add("bert-untied", "bert", BERT, "BertForMaskedLM", tie_word_embeddings=False)
OLDEST = renamed(**{"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"})
add("bert-oldest", "bert", BERT, "BertForPreTraining", old=lambda tensors: with_places(OLDEST(tensors)))
add("dpr-question", "dpr", BERT, "DPRQuestionEncoder")
add("dpr-reader", "dpr", BERT, "DPRReader")
add("ernie", "ernie", BERT, "ErnieForMaskedLM", use_task_id=True, task_type_vocab_size=3)
add_text("roberta", "Roberta", "mlm labels tokens qa", placed)
add("roberta-untied", "roberta", BERT, "RobertaForMaskedLM", placed, tie_word_embeddings=False)
add("roberta-old", "roberta", BERT, "RobertaModel", placed, old=with_places)
add("xlm-roberta", "xlm-roberta", BERT, "XLMRobertaForMaskedLM", placed)
add("camembert", "camembert", BERT, "CamembertForSequenceClassification", placed)
add("data2vec-text", "data2vec-text", BERT, "Data2VecTextForMaskedLM", placed)
add_text("roberta-prelayernorm", "RobertaPreLayerNorm", "mlm labels tokens qa", placed)
add_text("xlm-roberta-xl", "XLMRobertaXL", "mlm labels tokens qa", placed)
add_text("megatron-bert", "MegatronBert", "mlm labels tokens qa")
add(
    "megatron-bert-pretraining",
    "megatron-bert",
    BERT,
    "MegatronBertForPreTraining",
    tie_word_embeddings=False,
)
for kind, name in {
    "roberta-prelayernorm": "RobertaPreLayerNorm",
    "xlm-roberta-xl": "XLMRobertaXL",
    "mpnet": "MPNet",
}.items():
    add(f"{kind}-untied", kind, MPNET, f"{name}ForMaskedLM", placed, tie_word_embeddings=False)
DISTILBERT = {
    "vocab_size": VOCAB,
    "dim": 35,
    "n_layers": LAYERS,
    "n_heads": 5,
    "hidden_dim": NEURONS,
    "max_position_embeddings": POSITIONS,
}
add_text("distilbert", "DistilBert", "mlm labels tokens qa", config=DISTILBERT)
add("distilbert-untied", "distilbert", DISTILBERT, "DistilBertForMaskedLM", tie_word_embeddings=False)
ELECTRA = {**BERT, "embedding_size": 13}
add_text("electra", "Electra", "mlm labels tokens qa", config=ELECTRA)
add("electra-untied", "electra", ELECTRA, "ElectraForMaskedLM", tie_word_embeddings=False)
add("electra-pretraining", "electra", ELECTRA, "ElectraForPreTraining")
add(
    "electra-base", "electra", {**BERT, "embedding_size": 35}, "ElectraForMaskedLM", tie_word_embeddings=False
)
REMBERT = {**BERT, "input_embedding_size": 13, "output_embedding_size": 17}
add_text("rembert", "RemBert", "mlm labels tokens qa", config=REMBERT)
ALBERT = {**BERT, "embedding_size": 13, "num_hidden_layers": 7, "num_hidden_groups": 3, "inner_group_num": 2}
add_text("albert", "Albert", "mlm labels tokens qa", config=ALBERT)
add(
    "albert-pretraining",
    "albert",
    ALBERT,
    "AlbertForPreTraining",
    num_labels=LABELS,
    tie_word_embeddings=False,
)
add_text("mpnet", "MPNet", "mlm labels tokens qa", placed, config=MPNET)
DEBERTA = {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 35}
add_text("deberta", "Deberta", "mlm labels tokens qa", config=DEBERTA, position_biased_input=False)
add("deberta-untied", "deberta", DEBERTA, "DebertaForMaskedLM", tie_word_embeddings=False)
add("deberta-plain", "deberta", BERT, "DebertaForMaskedLM", legacy=False)
V2 = {**DEBERTA, "position_buckets": 8, "position_biased_input": False}
add_text(
    "deberta-v2",
    "DebertaV2",
    "mlm labels tokens qa",
    config=V2,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
)
add("deberta-v2-conv", "deberta-v2", V2, "DebertaV2ForMaskedLM", conv_kernel_size=3, legacy=False)
add("deberta-v2-untied", "deberta-v2", V2, "DebertaV2ForMaskedLM", tie_word_embeddings=False)


def with_masks(tensors: dict[str, Any]) -> dict[str, Any]:
    """With a head of the release that nothing reads."""
    parts = {
        "dense.weight": (35, 35),
        "dense.bias": (35,),
        "LayerNorm.weight": (35,),
        "LayerNorm.bias": (35,),
    }
    parts |= {"classifier.weight": (1, 35), "classifier.bias": (1,)}
    return tensors | {f"mask_predictions.{name}": drawn(*shape) for name, shape in parts.items()}


add("deberta-v2-release", "deberta-v2", V2, "DebertaV2ForMaskedLM", old=with_masks)
add("deberta-v2-plain", "deberta-v2", BERT, "DebertaV2Model")
ROTARY = {**BERT, "hidden_size": 30, "num_attention_heads": 3, "num_hidden_layers": 4}
MODERN = {**ROTARY, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}
add_text("modernbert", "ModernBert", "mlm labels tokens", config=MODERN)
add("modernbert-untied", "modernbert", MODERN, "ModernBertForMaskedLM", tie_word_embeddings=False)
BIASED = {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}
add("modernbert-bias", "modernbert", MODERN, "ModernBertForMaskedLM", **BIASED)
add_text("nomic_bert", "NomicBert", "mlm labels tokens", config=ROTARY)
add("nomic_bert-untied", "nomic_bert", ROTARY, "NomicBertForMaskedLM", tie_word_embeddings=False)
EURO = {**ROTARY, "hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "mask_token_id": 3}
add_text("eurobert", "EuroBert", "mlm tokens", config=EURO)
add("eurobert-tied", "eurobert", EURO, "EuroBertForMaskedLM", tie_word_embeddings=True, attention_bias=True)
ESM = {**ROTARY, "position_embedding_type": "rotary", "mask_token_id": 3}
add_text("esm", "Esm", "mlm labels tokens", config=ESM)
OWN = {"position_embedding_type": "absolute", "emb_layer_norm_before": True, "tie_word_embeddings": False}
add("esm-absolute", "esm", ESM, "EsmForMaskedLM", placed, **OWN)


def esm_2(tensors: dict[str, Any]) -> dict[str, Any]:
    """The names of the releases."""
    found = renamed(gamma="weight", beta="bias")(tensors)
    speeds = next(name for name in found if name.endswith("inv_freq"))
    for layer in range(4):
        found[speeds.replace("*", str(layer))] = found[speeds].clone()
    del found[speeds]
    return found


add("esm-2", "esm", ESM, "EsmForMaskedLM", old=esm_2)


def ended() -> dict[str, Any]:
    """Tokens with an end, which a classifier reads."""
    inputs = {"input_ids": words(), "decoder_input_ids": words(seed=6)}
    inputs["input_ids"][:, -1] = 2
    return inputs


def untied(kind: Any, config: Any) -> Any:
    """With an output head of its own, whatever the config says."""
    import torch

    model = kind(config)
    model.lm_head.weight = torch.nn.Parameter(drawn(*model.lm_head.weight.shape, seed=4))
    return model


def with_embeddings(tensors: dict[str, Any]) -> dict[str, Any]:
    """With the embeddings of both stacks."""
    return tensors | {
        f"{stack}.embed_tokens.weight": tensors["shared.weight"].clone() for stack in ("encoder", "decoder")
    }


def with_bias(tensors: dict[str, Any]) -> dict[str, Any]:
    """With a bias that nothing reads."""
    bias = tensors["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].clone()
    return tensors | {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": bias}


T5 = {
    "vocab_size": VOCAB,
    "d_model": 26,
    "d_kv": 5,
    "d_ff": NEURONS,
    "num_layers": LAYERS,
    "num_decoder_layers": 4,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
}
for kind, name in {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}.items():
    add(kind, kind, T5, f"{name}ForConditionalGeneration", both, feed_forward_proj="relu")
    add(f"{kind}-gated", kind, T5, f"{name}ForConditionalGeneration", both, feed_forward_proj="gated-gelu")
    add(f"{kind}-untied", kind, T5, f"{name}ForConditionalGeneration", both, made=untied)
    add(f"{kind}-labels", kind, T5, f"{name}ForSequenceClassification", ended, eos_token_id=2)
    add(f"{kind}-body", kind, T5, f"{name}Model", both)
    add(f"{kind}-encoder", kind, T5, f"{name}EncoderModel")
    add(f"{kind}-tokens", kind, T5, f"{name}ForTokenClassification")
    add(f"{kind}-qa", kind, T5, f"{name}ForQuestionAnswering", both)
add(
    "t5-old",
    "t5",
    T5,
    "T5ForConditionalGeneration",
    both,
    old=lambda tensors: with_bias(with_embeddings(tensors)),
)
add("umt5-old", "umt5", T5, "UMT5ForConditionalGeneration", both, old=with_embeddings)
BART = {
    "vocab_size": VOCAB,
    "d_model": 42,
    "encoder_layers": LAYERS,
    "decoder_layers": 4,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 7,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": 41,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
add("bart", "bart", BART, "BartForConditionalGeneration", both)
add("bart-body", "bart", BART, "BartModel", both)
add("bart-untied", "bart", BART, "BartForConditionalGeneration", both, tie_word_embeddings=False)
add("bart-labels", "bart", BART, "BartForSequenceClassification", ended, eos_token_id=2)
add("bart-qa", "bart", BART, "BartForQuestionAnswering", both)
add("mbart", "mbart", BART, "MBartForConditionalGeneration", both, scale_embedding=True)
add("mbart-untied", "mbart", BART, "MBartForConditionalGeneration", both, tie_word_embeddings=False)
add("mbart-body", "mbart", BART, "MBartModel", both)
add("mbart-labels", "mbart", BART, "MBartForSequenceClassification", ended, eos_token_id=2)
add("mbart-qa", "mbart", BART, "MBartForQuestionAnswering", both)
add("blenderbot", "blenderbot", BART, "BlenderbotForConditionalGeneration", both)
add(
    "blenderbot-untied",
    "blenderbot",
    BART,
    "BlenderbotForConditionalGeneration",
    both,
    tie_word_embeddings=False,
)
add("blenderbot-body", "blenderbot", BART, "BlenderbotModel", both)
add("blenderbot-small", "blenderbot-small", BART, "BlenderbotSmallForConditionalGeneration", both)
SMALL = {**BART, "tie_word_embeddings": False}
add("blenderbot-small-untied", "blenderbot-small", SMALL, "BlenderbotSmallForConditionalGeneration", both)
add("blenderbot-small-body", "blenderbot-small", BART, "BlenderbotSmallModel", both)
add("pegasus", "pegasus", BART, "PegasusForConditionalGeneration", both, scale_embedding=True)
add("pegasus-untied", "pegasus", BART, "PegasusForConditionalGeneration", both, tie_word_embeddings=False)
add("pegasus-body", "pegasus", BART, "PegasusModel", both)
add("m2m_100", "m2m_100", BART, "M2M100ForConditionalGeneration", both)
add("m2m_100-untied", "m2m_100", BART, "M2M100ForConditionalGeneration", both, tie_word_embeddings=False)
add("m2m_100-body", "m2m_100", BART, "M2M100Model", both)
add("marian", "marian", BART, "MarianMTModel", both)
add("marian-body", "marian", BART, "MarianModel", both)
add("marian-untied", "marian", BART, "MarianMTModel", both, tie_word_embeddings=False)
WHISPER = {
    **BART,
    "num_mel_bins": 13,
    "max_source_positions": 10,
    "max_target_positions": 19,
    "eos_token_id": 2,
}


def sound_and_text() -> dict[str, Any]:
    """The bands of a sound, and tokens."""
    return {"input_features": drawn(2, 13, 20), "decoder_input_ids": words(6, seed=6)}


add("whisper", "whisper", WHISPER, "WhisperForConditionalGeneration", sound_and_text)
add(
    "whisper-untied",
    "whisper",
    WHISPER,
    "WhisperForConditionalGeneration",
    sound_and_text,
    tie_word_embeddings=False,
)
add("whisper-body", "whisper", WHISPER, "WhisperModel", sound_and_text)

VIT = {
    "hidden_size": 35,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 5,
    "intermediate_size": NEURONS,
    "image_size": 12,
    "patch_size": 4,
    "num_channels": 8,
}


def masked() -> dict[str, Any]:
    """Images, some patches of which are hidden."""
    import torch

    return {**pixels(), "bool_masked_pos": torch.arange(18).reshape(2, 9) % 3 == 0}


add("vit", "vit", VIT, "ViTModel", pixels, pooler_output_size=17)
add("vit-masked", "vit", VIT, "ViTForMaskedImageModeling", masked, encoder_stride=4)
add("vit-labels", "vit", VIT, "ViTForImageClassification", pixels)
add("vit_msn", "vit_msn", VIT, "ViTMSNModel", pixels)
add("ijepa", "ijepa", VIT, "IJepaModel", pixels)
add("ijepa-labels", "ijepa", VIT, "IJepaForImageClassification", pixels)
add("deit", "deit", VIT, "DeiTModel", pixels, pooler_output_size=17)
add("deit-masked", "deit", VIT, "DeiTForMaskedImageModeling", masked, encoder_stride=4)
add("deit-labels", "deit", VIT, "DeiTForImageClassification", pixels)
add("deit-teacher", "deit", VIT, "DeiTForImageClassificationWithTeacher", pixels)
add("beit", "beit", VIT, "BeitModel", pixels, use_absolute_position_embeddings=True)
add("beit-labels", "beit", VIT, "BeitForImageClassification", pixels, use_relative_position_bias=True)


def beit_old(tensors: dict[str, Any]) -> dict[str, Any]:
    """With the buffer of distances, which is computed."""
    import torch

    tables = [name for name in tensors if name.endswith("relative_position_bias_table")]
    index = torch.arange(100).reshape(10, 10) % 28
    return {**tensors, **{name.replace("bias_table", "index"): index.clone() for name in tables}}


add("beit-masked", "beit", VIT, "BeitModel", masked, use_mask_token=True)
add(
    "beit-old",
    "beit",
    VIT,
    "BeitForImageClassification",
    pixels,
    old=beit_old,
    use_relative_position_bias=True,
)
add("beit-first", "beit", VIT, "BeitForImageClassification", pixels, use_mean_pooling=False)
add("beit-plain", "beit", VIT, "BeitModel", pixels, use_mean_pooling=False, layer_scale_init_value=0.0)
add("dinov2", "dinov2", VIT, "Dinov2Model", pixels, mlp_ratio=5)
add("dinov2-labels", "dinov2", VIT, "Dinov2ForImageClassification", pixels)
add("dinov2-gated", "dinov2", VIT, "Dinov2Model", pixels, use_swiglu_ffn=True)
REGISTERS = {**VIT, "num_register_tokens": 6}
ROTATED = {**REGISTERS, "hidden_size": 20, "patch_size": 3, "num_hidden_layers": 3}
add("dinov2-registers", "dinov2_with_registers", REGISTERS, "Dinov2WithRegistersModel", pixels)
add(
    "dinov2-registers-labels",
    "dinov2_with_registers",
    REGISTERS,
    "Dinov2WithRegistersForImageClassification",
    pixels,
)
add("dinov3_vit", "dinov3_vit", ROTATED, "DINOv3ViTModel", pixels)
add("dinov3_vit-gated", "dinov3_vit", ROTATED, "DINOv3ViTModel", pixels, use_gated_mlp=True)
CONVNEXT = {"num_channels": 5, "patch_size": 3, "hidden_sizes": [9, 13, 17, 23], "depths": [1, 2, 3, 2]}


def picture() -> dict[str, Any]:
    """Images that can be halved three times."""
    return {"pixel_values": drawn(2, 5, 48, 48)}


add("convnext", "convnext", CONVNEXT, "ConvNextForImageClassification", picture)
add("convnextv2", "convnextv2", CONVNEXT, "ConvNextV2ForImageClassification", picture)

CLIP_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 21,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "max_position_embeddings": POSITIONS,
    "projection_dim": 19,
    "bos_token_id": 1,
    "eos_token_id": 3,
}
CLIP_VISION = {**VIT, "hidden_size": 65, "num_hidden_layers": 3, "intermediate_size": 41}
CLIP = {
    "text_config": CLIP_TEXT,
    "vision_config": {**CLIP_VISION, "projection_dim": 19},
    "projection_dim": 19,
}
add("clip", "clip", CLIP, "CLIPModel", pixels_and_text)
add("clip-text", "clip_text_model", CLIP_TEXT, "CLIPTextModel")
add("clip-text-projected", "clip_text_model", CLIP_TEXT, "CLIPTextModelWithProjection")
add("clip-vision", "clip_vision_model", CLIP_VISION, "CLIPVisionModel", pixels)
add(
    "clip-vision-projected",
    "clip_vision_model",
    CLIP_VISION,
    "CLIPVisionModelWithProjection",
    pixels,
    projection_dim=19,
)
SIGLIP = {
    "text_config": {**CLIP_TEXT, "projection_size": 65, "pad_token_id": 1},
    "vision_config": CLIP_VISION,
}
add("siglip", "siglip", SIGLIP, "SiglipModel", pixels_and_text)
add("siglip-text", "siglip_text_model", CLIP_TEXT, "SiglipTextModel", projection_size=31, pad_token_id=1)
add("siglip-vision", "siglip_vision_model", CLIP_VISION, "SiglipVisionModel", pixels)


def patches_and_text() -> dict[str, Any]:
    """Images as patches, and texts."""
    import torch

    shapes = torch.tensor([[2, 4], [3, 3]])
    mask = torch.tensor([[1] * 8 + [0], [1] * 9])
    return {
        "input_ids": words(),
        "pixel_values": drawn(2, 9, 128),
        "pixel_attention_mask": mask,
        "spatial_shapes": shapes,
    }


SIGLIP2 = {**SIGLIP, "vision_config": {**CLIP_VISION, "num_patches": 16}}
add("siglip2", "siglip2", SIGLIP2, "Siglip2Model", patches_and_text)
AST = {**VIT, "patch_size": 4, "num_mel_bins": 10, "max_length": 16, "frequency_stride": 3, "time_stride": 2}


def spectrogram() -> dict[str, Any]:
    """Bands of a sound."""
    return {"input_values": drawn(2, 16, 10)}


add("ast", "audio-spectrogram-transformer", AST, "ASTModel", spectrogram)
add("ast-labels", "audio-spectrogram-transformer", AST, "ASTForAudioClassification", spectrogram)
WAV2VEC2 = {
    "vocab_size": VOCAB,
    "hidden_size": 45,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "intermediate_size": NEURONS,
    "conv_dim": [10, 11, 12, 13, 14, 15, 16],
    "conv_kernel": [7, 5, 3, 4, 3, 2, 2],
    "conv_stride": [3, 2, 2, 1, 1, 1, 1],
    "num_conv_pos_embeddings": 9,
    "num_conv_pos_embedding_groups": 5,
    "num_codevectors_per_group": 7,
    "num_codevector_groups": 4,
    "codevector_dim": 20,
    "proj_codevector_dim": 18,
    "classifier_proj_size": 17,
}


def sound() -> dict[str, Any]:
    """A sound."""
    return {"input_values": drawn(2, 400)}


add("wav2vec2-ctc", "wav2vec2", WAV2VEC2, "Wav2Vec2ForCTC", sound)
add("wav2vec2-pretraining", "wav2vec2", WAV2VEC2, "Wav2Vec2ForPreTraining", sound)
OLD_NORM = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
add("wav2vec2-stable", "wav2vec2", WAV2VEC2, "Wav2Vec2ForSequenceClassification", sound, **STABLE)
add("wav2vec2-old", "wav2vec2", WAV2VEC2, "Wav2Vec2ForCTC", sound, old=renamed(**OLD_NORM))
add("hubert", "hubert", WAV2VEC2, "HubertForCTC", sound)
add("hubert-stable", "hubert", WAV2VEC2, "HubertForSequenceClassification", sound, **STABLE)
