"""The zoo's report on a zoo of tiny models: choices on validation rows, scores kept, the page out of what is there."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

import tiny_zoo  # noqa: E402
from demo.fetch import DemoError  # noqa: E402
from rich.console import Console  # noqa: E402
from tiny_zoo import CUT  # noqa: E402

import merganser as mg  # noqa: E402
from merganser import methods  # noqa: E402
from merganser.evaluate import evaluate, read_results  # noqa: E402
from zoo import build, candidates, findings, page, report, scores  # noqa: E402
from zoo.claims import CLAIMS  # noqa: E402
from zoo.figures import Figure  # noqa: E402

pytestmark = pytest.mark.models
CHOSEN = (
    "mean",
    "task_arithmetic",
    "fisher",
    "regmean",
    "tall_masks",
    "adamerging, by task",
    "greedy soup",
    "cma",
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("report")
    base = tiny_zoo.base(place / "base")
    (place / "root").mkdir()
    build.train(
        place / "root", base, tiny_zoo.tasks(), tiny_zoo.domains(), CUT, Console(file=io.StringIO()), 0
    )
    return scores.Zoo.open(place / "root")


@pytest.fixture(scope="module")
def plans(zoo):
    found = []
    for family in report.FAMILIES:
        plan = report.Plan(zoo, family)
        plan.candidates = [one for one in plan.candidates if one.name in CHOSEN]
        found.append(plan)
    assert report.score_all(found, 0, Console(file=io.StringIO()), None) == []
    return found


def test_figures_over_seeds():
    values = [0.70, 0.72, 0.77]
    figure = Figure.of(values)
    assert figure.mean == pytest.approx(np.mean(values)) and figure.seeds == 3
    assert figure.half == pytest.approx(4.303 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-4)
    assert Figure.of([0.5]).half is None and Figure.of([0.5]).sign == 0
    assert (Figure.of([1.0, 2.0]).sign, Figure.of([-1.0, -1.01]).sign, Figure.of([-1.0, 1.0]).sign) == (
        0,
        -1,
        0,
    )
    assert Figure.of([0.5, 0.5]).show(100, 1, signed=True) == "+50.0 ± 0.0"


def test_every_candidate_is_a_method_with_arguments_it_takes():
    import inspect

    assert len(candidates.BY_NAME) == len(candidates.ALL)
    for one in candidates.ALL:
        taken = inspect.signature(methods.get(one.method).function).parameters
        for setting in one.settings:
            assert set(setting) <= set(taken), one.name
    covered = {one.method for one in candidates.ALL} | set(candidates.PAIRWISE)
    ours = {n for n, m in methods.all_methods().items() if m.function.__module__.startswith("merganser.")}
    assert covered == ours
    known = {*candidates.BY_NAME, "base", "multitask", "specialists", "ensemble"}
    assert all({claim.better, claim.worse} <= known for claim in CLAIMS)


def test_settings_are_chosen_on_validation_rows_and_test_rows_are_scored_once(plans):
    plan = next(plan for plan in plans if plan.family == "minilm")
    one = candidates.BY_NAME["task_arithmetic"]
    means = [np.mean([score.mean() for score in each]) for each in plan.choices(one)]
    assert plan.chosen(one) == one.settings[int(np.argmax(means))]
    test_rows = [p.name for p in (plan.zoo.root / "scores").glob("minilm-test-task_arithmetic-*")]
    assert len(test_rows) == len(plan.seeds) == 1


def test_a_score_is_that_of_the_merge_by_hand(plans):
    plan = next(plan for plan in plans if plan.family == "minilm")
    (score,) = plan.test(candidates.BY_NAME["mean"])
    _, *siblings = (mg.open(path) for path in score.parents)
    merged = sum(siblings[1:], siblings[0]) * (1 / len(siblings))
    by_hand = evaluate(merged, plan.zoo.suite("minilm", "test"))
    kept = read_results(score.folder)
    for task in plan.zoo.over("minilm"):
        assert kept.tasks[task].column("id") == by_hand.tasks[task].column("id")
        assert np.allclose(kept.tasks[task].column("loss"), by_hand.tasks[task].column("loss"), atol=1e-5)


def test_a_merge_with_a_mask_a_task_is_scored_on_that_task(plans):
    plan = next(plan for plan in plans if plan.family == "minilm")
    one = candidates.BY_NAME["tall_masks"]
    (score,) = plan.test(one)
    base, *siblings = (mg.open(path) for path in score.parents)
    kept = read_results(score.folder)
    for number, task in enumerate(plan.zoo.over("minilm"), 1):
        merged = methods.get("tall_masks")(base, siblings, task=number, **plan.chosen(one))
        by_hand = evaluate(merged, plan.zoo.suite("minilm", "test")).tasks[task]
        assert np.allclose(kept.tasks[task].column("loss"), by_hand.column("loss"), atol=1e-5)


def test_the_page_says_what_is_there_and_what_is_missing(plans):
    text = page.render(plans)
    lines = text.split("## Four small Llamas")[0].splitlines()
    rows = {row.split(" | ")[0].strip("| *"): row for row in lines if row.startswith("| ")}
    for name in (*CHOSEN, "base", "specialists", "ensemble", "multitask"):
        assert name in rows, name
    plan = next(plan for plan in plans if plan.family == "minilm")
    mean = plan.test(candidates.BY_NAME["mean"])[0].mean()
    assert f"{100 * mean:.1f}" in rows["mean"]
    assert "| open |" in text and "seen**" not in text  # one seed proves nothing
    assert "## PocketNet's five folds" in text
    plan.candidates = [*plan.candidates, candidates.BY_NAME["ties"]]
    try:
        assert "Not scored yet: ties." in page.render(plans)
    finally:
        plan.candidates.pop()


def test_the_ensemble_is_the_mean_of_probabilities(plans):
    plan = next(plan for plan in plans if plan.family == "minilm")
    found = page.rows_of(plan)["ensemble"][plan.seeds[0]]
    siblings = plan.ensemble(plan.seeds[0])
    task = plan.zoo.over("minilm")[0]
    tables = [read_results(s.folder).tasks[task] for s in siblings]
    right = 0
    for row in range(tables[0].rows):
        probabilities = sum(np.exp(t.column("log_probabilities")[row]) for t in tables)
        right += (
            tables[0].column("choices")[row][int(np.argmax(probabilities))] == tables[0].column("answer")[row]
        )
    assert found[task] == pytest.approx(right / tables[0].rows)


def test_what_is_scored_is_not_scored_again_and_a_failure_is_told(plans, monkeypatch):
    def fail(score):
        raise AssertionError(score.name)

    monkeypatch.setattr(scores, "make", fail)
    assert report.score_all(plans, 0, Console(file=io.StringIO()), None) == []
    damaged = plans[0].test(candidates.BY_NAME["mean"])[0]
    kept = (damaged.folder / "results.json").read_text()
    (damaged.folder / "results.json").unlink()
    (line,) = report.score_all(plans, 0, Console(file=io.StringIO()), None)
    assert line == f"{damaged.name}: AssertionError: {damaged.name}"
    (damaged.folder / "results.json").write_text(kept)


def test_without_a_zoo(tmp_path):
    with pytest.raises(DemoError, match="run make zoo first"):
        scores.Zoo.open(tmp_path)
    (tmp_path / "zoo.json").write_text(json.dumps({"tasks": {}, "domains": {}, "models": []}))
    assert scores.Zoo.open(tmp_path).seeds("minilm") == []


def test_findings_are_counted_from_the_samples(plans):
    plan = next(plan for plan in plans if plan.family == "minilm")
    seed = plan.seeds[0]
    tasks = plan.zoo.over("minilm")

    def column(score, task):
        return np.array(read_results(score.folder).tasks[task].column("right"))

    base, merge = plan.roles(seed)[0], plan.test(candidates.BY_NAME["mean"])[0]
    lost = np.mean([np.mean(column(base, t) > column(merge, t)) for t in tasks])
    (_, _, text), (_, _, after) = findings.over_samples(plan)
    assert f"mean: {100 * lost:.1f} % lost" in text
    only = []
    for task in tasks:
        others = np.array([column(base, task), *(column(s, task) for s in plan.ensemble(seed))])
        only.append(np.mean(column(merge, task) & (others.sum(0) == 0)))
    assert f"mean: {100 * np.mean(only):.2f} % right only after merging" in after
    assert findings.noise(plan) == findings.orders(plan) == []  # one seed
    assert "| P045 |" in page.render(plans)


def test_noise_and_orders_are_those_of_scipy():
    from types import SimpleNamespace

    from scipy import stats

    draws = np.random.default_rng(0)
    values = draws.random((5, 3, 4))  # merges, seeds, tasks

    def score(merge, seed, metric):
        numbers = values[merge, seed] * (10 if metric else 1) + (100 if metric else 0)
        return dict(zip("abcd", numbers.tolist(), strict=True))

    class Plan:
        family, seeds = "minilm", [1, 2, 3]
        candidates = tuple(SimpleNamespace(name=f"m{k}", number=k) for k in range(5))
        zoo = SimpleNamespace(over=lambda family: list("abcd"))

        def test(self, one):
            return [
                SimpleNamespace(metrics=lambda metric=None, s=s: score(one.number, s, metric))
                for s in range(3)
            ]

    ((_, _, text),) = findings.noise(Plan())
    means = values.mean(2)
    within, between = np.median(means.std(1, ddof=1)), means.mean(1).std(ddof=1)
    assert f"seeds vary by {100 * within:.3g} points" in text and f"merges by {100 * between:.3g}" in text
    assert text.count(f"{between / within:.1f}") == 2  # the loss is the same but for its scale
    sure = sum(stats.ttest_rel(means[i], means[j]).pvalue < 0.05 for i in range(5) for j in range(i + 1, 5))
    assert f"{sure} of 10 paired" in text
    ((_, _, text),) = findings.orders(Plan())
    mean = values.mean(1)
    taus = [stats.kendalltau(mean[:, i], mean[:, j]).statistic for i in range(4) for j in range(i + 1, 4)]
    assert f"two tasks {np.mean(taus):.2f} on average, least {min(taus):.2f}" in text
    seeds = [
        stats.kendalltau(values[:, i, t], values[:, j, t]).statistic
        for t in range(4)
        for i in range(3)
        for j in range(i + 1, 3)
    ]
    assert f"two seeds {np.mean(seeds):.2f}" in text
