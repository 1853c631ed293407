"""Codes are told from numbers, by the layouts of many quantizers, and never computed with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from makers import F8_E4M3, files_of, normal, read_model, write_file, write_model

import merganser as mg
from merganser import cli
from merganser.checkpoint import open_checkpoint
from merganser.errors import QuantizedError

Arrays = dict[str, np.ndarray]


def ints(dtype: type, *shape: int) -> np.ndarray:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.random.default_rng(1).integers(low, high, shape, dtype=dtype)


def f8(*shape: int) -> np.ndarray:
    return normal(*shape, seed=3).astype(F8_E4M3)


L = "decoder.layers.0.fc1"
LAYOUTS: dict[str, tuple[str, Arrays]] = {
    "gptq": (
        "GPTQ",
        {
            f"{L}.qweight": ints(np.int32, 4, 8),
            f"{L}.qzeros": ints(np.int32, 1, 1),
            f"{L}.scales": normal(1, 8, dtype=np.float16),
            f"{L}.g_idx": np.zeros(32, np.int32),
        },
    ),
    "awq": (
        "GPTQ or AWQ",
        {
            f"{L}.qweight": ints(np.int32, 32, 1),
            f"{L}.qzeros": ints(np.int32, 1, 1),
            f"{L}.scales": normal(1, 8, dtype=np.float16),
        },
    ),
    "fp8 for each tensor": ("FP8 with scales", {f"{L}.weight": f8(8, 8), f"{L}.weight_scale": normal(1)}),
    "fp8 of ComfyUI": ("FP8 with scales", {f"{L}.weight": f8(8, 8), f"{L}.scale_weight": normal(1)}),
    "fp8 of stacked experts": (
        "FP8 with scales",
        {"mlp.experts.gate_up_proj": f8(2, 8, 8), "mlp.experts.gate_up_proj_scale_inv": normal(2, 1, 1)},
    ),
    "fp8 with a bare scale": ("FP8 with scales", {f"{L}.weight": f8(8, 8), f"{L}.scale": normal(1)}),
    "llm.int8": ("bitsandbytes, 8 bit", {f"{L}.weight": ints(np.int8, 8, 8), f"{L}.SCB": normal(8)}),
    "bitsandbytes fp4": (
        "bitsandbytes, 4 bit",
        {
            f"{L}.weight": ints(np.uint8, 32, 1),
            f"{L}.weight.absmax": normal(1),
            f"{L}.weight.quant_map": normal(16),
        },
    ),
    "compressed-tensors": (
        "compressed-tensors",
        {
            f"{L}.weight_packed": ints(np.int32, 8, 1),
            f"{L}.weight_scale": normal(8, 1),
            f"{L}.weight_shape": np.array([8, 8]),
        },
    ),
    "nvfp4 of modelopt": (
        "NVFP4",
        {
            f"{L}.weight": ints(np.uint8, 8, 4),
            f"{L}.weight_scale": f8(8, 1),
            f"{L}.weight_scale_2": normal(1),
        },
    ),
    "mxfp4": (
        "MXFP4",
        {
            "mlp.experts.down_proj_blocks": ints(np.uint8, 2, 8, 1, 16),
            "mlp.experts.down_proj_scales": ints(np.uint8, 2, 8, 1),
        },
    ),
    "mlx": (
        "MLX",
        {f"{L}.weight": ints(np.uint32, 8, 1), f"{L}.scales": normal(8, 1), f"{L}.biases": normal(8, 1)},
    ),
    "hqq": ("HQQ", {f"{L}.W_q": ints(np.uint8, 4, 8), f"{L}.scale": normal(8, 1), f"{L}.zero": normal(8, 1)}),
    "torchao": ("torchao", {f"{L}._weight_qdata": ints(np.int8, 8, 8), f"{L}._weight_scale": normal(8)}),
    "quanto": ("quanto", {f"{L}.weight._data": ints(np.int8, 8, 8), f"{L}.weight._scale": normal(8, 1)}),
    "aqlm": ("AQLM", {f"{L}.codes": ints(np.int8, 8, 1, 1), f"{L}.codebooks": normal(1, 4, 1, 8)}),
    "eetq": ("packed integers", {f"{L}.weight": ints(np.int8, 8, 8), f"{L}.weight_scales": normal(8)}),
    "bytes alone": ("packed integers", {f"{L}.weight": ints(np.uint8, 64, 64)}),
    "integers alone": ("packed integers", {f"{L}.weight": ints(np.int16, 8, 8)}),
}
NORM = {"decoder.norm.weight": normal(8, seed=5)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_and_dtypes_tell_the_format_without_a_config(layout: str, tmp_path: Path) -> None:
    name, tensors = LAYOUTS[layout]
    file = write_file(tmp_path / "m.safetensors", tensors | NORM)
    encoding = open_checkpoint(file).encoding
    assert encoding is not None and encoding.name == name and not encoding.config_only
    opened = mg.open(file)
    for compute in (
        lambda: opened * 0.5,
        lambda: opened + opened,
        lambda: opened - opened,
        lambda: mg.mean(opened, opened),
    ):
        with pytest.raises(QuantizedError, match="is quantized"):
            compute()
    assert cli.run(["info", str(file)]) == 0


SAYS = {
    "transformers": {"quantization_config": {"quant_method": "bitnet", "bits": 2}},
    "a method of the future": {"quantization_config": {"quant_method": "sevenbit"}},
    "no method": {"quantization_config": {"w_bit": 4}},
    "bitsandbytes of old": {"quantization_config": {"load_in_4bit": True}},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
    "compression": {"compression_config": {"format": "pack-quantized"}},
    "a part": {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
}


@pytest.mark.parametrize("says", SAYS)
def test_a_config_that_says_quantized_is_believed(
    says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "m", {"w.weight": normal(4, 4)}, {"model_type": "toy"} | SAYS[says])
    with pytest.raises(QuantizedError) as caught:
        0.5 * mg.open(model)
    (key,) = SAYS[says]
    assert key.removesuffix("_config") in str(caught.value)
    # The way out that the message names.
    assert "remove that key" in str(caught.value)
    (model / "config.json").write_text(json.dumps({"model_type": "toy"}))
    (0.5 * mg.open(model) + 0.5 * mg.open(model)).save(tmp_path / "out")


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_files_beside_the_config_say_it_too(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", {"w.weight": normal(4, 4)})
    (model / name).write_text(json.dumps({"bits": 4}))
    with pytest.raises(QuantizedError, match=name):
        mg.open(model) - mg.open(model)


def test_what_are_no_codes(tmp_path: Path) -> None:
    tensors = {
        "model.diffusion_model.out.weight": f8(8, 8),  # a diffusion model in float8, without scales
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8),
        "embeddings.position_ids": np.arange(8)[None],
        "attn.relative_position_index": np.arange(16).reshape(4, 4),
        "bn.num_batches_tracked": np.array(3),
        "norm.scale": normal(8),
        "vq.codebook.weight": normal(4, 8),
        "layer_scale.weight_scale": normal(4),
        "mask": np.ones((4, 4), np.bool_),
        "grafted.weight": np.eye(64, dtype=np.uint8),  # a mask that another program stored as bytes
    }
    write_file(tmp_path / "m.safetensors", tensors)
    assert open_checkpoint(tmp_path / "m.safetensors").encoding is None
    opened = mg.open(tmp_path / "m.safetensors")
    (0.5 * opened + 0.5 * opened).save(tmp_path / "out")
    half = tmp_path / "plain"
    write_model(half, {"w.weight": normal(4, 4)}, {"model_type": "toy", "quantization_config": None})
    assert open_checkpoint(half).encoding is None


def test_a_shard_opened_alone_is_a_code_where_the_config_beside_it_says_so(tmp_path: Path) -> None:
    told = {"model_type": "toy", "quantization_config": {"quant_method": "fp8"}}
    model = write_model(tmp_path / "m", {f"{L}.weight": f8(8, 8)}, told)
    assert open_checkpoint(model / "model.safetensors").encoding is not None
    write_file(model / "lora.safetensors", {"w": normal(4, 4)})
    assert open_checkpoint(model / "lora.safetensors").encoding is None


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    told = {"model_type": "llama", "dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}
    write_model(tmp_path / "b", {f"{L}.weight": f8(8, 8)} | NORM, told)
    tensors = {f"{L}.weight": f8(8, 8), f"{L}.weight_scale_inv": normal(1, 1)} | NORM
    return write_model(tmp_path / "a", tensors, told)


def recipe(place: Path, text: str) -> str:
    (place / "recipe.yaml").write_text(text)
    return str(place / "recipe.yaml")


SLICES = "method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n"
MIXTURE = "base_model: a\ngate_mode: random\nexperts_per_token: 1\nexperts: [{source_model: a, positive_prompts: [x]}]"
SLERP = "method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}\n"
PLAIN = "method: passthrough\nmodels: [{model: a}]\n"
COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "merge": lambda p: [
        "merge",
        recipe(p, "method: linear\nmodels: [{model: a}, {model: b}]\n"),
        str(p / "o"),
    ],
    "merge into another dtype": lambda p: ["merge", recipe(p, PLAIN + "dtype: float16\n"), str(p / "o")],
    "merge scaled": lambda p: [
        "merge",
        recipe(p, PLAIN.replace("}", ", parameters: {scale: 2.0}}")),
        str(p / "o"),
    ],
    "slices": lambda p: ["merge", recipe(p, SLICES), str(p / "o")],
    "mixture": lambda p: ["merge", recipe(p, MIXTURE), str(p / "o")],
    "explain": lambda p: ["explain", recipe(p, SLERP)],
    "diff": lambda p: ["diff", str(p / "a"), str(p / "b")],
    "diagnose": lambda p: ["diagnose", str(p / "a"), str(p / "b")],
    "reshape": lambda p: ["reshape", str(p / "a"), str(p / "o"), "narrow: {axis: neurons, share: 0.5}"],
    "architecture": lambda p: ["architecture", str(p / "a")],
    "extract-lora": lambda p: ["extract-lora", str(p / "a"), str(p / "b"), str(p / "o"), "--rank", "2"],
    "port": lambda p: ["port", str(p / "a"), str(p / "b"), str(p / "b"), str(p / "o")],
    "compress-patch": lambda p: ["compress-patch", str(p / "a"), str(p / "o"), "--base", str(p / "b")],
}
RUN: dict[str, Callable[[Path], list[str]]] = {
    "observe": lambda p: ["observe", str(p / "a"), str(p / "rows.jsonl"), str(p / "o"), "--kind", "gram"],
    "evaluate": lambda p: ["evaluate", str(p / "a"), str(p / "suite.yaml"), str(p / "o")],
    "relate": lambda p: ["relate", str(p / "a"), str(p / "b"), str(p / "rows.jsonl")],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_by_name(command: str, coded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = coded.parent
    assert cli.run(COMMANDS[command](place)) == 1
    said = capsys.readouterr().err
    assert "is quantized (FP8 with scales)" in said and "docs/quantized.md" in said
    assert not (place / "o").exists()


@pytest.mark.models
@pytest.mark.parametrize("command", RUN)
def test_commands_that_run_models_refuse_by_name(
    command: str, coded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = coded.parent
    (place / "rows.jsonl").write_text('{"text": "a b"}\n' * 4)
    (place / "suite.yaml").write_text("name: s\ntasks: [{name: t, kind: perplexity, data: rows.jsonl}]\n")
    assert cli.run(RUN[command](place)) == 1
    assert "is quantized (FP8 with scales)" in capsys.readouterr().err


def test_a_lora_is_not_added_to_codes(coded: Path) -> None:
    from makers import write_adapter

    write_adapter(coded.parent / "lora", {L: (normal(8, 2), normal(2, 8))})
    with pytest.raises(QuantizedError):
        mg.open(coded) + mg.open(coded.parent / "lora")


def test_a_whole_checkpoint_is_carried_bit_for_bit(coded: Path, tmp_path: Path) -> None:
    assert cli.run(["merge", recipe(tmp_path, PLAIN), str(tmp_path / "o")]) == 0
    mg.open(coded).save(tmp_path / "saved")
    for out in ("o", "saved"):
        assert (tmp_path / out / "config.json").read_bytes() == (coded / "config.json").read_bytes()
        made, before = read_model(tmp_path / out), read_model(coded)
        assert {n: a.tobytes() for n, a in made.items()} == {n: a.tobytes() for n, a in before.items()}
    assert cli.run(["verify", str(tmp_path / "o")]) == 0
    assert "merganser.json" in files_of(tmp_path / "o")


def test_a_part_of_one_is_not_carried(coded: Path, tmp_path: Path) -> None:
    opened = mg.open(coded)
    plain = mg.open(write_model(tmp_path / "plain", NORM))
    for part in (opened.select("*.norm.*"), opened.rename({f"{L}.weight": "w"})):
        with pytest.raises(QuantizedError):
            part.save(tmp_path / "part", partial=True)
    with pytest.raises(QuantizedError):
        opened.override(plain)
    with pytest.raises(QuantizedError):
        opened.compute("decoder.norm.weight")
    with pytest.raises(QuantizedError):
        mg.compute_scalars({"n": [mg.norm(opened["decoder.norm.weight"])]}, opened.checkpoints)


@pytest.mark.models
def test_what_a_float8_result_opens_in_is_said_and_true(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from quantized_models import llama
    from transformers import AutoModelForCausalLM

    model = llama()
    model.save_pretrained(tmp_path / "a")
    text = "method: linear\nmodels: [{model: a}, {model: a, name: again}]\ndtype: float8_e4m3fn\n"
    assert cli.run(["merge", recipe(tmp_path, text), str(tmp_path / "o")]) == 0
    assert "transformers" in capsys.readouterr().out
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "o")
    due = model.lm_head.weight.to(torch.float8_e4m3fn).to(torch.bfloat16)
    assert back.dtype == torch.bfloat16 and torch.equal(back.lm_head.weight, due)
