"""Checkpoints in every layout, each written by the program whose layout it is, and opened again by that program.

`Layout.write(place, seed)` makes one and gives the path that a command is told; siblings of two seeds have the same
shapes. `Layout.live(path)` is the state dict of the model that the program itself builds from a path.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evaluate.scored_models import make
from quantized_models import fp8, mxfp4
from safetensors.torch import load_file, save_file, save_model

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """`runs`: a language model with a tokenizer, which commands that run models take."""

    write: Callable[[Path, int], Path]
    live: Callable[[Path], State]
    runs: bool = False
    pickled: bool = False


def causal(place: Path, seed: int, **changes: Any) -> Path:
    return make("causal", place, seed, **changes)


def loaded(name: str) -> Callable[[Path], State]:
    """By a class of transformers, with nothing missing and nothing left over."""

    def live(path: Path) -> State:
        import transformers

        model, info = getattr(transformers, name).from_pretrained(
            path, output_loading_info=True, dtype="auto"
        )
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        return model.state_dict()

    return live


CAUSAL = loaded("AutoModelForCausalLM")


def resharded(place: Path, seed: int) -> Path:
    from transformers import AutoModelForCausalLM

    source = causal(place.with_name(f"{place.name}-whole"), seed)
    shutil.copytree(source, place, ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(source).save_pretrained(place, max_shard_size="20KB")
    assert len(list(place.glob("model-*.safetensors"))) > 1
    return place


def pickled(place: Path, seed: int) -> Path:
    causal(place, seed)
    torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    return place


def pickled_shards(place: Path, seed: int) -> Path:
    causal(place, seed)
    state = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names, where = sorted(state), {}
    for k, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{k:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, place / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return place


def bare_file(place: Path, seed: int) -> Path:
    return causal(place, seed).rename(place.with_name(f"{place.name}-model")) / "model.safetensors"


def training_checkpoint(place: Path, seed: int) -> Path:
    state = load_file(causal(place, seed) / "model.safetensors")
    path = place / "last.pt"
    torch.save({"model": state, "optimizer": {"step": torch.tensor(3)}, "epoch": 2}, path)
    return path


def index_of_one_file(place: Path, seed: int) -> Path:
    causal(place, seed)
    where = dict.fromkeys(load_file(place / "model.safetensors"), "model.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return place


def named_index(place: Path, seed: int) -> Path:
    resharded(place, seed)
    index = json.loads((place / "model.safetensors.index.json").read_text())
    renamed = {name: file.replace("model-", "model.raw-") for name, file in index["weight_map"].items()}
    for old, new in {old: renamed[name] for name, old in index["weight_map"].items()}.items():
        (place / old).rename(place / new)
    (place / "model.safetensors.index.json").unlink()
    path = place / "model.raw.safetensors.index.json"
    path.write_text(json.dumps(index | {"weight_map": renamed}))
    return path


def live_shards(path: Path) -> State:
    files = (
        sorted(path.parent.glob("model.raw-*.safetensors"))
        if path.is_file()
        else sorted(path.glob("*.safetensors"))
    )
    return {name: value for file in files for name, value in load_file(file).items()}


def sealed(place: Path, seed: int) -> Path:
    import merganser as mg

    mg.open(causal(place.with_name(f"{place.name}-before"), seed)).save(place)
    return place


def tied(place: Path, seed: int) -> Path:
    return causal(place, seed, tie_word_embeddings=True)


def tied_and_stored(place: Path, seed: int) -> Path:
    tied(place, seed)
    state = load_file(place / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, place / "model.safetensors", {"format": "pt"})
    return place


def two_bytes(place: Path, seed: int) -> Path:
    from transformers import AutoModelForCausalLM

    causal(place, seed)
    AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).save_pretrained(place)
    return place


def body_only(place: Path, seed: int) -> Path:
    return make("encoder", place, seed)


def classifier(place: Path, seed: int) -> Path:
    return make("classifier", place, seed)


def gpt2_of_the_hub(place: Path, seed: int) -> Path:
    """Names without the prefix that transformers writes, as the files of gpt2 have had them since 2019."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ).save_pretrained(place)
    state = load_file(place / "model.safetensors")
    save_file(
        {n.removeprefix("transformer."): v for n, v in state.items()},
        place / "model.safetensors",
        {"format": "pt"},
    )
    return place


