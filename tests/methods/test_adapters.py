"""Adapters added up, re-ranked, extracted, carried on and packed, against NumPy by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import BF16, files_of, normal, read_file, write_adapter, write_file, write_model

import merganser as mg
from merganser.errors import AlgebraError, NonFiniteError, RequestError
from merganser.methods import adapters as ad
from merganser.methods.adapters import _svd

P = "base_model.model."
Q, K = "layers.0.q_proj", "layers.1.k_proj"


def adapter(directory: Path, modules: dict[str, tuple[int, int, int]], seed: int = 0, **config: Any) -> Path:
    """A LoRA directory; by module (outputs, inputs, rank)."""
    directory.mkdir()
    told = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, **config}
    (directory / "adapter_config.json").write_text(json.dumps(told))
    tensors = {}
    for k, (name, (outputs, inputs, rank)) in enumerate(modules.items()):
        tensors[f"{P}{name}.lora_A.weight"] = normal(rank, inputs, seed=seed + 2 * k)
        tensors[f"{P}{name}.lora_B.weight"] = normal(outputs, rank, seed=seed + 2 * k + 1)
    write_file(directory / "adapter_model.safetensors", tensors)
    return directory


def change(directory: Path, module: str, scale: float) -> np.ndarray:
    """`scale * B @ A` in f64."""
    stored = read_file(directory / "adapter_model.safetensors")
    a, b = (stored[f"{P}{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return scale * (b @ a)


def saved(weights: mg.Weights, out: Path, **options: Any) -> mg.Weights:
    mg.save(weights, out, degree=0, **options)
    mg.verify(out)
    return mg.open(out)


def close(got: np.ndarray, due: np.ndarray, rtol: float = 1e-6) -> None:
    assert got.shape == due.shape
    assert np.linalg.norm(got - due) <= rtol * max(np.linalg.norm(due), 1e-30)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Adapters of different ranks, scales, patterns and modules. Scales: one Q 1.5; two Q 8/sqrt(3), K 5/sqrt(2)."""
    one = adapter(tmp_path / "one", {Q: (9, 12, 4)})
    patterns = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 5}}
    two = adapter(
        tmp_path / "two",
        {Q: (9, 12, 3), K: (7, 12, 2)},
        seed=50,
        r=3,
        lora_alpha=8,
        use_rslora=True,
        **patterns,
    )
    return one, two


# Adding up ------------------------------------------------------------------------------------------------------------


def expected(pair: tuple[Path, Path], w: float, v: float) -> dict[str, np.ndarray]:
    one, two = pair
    q = w * change(one, Q, 1.5) + v * change(two, Q, 8 / 3**0.5)
    return {f"{Q}.weight": q, f"{K}.weight": v * change(two, K, 5 / 2**0.5)}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, -0.3), (2.0, 1e-3)])
def test_the_sum_is_exact(pair: tuple[Path, Path], tmp_path: Path, weights: tuple[float, float]) -> None:
    combined = ad.combine([mg.open(path) for path in pair], weights)
    result = saved(combined, tmp_path / "out")
    for name, due in expected(pair, *weights).items():
        close(mg.compute(result, name), due)
    assert {name: result[name].delta.rank for name in result} == {f"{Q}.weight": 7, f"{K}.weight": 2}
    stored = read_file(tmp_path / "out/adapter_model.safetensors")
    first = read_file(pair[0] / "adapter_model.safetensors")
    assert stored[f"{P}{Q}.lora_A.weight"].shape == (7, 12) and stored[f"{P}{Q}.lora_B.weight"].shape == (
        9,
        7,
    )
    np.testing.assert_array_equal(stored[f"{P}{Q}.lora_A.weight"][:4], first[f"{P}{Q}.lora_A.weight"])


def test_arithmetic_on_opened_adapters_is_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(mg.open, pair)
    by_hand = saved(ad.lora(-(-0.7 * one) - two * 0.6 / 2), tmp_path / "a")
    due = expected(pair, 0.7, -0.3)
    for name in due:
        close(mg.compute(by_hand, name), due[name])


def test_weights_by_name_and_zero_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(mg.open, pair)
    result = saved(ad.combine([one, two], [1.0, {"*q_proj*": 0.0, "*": 2.0}]), tmp_path / "out")
    assert result[f"{Q}.weight"].delta.rank == 4  # the part of weight 0 takes no place
    close(mg.compute(result, f"{Q}.weight"), change(pair[0], Q, 1.5))
    close(mg.compute(result, f"{K}.weight"), 2 * change(pair[1], K, 5 / 2**0.5))


