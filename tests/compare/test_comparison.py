"""The comparison of results: laws, hand computations, and samples that do not fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from result_makers import classification, classified, judged, perplexity, run, similarity
from scipy import stats

from merganser.compare import Run, Samples, compare, comparison_page
from merganser.compare.concordance import concordance
from merganser.errors import RequestError

FEW = 400
"""Resamples, where intervals are not what is tested."""


def both(a: Samples, b: Samples, **options: Any) -> dict[str, Any]:
    return compare({"a": run("a", t=a), "b": run("b", t=b)}, **({"resampled": FEW} | options))


def measure(found: dict[str, Any], name: str, task: int = 0) -> dict[str, Any]:
    return next(row for row in found["tasks"][task]["measures"] if row["measure"] == name)


# Laws -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classified, perplexity, similarity])
def test_a_model_against_itself_differs_in_nothing(make: Any) -> None:
    found = both(make(1, 1.0), make(1, 1.0))
    for row in found["tasks"][0]["measures"]:
        apart = row["differences"][0]
        assert (apart["difference"], apart["low"], apart["high"], apart["p"]) == (0.0, 0.0, 0.0, 1.0)
    for row in found["tasks"][0]["flips"]:
        if "of" in row:
            assert (row["better"], row["worse"]) == (0.0, 0.0)
        else:
            assert (row["negative"]["count"], row["positive"]["count"], row["inconsistent"]) == (0, 0, 0.0)
            assert row["agreement"] == 1.0
    for row in found["tasks"][0]["outputs"]:
        assert row["reference_to_model"]["mean"] == row["model_to_reference"]["mean"] == 0.0


@pytest.mark.parametrize("make", [classified, perplexity, similarity])
def test_models_that_change_places_change_the_sign(make: Any) -> None:
    one, other = both(make(1, 1.0), make(2, 1.3)), both(make(2, 1.3), make(1, 1.0))
    for row, turned in zip(one["tasks"][0]["measures"], other["tasks"][0]["measures"], strict=True):
        x, y = row["differences"][0], turned["differences"][0]
        assert x["difference"] == pytest.approx(-y["difference"], abs=1e-12)
        assert (x["low"], x["high"]) == (pytest.approx(-y["high"]), pytest.approx(-y["low"]))
        assert x["p"] == pytest.approx(y["p"])
    for row, turned in zip(one["tasks"][0]["flips"], other["tasks"][0]["flips"], strict=True):
        keys = ("better", "worse") if "of" in row else ("negative", "positive")
        assert row[keys[0]] == turned[keys[1]]


@pytest.mark.parametrize("make", [classified, perplexity, similarity])
def test_the_order_of_samples_and_of_tasks_does_not_matter(make: Any) -> None:
    a, b = make(1, 1.0), make(2, 1.2)
    order = np.random.default_rng(0).permutation(len(a))
    models = {"a": run("a", t=a, u=classified(3, 1.0)), "b": run("b", t=b, u=classified(4, 1.0))}
    shuffled = {
        "a": run("a", u=classified(3, 1.0), t=a.take(order)),
        "b": run("b", t=b.take(order[::-1]), u=classified(4, 1.0)),
    }
    assert compare(models, resampled=FEW) == compare(shuffled, resampled=FEW)


def test_another_task_or_model_changes_nothing_of_a_task() -> None:
    a, b, c = classified(1, 1.0), classified(2, 1.2), classified(3, 0.5)
    alone = both(a, b)
    more = compare({"a": run("a", t=a, u=b), "b": run("b", t=b, u=a), "c": run("c", t=c, u=c)}, resampled=FEW)
    one, other = alone["tasks"][0]["measures"][0], more["tasks"][0]["measures"][0]
    assert one["scores"] == other["scores"][:2]
    x, y = dict(one["differences"][0]), dict(other["differences"][0])
    assert x.pop("p_holm") == x["p"]
    assert y.pop("p_holm") == min(1.0, 2 * y["p"])
    assert x == y


# By hand --------------------------------------------------------------------------------------------------------------


def test_accuracy_flips_and_mcnemar_by_hand() -> None:
    a = judged([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], prediction=list("xxxxabcdef"))
    b = judged([1, 1, 0, 0, 1, 1, 1, 0, 0, 0], prediction=list("xxyyxxxdzz"))
    found = both(a, b)
    apart = measure(found, "accuracy")["differences"][0]
    assert apart["difference"] == pytest.approx(0.1)
    assert (apart["lost"], apart["gained"]) == (2, 3)
    assert apart["p"] == pytest.approx(stats.binomtest(2, 5).pvalue)
    row = found["tasks"][0]["flips"][0]
    assert (row["negative"]["count"], row["positive"]["count"]) == (2, 3)
    assert row["both_right"] == pytest.approx(0.2)
    assert row["both_wrong"] == pytest.approx(0.3)
    assert row["kept"] == pytest.approx(0.5)
    # New wrong and another output than before: the two lost ones, and two of the three that both get wrong.
    assert row["inconsistent"] == pytest.approx(0.4)
    assert row["both_wrong_differ"] == pytest.approx(0.2)
    assert row["agreement"] == pytest.approx(0.3)
    assert [one["id"] for one in row["examples"]["negative"]] == ["2", "3"]
    assert row["examples"]["positive"][0]["outputs"]["new"] == {"output": "x", "right": True, "loss": None}


def test_the_bootstrap_interval_is_that_of_resampled_rows() -> None:
    a, b = classified(1, 1.0), classified(2, 1.2)
    row = measure(both(a, b, resampled=20_000), "loss")["differences"][0]
    change = b.numbers["loss"] - a.numbers["loss"]
    random = np.random.default_rng(5)
    means = change[random.integers(0, len(change), (20_000, len(change)))].mean(axis=1)
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=2e-3)
    assert row["p"] == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert row["detectable"] == pytest.approx(z * change.std(ddof=1) / math.sqrt(len(change)))


def test_bits_per_byte_is_a_ratio_of_sums() -> None:
    a, b = perplexity(1, 1.0), perplexity(2, 1.4)
    row = measure(both(a, b, resampled=20_000), "bits per byte")
    size = a.numbers["bytes"]
    expected = [one.numbers["nats"].sum() / size.sum() / math.log(2) for one in (a, b)]
    assert [score["score"] for score in row["scores"]] == pytest.approx(expected)
    rows = np.random.default_rng(5).integers(0, len(a), (20_000, len(a)))
    change = (b.numbers["nats"] - a.numbers["nats"])[rows].sum(axis=1) / size[rows].sum(axis=1) / math.log(2)
    apart = row["differences"][0]
    assert (apart["low"], apart["high"]) == pytest.approx(
        tuple(np.quantile(change, [0.025, 0.975])), abs=1e-3
    )
    assert row["better"] == "lower"


def test_tokens_where_there_are_no_bytes() -> None:
    a = perplexity(1, 1.0)
    bare = dataclasses.replace(a, numbers=a.numbers | {"bytes": np.full(len(a), np.nan)})
    row = measure(both(bare, bare), "nats per token")
    assert row["scores"][0]["score"] == pytest.approx(a.numbers["nats"].sum() / a.numbers["tokens"].sum())


def test_spearman_and_pearson_with_ties_are_scipy_s_in_every_resample() -> None:
    from merganser.compare.inference import resamples
    from merganser.compare.samples import line_up
    from merganser.compare.scores import measures_of

    task = line_up([run("a", t=similarity(1, 0.5)), run("b", t=similarity(2, 1.0))]).tasks[0]
    ranked, plain = measures_of(task)
    counts = np.concatenate([np.ones((1, len(task))), next(resamples(len(task), 5, 0, "t"))])
    for by_merganser, by_scipy in ((ranked, stats.spearmanr), (plain, stats.pearsonr)):
        found = by_merganser.estimate(counts)
        for k, drawn in enumerate(counts):
            rows = np.repeat(np.arange(len(task)), drawn.astype(int))
            for j, one in enumerate(task.samples):
                expected = by_scipy(one.numbers["similarity"][rows], one.numbers["target"][rows]).statistic
                assert found[k, j] == pytest.approx(expected, abs=1e-10)


def test_divergence_brier_and_calibration_by_hand() -> None:
    p = {
        "choices": [["x", "y"]] * 2,
        "log_probabilities": [[math.log(0.8), math.log(0.2)], [0.0, math.log(3)]],
    }
    q = {"choices": [["x", "y"]] * 2, "log_probabilities": [[math.log(0.5), math.log(0.5)], [0.0, 0.0]]}
    more = {"answer": ["x", "x"]}
    a = judged([1, 0], prediction=["x", "y"], **p, **more)
    b = judged([1, 1], prediction=["x", "x"], **q, **more)
    found = both(a, b)
    one = [0.8 * math.log(1.6) + 0.2 * math.log(0.4), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)]
    other = [
        0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2),
        0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75),
    ]
    row = found["tasks"][0]["outputs"][0]
    assert row["reference_to_model"]["mean"] == pytest.approx(np.mean(one))
    assert row["model_to_reference"]["mean"] == pytest.approx(np.mean(other))
    scores = [score["score"] for score in measure(found, "brier")["scores"]]
    assert scores == pytest.approx([(0.04 + 0.04 + 0.5625 + 0.5625) / 2, 0.5])
    first, second = found["tasks"][0]["calibration"]
    # 0.75 sure and wrong, 0.8 sure and right; then twice 0.5 sure and right, which equal confidence keeps together.
    assert first["ece"] == pytest.approx((0.75 + 0.2) / 2)
    assert second["ece"] == pytest.approx(0.5)
    assert len(second["curve"]) == 1
    assert first["overconfidence"] == pytest.approx(0.775 - 0.5)


def test_a_calibrated_model_has_a_small_calibration_error_whatever_the_order() -> None:
    random = np.random.default_rng(0)
    sure = np.round(random.uniform(0.5, 1.0, 6000), 2)
    right = random.random(6000) < sure
    logs = np.log(np.stack([sure, np.maximum(1 - sure, 1e-9)], axis=1))
    made = judged(
        right, prediction=["x"] * 6000, choices=[["x", "y"]] * 6000, log_probabilities=logs.tolist()
    )
    order = random.permutation(6000)
    one, other = (both(x, x, resampled=100)["tasks"][0]["calibration"][0] for x in (made, made.take(order)))
    assert one == other
    assert one["ece"] < 0.02
    assert len(one["curve"]) == 15


def test_choices_that_differ_or_have_probability_0_have_no_divergence_and_are_counted() -> None:
    logs = [[0.0, -1.0]] * 4
    a = judged([1] * 4, choices=[["x", "y"]] * 4, log_probabilities=logs)
    b = judged(
        [1] * 4, choices=[["x", "z"], *[["x", "y"]] * 3], log_probabilities=[*logs[:3], [0.0, -math.inf]]
    )
    found = both(a, b)
    assert found["tasks"][0]["outputs"][0]["samples"] == 2
    said = " ".join(found["notes"])
    assert "1 samples have other choices in a or b and no KL divergence" in said
    assert "1 samples have a choice of probability 0 in a or b and no KL divergence" in said


def test_overall_is_the_mean_of_tasks_and_pooled_is_that_of_samples() -> None:
    models = {
        name: run(name, small=judged(small), large=judged(large))
        for name, small, large in (
            ("a", [1, 0, 0, 0], [1] * 10 + [0] * 26),
            ("b", [1, 1, 1, 1], [1] * 19 + [0] * 17),
        )
    }
    found = compare(models, resampled=FEW)["overall"][0]
    assert found["mean_of_tasks"]["differences"][0]["difference"] == pytest.approx((0.75 + 0.25) / 2)
    assert found["pooled"]["differences"][0]["difference"] == pytest.approx((3 + 9) / 40)
    assert found["pooled"]["scores"][0]["score"] == pytest.approx(11 / 40)


# After a merge --------------------------------------------------------------------------------------------------------


def test_only_after_the_merge_by_counting() -> None:
    patterns = list(itertools.product((0, 1), repeat=3)) * 4
    m, p, q = zip(*patterns, strict=True)
    models = {"p": run("p", t=judged(p)), "q": run("q", t=judged(q)), "m": run("m", t=judged(m))}
    row = compare(models, parents=["p", "q"], resampled=FEW)["after_merge"][0]
    assert (row["model"], row["only_merged"]["count"], row["lost_by_all"]["count"]) == ("m", 4, 4)
    assert row["lost_by_some"]["count"] == 12
    assert row["only_merged"]["expected"] == pytest.approx(8 * 16 / 32)
    assert row["rescued"] == pytest.approx(0.5)
    assert row["alone"] == {"p": 8, "q": 8}
    assert row["any_parent"] == pytest.approx(0.75)
    shown = row["only_merged"]["examples"][0]["outputs"]
    assert (shown["merged"]["right"], shown["p"]["right"], shown["q"]["right"]) == (True, False, False)


def test_a_merge_that_is_a_parent_gains_nothing() -> None:
    p, q = classified(1, 1.0), classified(2, 1.0)
    models = {"p": run("p", t=p), "q": run("q", t=q), "m": run("m", t=p)}
    row = compare(models, parents=["p", "q"], resampled=FEW)["after_merge"][0]
    assert (row["only_merged"]["count"], row["lost_by_all"]["count"]) == (0, 0)
    assert row["lost_by_some"]["count"] == row["alone"]["q"]


def test_runs_of_merges_are_held_against_the_runs_of_their_parents() -> None:
    p = [run("p0", t=judged([0, 0, 1])), run("p1", t=judged([1, 0, 0]))]
    m = [run("m0", t=judged([1, 0, 0])), run("m1", t=judged([1, 1, 0]))]
    q = run("q", t=judged([0, 0, 0]))
    row = compare({"q": q, "p": p, "m": m}, parents=["p", "q"], resampled=FEW)["after_merge"][0]
    assert row["only_merged"]["count"] == 1
    assert row["lost_by_some"]["count"] == 0.5
    three = {"q": q, "p": p, "m": [*m, run("m2", t=judged([1, 1, 1]))]}
    found = compare(three, parents=["p", "q"], resampled=FEW)
    assert found["after_merge"] == []
    assert any("numbers of runs differ (m: 3, p: 2, q: 1)" in note for note in found["notes"])


# Several runs ---------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_and_their_spread_is_told() -> None:
    seeds = [run(f"s{k}", t=classified(10 + k, 1.0)) for k in range(3)]
    one = run("one", t=classified(20, 1.6))
    found = compare({"seeds": seeds, "one": one}, resampled=FEW)
    scores = [float(np.mean(s.tasks["t"].numbers["right"])) for s in seeds]
    row = measure(found, "accuracy")
    assert row["scores"][0]["score"] == pytest.approx(np.mean(scores))
    spread = found["seeds"][0]["measures"]
    assert [m["measure"] for m in spread] == ["accuracy", "loss", "brier"]
    assert spread[0]["sd"] == pytest.approx(np.std(scores, ddof=1))
    assert spread[0]["signal_to_noise"] == pytest.approx(np.mean(scores) / np.std(scores, ddof=1))
    apart = row["differences"][0]
    assert apart["test"] == "paired t"
    rights = np.mean([s.tasks["t"].numbers["right"] for s in seeds], axis=0)
    change = one.tasks["t"].numbers["right"] - rights
    assert apart["p"] == pytest.approx(stats.ttest_1samp(change, 0).pvalue)
    assert apart["seeds"]["degrees"] == 2
    flips = found["tasks"][0]["flips"][0]
    pairs = [np.mean(s.tasks["t"].numbers["right"] * (1 - one.tasks["t"].numbers["right"])) for s in seeds]
    assert flips["negative"]["share"] == pytest.approx(np.mean(pairs))
    floor = [
        np.mean(x.tasks["t"].numbers["right"] * (1 - y.tasks["t"].numbers["right"]))
        for x, y in itertools.permutations(seeds, 2)
    ]
    assert flips["negative_between_seeds"] == {"seeds": pytest.approx(np.mean(floor)), "one": None}


# Order of the models --------------------------------------------------------------------------------------------------


def test_orders_that_turn_around_are_told_with_their_significance() -> None:
    good, bad = [1] * 90 + [0] * 10, [1] * 40 + [0] * 60
    models = {
        "a": run("a", one=judged(good), two=judged(bad), three=judged(good)),
        "b": run("b", one=judged(bad), two=judged(good), three=judged([*good[:-1], 1])),
    }
    found = compare(models, resampled=FEW)["concordance"]
    # On three b is better by one sample, which is no more than chance.
    assert (found["reversals"], found["significant"]) == (2, 1)
    turned = found["turned"][0]
    assert (turned["a"], turned["b"], turned["better_on"], turned["worse_on"]) == ("a", "b", ["one"], ["two"])
    assert turned["p"] == {task: pytest.approx(3 * stats.binomtest(0, 50).pvalue) for task in ("one",)} | {
        "two": pytest.approx(3 * stats.binomtest(0, 50).pvalue)
    }
    assert {(row["a"], row["b"]): row["tau"] for row in found["tau"]} == {
        ("one", "three"): -1.0,
        ("one", "two"): -1.0,
        ("three", "two"): 1.0,
    }
    assert found["ranks"][0] == {"task": "one", "ranks": {"a": 1.0, "b": 2.0}}


def test_ties_share_a_place_and_lower_losses_are_better() -> None:
    models = {
        name: run(name, t=judged([1, 0, x, 1]), p=perplexity(1, skill))
        for name, x, skill in (("a", 0, 1.0), ("b", 1, 2.0), ("c", 0, 1.0))
    }
    found = compare(models, resampled=FEW)["concordance"]
    assert [row["ranks"] for row in found["ranks"]] == [{"a": 2.5, "b": 1.0, "c": 2.5}] * 2
    assert found["mean_tau"] == pytest.approx(1.0)


def test_a_score_that_is_no_number_comes_last() -> None:
    tests: dict[tuple[int, int], float | None] = dict.fromkeys(itertools.combinations(range(3), 2))
    found = concordance(["s", "t"], ["a", "b", "c"], [[math.nan, 1.0, 2.0], [1.0, 2.0, 3.0]], [tests] * 2)
    assert found is not None
    assert found["ranks"][0]["ranks"] == {"a": 3.0, "b": 2.0, "c": 1.0}


# What does not fit ----------------------------------------------------------------------------------------------------


def test_one_sample_all_right_and_no_interval() -> None:
    found = both(judged([1], [0.1]), judged([1], [0.3]))
    for row in found["tasks"][0]["measures"]:
        apart = row["differences"][0]
        assert apart["low"] is None
        assert apart["high"] is None
    assert measure(found, "accuracy")["differences"][0]["p"] == 1.0
    assert measure(found, "loss")["differences"][0]["p"] is None
    assert any("has 1 samples" in note for note in found["notes"])
    json.dumps(found, allow_nan=False)


def test_all_right_everywhere() -> None:
    found = both(judged([1] * 50), judged([1] * 50))
    apart = measure(found, "accuracy")["differences"][0]
    assert (apart["difference"], apart["p"]) == (0.0, 1.0)
    assert apart["detectable"] == pytest.approx(0.15, abs=0.02)
    assert found["tasks"][0]["flips"][0]["kept"] == 1.0


def test_losses_that_are_no_numbers_are_left_out_for_all_and_told() -> None:
    a = judged([1, 0, 1, 1], [0.1, math.nan, 0.2, 0.4])
    b = judged([1, 1, 1, 1], [0.2, 0.3, math.inf, 0.5])
    found = both(a, b)
    row = measure(found, "loss")
    assert (row["samples"], row["left_out"]) == (2, 2)
    assert row["differences"][0]["difference"] == pytest.approx(0.1)
    assert measure(found, "accuracy")["samples"] == 4
    assert any("2 of 4 samples have no finite loss" in note for note in found["notes"])


def test_a_measure_that_one_model_lacks_is_not_compared() -> None:
    found = both(judged([1, 0, 1], [0.1, 0.2, 0.3]), judged([1, 0, 1]))
    assert [row["measure"] for row in found["tasks"][0]["measures"]] == ["accuracy"]


@pytest.mark.parametrize("noise", [0.0, 1e-13], ids=["equal", "equal but for rounding"])
def test_constant_similarities_have_no_correlation(noise: float) -> None:
    made = similarity(1, 1.0)
    same = 1 - noise * np.random.default_rng(0).random(len(made))
    flat = dataclasses.replace(made, numbers=made.numbers | {"similarity": same})
    found = both(made, flat)
    row = measure(found, "spearman")
    assert row["scores"][1]["score"] is None
    assert row["scores"][0] == measure(both(made, made), "spearman")["scores"][0], "it hides no other's"
    assert row["scores"][0]["score"] > 0.5
    assert "undefined" in comparison_page(found)
    assert row["differences"][0]["p"] is None
    json.dumps(found, allow_nan=False)


def test_samples_that_do_not_pair_are_counted_and_named() -> None:
    a, columns = classified(1, 1.0), classification(2, 1.0)
    columns["input_digest"][3] = "other"
    columns["id"][5] = "new"
    b = Samples.of("classification", columns)
    with pytest.raises(
        RequestError, match=r"2 of the 400 samples of a .*'0-3', '0-5'.*1 of them have .* same id"
    ):
        both(a, b)
    found = both(a, b, allow_missing=True)
    assert found["samples"] == 398
    assert [(row["model"], row["unpaired"], row["same_id_other_input"]) for row in found["unpaired"]] == [
        ("a", 2, 1),
        ("b", 2, 1),
    ]


def test_samples_are_listed_by_number_where_all_ids_are_numbers() -> None:
    ids = [12, 2, 101, 1, 30, 9]
    for names, ordered in (
        (ids, ["1", "2", "9", "12", "30", "101"]),
        ([*ids[:-1], "9b"], ["1", "101", "12", "2", "30", "9b"]),
    ):
        told = {"id": names, "input_digest": [f"d{k}" for k in names]}
        a, b = judged([1] * 6, **told), judged([0] * 6, **told)
        found = both(a, b)
        examples = found["tasks"][0]["flips"][0]["examples"]["negative"]
        assert [one["id"] for one in examples] == ordered
        other = judged([0] * 6, **told | {"input_digest": ["x"] * 3 + [f"d{k}" for k in names[3:]]})
        found = both(a, other, allow_missing=True)
        lacking = [one for one in ordered if one in {str(k) for k in names[:3]}]
        assert [row["examples"] for row in found["unpaired"]] == [lacking, lacking]
        with pytest.raises(RequestError, match=f"ids {', '.join(map(repr, lacking))}"):
            both(a, other)
    merged = compare(
        {"m": run("m", t=judged([1] * 12)), "p": run("p", t=judged([0] * 12))},
        parents=["p"],
        resampled=FEW,
        examples=11,
    )
    found = merged["after_merge"][0]["only_merged"]["examples"]
    assert [one["id"] for one in found] == [str(k) for k in range(11)]


def test_nothing_that_pairs_is_an_error_whatever_is_allowed() -> None:
    with pytest.raises(RequestError, match="no sample pairs"):
        both(classified(1, 1.0), classified(1, 1.0, data=1), allow_missing=True)


def test_tasks_that_some_lack() -> None:
    a = run("a", imdb=classified(1, 1.0), r8=classified(1, 1.0, data=1))
    b = run("b", imdb=classified(2, 1.0), r88=classified(2, 1.0, data=1))
    with pytest.raises(RequestError, match="'r8' is in a and not in b; did you mean 'r88'"):
        compare({"a": a, "b": b})
    found = compare({"a": a, "b": b}, allow_missing=True, resampled=FEW)
    assert [task["task"] for task in found["tasks"]] == ["imdb"]
    assert len(found["notes"]) == 2
    with pytest.raises(RequestError, match="no task in common"):
        compare(
            {"a": run("a", x=classified(1, 1.0)), "b": run("b", y=classified(1, 1.0))}, allow_missing=True
        )


def test_samples_that_repeat_and_kinds_that_differ() -> None:
    twice = classification(1, 1.0)
    twice["id"][1], twice["input_digest"][1] = twice["id"][0], twice["input_digest"][0]
    with pytest.raises(RequestError, match=r"a: task 't' has the sample '0-0' 2 times"):
        both(Samples.of("classification", twice), classified(2, 1.0))
    with pytest.raises(RequestError, match="classification in one model and generation in another"):
        both(judged([1, 0]), dataclasses.replace(judged([1, 0]), kind="generation"))
    with pytest.raises(RequestError, match="'loss' has 1 entries and id has 2"):
        Samples.of("classification", {"id": [0, 1], "loss": [0.1]})


def test_suites_and_models_that_are_told_apart() -> None:
    a = run("a", t=classified(1, 1.0))
    b = Run("b", {"t": classified(2, 1.0)}, identity=a.identity, suite="suite", suite_digest="1")
    notes = compare({"a": a, "b": b}, resampled=FEW)["notes"]
    assert any(note.startswith("the suites differ (a: suite (0); b: suite (1))") for note in notes)
    assert any("a and b are results of the same weights" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reference": "bb"}, "did you mean 'b'"),
        ({"base": "x"}, "the base 'x' is none of the models"),
        ({"parents": ["a", "b"]}, "none is left that could be their merge"),
        ({"parents": ["a", "a"]}, "given twice"),
        ({"parents": ["a"], "base": "a"}, "as base and as parent"),
        ({"resampled": 10}, "too few"),
        ({"confidence": 1.0}, "below 1"),
        ({"examples": -1}, "negative"),
    ],
)
def test_requests_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        both(judged([1, 0]), judged([1, 1]), **options)


def test_a_comparison_needs_two_models_and_a_score() -> None:
    with pytest.raises(RequestError, match="at least two"):
        compare({"a": run("a", t=judged([1]))})
    with pytest.raises(RequestError, match="has no runs"):
        compare({"a": run("a", t=judged([1])), "b": []})
    bare = Samples.of("classification", {"id": [0, 1]})
    with pytest.raises(RequestError, match="no task has a score"):
        both(bare, bare)


def test_generation_tells_outputs_that_differ_though_nothing_flips() -> None:
    def written(texts: list[str]) -> Samples:
        columns = {"id": [0, 1, 2], "right": [1, 0, 0], "text": texts}
        return Samples.of("generation", columns)

    row = both(written(["a", "b", "c"]), written(["A", "b", "d"]))["tasks"][0]
    assert row["measures"][0]["measure"] == "exact match"
    flips = row["flips"][0]
    assert (flips["negative"]["count"], flips["positive"]["count"]) == (0, 0)
    assert (
        flips["both_right_differ"]
        == flips["both_wrong_differ"]
        == flips["inconsistent"]
        == pytest.approx(1 / 3)
    )
    assert [one["id"] for one in flips["examples"]["both_wrong_differ"]] == ["2"]


def test_a_share_of_all_or_of_none_has_an_interval():
    """Every resample of 20 right samples is right; Wilson's interval says what 20 samples cannot rule out."""
    from merganser.compare import compare
    from merganser.compare.inference import wilson
    from merganser.compare.samples import Run, Samples

    def run(name, right):
        columns = {
            "id": [str(k) for k in range(20)],
            "right": right,
            "input_digest": [str(k) for k in range(20)],
        }
        return Run(name, {"t": Samples.of("classification", columns)})

    rights = {"all": [True] * 20, "none": [False] * 20, "half": [k < 10 for k in range(20)]}
    found = compare({name: run(name, right) for name, right in rights.items()})
    (measure,) = found["tasks"][0]["measures"]
    rows = {row["model"]: (row["low"], row["high"]) for row in measure["scores"]}
    assert rows["all"] == wilson(1.0, 20, 0.95) and 0.8 < rows["all"][0] < 0.9 and rows["all"][1] == 1.0
    assert rows["none"] == wilson(0.0, 20, 0.95)
    assert 0.2 < rows["half"][0] < 0.35