BART = {"vocab_size": 64, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip


def encoder_decoder(place: Path, seed: int) -> Path:
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(seed)
    BartForConditionalGeneration(BartConfig(**BART)).save_pretrained(place)
    return place


def by_save_model(place: Path, seed: int) -> Path:
    """safetensors.torch.save_model stores one name of a shared matrix and the others in the metadata."""
    from transformers import BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(encoder_decoder(place, seed))
    save_model(model, str(place / "model.safetensors"), {"format": "pt"})
    return place


def sentence_model(place: Path, seed: int, dense: bool = True) -> Path:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    torch.manual_seed(seed)
    body = modules.Transformer(str(make("encoder", place.with_name(f"{place.name}-body"), seed)))
    more = [modules.Dense(16, 8)] if dense else []
    SentenceTransformer(modules=[body, modules.Pooling(16), *more], device="cpu").save(str(place))
    return place


def live_sentences(path: Path) -> State:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu").state_dict()


def component(place: Path, seed: int) -> Path:
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    blocks = {
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "block_out_channels": (32,),
    }
    UNet2DModel(sample_size=8, layers_per_block=1, **blocks).save_pretrained(place)
    return place


def live_component(path: Path) -> State:
    from diffusers import UNet2DModel

    return UNet2DModel.from_pretrained(path).state_dict()


def pipeline(place: Path, seed: int) -> Path:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    DDPMPipeline(
        UNet2DModel.from_pretrained(component(place / "made", seed)), DDPMScheduler()
    ).save_pretrained(place)
    shutil.rmtree(place / "made")
    return place


def adapter(place: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = causal(place.with_name(f"{place.name}-base"), 0)
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(place)
    return place


def kohya(place: Path, seed: int) -> Path:
    place.mkdir(parents=True)
    torch.manual_seed(seed)
    module = "lora_unet_mid_block_attentions_0_proj_in"
    factors = {
        "lora_down.weight": torch.randn(2, 8),
        "lora_up.weight": torch.randn(8, 2),
        "alpha": torch.tensor(1.0),
    }
    save_file({f"{module}.{part}": value for part, value in factors.items()}, place / "style.safetensors")
    return place / "style.safetensors"


def float8_numbers(place: Path, seed: int) -> Path:
    path = bare_file(place, seed)
    state = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(path).items()}
    alone = path.with_name("numbers")
    alone.mkdir()
    save_file(state, alone / "m.safetensors")
    return alone / "m.safetensors"


def quantized(write: Callable[[Path], Path]) -> Callable[[Path, int], Path]:
    return lambda place, seed: write(place)


def git_lfs(place: Path, seed: int) -> Path:
    causal(place, seed)
    (place / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    return place


def missing_shard(place: Path, seed: int) -> Path:
    resharded(place, seed)
    sorted(place.glob("model-*.safetensors"))[0].unlink()
    (place / "model.safetensors.index.json").unlink()
    return place


def stubs(place: Path, seed: int) -> Path:
    causal(place, seed)
    state = load_file(place / "model.safetensors")
    save_file({n: v[:0] if v.dim() > 1 else v for n, v in state.items()}, place / "model.safetensors")
    return place


def nothing(place: Path, seed: int) -> Path:
    place.mkdir(parents=True)
    save_file({}, place / "empty.safetensors", {"kept": "metadata"})
    return place / "empty.safetensors"


def files(path: Path) -> State:
    """The tensors themselves, where no program builds a model of them."""
    if path.is_dir():
        return {n: v for file in sorted(path.glob("*.safetensors")) for n, v in load_file(file).items()}
    return load_file(path)


def stored(path: Path) -> State:
    """The state dict of a training checkpoint; a result is a directory."""
    return torch.load(path, weights_only=True)["model"] if path.is_file() else files(path)


def pickles(path: Path) -> State:
    """Opened by transformers, which takes either kind of file."""
    return CAUSAL(path)


LAYOUTS: dict[str, Layout] = {
    "directory": Layout(causal, CAUSAL, runs=True),
    "shards": Layout(resharded, CAUSAL, runs=True),
    "pickle": Layout(pickled, pickles, pickled=True),
    "pickled shards": Layout(pickled_shards, pickles, pickled=True),
    "bare file": Layout(bare_file, files),
    "training checkpoint": Layout(training_checkpoint, stored, pickled=True),
    "index of one file": Layout(index_of_one_file, CAUSAL, runs=True),
    "named index": Layout(named_index, live_shards, runs=True),
    "sealed": Layout(sealed, CAUSAL, runs=True),
    "tied": Layout(tied, CAUSAL, runs=True),
    "tied and stored": Layout(tied_and_stored, CAUSAL, runs=True),
    "bfloat16": Layout(two_bytes, CAUSAL, runs=True),
    "body only": Layout(body_only, loaded("AutoModel")),
    "classifier": Layout(classifier, loaded("AutoModelForSequenceClassification")),
    "gpt2 of the hub": Layout(gpt2_of_the_hub, CAUSAL),
    "encoder-decoder": Layout(encoder_decoder, loaded("AutoModelForSeq2SeqLM")),
    "by save_model": Layout(by_save_model, loaded("AutoModelForSeq2SeqLM")),
    "sentence model": Layout(lambda place, seed: sentence_model(place, seed, dense=False), live_sentences),
    "sentence model with a Dense": Layout(sentence_model, live_sentences),
    "diffusers component": Layout(component, live_component),
    "diffusers pipeline": Layout(pipeline, files),
    "adapter": Layout(adapter, files),
    "kohya": Layout(kohya, files),
    "float8 numbers": Layout(float8_numbers, files),
    "FP8 codes": Layout(quantized(fp8), files),
    "MXFP4 codes": Layout(quantized(mxfp4), files),
    "git-lfs pointer": Layout(git_lfs, files),
    "missing shard": Layout(missing_shard, files),
    "ZeRO-3 stubs": Layout(stubs, files),
    "no tensors": Layout(nothing, files),
}