def test_an_adapter_with_itself_does_not_grow(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one = mg.open(pair[0])
    result = saved(ad.lora(one + one), tmp_path / "out")
    assert result[f"{Q}.weight"].delta.rank == 4
    close(mg.compute(result, f"{Q}.weight"), 2 * change(pair[0], Q, 1.5))


def test_an_adapter_minus_itself_changes_nothing(pair: tuple[Path, Path]) -> None:
    one = mg.open(pair[0])
    with pytest.raises(AlgebraError, match="changes nothing"):
        ad.lora(one - one)


def test_the_order_of_adapters_does_not_matter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(mg.open, pair)
    a = saved(ad.combine([one, two], [0.5, 2.0], rank=4), tmp_path / "a")
    b = saved(ad.combine([two, one], [2.0, 0.5], rank=4), tmp_path / "b")
    for name in a:
        close(mg.compute(a, name), mg.compute(b, name), 1e-5)


def test_the_scale_of_every_module_is_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = saved(ad.combine([mg.open(path) for path in pair]), tmp_path / "out")
    assert {result[name].delta.scale for name in result} == {1.0}
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == [Q, K]
    assert config["use_rslora"] is False and config["rank_pattern"] == config["alpha_pattern"]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_a_lower_rank_is_the_best_one(pair: tuple[Path, Path], tmp_path: Path, rank: int) -> None:
    result = saved(ad.combine([mg.open(path) for path in pair], [1.0, 0.5], rank=rank), tmp_path / "out")
    for name, due in expected(pair, 1.0, 0.5).items():
        left, values, right = np.linalg.svd(due)
        kept = min(rank, 7 if name.startswith(Q) else 2)
        best = left[:, :kept] * values[:kept] @ right[:kept]
        close(mg.compute(result, name), best, 1e-5)
        assert result[name].delta.rank == kept


def test_energy_takes_the_least_rank_that_keeps_it(pair: tuple[Path, Path], tmp_path: Path) -> None:
    combined = ad.combine([mg.open(path) for path in pair], [1.0, 0.5], energy=0.9)
    result = saved(combined, tmp_path / "out")
    for name, due in expected(pair, 1.0, 0.5).items():
        squares = np.linalg.svd(due)[1] ** 2
        shares = np.cumsum(squares) / squares.sum()
        rank = result[name].delta.rank
        assert shares[rank - 1] >= 0.9 and (rank == 1 or shares[rank - 2] < 0.9)
    note = combined.notes[-1]
    assert 0.9 <= note["energy_kept"] < 1 and note["exact"] is False


def test_energy_and_rank_together(pair: tuple[Path, Path], tmp_path: Path) -> None:
    combined = ad.combine([mg.open(path) for path in pair], energy=1.0, rank=2)
    assert {d.delta.rank for d in saved(combined, tmp_path / "out").values()} == {2}


def test_all_the_energy_is_the_sum_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    result = saved(ad.combine([mg.open(path) for path in pair], energy=1.0), tmp_path / "out")
    for name, due in expected(pair, 1.0, 1.0).items():
        close(mg.compute(result, name), due, 1e-5)


def test_stacked_ranks_beyond_the_matrix(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / f"a{k}", {Q: (3, 20, 2)}, seed=9 * k, r=2) for k in range(4)]
    opened = [mg.open(path) for path in paths]
    due = sum(change(path, Q, 3.0) for path in paths)
    for number, options in enumerate([{}, {"rank": 8}, {"rank": 5}, {"energy": 1.0}]):
        result = saved(ad.combine(opened, **options), tmp_path / f"out{number}")
        close(mg.compute(result, f"{Q}.weight"), due, 1e-5)


def test_resizing(tmp_path: Path) -> None:
    path = adapter(tmp_path / "a", {Q: (9, 12, 4)})
    due = change(path, Q, 1.5)
    left, values, right = np.linalg.svd(due)
    result = saved(ad.resize(mg.open(path), rank=2), tmp_path / "out")
    close(mg.compute(result, f"{Q}.weight"), left[:, :2] * values[:2] @ right[:2], 1e-5)
    assert ad.kept_energy(result)[f"{Q}.weight"] == pytest.approx((values[:2] ** 2).sum(), rel=1e-5)
    again = saved(ad.resize(mg.open(path), rank=99), tmp_path / "same")
    close(mg.compute(again, f"{Q}.weight"), due)
    with pytest.raises(RequestError, match="needs a rank or an energy"):
        ad.resize(mg.open(path))


def test_convolutions_embeddings_and_conv1d(tmp_path: Path) -> None:
    """Every layout that is read is written: the same factors, shapes and names."""
    for number, turned in enumerate([False, True]):
        place = tmp_path / f"a{number}"
        place.mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": turned}
        (place / "adapter_config.json").write_text(json.dumps(config))
        tensors = {
            f"{P}conv.lora_A.weight": normal(2, 5, 3, 2),
            f"{P}conv.lora_B.weight": normal(4, 2, 1, 1, seed=1),
            f"{P}embed.lora_embedding_A": normal(2, 11, seed=2),
            f"{P}embed.lora_embedding_B": normal(6, 2, seed=3),
            f"{P}h.c_fc.lora_A.weight": normal(2, 5, seed=4),
            f"{P}h.c_fc.lora_B.weight": normal(8, 2, seed=5),
        }
        write_file(place / "adapter_model.safetensors", tensors)
        opened = mg.open(place)
        for step, weights in enumerate(
            [ad.lora(opened), ad.resize(opened, rank=1), ad.resize(opened, energy=1.0)]
        ):
            out = tmp_path / f"out{number}{step}"
            result = saved(weights, out)
            assert {n: result[n].shape for n in result} == {n: opened[n].shape for n in opened}
            assert set(read_file(out / "adapter_model.safetensors")) == set(tensors)
            assert json.loads((out / "adapter_config.json").read_text())["fan_in_fan_out"] is turned
            for name in opened if step != 1 else ():
                close(mg.compute(result, name), mg.compute(opened, name), 1e-5)


