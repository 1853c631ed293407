"""The comparer of `make parity`: distances between floats, the generator, the reference, what is excused."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "parity"))

import compare  # noqa: E402
import differences  # noqa: E402
import models as tiny  # noqa: E402
import page  # noqa: E402
import recipes  # noqa: E402
import reference  # noqa: E402
import tensors  # noqa: E402

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]
FAMILY = tiny.FAMILIES["llama"]


def stepped(start, steps, dtype):
    """`steps` representable numbers up from `start`, one at a time."""
    value = np.array(start, dtype)
    for _ in range(steps):
        value = np.nextafter(value, np.array(np.inf, dtype), dtype=dtype)
    return value


class TestUlp:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("start", [0.0, 1.0, -1.0, 3.7e-3, -0.999, 0.5])
    @pytest.mark.parametrize("steps", [0, 1, 2, 7, 40])
    def test_it_counts_the_numbers_in_between(self, dtype, start, steps):
        low, high = np.array([start], dtype), np.array([stepped(start, steps, dtype)], dtype)
        assert tensors.ulp_distance(low, high).tolist() == [steps]
        assert tensors.ulp_distance(high, low).tolist() == [steps]

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_across_zero_it_adds_up(self, dtype):
        below, above = -stepped(0.0, 3, dtype), stepped(0.0, 2, dtype)
        assert tensors.ulp_distance(np.array([below], dtype), np.array([above], dtype)).tolist() == [5]

    def test_zeros_are_one_number_and_nan_is_like_nan_only(self):
        a = np.array([0.0, np.nan, np.nan, np.inf], np.float32)
        b = np.array([-0.0, np.nan, 1.0, np.inf], np.float32)
        assert tensors.ulp_distance(a, b).tolist() == [0, 0, int(tensors.UNLIKE), 0]

    def test_the_ends_of_f64_do_not_overflow(self):
        top = np.array([np.finfo(np.float64).max])
        assert tensors.ulp_distance(top, -top)[0] == 2 * int(top.view(np.int64)[0])

    def test_other_dtypes_and_shapes_are_refused(self):
        with pytest.raises(ValueError, match="float32"):
            tensors.ulp_distance(np.zeros(2, np.float32), np.zeros(2, np.float16))
        with pytest.raises(ValueError, match=r"\(3,\)"):
            tensors.ulp_distance(np.zeros(2, np.float32), np.zeros(3, np.float32))

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_the_size_of_a_unit_is_the_distance_to_the_next(self, dtype):
        values = np.array([1.0, 1.5, 0.3, 6e-5, 1000.0], dtype)
        found = tensors.ulp(values.astype(np.float64), dtype)
        for value, size in zip(values, found, strict=True):
            assert float(stepped(value, 1, dtype)) - float(value) == size

    @pytest.mark.parametrize("dtype", DTYPES[1:])
    def test_rounding_is_numpys(self, dtype):
        values = np.random.default_rng(0).standard_normal(2000) * 10.0 ** np.arange(-4, 4).repeat(250)
        exact = values.astype(np.float32).astype(np.float64)
        np.testing.assert_array_equal(tensors.rounded(exact, dtype), exact.astype(dtype))


class TestReading:
    def test_what_safetensors_wrote_comes_back(self, tmp_path):
        held = {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "b": np.arange(4, dtype=ml_dtypes.bfloat16),
            "c": np.arange(3),
        }
        save_file(held, tmp_path / "model-00001-of-00002.safetensors")
        save_file({"d": np.ones(2, np.float16)}, tmp_path / "model-00002-of-00002.safetensors")
        found = tensors.read(tmp_path)
        assert found.keys() == {"a", "b", "c", "d"}
        for name, array in held.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype


class TestGenerator:
    def test_the_same_seed_gives_the_same_recipes(self):
        assert recipes.all_cases(3, 2) == recipes.all_cases(3, 2)
        first, second = (list(recipes.random_cases(seed, 2)) for seed in (3, 4))
        assert [case.documents for case in first] != [case.documents for case in second]

    def test_more_of_them_begin_with_fewer_of_them(self):
        few = {case.id: case for case in recipes.random_cases(0, 1)}
        many = {case.id: case for case in recipes.random_cases(0, 3)}
        assert few.items() <= many.items()

    def test_every_method_family_form_and_precision_is_drawn(self):
        cases = list(recipes.random_cases(0, 4))
        assert {(case.method, case.family) for case in cases} == {
            (method, family) for method in recipes.DETERMINISTIC for family in tiny.FAMILIES
        }
        assert {
            form for case in cases for form in ("models", "slices", "modules") if form in case.recipe
        } == {
            "models",
            "slices",
            "modules",
        }
        assert {(c.recipe.get("dtype"), c.recipe.get("out_dtype")) for c in cases} == {
            precision[1:] for precision in recipes.PRECISIONS
        }
        text = json.dumps([case.documents for case in cases])
        assert '"filter"' in text and '"value": [' in text

    def test_what_mergekit_computes_in(self):
        def single(**recipe):
            return recipes.Case("x", "x", (recipe,)).computes_in_single

        half, full = [{"model": "llama16/a"}], [{"model": "llama/a"}]
        assert single(merge_method="ties", models=full)
        assert not single(merge_method="ties", models=half)
        assert single(merge_method="ties", models=half, dtype="float32", out_dtype="bfloat16")
        assert not single(merge_method="ties", models=full, dtype="bfloat16")
        assert single(merge_method="linear", models=half)
        assert not single(merge_method="linear", models=full, dtype="bfloat16")  # it casts the inputs

    def test_models_are_found_in_every_form(self):
        found = recipes.models_of(
            {
                "base_model": {"model": {"path": "p"}, "lora": {"path": "q"}},
                "modules": {"default": {"slices": [{"sources": [{"model": "r"}], "base_model": "s"}]}},
            }
        )
        assert found == ["p+q", "s", "r"]


def recipe_of(tmp_path, tables, **recipe):
    for name, weights in tables.items():
        (tmp_path / name).mkdir(exist_ok=True)
        save_file(
            {k: np.asarray(v, np.float32) for k, v in weights.items()}, tmp_path / name / "model.safetensors"
        )
    return reference.truths(recipe, FAMILY, tmp_path)


LAYERS = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
NAMES = ["model.embed_tokens.weight", *LAYERS, "lm_head.weight"]


class TestReference:
    def test_linear_with_a_gradient_filters_and_precedence(self, tmp_path):
        tables = {n: {name: np.full(2, v) for name in NAMES} for n, v in (("x", 1.0), ("y", 3.0))}
        found = recipe_of(
            tmp_path,
            tables,
            merge_method="linear",
            models=[
                {"model": "x", "parameters": {"weight": [0.0, 1.0]}},
                {"model": "y", "parameters": {"weight": [{"filter": "layers", "value": 0.5}]}},
            ],
            parameters={"weight": 2.0, "normalize": False},
        )
        expected = [0 * 1 + 2 * 3, 0 + 1.5, 0.5 + 1.5, 1 + 1.5, 0 * 1 + 2 * 3]
        assert [float(found[name].value[0]) for name in NAMES] == expected

    def test_slices_are_stacked_and_what_stands_behind_comes_from_the_last(self, tmp_path):
        tables = {n: {name: [v + i] for i, name in enumerate(NAMES)} for n, v in (("x", 0.0), ("y", 10.0))}
        slices = [
            {"sources": [{"model": "x", "layer_range": [1, 3]}]},
            {"sources": [{"model": "y", "layer_range": [0, 1]}]},
        ]
        found = recipe_of(tmp_path, tables, merge_method="passthrough", slices=slices)
        assert {name: float(truth.value[0]) for name, truth in found.items()} == {
            NAMES[0]: 0.0,
            LAYERS[0]: 2.0,
            LAYERS[1]: 3.0,
            LAYERS[2]: 11.0,
            "lm_head.weight": 14.0,
        }

    def test_slerp_of_a_right_angle(self, tmp_path):
        tables = {"x": {"w": [1.0, 0.0]}, "y": {"w": [0.0, 2.0]}}
        found = recipe_of(
            tmp_path,
            tables,
            merge_method="slerp",
            base_model="x",
            models=[{"model": "y"}],
            parameters={"t": 0.5},
        )
        np.testing.assert_allclose(found["w"].value, [math.sqrt(0.5), 2 * math.sqrt(0.5)], rtol=1e-15)

    def test_ties_by_hand_and_the_cut_it_marks(self, tmp_path):
        tables = {
            "o": {"w": [0.0, 0.0, 0.0, 0.0]},
            "x": {"w": [4.0, -3.0, 1.0, -1.0]},
            "y": {"w": [-1.0, -5.0, 2.0, 0.5]},
        }
        recipe = {
            "merge_method": "ties",
            "base_model": "o",
            "models": [{"model": "x", "parameters": {"density": 0.75}}, {"model": "y"}],
            "parameters": {"weight": 1.0, "lambda": 2.0},
        }
        found = recipe_of(tmp_path, tables, **recipe)
        # Of the two entries of magnitude 1 in x one fits; the first is taken, and both are marked.
        np.testing.assert_array_equal(found["w"].value, [8.0, -8.0, 3.0, 1.0])
        np.testing.assert_array_equal(found["w"].tossed["cut"], [False, False, True, True])
        every = reference.truths(recipe, FAMILY, tmp_path, all_equal=True)
        np.testing.assert_array_equal(every["w"].value, [8.0, -8.0, 3.0, -2.0])

    def test_an_adapter_is_added_with_its_scaling(self, tmp_path):
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / "adapter_config.json").write_text(
            '{"r": 4, "lora_alpha": 8, "use_rslora": true}'
        )
        down, up = np.ones((4, 2), np.float32), np.full((3, 4), 0.5, np.float32)
        held = {"base_model.model.m.lora_A.weight": down, "base_model.model.m.lora_B.weight": up}
        save_file(held, tmp_path / "lora" / "adapter_model.safetensors")
        found = recipe_of(
            tmp_path,
            {"x": {"m.weight": np.ones((3, 2))}},
            merge_method="passthrough",
            models=[{"model": "x+lora"}],
        )
        np.testing.assert_array_equal(found["m.weight"].value, np.full((3, 2), 1 + 8 / 2 * 2.0))

    def test_tokens_are_aligned_by_the_rules(self):
        tables = [np.arange(6.0).reshape(3, 2), 10 + np.arange(6.0).reshape(3, 2)]
        vocabularies = [{"a": 0, "b": 1, "c": 2}, {"b": 0, "a": 1, "d": 2}]
        order = {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4, "f": 5}
        wishes = {
            "e": {"source": {"kind": "zero"}},
            "f": {"source": {"kind": "model_token", "model": "y", "token": "d"}},
        }
        wishes["b"] = {"source": "x", "force": True}
        first, second = reference.aligned(tables, vocabularies, order, wishes, ["x", "y"], "x", 4)
        own = [[0, 1], [2, 3], [4, 5], [14, 15], [0, 0], [14, 15]]
        np.testing.assert_array_equal(first[:6], own)
        np.testing.assert_array_equal(second[:6], [[12, 13], *own[1:]])
        assert first.shape == (8, 2)
        np.testing.assert_allclose(first[6], np.mean(own, axis=0))


def outcome_of(mine, other, truth, *, method="task_arithmetic", dtype="float32", **recipe):
    case = recipes.Case(
        "x", "x", ({"merge_method": method, "dtype": dtype, "models": [{"model": "llama/a"}], **recipe},)
    )
    outcome = compare.Outcome(case.id, case.group, case.method, case.family, case.computes_in_single)
    errors = compare._Errors()
    meant = None if truth is None else compare._Meant({"w": truth}, {"w": truth})
    compare._tensor(case, "w", mine, other, meant, outcome, errors)
    return outcome, errors


def exact(values, scale=None, **more):
    values = np.asarray(values, np.float64)
    return reference.Truth(values, np.abs(values) if scale is None else np.asarray(scale, np.float64), **more)


class TestComparing:
    def test_equal_within_a_unit_needs_no_row(self):
        values = np.linspace(0.1, 1, 8).astype(np.float32)
        other = values.copy()
        other[2] = stepped(other[2], 1, np.float32)
        outcome, _ = outcome_of(values, other, exact(values))
        assert not outcome.problems and not outcome.rows
        assert (outcome.elements, outcome.identical, outcome.within_one) == (8, 7, 8)

    def test_a_difference_without_a_row_is_a_problem_with_numbers(self):
        values = np.ones(4, np.float32)
        other = values.copy()
        other[1] = 1.01
        outcome, _ = outcome_of(values, other, exact(values))
        assert len(outcome.problems) == 1 and not outcome.rows
        assert "1 of 4 elements differ; at (1,) merganser has 1.0, mergekit 1.0" in outcome.problems[0]

    def test_merganser_off_the_reference_is_a_problem_even_where_mergekit_is_off_alike(self):
        values = np.full(3, 1.01, np.float32)
        outcome, _ = outcome_of(values, values.copy(), exact(np.ones(3)))
        assert "3 of 3 elements of merganser are off the reference" in outcome.problems[0]

    def test_cancelled_terms_are_rounding_only_where_both_are_near_the_reference(self):
        values = np.array([1e-6], np.float32)
        near, far = (np.array([1e-6 + d], np.float32) for d in (3e-7, 5e-5))
        truth = exact([1e-6], [1.0])
        outcome, _ = outcome_of(values, near, truth)
        assert outcome.rows == {"rounding": 1} and not outcome.problems
        outcome, _ = outcome_of(values, far, truth)
        assert outcome.problems
        outcome, _ = outcome_of(values, far, truth, method="model_stock")
        assert outcome.rows == {"sums in f32": 1} and not outcome.problems

    def test_only_marked_elements_are_a_choice(self):
        values, other = np.ones(2, np.float32), np.zeros(2, np.float32)
        truth = exact([1.0, 1.0], tossed={"cut": np.array([True, False])})
        outcome, _ = outcome_of(values, other, truth, method="ties")
        assert outcome.rows == {"cut": 1}
        assert "1 of 2 elements differ" in outcome.problems[0]

    def test_sixteen_bits_are_measured_against_the_reference(self):
        values = np.array([1.0, 2.0], ml_dtypes.bfloat16)
        other = np.array([1.0, 2.03125], ml_dtypes.bfloat16)
        outcome, errors = outcome_of(values, other, exact([1.0, 2.0]), dtype="bfloat16")
        assert not outcome.problems
        assert errors.summary() == {
            "elements": 2,
            "best": 0.0,
            "ours_squares": 0.0,
            "theirs_squares": pytest.approx(0.03125**2 / 2.5),
            "ours_off": 0,
            "theirs_off": 1,
            "ours_max": 0.0,
            "theirs_max": 2.0,
        }

    def test_another_shape_or_dtype_is_a_problem(self):
        outcome, _ = outcome_of(np.ones(2, np.float32), np.ones(3, np.float32), None)
        assert "float32(2,) against float32(3,)" in outcome.problems[0]
        outcome, _ = outcome_of(np.ones(2, np.float32), np.ones(2, np.float16), None)
        assert "against float16" in outcome.problems[0]


class TestDifferences:
    def test_a_refusal_is_excused_only_with_its_case_and_message(self):
        case = recipes.Case("refusals-misspelt-key", "refusals", ({},))
        assert differences.refusal(case, "merganser", "paramaters: unknown key") == "unknown key"
        assert differences.refusal(case, "mergekit", "paramaters: unknown key") is None
        assert differences.refusal(case, "merganser", "out of memory") is None
        other = dataclasses.replace(case, id="edges-linear")
        assert differences.refusal(other, "merganser", "unknown key") is None

    def test_every_row_says_all(self):
        for row in differences.ROWS.values():
            assert all((row.mergekit, row.merganser, row.why, row.recognised)), row.id


class TestPage:
    def results(self, problems=()):
        outcome = compare.Outcome("edges-x", "edges", "ties", "llama", True, kind="excused", elements=10)
        outcome.identical, outcome.within_one, outcome.rows = 8, 9, {"cut": 1}
        outcome.problems = list(problems)
        return {
            "seed": 0,
            "count": 1,
            "only": "",
            "seconds": 60,
            "tool_seconds": {},
            "versions": {"mergekit": {"mergekit": "0.1.5"}, "merganser": {"merganser": "1"}},
            "outcomes": [dict(compare.as_json(outcome))],
            "sampled": [],
        }

    def test_rows_are_counted_and_nothing_is_hidden(self):
        results = self.results()
        text = page.render(results)
        assert page.unexplained(results) == []
        assert "80.000% of 10 numbers are identical and 90.000% within one unit" in text
        assert "cut 1" in text
        wrong = self.results(["w: 3 of 4 elements differ"])
        assert page.unexplained(wrong) == ["edges-x"]
        assert "**1 are not explained**: `edges-x`" in page.render(wrong)
