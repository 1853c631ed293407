"""What mergekit's form does otherwise than our own with tensors, as mergekit 0.1.5: precision, what is passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from makers import BF16, read_model, write_adapter, write_model
from tiny_llamas import config, llama, llama_arrays

import merganser as mg
from merganser import recipe
from merganser.errors import RequestError

PAIR = "models:\n- {model: a, parameters: {weight: 0.25}}\n- {model: b, parameters: {weight: 0.75}}\n"


def merged(text: str, out: Path) -> dict[str, np.ndarray]:
    weights, fields = recipe.build(recipe.load(text))
    mg.save(weights, out, sync=False, **fields)
    return read_model(out)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stored(dtypes: dict[str, np.dtype]) -> dict[str, dict[str, np.ndarray]]:
    """Llamas in these dtypes; the last norm is F32 in all."""
    found = {}
    for seed, (name, dtype) in enumerate(dtypes.items()):
        arrays = {
            n: array.astype(np.float32 if n == "model.norm.weight" else dtype)
            for n, array in llama_arrays(seed).items()
        }
        write_model(Path(name), arrays, config())
        found[name] = arrays
    return found


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (np.float16, BF16, np.float32),
        (BF16, np.float16, np.float32),
        (BF16, np.float32, np.float32),
        (np.float16, np.float64, np.float64),
        (BF16, BF16, BF16),
    ],
)
def test_without_dtype_a_result_has_what_its_parents_promote_to(first, second, expected) -> None:
    held = stored({"a": np.dtype(first), "b": np.dtype(second)})
    made = merged(f"merge_method: linear\n{PAIR}", Path("out"))
    for name, array in made.items():
        wide = expected if name != "model.norm.weight" else np.float32
        assert array.dtype == wide, name
        exact = 0.25 * held["a"][name].astype(np.float64) + 0.75 * held["b"][name].astype(np.float64)
        np.testing.assert_allclose(
            array.astype(np.float64), exact, rtol=1e-2 if wide == BF16 else 2e-7, atol=1e-7
        )


def test_a_stack_keeps_every_tensor_as_it_is_stored_and_dtype_stands_above_promotion() -> None:
    held = stored({"a": np.dtype(np.float16), "b": np.dtype(BF16)})
    stack = """merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [2, 4]}]
"""
    made = merged(stack, Path("stack"))
    for name, array in made.items():
        home = "b" if name.startswith(("model.layers.2", "model.layers.3", "lm_head")) else "a"
        if name != "model.norm.weight" and "layers" in name:
            np.testing.assert_array_equal(array.astype(np.float32), held[home][name].astype(np.float32))
    made = merged(f"merge_method: linear\n{PAIR}dtype: float16\n", Path("out"))
    assert {array.dtype for array in made.values()} == {np.dtype(np.float16)}
    made = merged(f"method: linear\n{PAIR}", Path("own"))  # in our own form the first model's, with a note
    assert made["lm_head.weight"].dtype == np.float16


def test_a_document_that_another_uses_is_promoted_too() -> None:
    held = stored({"a": np.dtype(np.float16), "b": np.dtype(BF16), "c": np.dtype(np.float16)})
    text = (
        f"name: first\nmerge_method: linear\n{PAIR}---\nmerge_method: linear\n"
        "models: [{model: first, parameters: {weight: 0.5}}, {model: c, parameters: {weight: 0.5}}]\n"
    )
    made = merged(text, Path("out"))
    name = "model.layers.1.mlp.up_proj.weight"
    a, b, c = (held[model][name].astype(np.float64) for model in "abc")
    np.testing.assert_allclose(made[name], 0.125 * a + 0.375 * b + 0.5 * c, rtol=1e-6, atol=1e-7)


LEFT_OVER = ("v_head.summary.bias", "base_model_norm.weight")


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_no_family_names_and_only_one_has_is_left_out_and_told(name: str) -> None:
    arrays = llama_arrays(0)
    write_model(Path("base"), arrays | {name: np.ones(1, np.float32)}, config())
    a, b = llama(Path("a"), 1), llama(Path("b"), 2)
    for text in (
        f"merge_method: task_arithmetic\nbase_model: base\n{PAIR}",
        "merge_method: slerp\nbase_model: base\nmodels: [{model: a}]\nparameters: {t: 0.25}\n",
    ):
        made = merged(text, Path("out") / text[14:18])
        assert made.keys() == a.keys()
        (note,) = json.loads((Path("out") / text[14:18] / "merganser.json").read_text())["notes"]
        assert note == {"step": "left out", "only some models have": [f"{name} of base"]}
    one = "model.norm.weight"
    made = merged(f"merge_method: task_arithmetic\nbase_model: base\n{PAIR}", Path("values"))
    exact = arrays[one] + 0.25 * (a[one] - arrays[one]) + 0.75 * (b[one] - arrays[one])
    np.testing.assert_allclose(made[one], exact, rtol=1e-5)
    with pytest.raises(mg.MerganserError):  # in our own form nothing is left out unasked
        merged(f"method: task_arithmetic\nbase_model: base\n{PAIR}", Path("own"))


def test_what_all_of_them_have_is_merged_whatever_it_is() -> None:
    held = {}
    for seed, name in enumerate("ab"):
        held[name] = llama_arrays(seed) | {LEFT_OVER[0]: np.full(1, seed, np.float32)}
        write_model(Path(name), held[name], config())
    assert merged(f"merge_method: linear\n{PAIR}", Path("out"))[LEFT_OVER[0]] == [0.75]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear"])
def test_slices_that_take_the_base_alone_give_it(method: str) -> None:
    base = llama(Path("base"), 0)
    rng = np.random.default_rng(5)
    left, right = (
        rng.standard_normal((5, 2)).astype(np.float32),
        rng.standard_normal((2, 6)).astype(np.float32),
    )
    name = "model.layers.3.mlp.up_proj"
    write_adapter(Path("adapter"), {name: (left, right)}, alpha=2.0)
    text = f"""merge_method: {method}