def test_what_has_no_factors_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    one, two = map(mg.open, pair)
    model = mg.open(write_model(tmp_path / "m", {f"{Q}.weight": normal(9, 12)}))
    with pytest.raises(AlgebraError, match=r"no LoRA adapter; extract"):
        ad.combine([one, model])
    with pytest.raises(AlgebraError, match=r"'layers.0.q_proj.weight'.* is not a sum of LoRA changes"):
        ad.lora(mg.trim(one, 0.5))
    with pytest.raises(AlgebraError, match="shape"):
        other = adapter(tmp_path / "other", {Q: (9, 13, 4)})
        ad.combine([one, mg.open(other)])
    with pytest.raises(RequestError, match="3 weights for 2 adapters"):
        ad.combine([one, two], [1, 2, 3])
    for wrong in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(RequestError, match="must be"):
            ad.lora(one, **wrong)
    with pytest.raises(RequestError, match="at least one"):
        ad.combine([])


def test_layers_of_both_orientations_are_refused(tmp_path: Path) -> None:
    a = adapter(tmp_path / "a", {"up": (9, 12, 4)})
    b = adapter(tmp_path / "b", {"h.c_fc": (9, 12, 4)}, fan_in_fan_out=True)
    with pytest.raises(AlgebraError, match="one fan_in_fan_out for all"):
        ad.combine([mg.open(a), mg.open(b)])


def test_adapters_of_different_bases_need_a_word(tmp_path: Path) -> None:
    paths = [adapter(tmp_path / n, {Q: (9, 12, 4)}, base_model_name_or_path=f"org/{n}") for n in "ab"]
    opened = [mg.open(path) for path in paths]
    with pytest.raises(RequestError, match=r"different bases.*org/a.*org/b.*--base"):
        ad.combine(opened)
    saved(ad.combine(opened, base="org/a"), tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == "org/a"
    )


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["score"]}])
def test_adapters_that_mean_more_are_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    path = adapter(tmp_path / "a", {Q: (9, 12, 4)}, **setting)
    with pytest.raises(mg.MerganserError, match=next(iter(setting))):
        ad.combine([mg.open(path)])


# Extraction -----------------------------------------------------------------------------------------------------------


def models(tmp_path: Path, dtype: Any = np.float32) -> tuple[mg.Weights, mg.Weights, dict[str, np.ndarray]]:
    shapes = {f"{Q}.weight": (24, 40), f"{K}.weight": (40, 24), "lm_head.weight": (30, 24)}
    others = {"norm.weight": (24,), "embed_tokens.weight": (30, 24), f"{Q}.bias": (24,)}
    base = {
        name: normal(*shape, seed=k).astype(dtype)
        for k, (name, shape) in enumerate((shapes | others).items())
    }
    tuned = dict(base)
    for k, (name, shape) in enumerate(shapes.items()):
        low = normal(shape[0], 5, seed=90 + k) @ normal(5, shape[1], seed=80 + k)
        tuned[name] = (base[name].astype(np.float32) + 0.1 * low + 0.01 * normal(*shape, seed=k)).astype(
            dtype
        )
    a, b = (mg.open(write_model(tmp_path / n, t)) for n, t in (("base", base), ("tuned", tuned)))
    return a, b, {n: tuned[n].astype(np.float64) - base[n].astype(np.float64) for n in shapes}


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("rank", [2, 5, 24])
def test_extraction_is_the_best_of_its_rank(tmp_path: Path, rank: int, dtype: Any) -> None:
    base, tuned, due = models(tmp_path, dtype)
    result = saved(ad.extract(tuned - base, rank=rank), tmp_path / "out")
    assert set(result) == set(due)
    for name, full in due.items():
        left, values, right = np.linalg.svd(full)
        rest = np.sqrt((values[rank:] ** 2).sum())
        got = mg.compute(result, name)
        assert np.linalg.norm(got - full) <= rest * (1 + 1e-4) + 1e-5 * values[0]
        close(got, left[:, :rank] * values[:rank] @ right[:rank], 1e-3)


