"""A model that is run layer by layer gives what it gives as a whole, in less memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from makers import environment
from small_models import make, tokenizer, write_pictures, write_texts

import merganser as mg
from merganser.errors import NonFiniteError, RequestError
from merganser.observe import observe

pytestmark = pytest.mark.models
KINDS = "gram,absmax,second_moment,mean"


@pytest.mark.parametrize("family", ["bert_classifier", "bert_masked", "llama", "gpt2", "gemma3", "vit"])
def test_it_gives_what_the_whole_model_gives(family, tmp_path):
    make(family, tmp_path / "model")
    picture = family == "vit"
    data = (write_pictures if picture else write_texts)(tmp_path / "data.jsonl")
    fields = {"collect": KINDS, "batch": 3, "values": ["pixels"] if picture else ()}
    seen = []
    whole = observe(tmp_path / "model", data, tmp_path / "whole", **fields)
    parts = observe(
        tmp_path / "model",
        data,
        tmp_path / "parts",
        layerwise=True,
        progress=lambda done, total: seen.append((done, total)),
        **fields,
    )
    assert (parts.layerwise, whole.layerwise) == (True, False)
    assert (parts.tokens, parts.not_covered) == (whole.tokens, whole.not_covered)
    for kind in KINDS.split(","):
        a, b = mg.open(tmp_path / "whole" / kind), mg.open(tmp_path / "parts" / kind)
        assert list(a) == list(b)
        for name in a:
            expected = a.compute(name)
            np.testing.assert_allclose(b.compute(name), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert seen[-1][0] == seen[-1][1] == parts.rows * 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("family", ["bert", "llama", "gemma3", "gpt2", "vit"])
def test_buffers_of_a_skeleton_are_those_of_the_model(family, tmp_path):
    import torch

    from merganser.running import open_model, open_skeleton

    make(family, tmp_path / "model")
    skeleton, _ = open_skeleton(tmp_path / "model")
    model = open_model(tmp_path / "model")
    assert all(parameter.is_meta for parameter in skeleton.module.parameters())
    assert skeleton.names == model.names
    assert skeleton.identity == model.identity
    buffers = dict(skeleton.module.named_buffers())
    for name, value in model.module.named_buffers():
        torch.testing.assert_close(buffers[name], value, rtol=0, atol=0)


def sparse_llama(folder, hidden=1024, layers=28, vocabulary=512):
    """A Llama of 0.8 GB whose matrices in the blocks are holes in the file, that is zeros."""
    import transformers as t

    config = t.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=16,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    tokenizer(folder)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    shapes["lm_head.weight"] = (vocabulary, hidden)
    for k in range(layers):
        for part in "qkvo":
            shapes[f"model.layers.{k}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        for part in ("gate", "up", "down"):
            shapes[f"model.layers.{k}.mlp.{part}_proj.weight"] = (hidden, hidden)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{k}.{norm}.weight"] = (hidden,)
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [at, at := at + 4 * int(np.prod(shape))],
        }
    raw = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
        for name, shape in shapes.items():
            if "_proj" not in name:
                file.seek(8 + len(raw) + header[name]["data_offsets"][0])
                file.write((1 + random.standard_normal(shape)).astype(np.float32).tobytes())
    return at


def test_memory_holds_for_a_model_that_is_larger(tmp_path):
    (tmp_path / "model").mkdir()
    size = sparse_llama(tmp_path / "model")
    limit = 640 * 2**20
    assert size > 1.2 * limit
    write_texts(tmp_path / "data.jsonl", ["rows and columns", "a layer"], [0, 0])
    words = ["observe", "model", "data.jsonl", "out", "--memory", str(limit), "--collect", "mean", "--json"]
    found = subprocess.run(
        [sys.executable, "-m", "merganser", *words, "--threads", "1"],
        cwd=tmp_path,
        env=environment({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert report["layerwise"]
    assert report["peak_memory"] < limit
    mean = mg.open(tmp_path / "out/mean")
    assert len(mean) == 28 * 7 + 1
    # Matrices of zeros add nothing, so what enters every block is what the embedding gave.
    first, last = (mean.compute(f"model.layers.{k}.self_attn.q_proj.weight") for k in (0, 27))
    scale = mg.open(tmp_path / "model")
    norms = [scale.compute(f"model.layers.{k}.input_layernorm.weight") for k in (0, 27)]
    np.testing.assert_allclose(first / norms[0], last / norms[1], rtol=1e-3)
    assert os.path.getsize(tmp_path / "model/model.safetensors") > size


def test_too_little_memory_says_how_much_is_missing(tmp_path):
    make("llama", tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    with pytest.raises(RequestError, match=r"too little for block 0 alone: \d+ MiB more are needed"):
        observe(tmp_path / "model", data, tmp_path / "out", memory=2**20)
    with pytest.raises(RequestError, match=r"Fisher information.*a gradient needs all layers"):
        observe(tmp_path / "model", data, tmp_path / "out", memory=2**20, collect="fisher")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "data.jsonl"}


def test_what_cannot_be_run_so_is_refused_with_the_reason(tmp_path):
    data = write_texts(tmp_path / "data.jsonl")
    make("mixtral", tmp_path / "mixtral")
    with pytest.raises(
        RequestError, match=r"stores model\.layers\.0\.mlp\.experts.*otherwise than the checkpoint"
    ):
        observe(tmp_path / "mixtral", data, tmp_path / "out", layerwise=True)
    make("llama", tmp_path / "llama")
    with pytest.raises(RequestError, match="a gradient needs all layers at once"):
        observe(tmp_path / "llama", data, tmp_path / "out", layerwise=True, collect="fisher,mean")


def test_shared_blocks_are_refused(tmp_path):
    import transformers as t

    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "embedding_size": 8}
    t.AlbertModel(t.AlbertConfig(vocab_size=320, num_hidden_layers=3, **sizes)).save_pretrained(
        tmp_path / "model"
    )
    tokenizer(tmp_path / "model")
    data = write_texts(tmp_path / "data.jsonl")
    with pytest.raises(RequestError, match="more than once"):
        observe(tmp_path / "model", data, tmp_path / "out", layerwise=True)
    assert observe(tmp_path / "model", data, tmp_path / "out").kinds["mean"]["tensors"] >= 7


def test_nan_in_a_block_or_in_the_head_is_found(tmp_path):
    def broken(name):
        def change(model):
            dict(model.named_parameters())[name].view(-1)[3] = float("nan")

        return change

    data = write_texts(tmp_path / "data.jsonl")
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        make("llama", tmp_path / "model", change=broken(name))
        for layerwise in (False, True):
            with pytest.raises(NonFiniteError):
                observe(tmp_path / "model", data, tmp_path / "out", layerwise=layerwise)
            assert not any(path.name not in ("model", "data.jsonl") for path in tmp_path.iterdir())
