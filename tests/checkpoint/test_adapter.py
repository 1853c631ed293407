"""Adapters: the deltas are PEFT's own, and what is not understood is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merganser.checkpoint import open_checkpoint
from merganser.checkpoint.adapter import HARMLESS, READ, REFUSED, AdapterDelta, read_adapter
from merganser.checkpoint.dtypes import F16, F32, I32, DType
from merganser.checkpoint.header import write_header
from merganser.errors import CheckpointError, RequestError

Q = "base_model.model.layers.0.q_proj"
PLAIN_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}


def matrix(delta: AdapterDelta) -> np.ndarray:
    """What an `AdapterDelta` says, from the rule in its docstring."""
    left, right = delta.left.numpy().astype(np.float64), delta.right.numpy().astype(np.float64)
    left = left.T if delta.left_transposed else left
    right = right.T if delta.right_transposed else right
    assert left.shape[1] == right.shape[0] == delta.rank
    return (delta.scale * (left @ right)).reshape(delta.shape)


def numbers(*shape: int, start: int = 1) -> np.ndarray:
    return (np.arange(start, start + int(np.prod(shape)), dtype=np.float32) % 7 - 3).reshape(shape)


def plain_tensors() -> dict[str, np.ndarray]:
    return {f"{Q}.lora_A.weight": numbers(2, 5), f"{Q}.lora_B.weight": numbers(3, 2)}


def write_adapter(
    directory: Path,
    config: Mapping[str, Any] | str,
    tensors: Mapping[str, np.ndarray],
    dtypes: Mapping[str, DType] | None = None,
) -> Path:
    kinds = {np.dtype("float32"): F32, np.dtype("float16"): F16, np.dtype("int32"): I32}
    (directory / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    head = write_header(((n, kinds[t.dtype], t.shape) for n, t in tensors.items()), {"format": "pt"})
    body = b"".join(t.tobytes() for t in tensors.values())
    (directory / "adapter_model.safetensors").write_bytes(head + body)
    return directory


# what is read


def test_linear(tmp_path):
    tensors = plain_tensors()
    deltas, files = read_adapter(write_adapter(tmp_path, PLAIN_CONFIG, tensors), "tune")
    (a, b), delta = tensors.values(), deltas["layers.0.q_proj.weight"]
    assert list(deltas) == ["layers.0.q_proj.weight"]
    assert (delta.scale, delta.rank, delta.shape) == (3.0, 2, (3, 5))
    np.testing.assert_array_equal(matrix(delta), 3 * (b @ a))
    assert delta.left.parent == "tune"
    assert [f.path.name for f in files] == ["adapter_model.safetensors", "adapter_config.json"]


def test_a_directory_opens_as_an_adapter(tmp_path):
    opened = open_checkpoint(write_adapter(tmp_path, PLAIN_CONFIG, plain_tensors()))
    assert opened.is_adapter and opened.format == "peft" and not opened.tensors
    assert list(opened.deltas) == ["layers.0.q_proj.weight"]


def test_the_name_of_the_adapter_may_stand_in_the_keys(tmp_path):
    tensors = {f"{Q}.lora_A.default.weight": numbers(2, 5), f"{Q}.lora_B.default.weight": numbers(3, 2)}
    embedding = "base_model.model.embed"
    tensors |= {
        f"{embedding}.lora_embedding_A.default": numbers(2, 9),
        f"{embedding}.lora_embedding_B.default": numbers(4, 2),
    }
    deltas, _ = read_adapter(write_adapter(tmp_path, PLAIN_CONFIG, tensors), "tune")
    shapes = {n: d.shape for n, d in deltas.items()}
    assert shapes == {"layers.0.q_proj.weight": (3, 5), "embed.weight": (9, 4)}


def test_conv1d_weights_are_transposed(tmp_path):
    tensors = plain_tensors()
    deltas, _ = read_adapter(write_adapter(tmp_path, PLAIN_CONFIG | {"fan_in_fan_out": True}, tensors), "t")
    a, b = tensors.values()
    np.testing.assert_array_equal(matrix(deltas["layers.0.q_proj.weight"]), 3 * (b @ a).T)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
def test_embeddings_are_transposed_once(tmp_path, fan_in_fan_out):
    a, b = numbers(2, 9), numbers(4, 2)
    tensors = {"base_model.model.embed.lora_embedding_A": a, "base_model.model.embed.lora_embedding_B": b}
    config = PLAIN_CONFIG | {"fan_in_fan_out": fan_in_fan_out}
    deltas, _ = read_adapter(write_adapter(tmp_path, config, tensors), "t")
    np.testing.assert_array_equal(matrix(deltas["embed.weight"]), 3 * (b @ a).T)


@pytest.mark.parametrize("fan_in_fan_out", [False, True])
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (1, 1), (2, 1, 3)])
def test_convolutions_are_never_transposed(tmp_path, kernel, fan_in_fan_out):
    a, b = numbers(2, 5, *kernel), numbers(3, 2, *(1 for _ in kernel))
    tensors = {"base_model.model.conv.lora_A.weight": a, "base_model.model.conv.lora_B.weight": b}
    config = PLAIN_CONFIG | {"fan_in_fan_out": fan_in_fan_out}
    deltas, _ = read_adapter(write_adapter(tmp_path, config, tensors), "t")
    expected = 3 * np.einsum("or,ri...->oi...", b.reshape(3, 2), a)
    assert deltas["conv.weight"].shape == (3, 5, *kernel)
    np.testing.assert_array_equal(matrix(deltas["conv.weight"]), expected)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"r": 8, "rank_pattern": {"q_proj": 2}}, 3.0),
        ({"r": 8, "use_rslora": True, "rank_pattern": {"q_proj": 2}}, 6 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"proj": 1}}, 3.0),  # a suffix starts after a dot
        ({"alpha_pattern": {"layers.0.q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"layers": 1}}, 3.0),  # the end must match
        ({"alpha_pattern": {r".*\.q_proj": 1}}, 0.5),
        ({"alpha_pattern": {r"layers\.[1-9]\.q_proj": 1}}, 3.0),
        ({"alpha_pattern": {"^layers.0.q_proj": 1}}, 0.5),
        ({"alpha_pattern": {"^q_proj": 1}}, 3.0),
        ({"alpha_pattern": {"(k|q)_proj": 1.5, "q_proj": 9}}, 0.75),  # the first in the file wins
        ({"alpha_pattern": None, "rank_pattern": None}, 3.0),
        ({"lora_alpha": 0.25}, 0.125),
        ({"lora_alpha": 0}, 0.0),
        ({"lora_alpha": -2}, -1.0),
    ],
)
def test_scale(tmp_path, config, scale):
    deltas, _ = read_adapter(write_adapter(tmp_path, PLAIN_CONFIG | config, plain_tensors()), "t")
    assert deltas["layers.0.q_proj.weight"].scale == scale


@pytest.mark.parametrize("key", sorted(HARMLESS))
def test_harmless_settings_are_passed_over(tmp_path, key):
    read_adapter(write_adapter(tmp_path, PLAIN_CONFIG | {key: ["anything"]}, plain_tensors()), "t")


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisations_that_leave_the_base_alone(tmp_path, init):
    read_adapter(write_adapter(tmp_path, PLAIN_CONFIG | {"init_lora_weights": init}, plain_tensors()), "t")


def test_off_settings_are_passed_over(tmp_path):
    off: dict[str, Any] = dict.fromkeys(REFUSED, None) | {"use_dora": False, "some_future_setting": None}
    read_adapter(write_adapter(tmp_path, PLAIN_CONFIG | off, plain_tensors()), "t")


# what is refused

WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    *(({key: [1]}, rf"{key} is \[1\]: {reason}.*PEFT") for key, reason in REFUSED.items()),
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA"),
    ({"peft_type": None}, "has no peft_type, so it is no config that PEFT wrote"),
    ({"peft_type": "PREFIX_TUNING"}, "changes no weights of the model.*Merge the models alone"),
    ({"use_dorra": True}, "use_dorra is True.*not known.*did you mean 'use_dora'"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"bias": "lora_only"}, "bias is 'lora_only'"),
    *(
        ({"init_lora_weights": init}, f"init_lora_weights is '{init}'.*taken out of the base.*path_init")
        for init in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga")
    ),
    ({"init_lora_weights": "gausian"}, "init_lora_weights is 'gausian'.*did you mean 'gaussian'"),
    ({"init_lora_weights": 3}, "init_lora_weights is 3; it must be true, false or a name"),
    *(({"r": r}, "r is .*; it must be a whole number above 0") for r in (0, -2, 2.0, "2", True, None)),
    *(({"lora_alpha": x}, "lora_alpha is .*; it must be a finite") for x in ("6", None, True, 10**400)),
    ({"r": 4}, "have rank 2, but adapter_config.json says rank 4 for module 'layers.0.q_proj'"),
    ({"rank_pattern": {"q_proj": 4}}, "have rank 2, but .* says rank 4"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern is .*whole numbers above 0"),
    ({"rank_pattern": ["q_proj"]}, "rank_pattern is .*an object"),
    ({"rank_pattern": []}, "rank_pattern is .*an object"),
    ({"r": 10**400}, "have rank 2, but .* says rank 1000"),
    ({"alpha_pattern": {"q_proj": "6"}}, "alpha_pattern is .*finite numbers"),
    ({"alpha_pattern": {"q_(proj": 1}}, r"alpha_pattern has the pattern 'q_\(proj', which is not a regular"),
    ({"alpha_pattern": {"(a*)*b": 1}}, r"has the pattern '\(a\*\)\*b', which repeats a group"),
    ({"rank_pattern": {".*.*.*.*.*x": 1}}, "repeats more than four times"),
    ({"use_rslora": "yes"}, "use_rslora is 'yes'; it must be true or false"),
    ({"use_rslora": 1}, "use_rslora is 1; it must be true or false"),
    ({"fan_in_fan_out": []}, r"fan_in_fan_out is \[\]; it must be true or false"),
]


@pytest.mark.parametrize(("config", "message"), WRONG_SETTINGS, ids=lambda x: str(x)[:50])
def test_settings_that_are_refused(tmp_path, config, message):
    write_adapter(tmp_path, PLAIN_CONFIG | config, plain_tensors())
    with pytest.raises(CheckpointError, match=message) as raised:
        read_adapter(tmp_path, "t")
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"r": NaN}', '{"r": 1, "r": 2}'])
def test_a_malformed_config_is_refused(tmp_path, text):
    with pytest.raises(CheckpointError, match="not acceptable JSON"):
        read_adapter(write_adapter(tmp_path, text, plain_tensors()), "t")


def test_an_alpha_that_overflows_is_refused(tmp_path):
    write_adapter(tmp_path, '{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}', plain_tensors())
    with pytest.raises(CheckpointError, match="lora_alpha is inf"):
        read_adapter(tmp_path, "t")


A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
WRONG_TENSORS: list[tuple[dict[str, np.ndarray], str]] = [
    ({}, "holds no tensors"),
    ({A: numbers(2, 5)}, f"'{A}' stands alone: '{B}' is missing"),
    ({B: numbers(3, 2)}, f"'{B}' stands alone: '{A}' is missing"),
    ({A: numbers(2, 5), f"{Q}.lora_b.weight": numbers(3, 2)}, "lora_b.weight' is no LoRA factor"),
    (
        {A: numbers(2, 5), "base_model.model.layers.0.q_prj.lora_B.weight": numbers(3, 2)},
        f"'{B}' is missing.*did you mean '.*q_prj",
    ),
    ({A: numbers(2, 5), B: numbers(3, 2).astype(np.float16)}, f"'{A}' is F32 and '{B}' is F16"),
    ({A: numbers(2, 5).astype(np.int32), B: numbers(3, 2).astype(np.int32)}, "one floating dtype"),
    ({A: numbers(2, 5), B: numbers(3, 4)}, r"of shape \(2, 5\) and .* of shape \(3, 4\) are not the factors"),
    ({A: numbers(2, 5), B: numbers(3, 2, 1, 1)}, "are not the factors of one product"),
    ({A: numbers(2, 5, 3, 3), B: numbers(3, 2, 3, 3)}, "are not the factors of one product"),
    ({A: numbers(2, 5, 3, 3), B: numbers(4, 1, 1, 1)}, "convolution with groups"),
    ({A: numbers(0), B: numbers(3, 2)}, "sharded save"),
    ({A: numbers(0, 5), B: numbers(3, 0)}, "sharded save"),
    ({A: numbers(10), B: numbers(6)}, "sharded save"),
    (plain_tensors() | {f"{Q}.lora_magnitude_vector": numbers(3)}, "magnitude_vector' is no LoRA factor"),
    (plain_tensors() | {f"{Q}.lora_B.bias": numbers(3)}, "'.*lora_B.bias' is no LoRA factor"),
    (plain_tensors() | {f"{Q}.bias": numbers(3)}, "'.*q_proj.bias' is a whole tensor that replaces"),
    (plain_tensors() | {"base_model.model.score.weight": numbers(3)}, "'.*score.weight' is a whole tensor"),
    (
        plain_tensors() | {"base_model.model.embed.base_layer.weight": numbers(9, 4)},
        "'.*embed.base_layer.weight' is the base's own.*save_embedding_layers=False",
    ),
    ({n.replace("q_proj", "q.base_layer.o"): t for n, t in plain_tensors().items()}, "is no LoRA factor"),
    (
        {n.removeprefix("base_model.model."): t for n, t in plain_tensors().items()},
        "called base_model.model.M",
    ),
    ({"base_model.model.lora_A.weight": numbers(2, 5)}, "is no LoRA factor"),
    (
        plain_tensors() | {f"{Q}.lora_embedding_A": numbers(2, 5), f"{Q}.lora_embedding_B": numbers(3, 2)},
        "module 'layers.0.q_proj' has the factors of an embedding and",
    ),
    (
        plain_tensors() | {n.replace(".weight", ".other.weight"): t for n, t in plain_tensors().items()},
        "belong to different adapters",
    ),
    (
        {f"{Q}.lora_embedding_A": numbers(2, 5, 1), f"{Q}.lora_embedding_B": numbers(3, 2, 1)},
        "are not the factors of one product",
    ),
]


@pytest.mark.parametrize(("tensors", "message"), WRONG_TENSORS, ids=[m[:50] for _, m in WRONG_TENSORS])
def test_tensors_that_are_refused(tmp_path, tensors, message):
    write_adapter(tmp_path, PLAIN_CONFIG, tensors)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_adapter(tmp_path, "t")
    assert str(tmp_path / "adapter_model.safetensors") in str(raised.value)


def square(*modules: str) -> dict[str, np.ndarray]:
    sides = {"A": numbers(2, 4), "B": numbers(4, 2)}
    return {f"base_model.model.{m}.lora_{s}.weight": t for m in modules for s, t in sides.items()}


@pytest.mark.parametrize(
    ("fan_in_fan_out", "modules", "module"),
    [
        (True, ["h.0.attn.c_proj", "enc.query"], "enc.query"),
        (True, ["dense"], "dense"),
        (False, ["h.0.attn.c_proj", "lm_head"], "h.0.attn.c_proj"),
    ],
)
def test_a_square_weight_that_may_lie_the_other_way_is_refused(tmp_path, fan_in_fan_out, modules, module):
    write_adapter(tmp_path, PLAIN_CONFIG | {"fan_in_fan_out": fan_in_fan_out}, square(*modules))
    with pytest.raises(CheckpointError, match=f"fan_out is {fan_in_fan_out}.*module '{module}' is square"):
        read_adapter(tmp_path, "t")


@pytest.mark.parametrize(
    ("fan_in_fan_out", "modules"),
    [(True, ["h.0.attn.c_proj"]), (False, ["h.0.attn.c_proj"]), (False, ["q_proj", "k_proj"])],
)
def test_a_square_weight_whose_name_agrees_is_read(tmp_path, fan_in_fan_out, modules):
    write_adapter(tmp_path, PLAIN_CONFIG | {"fan_in_fan_out": fan_in_fan_out}, square(*modules))
    deltas, _ = read_adapter(tmp_path, "t")
    assert [d.left_transposed for d in deltas.values()] == [fan_in_fan_out] * len(modules)


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config.json: cannot be read"):
        read_adapter(tmp_path, "t")
    write_adapter(tmp_path, PLAIN_CONFIG, plain_tensors())
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_mode.safetensors")
    with pytest.raises(CheckpointError, match=r"neither adapter_model.* nor .*did you mean 'adapter_mode\."):
        read_adapter(tmp_path, "t")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_that_lead_out_are_not_followed(tmp_path, name):
    directory, elsewhere = tmp_path / "adapter", tmp_path / "elsewhere"
    directory.mkdir()
    write_adapter(directory, PLAIN_CONFIG, plain_tensors())
    (directory / name).rename(elsewhere)
    (directory / name).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="leads out of its directory"):
        read_adapter(directory, "t")


def test_a_pickled_adapter_needs_leave(tmp_path):
    write_adapter(tmp_path, PLAIN_CONFIG, plain_tensors())
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(RequestError, match="allow-pickle"):
        read_adapter(tmp_path, "t")


# PEFT as the oracle


def saved_by_peft(directory: Path, make: Any, **config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Save a random adapter of the model that `make` builds; the base's weights, and those PEFT merges."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = make()
    before = {n: t.clone() for n, t in base.state_dict().items()}
    model = peft.get_peft_model(base, peft.LoraConfig(init_lora_weights=False, **config))
    # an embedding's own weight is left out of the file: beside the factors it would be refused
    model.save_pretrained(directory, save_embedding_layers=False)
    again = make()
    again.load_state_dict(before)
    merged = peft.PeftModel.from_pretrained(again, directory).merge_and_unload().state_dict()
    assert set(merged) == set(before)
    return {n: t.numpy() for n, t in before.items()}, {n: t.numpy() for n, t in merged.items()}


def check_against_peft(directory: Path, make: Any, **config: Any) -> dict[str, AdapterDelta]:
    base, merged = saved_by_peft(directory, make, **config)
    deltas, _ = read_adapter(directory, "t")
    assert set(deltas) == {n for n in base if not np.array_equal(base[n], merged[n])}
    for name, delta in deltas.items():
        assert delta.shape == base[name].shape, name
        expected = merged[name].astype(np.float64) - base[name]
        tight = 4e-6 * np.abs(expected).max()  # both the product and the sum were rounded to f32
        np.testing.assert_allclose(matrix(delta), expected, rtol=0, atol=tight, err_msg=name)
    return deltas


def llama() -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def gpt2() -> Any:
    import transformers

    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=4)
    return transformers.GPT2LMHeadModel(config)


def bert() -> Any:
    import transformers

    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24
    )
    return transformers.BertForMaskedLM(config)


def convolutions() -> Any:
    from torch import nn

    flat, point, line = nn.Conv2d(3, 6, (3, 2)), nn.Conv2d(6, 4, 1), nn.Conv1d(4, 5, 3)
    inner = nn.ModuleDict({"flat": flat, "point": point, "line": line})
    return nn.Sequential(inner, nn.Conv3d(2, 3, (1, 2, 3)), nn.Linear(5, 7), nn.Embedding(9, 4))


LLAMA = ["q_proj", "k_proj", "o_proj", "down_proj"]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (llama, {"r": 3, "lora_alpha": 7, "target_modules": LLAMA}),
    "all-linear": (llama, {"r": 2, "lora_alpha": 5, "target_modules": "all-linear"}),
    "rslora": (llama, {"r": 3, "lora_alpha": 7, "target_modules": LLAMA, "use_rslora": True}),
    "suffix patterns": (
        llama,
        {"r": 3, "target_modules": LLAMA, "rank_pattern": {"q_proj": 5, "layers.1.mlp.down_proj": 2},
         "alpha_pattern": {"k_proj": 3, "layers.2.self_attn.o_proj": 11, "j_proj": 99}},
    ),
    "regex patterns": (
        llama,
        {"r": 3, "target_modules": LLAMA, "use_rslora": True, "rank_pattern": {r".*\.[02]\..*(q|k)_proj": 4},
         "alpha_pattern": {r"^model\.layers\.1\.self_attn\.\w+": 2, r"layers\.\d\.mlp\.down_proj": 5}},
    ),
    "overlapping patterns": (
        llama,
        {"r": 3, "target_modules": LLAMA,
         "alpha_pattern": {"q_proj": 2, r".*\.0\..*q_proj": 5, "0.self_attn.q_proj": 9}},
    ),
    "target regex": (llama, {"r": 3, "target_modules": r".*layers\.[01].*(q_proj|up_proj)"}),
    "embedding": (llama, {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens", "v_proj"]}),
    "head": (llama, {"r": 3, "lora_alpha": 5, "target_modules": ["lm_head"]}),
    "gpt2": (gpt2, {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt2 told": (gpt2, {"r": 3, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": True}),
    "gpt2 embedding": (gpt2, {"r": 3, "target_modules": ["attn.c_proj", "wpe"], "alpha_pattern": {"wpe": 3}}),
    "bert": (bert, {"r": 3, "target_modules": ["query", "value", "dense"], "rank_pattern": {"value": 1}}),
    "convolutions": (convolutions, {"r": 3, "target_modules": ["flat", "point", "line", "1", "2", "3"]}),
    "one point": (convolutions, {"r": 2, "target_modules": ["0.point"], "use_rslora": True}),
}  # fmt: skip


@pytest.mark.models
@pytest.mark.parametrize("case", CASES)
def test_the_delta_is_what_peft_merges(tmp_path, case):
    pytest.importorskip("transformers")
    make, config = CASES[case]
    check_against_peft(tmp_path, make, **config)


@pytest.mark.models
def test_an_embedding_saved_with_its_own_weight_is_refused(tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["embed_tokens"])).save_pretrained(
            tmp_path
        )
    with pytest.raises(CheckpointError, match=r"embed_tokens.base_layer.weight' is the base's own tensor"):
        read_adapter(tmp_path, "t")


@pytest.mark.models
@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_2"])
def test_adapters_that_changed_their_base_are_refused_and_read_when_converted(tmp_path, init):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    base = llama()
    before = {n: t.clone() for n, t in base.state_dict().items()}
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=LLAMA, init_lora_weights=init)
    model = peft.get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(CheckpointError, match=f"init_lora_weights is '{init}'"):
        read_adapter(tmp_path / "raw", "t")
    initial = str(tmp_path / "initial")
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=initial)
    deltas, _ = read_adapter(tmp_path / "converted", "t")
    merged = model.merge_and_unload().state_dict()
    for name, delta in deltas.items():
        expected = (merged[name] - before[name]).numpy()
        np.testing.assert_allclose(matrix(delta), expected, atol=1e-5, err_msg=name)


@pytest.mark.models
def test_every_field_of_peft_is_in_one_of_the_tables():
    peft = pytest.importorskip("peft")
    fields = set(peft.LoraConfig.__dataclass_fields__)
    assert fields <= READ | HARMLESS.keys() | REFUSED.keys()
    assert len(READ | HARMLESS.keys() | REFUSED.keys()) == len(READ) + len(HARMLESS) + len(REFUSED)


@pytest.mark.models
def test_a_pickled_adapter_is_read_with_leave(tmp_path):
    pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    saved_by_peft(tmp_path, llama, r=3, target_modules=LLAMA)
    expected, _ = read_adapter(tmp_path, "t")
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "adapter_model.safetensors"), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    deltas, _ = read_adapter(tmp_path, "t", allow_pickle=True)
    assert set(deltas) == set(expected)
    for name, delta in deltas.items():
        np.testing.assert_array_equal(matrix(delta), matrix(expected[name]))