def test_extraction_by_energy(tmp_path: Path) -> None:
    base, tuned, due = models(tmp_path)
    weights = ad.extract(tuned - base, energy=0.8)
    result = saved(weights, tmp_path / "out")
    for name, full in due.items():
        squares = np.linalg.svd(full)[1] ** 2
        rank = result[name].delta.rank
        assert squares[:rank].sum() >= 0.8 * squares.sum() > squares[: rank - 1].sum()
        assert ad.kept_energy(result)[name] == pytest.approx(squares[:rank].sum(), rel=1e-4)
        assert weights.notes[-1]["norms"][name] == pytest.approx(np.linalg.norm(full), rel=1e-5)
    assert {
        d.delta.rank for d in saved(ad.extract(tuned - base, energy=1.0, rank=1), tmp_path / "r").values()
    } == {1}


def test_what_an_adapter_cannot_carry_is_an_error_or_listed(tmp_path: Path) -> None:
    base, _, _ = models(tmp_path)
    tensors = read_file(tmp_path / "tuned/model.safetensors") | {"norm.weight": normal(24, seed=7)}
    norm = np.linalg.norm(
        tensors["norm.weight"].astype(np.float64)
        - read_file(tmp_path / "base/model.safetensors")["norm.weight"]
    )
    changed = mg.open(write_model(tmp_path / "changed", tensors))
    with pytest.raises(AlgebraError, match=r"norm.weight \(norm .*--allow-loss"):
        ad.extract(changed - base, rank=2)
    note = ad.extract(changed - base, rank=2, allow_loss=True).notes[-1]
    assert list(note["lost"]) == ["norm.weight"]
    assert note["lost"]["norm.weight"]["norm"] == pytest.approx(norm, rel=1e-4)
    note = ad.extract(changed - base, rank=2, exclude=["norm*", "lm_head*"]).notes[-1]
    assert sorted(note["left_out"]) == ["lm_head.weight", "norm.weight"] and not note["lost"]
    assert note["modules"] == 2
    note = ad.extract(changed - base, rank=2, include=["layers.*proj.weight"]).notes[-1]
    assert note["modules"] == 2 and not note["lost"]


def test_embeddings_when_asked_for(tmp_path: Path) -> None:
    base, _, _ = models(tmp_path)
    tensors = read_file(tmp_path / "base/model.safetensors")
    delta = normal(30, 3) @ normal(3, 24, seed=1)
    tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"] + delta
    tuned = mg.open(write_model(tmp_path / "t", tensors))
    with pytest.raises(AlgebraError, match=r"embed_tokens.weight .*--embeddings takes it"):
        ad.extract(tuned - base, rank=3)
    result = saved(ad.extract(tuned - base, rank=3, embeddings=True), tmp_path / "out")
    assert list(result) == ["embed_tokens.weight"]
    close(mg.compute(result, "embed_tokens.weight"), delta.astype(np.float64), 1e-5)
    assert f"{P}embed_tokens.lora_embedding_A" in read_file(tmp_path / "out/adapter_model.safetensors")


def test_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": normal(9, 8), "model.layers.0.q_proj.weight": normal(8, 8)}
    base = mg.open(write_model(tmp_path / "b", tensors))
    tuned = mg.open(write_model(tmp_path / "t", {n: t + 1 for n, t in tensors.items()}))
    with pytest.raises(RequestError, match=r"tied to 'lm_head.weight'"):
        ad.extract(tuned - base, rank=2, embeddings=True)


def test_extraction_from_conv1d(tmp_path: Path) -> None:
    shapes = {
        "h.0.attn.c_attn.weight": (8, 24),
        "h.0.attn.c_proj.weight": (8, 8),
        "h.0.mlp.c_fc.weight": (8, 32),
    }
    base = {n: normal(*s, seed=k) for k, (n, s) in enumerate(shapes.items())}
    deltas = {
        n: normal(s[0], 2, seed=k) @ normal(2, s[1], seed=9 + k) for k, (n, s) in enumerate(shapes.items())
    }
    a = mg.open(write_model(tmp_path / "a", base))
    b = mg.open(write_model(tmp_path / "b", {n: base[n] + deltas[n] for n in base}))
    result = saved(ad.extract(b - a, rank=2), tmp_path / "out")
    for name, delta in deltas.items():
        close(mg.compute(result, name), delta.astype(np.float64), 1e-5)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["fan_in_fan_out"] is True


def test_unchanged_modules_are_left_out_and_no_change_is_an_error(tmp_path: Path) -> None:
    base, tuned, _ = models(tmp_path)
    tensors = read_file(tmp_path / "tuned/model.safetensors")
    tensors["lm_head.weight"] = read_file(tmp_path / "base/model.safetensors")["lm_head.weight"]
    part = mg.open(write_model(tmp_path / "part", tensors))
    weights = ad.extract(part - base, rank=2)
    assert weights.notes[-1]["modules_without_change"] == ["lm_head"] and weights.notes[-1]["modules"] == 2
    with pytest.raises(AlgebraError, match="changes no linear layer"):
        ad.extract(base - mg.open(tmp_path / "base"), rank=2)
    with pytest.raises(AlgebraError, match="degree 1; subtract the base"):
        ad.extract(tuned, rank=2)
    with pytest.raises(AlgebraError, match="did you mean"):
        ad.extract(tuned - base, rank=2, include=["layers.0.q_prog.weight"])