base_model: base+adapter
slices:
- sources: [{{model: base+adapter, layer_range: [0, 4], parameters: {{weight: 0.5}}}}]
"""
    made = merged(text, Path("out"))
    assert made.keys() == base.keys()
    for one, array in made.items():
        change = left @ right if one == f"{name}.weight" else 0
        np.testing.assert_allclose(array, base[one] + change, rtol=1e-5, atol=1e-6)
    with pytest.raises(RequestError, match="at least 1 model beside its base"):
        recipe.load(text.replace("merge_method", "method"))
    with pytest.raises(RequestError, match="at least 1 model beside its base"):
        recipe.load(f"merge_method: {method}\nbase_model: base\nmodels: [{{model: base}}]\n")


CONSTANTS = {
    "model.layers.{}.self_attn.rotary_emb.cos_cached": np.full((1, 1, 8, 4), 0.5, np.float32),
    "model.layers.{}.self_attn.masked_bias": np.array(-np.inf, np.float32),
    "model.layers.{}.self_attn.causal_mask": np.ones((1, 1, 8, 8), np.bool_),
}
STACK = (
    "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n- sources: [{model: b, layer_range: [1, 4]}]\n"
)


def with_constants(name: str, seed: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    arrays = llama_arrays(seed)
    own = {key.format(k): array for key, array in CONSTANTS.items() for k in range(4)}
    write_model(Path(name), arrays | own | more, config())
    return arrays


@pytest.mark.parametrize("form", ["merge_method", "method"])
def test_constants_of_older_libraries_do_not_stand_in_the_way_of_slices(form: str) -> None:
    a, b = with_constants("a", 0), llama(Path("b"), 1)
    made = merged(f"{form}: passthrough\n{STACK}", Path("out"))
    assert len(made) == 3 + 5 * 9
    name = "model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(made[name.format(1)], a[name.format(1)])
    np.testing.assert_array_equal(made[name.format(4)], b[name.format(3)])
    (note,) = json.loads((Path("out") / "merganser.json").read_text())["notes"]
    assert note["step"] == "left out"
    assert len(note["only some models have"]) == 12


@pytest.mark.parametrize("base", ["a", "b"])
def test_constants_are_carried_and_never_computed_with(base: str) -> None:
    with_constants("a", 0)
    with_constants("b", 1)
    for text in (
        f"merge_method: linear\n{PAIR}parameters: {{normalize: false}}\n".replace("0.25", "3"),
        (
            f"merge_method: task_arithmetic\nbase_model: {base}\nmodels: [{{model: a}}, {{model: b}}]\n"
            "parameters: {weight: 7}\n"
        ),
        "merge_method: passthrough\nmodels: [{model: a, parameters: {scale: 3}}]\n",
    ):
        out = Path("out") / text[14:18]
        made = merged(text, out)
        for key, array in CONSTANTS.items():
            np.testing.assert_array_equal(made[key.format(2)], array)


def test_a_value_head_that_all_have_does_not_stand_in_the_way_of_slices() -> None:
    for seed, name in enumerate("ab"):
        with_constants(name, seed, **{LEFT_OVER[0]: np.ones(1, np.float32)})
    made = merged(f"merge_method: passthrough\n{STACK}", Path("out"))
    assert LEFT_OVER[0] not in made
    (note,) = json.loads((Path("out") / "merganser.json").read_text())["notes"]
    assert note["step"] == "left out"
    assert f"{LEFT_OVER[0]} of a" in note["no family names"]
    with pytest.raises(mg.MerganserError):
        merged(f"method: passthrough\n{STACK}", Path("own"))


def test_all_sources_of_a_last_slice_make_what_stands_after_the_layers() -> None:
    a, b, c = (llama(Path(name), seed) for seed, name in enumerate("abc"))
    made = merged(
        "merge_method: linear\nparameters: {weight: [1, 9]}\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}]\n"
        "- sources: [{model: b, layer_range: [2, 4]}, {model: c, layer_range: [2, 4], parameters: {weight: [3, 8]}}]\n",
        Path("out"),
    )
    for name in ("model.norm.weight", "lm_head.weight"):
        np.testing.assert_allclose(made[name], (b[name] + 3 * c[name]) / 4, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(made["model.embed_tokens.weight"], a["model.embed_tokens.weight"])


def test_eps_of_multislerp_does_not_turn_the_mean() -> None:
    held = [llama(Path(name), seed) for seed, name in enumerate("ab")]
    made = merged(
        "merge_method: multislerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1, eps: 0.5}\n",
        Path("out"),
    )
    name = "model.layers.0.mlp.up_proj.weight"
    x, y = (arrays[name].astype(np.float64) for arrays in held)
    lengths = [np.linalg.norm(one) for one in (x, y)]
    mean = 0.5 * x / (lengths[0] + 0.5) + 0.5 * y / (lengths[1] + 0.5)
    exact = sum(lengths) / 2 * mean / np.linalg.norm(mean)
    np.testing.assert_allclose(made[name], exact, rtol=1e-4, atol=1e-5)