def test_any_change_can_be_extracted(tmp_path: Path) -> None:
    base, tuned, due = models(tmp_path)
    result = saved(ad.extract(mg.trim(tuned - base, 0.3) * 2, rank=24), tmp_path / "out")
    for name, full in due.items():
        threshold = np.sort(np.abs(full).ravel())[::-1][int(0.3 * full.size) - 1]
        close(mg.compute(result, name), 2 * np.where(np.abs(full) < threshold * (1 - 1e-7), 0, full), 1e-4)


def test_nan_in_a_parent_stops_the_extraction(tmp_path: Path) -> None:
    base, _, _ = models(tmp_path)
    tensors = read_file(tmp_path / "tuned/model.safetensors")
    wrong = tensors[f"{Q}.weight"].copy()
    wrong[3, 3] = np.nan
    tuned = mg.open(write_model(tmp_path / "nan", tensors | {f"{Q}.weight": wrong}))
    with pytest.raises(NonFiniteError, match=r"q_proj.*of parent 'nan' holds NaN at \[3, 3\]"):
        mg.save(ad.extract(tuned - base, rank=2), tmp_path / "out", degree=0)


@pytest.mark.parametrize("kind", ["noise", "decaying", "low rank", "rank 3", "zero"])
@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (128, 128)])
def test_the_leading_part_beside_the_full_decomposition(shape: tuple[int, int], kind: str) -> None:
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal(shape).astype(np.float32)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    if kind == "decaying":
        matrix = (left / np.arange(1, len(values) + 1)) @ right
    elif kind == "low rank":
        matrix = 0.01 * matrix + 10 * np.outer(left[:, 0], right[0]) + 5 * np.outer(left[:, 1], right[1])
    elif kind == "rank 3":
        matrix = (left[:, :3] * [3, 2, 1]) @ right[:3]
    elif kind == "zero":
        matrix = 0 * matrix
    matrix = matrix.astype(np.float32)
    full = np.linalg.svd(matrix.astype(np.float64))[1]
    for rank in (1, 8, 60):
        u, s, v = _svd.leading(matrix, rank)
        best = (full[:rank] ** 2).sum()
        kept = (full**2).sum() - np.linalg.norm(matrix - (u * s) @ v) ** 2
        assert abs(kept - best) <= 2e-5 * best + 1e-9
        assert u.shape == (shape[0], rank) and v.shape == (rank, shape[1]) and np.isfinite(v).all()


def test_the_gram_path_is_taken_where_the_iteration_does_not_converge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_svd, "TOLERANCE", -1.0)
    matrix = normal(120, 200)
    u, s, v = _svd.leading(matrix, 4)
    full = np.linalg.svd(matrix)
    close(np.abs(v @ full[2][:4].T), np.eye(4), 1e-3)
    np.testing.assert_allclose(s, full[1][:4], rtol=1e-5)
    assert u.shape == (120, 4)


# Carrying on ----------------------------------------------------------------------------------------------------------


def test_port_adds_the_patch_and_reports(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    p = change(pair[0], Q, 1.5)
    v1 = {f"{Q}.weight": normal(9, 12, seed=1), "other": normal(4, seed=2)}
    update = normal(9, 12, seed=3)
    v2 = {f"{Q}.weight": v1[f"{Q}.weight"] + update, "other": v1["other"] + 1}
    old, new = (mg.open(write_model(tmp_path / n, t)) for n, t in (("v1", v1), ("v2", v2)))
    result = ad.port(mg.open(pair[0]), old, new, scale=0.5)
    mg.save(result, tmp_path / "out")
    got = read_file(tmp_path / "out/model.safetensors")
    close(got[f"{Q}.weight"], v2[f"{Q}.weight"] + 0.5 * p)
    np.testing.assert_array_equal(got["other"], v2["other"])
    told = result.notes[-1]["tensors"][f"{Q}.weight"]
    u = (v2[f"{Q}.weight"] - v1[f"{Q}.weight"]).astype(np.float64)
    due = {
        "patch": np.linalg.norm(p),
        "update": np.linalg.norm(u),
        "drift": np.linalg.norm(u) / np.linalg.norm(v1[f"{Q}.weight"]),
        "cosine": (u * p).sum() / np.linalg.norm(u) / np.linalg.norm(p),
        "overlap": (u * p).sum() / (p * p).sum(),
        "survives": 1 + (u * p).sum() / (p * p).sum(),
    }
    stored = read_file(pair[0] / "adapter_model.safetensors")
    rows = np.linalg.qr(stored[f"{P}{Q}.lora_A.weight"].T.astype(np.float64))[0]
    columns = np.linalg.qr(stored[f"{P}{Q}.lora_B.weight"].astype(np.float64))[0]
    due |= {"reads": np.linalg.norm(u @ rows) ** 2 / np.linalg.norm(u) ** 2, "reads_by_chance": 4 / 12}
    due |= {"writes": np.linalg.norm(columns.T @ u) ** 2 / np.linalg.norm(u) ** 2, "writes_by_chance": 4 / 9}
    assert set(told) == set(due)
    for key, value in due.items():
        assert told[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    summary = result.notes[-1]["summary"]
    assert summary["tensors"] == 1 and summary["cosine"] == pytest.approx(due["cosine"], rel=1e-4, abs=1e-6)


def test_survival_at_the_ends(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    patch = mg.open(pair[0])
    base = mg.open(write_model(tmp_path / "v1", {f"{Q}.weight": normal(9, 12)}))
    same = ad.survival(patch, base, base)["summary"]
    assert (same["update"], same["overlap"], same["survives"], same["cosine"]) == (0, 0, 1, None)
    mg.save(base + patch, tmp_path / "done")
    mg.save(base - patch, tmp_path / "undone")
    assert ad.survival(patch, base, mg.open(tmp_path / "done"))["summary"]["survives"] == pytest.approx(
        2, abs=1e-5
    )
    undone = ad.survival(patch, base, mg.open(tmp_path / "undone"))
    assert undone["summary"]["survives"] == pytest.approx(0, abs=1e-5)
    assert undone["tensors"][f"{Q}.weight"]["reads"] == pytest.approx(1, abs=1e-4)


def test_port_of_a_fine_tune_and_a_fresh_patch(tmp_path: Path) -> None:
    v1 = {"w": normal(5, 6), "n": np.arange(3)}
    tuned, v2 = v1 | {"w": v1["w"] + normal(5, 6, seed=1)}, v1 | {"w": v1["w"] + normal(5, 6, seed=2)}
    fresh = v2 | {"w": v2["w"] + normal(5, 6, seed=3)}
    opened = {
        n: mg.open(write_model(tmp_path / n, t))
        for n, t in (("v1", v1), ("tuned", tuned), ("v2", v2), ("fresh", fresh))
    }
    result = ad.port(opened["tuned"], opened["v1"], opened["v2"], fresh=opened["fresh"])
    mg.save(result, tmp_path / "out")
    got = read_file(tmp_path / "out/model.safetensors")
    close(got["w"], v2["w"] + (tuned["w"] - v1["w"]))
    np.testing.assert_array_equal(got["n"], v1["n"])
    f, p = fresh["w"] - v2["w"], tuned["w"] - v1["w"]
    assert result.notes[-1]["summary"]["residual"] == pytest.approx(
        np.linalg.norm(f - p) / np.linalg.norm(f), rel=1e-4
    )
    assert result.notes[-1]["summary"]["fresh_cosine"] == pytest.approx(
        (f * p).sum() / np.linalg.norm(f) / np.linalg.norm(p), rel=1e-3, abs=1e-6
    )


def test_bases_that_do_not_fit_are_named(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    patch = mg.open(pair[0])
    base = mg.open(write_model(tmp_path / "v1", {f"{Q}.weight": normal(9, 12)}))
    lacks = mg.open(write_model(tmp_path / "v2", {"x": normal(9, 12)}))
    wide = mg.open(write_model(tmp_path / "v3", {f"{Q}.weight": normal(9, 13)}))
    with pytest.raises(AlgebraError, match=r"changes tensor 'layers.0.q_proj.weight', which 'v2' lacks"):
        ad.port(patch, base, lacks)
    with pytest.raises(AlgebraError, match=r"\[9, 12\] in 'one' and \[9, 13\] in 'v3'"):
        ad.port(patch, base, wide)
    with pytest.raises(AlgebraError, match="degree 2"):
        ad.port(base + base, base, base)


# Signs ----------------------------------------------------------------------------------------------------------------


def compressed(delta: np.ndarray, density: float, scale: str = "deviation", alpha: float = 1.0) -> np.ndarray:
    """ComPEFT of one tensor by hand."""
    flat = delta.ravel().astype(np.float64)
    kept = max(1, int(density * flat.size))
    order = np.lexsort((np.arange(flat.size), -np.abs(flat)))[:kept]
    order = order[flat[order] != 0]
    size = flat.std() if scale == "deviation" else np.abs(flat[order]).mean() if len(order) else 0.0
    out = np.zeros(flat.size)
    out[order] = alpha * size * np.sign(flat[order])
    return out.reshape(delta.shape)


@pytest.mark.parametrize("scale", ["deviation", "mean"])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.2, 0.5, 1.0])
def test_signs_by_hand(tmp_path: Path, density: float, scale: str) -> None:
    base = {"w": normal(300, 500), "conv": normal(4, 3, 5, 5), "b": normal(7), "one": normal(1)}
    tuned = {n: t + 0.1 * normal(*t.shape, seed=5).astype(np.float32) for n, t in base.items()}
    a, b = (mg.open(write_model(tmp_path / n, t)) for n, t in (("a", base), ("b", tuned)))
    weights = ad.compress(b - a, density=density, scale=scale, alpha=1.5)
    result = saved(weights, tmp_path / "out")
    assert result.degree == 0 and not result.checkpoints[0].is_adapter
    for name in base:
        got = mg.compute(result, name)
        np.testing.assert_allclose(
            got, compressed(tuned[name] - base[name], density, scale, 1.5), rtol=2e-6, atol=1e-9
        )
    note = weights.notes[-1]
    stored = read_file(tmp_path / "out/signs.safetensors")
    assert note["bytes"] == sum(array.nbytes for array in stored.values())
    assert note["dense_bytes"] == sum(t.nbytes for t in base.values())
    code, one = stored["w.signs"], read_file(tmp_path / "out/signs.safetensors")["w.scale"]
    share = int(density * 150_000) / 150_000
    bound = (share - sum(p * np.log2(p) for p in (share, 1 - share) if p > 0)) * 150_000 / 8
    assert bound <= code.nbytes <= (1.16 * bound if density < 1 else 2.01 * bound) and one.shape == (1,)


def test_a_patch_as_signs_is_weights_like_any(tmp_path: Path) -> None:
    base = {"w": normal(30, 50), "untouched": normal(3)}
    a, b = (
        mg.open(write_model(tmp_path / n, {**base, "w": t}))
        for n, t in (("a", base["w"]), ("b", normal(30, 50, seed=1)))
    )
    patch = saved(ad.compress(b - a, density=0.3), tmp_path / "patch")
    mg.save(a + 0.5 * patch, tmp_path / "out")
    due = base["w"] + 0.5 * mg.compute(patch, "w")
    close(read_file(tmp_path / "out/model.safetensors")["w"], due)
    dense = saved(patch, tmp_path / "dense")
    np.testing.assert_array_equal(mg.compute(dense, "w"), mg.compute(patch, "w"))
    assert not (tmp_path / "dense/signs.json").exists()


def test_ties_and_zeros(tmp_path: Path) -> None:
    """Of equal magnitudes the first are kept; zeros never; a tensor of zeros stays one."""
    w = np.zeros((4, 10), np.float32)
    w.flat[[3, 5, 8, 20, 39]] = [1, -1, 1, -1, 1]
    patch = {"ties": np.tile([2, -1, 1, 0], 10).astype(np.float32), "few": w, "zero": np.zeros(6, np.float32)}
    zero = mg.open(write_model(tmp_path / "z", {n: np.zeros_like(t) for n, t in patch.items()}))
    vector = mg.open(write_model(tmp_path / "v", patch)) - zero
    for scale in ("deviation", "mean"):
        result = saved(ad.compress(vector, density=0.3, scale=scale), tmp_path / scale)
        for name, delta in patch.items():
            np.testing.assert_allclose(mg.compute(result, name), compressed(delta, 0.3, scale), rtol=1e-6)


def test_tensors_of_many_blocks_are_read_in_any_stretch(tmp_path: Path) -> None:
    delta = normal(3, 100_001, scale=0.01)
    delta.flat[65_536:131_072] = 0  # a block of which nothing is kept
    zero = mg.open(write_model(tmp_path / "z", {"w": np.zeros_like(delta)}))
    vector = mg.open(write_model(tmp_path / "v", {"w": delta})) - zero
    result = saved(ad.compress(vector, density=0.07), tmp_path / "out")
    due = compressed(delta, 0.07).ravel()
    tensor = result["w"].tensor
    for start, count in [(0, 1), (65_535, 2), (131_071, 70_000), (300_002, 1), (0, delta.size)]:
        buffer = np.empty(count, np.float32)
        tensor.read_into(buffer.view(np.uint8).data, start)
        np.testing.assert_allclose(buffer, due[start : start + count], rtol=1e-6)


@pytest.mark.parametrize("density", [0.1, 0.6])
def test_an_adapter_as_signs_is_an_adapter(tmp_path: Path, density: float) -> None:
    path = adapter(tmp_path / "a", {Q: (40, 50, 4)}, use_rslora=True)
    stored = read_file(path / "adapter_model.safetensors")
    result = saved(ad.compress(mg.open(path), density=density, scale="mean"), tmp_path / "out")
    a, b = (compressed(stored[f"{P}{Q}.lora_{side}.weight"], density, "mean") for side in "AB")
    close(mg.compute(result, f"{Q}.weight"), 6 / 4**0.5 * (b @ a), 1e-5)
    assert result.checkpoints[0].is_adapter
    again = saved(ad.lora(result), tmp_path / "plain")
    close(mg.compute(again, f"{Q}.weight"), mg.compute(result, f"{Q}.weight"), 1e-5)


def test_an_adapter_of_a_convolution_as_signs(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.mkdir()
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    a, b = normal(2, 5, 3, 2), normal(4, 2, 1, 1, seed=1)
    write_file(place / "adapter_model.safetensors", {f"{P}c.lora_A.weight": a, f"{P}c.lora_B.weight": b})
    result = saved(ad.compress(mg.open(place), density=0.5), tmp_path / "out")
    due = np.einsum("or,ri->oi", compressed(b, 0.5).reshape(4, 2), compressed(a, 0.5).reshape(2, -1))
    close(mg.compute(result, "c.weight"), due.reshape(4, 5, 3, 2), 1e-5)


def test_signs_refuse_what_they_cannot_say(tmp_path: Path) -> None:
    base = mg.open(write_model(tmp_path / "a", {"w": normal(5, 5), "n": np.arange(3)}))
    wrong = normal(5, 5)
    wrong[2, 2] = np.inf
    tuned = mg.open(write_model(tmp_path / "b", {"w": wrong, "n": np.arange(3)}))
    with pytest.raises(NonFiniteError, match=r"'w' of parent 'b' holds Inf at \[2, 2\]"):
        mg.save(ad.compress(tuned - base, density=0.5), tmp_path / "out", degree=0)
    with pytest.raises(AlgebraError, match="degree 1; subtract the base"):
        ad.compress(tuned)
    for settings in ({"density": 0.0}, {"density": 1.1}, {"alpha": 0.0}, {"scale": "median"}):
        with pytest.raises(RequestError, match="must be"):
            ad.compress(tuned - base, **settings)
    assert ad.compress(tuned - base).notes[-1]["not_compressed"] == ["n"]


# Laws of every written adapter ----------------------------------------------------------------------------------------


def test_the_bytes_do_not_depend_on_threads_or_tiles(tmp_path: Path) -> None:
    """A tile is 2^18 elements or a multiple; the tensors have more."""
    paths = [adapter(tmp_path / f"a{k}", {Q: (800, 700, k), K: (700, 800, k)}, seed=k, r=k) for k in (3, 5)]
    adapters = [mg.open(path) for path in paths]
    shapes = {f"{Q}.weight": (800, 700), f"{K}.weight": (700, 800)}
    base, tuned = (
        mg.open(write_model(tmp_path / f"m{seed}", {n: normal(*s, seed=seed) for n, s in shapes.items()}))
        for seed in (0, 1)
    )
    makers = {
        "sum": lambda: ad.combine(adapters, [1, 2]),
        "less": lambda: ad.combine(adapters, rank=2),
        "lora": lambda: ad.extract(tuned - base, rank=3),
        "signs": lambda: ad.compress(tuned - base, density=0.1, scale="mean"),
    }
    for name, make in makers.items():
        found = []
        for k, options in enumerate(
            [{"threads": 1}, {"threads": 2, "tile": 2**18}, {"threads": 3, "tile": 2**19}]
        ):
            out = tmp_path / f"{name}{k}"
            mg.save(make(), out, degree=0, **options)
            found.append({n: c for n, c in files_of(out).items() if n != "merganser.json"})
        assert found[0] == found[1] == found[2], name


def test_the_factors_can_have_another_dtype(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    result = saved(ad.combine([mg.open(path) for path in pair]), tmp_path / "out", dtype="bfloat16")
    stored = read_file(tmp_path / "out/adapter_model.safetensors")
    assert {array.dtype for array in stored.values()} == {BF16}
    for name, due in expected(pair, 1.0, 1.0).items():
        close(mg.compute(result, name), due, 1e-2)


def test_a_base_with_adapters_is_the_base_with_their_sum(tmp_path: Path) -> None:
    """By algebra, by a recipe that lists adapters as models, and by the adapter of their sum."""
    from merganser.recipe import build, load

    write_model(tmp_path / "base", {f"{Q}.weight": normal(6, 8), "n.weight": normal(3)})
    write_adapter(tmp_path / "one", {Q: (normal(6, 2), normal(2, 8))})
    write_adapter(tmp_path / "two", {Q: (normal(6, 3, seed=5), normal(3, 8, seed=6))})
    base, one, two = (mg.open(tmp_path / n) for n in ("base", "one", "two"))
    mg.save(base + 0.5 * one - two, tmp_path / "a")
    mg.save(base + saved(ad.combine([one, two], [0.5, -1.0]), tmp_path / "both"), tmp_path / "b")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "method: task_arithmetic\nbase_model: base\nmodels:\n"
        "  - {model: one, parameters: {weight: 0.5}}\n  - {model: two, parameters: {weight: -1.0}}\n"
    )
    weights, fields = build(load(recipe))
    mg.save(weights, tmp_path / "c", **fields)
    a, b, c = (read_file(tmp_path / n / "model.safetensors") for n in "abc")
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a[name], c[name], rtol=1e-5, atol=1e-5)
