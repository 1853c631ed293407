"""PocketNet's folds in the zoo's report: the AUC against scikit-learn, a toy in the net's place, and the net."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
metrics = pytest.importorskip("sklearn.metrics")

import tiny_zoo  # noqa: E402, F401 (puts the zoo on the path)
from demo.fetch import DemoError, cache_folder  # noqa: E402

from merganser import methods  # noqa: E402
from merganser.running import live_tensors  # noqa: E402
from zoo import folds, folds_page, pocketnet  # noqa: E402
from zoo.auc import auc, resample, resampled  # noqa: E402
from zoo.pocketnet import PocketNet, Surface  # noqa: E402

pytestmark = pytest.mark.models
NAMES = ("one", "two", "three")
WIDTH, POINTS, RESIDUES = 6, 80, 16


class Toy:
    """A net whose logits are linear in its weights, on made-up surfaces."""

    def __init__(self, opened, count=4):
        draw = np.random.default_rng(1)
        self.truth = draw.normal(size=WIDTH)
        self.folds = [
            opened(f"fold {k}", w=(self.truth + draw.normal(size=WIDTH)).astype(np.float32))
            for k in range(count)
        ]
        self.points = {name: draw.normal(size=(POINTS, WIDTH)) for name in NAMES}
        self.surfaces = {}
        for name, points in self.points.items():
            near = points @ self.truth + draw.normal(size=POINTS) > 2
            self.surfaces[name] = Surface(near, draw.permutation(POINTS) % RESIDUES)

    def logits(self, weights, structure):
        return self.points[structure] @ live_tensors(weights)["w"].astype(np.float64)


@pytest.fixture
def toy(opened):
    return Toy(opened)


def sklearn_auc(toy, weights, structure):
    return metrics.roc_auc_score(toy.surfaces[structure].labels, toy.points[structure] @ weights)


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_auc_is_that_of_scikit_learn_with_ties(levels):
    draw = np.random.default_rng(levels)
    labels = draw.random(300) < 0.2
    scores = draw.integers(levels, size=300) / levels
    groups = draw.integers(12, size=300)
    assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    counts = resample(12, 20, seed=3)
    assert (counts.sum(1) == 12).all() and len(np.unique(counts, axis=0)) > 15
    for found, each in zip(resampled(labels, scores, groups, counts), counts, strict=True):
        rows = np.repeat(np.arange(300), each[groups])
        assert found == pytest.approx(metrics.roc_auc_score(labels[rows], scores[rows]), abs=1e-12)


def test_auc_refuses_what_has_none():
    for labels, scores in (([True, True], [1.0, 2.0]), ([0, 1], [1.0, 2.0]), ([True, False], [1.0, np.nan])):
        with pytest.raises(ValueError, match="two classes"):
            auc(np.array(labels), np.array(scores))
    only = resampled(
        np.array([True, False]), np.array([1.0, 0.0]), np.array([0, 1]), np.array([[2, 0], [1, 1]])
    )
    assert np.isnan(only[0]) and only[1] == 1.0


def test_every_method_that_needs_neither_base_nor_statistics_is_there():
    free = {
        name
        for name, one in methods.all_methods().items()
        if one.function.__module__.startswith("merganser.")
        and one.base != "required"
        and one.statistics is None
        and one.max_models is None
    }
    assert set(folds.METHODS) == free


def test_figures_are_those_by_hand(toy):
    found = folds.measure(toy)
    weights = [fold.compute("w").astype(np.float64) for fold in toy.folds]
    mean = np.mean(weights, 0)
    for name in NAMES:
        labels, points = toy.surfaces[name].labels, toy.points[name]
        singles = [sklearn_auc(toy, w, name) for w in weights]
        probabilities = [1 / (1 + np.exp(-(points @ w))) for w in weights]
        scores = {what: each[name] for what, each in found["scores"].items()}
        assert [scores[f"fold {k}"]["auc"] for k in range(4)] == pytest.approx(singles)
        assert scores["linear"]["auc"] == pytest.approx(sklearn_auc(toy, mean, name))
        assert scores["fold 0"]["loss"] == pytest.approx(metrics.log_loss(labels, probabilities[0]))
        ensemble = np.mean(probabilities, 0)
        assert scores["ensemble"]["auc"] == pytest.approx(metrics.roc_auc_score(labels, ensemble))
        assert scores["ensemble"]["loss"] == pytest.approx(metrics.log_loss(labels, ensemble))
        at = NAMES.index(name)
        gap = found["differences"]["linear"]["mean of singles"]["by structure"][at]
        assert gap == pytest.approx(scores["linear"]["auc"] - np.mean(singles))
        assert found["structures"][name]["near"] == labels.sum()
    for against in found["differences"].values():
        for one in against.values():
            low, high = one["interval"]
            assert low < high and low - 0.05 < np.mean(one["by structure"]) < high + 0.05
    line = next(one for one in found["lines"] if one["pair"] == [1, 3])
    middle = (weights[1] + weights[3]) / 2
    losses = [
        np.mean(
            [metrics.log_loss(toy.surfaces[n].labels, 1 / (1 + np.exp(-(toy.points[n] @ w)))) for n in NAMES]
        )
        for w in (weights[1], middle, weights[3])
    ]
    assert [line["losses"][k] for k in (0, 2, 4)] == pytest.approx(losses, rel=1e-6)
    assert line["barrier"] == 0.0  # the loss is convex in these weights
    assert len(found["lines"]) == 6


def test_a_soup_is_chosen_without_the_structure_that_scores_it(toy):
    asked = []

    def score(weights, structure):
        asked.append(structure)
        return auc(toy.surfaces[structure].labels, toy.logits(weights, structure))

    folds.greedy(toy.folds, ["one", "three"], score)
    assert set(asked) == {"one", "three"}
    before = folds.measure(toy)["chosen"]
    held = toy.surfaces["two"]
    toy.surfaces["two"] = Surface(~held.labels, held.groups)
    after = folds.measure(toy)["chosen"]
    assert after["two"] == before["two"]
    assert after["one"] != before["one"] and after["three"] != before["three"]


def test_the_chosen_soup_is_the_mean_of_its_ingredients(toy):
    found = folds.measure(toy)
    for held, chosen in found["chosen"].items():
        weights = np.mean([toy.folds[k].compute("w").astype(np.float64) for k in chosen["greedy soup"]], 0)
        assert found["scores"]["greedy soup"][held]["auc"] == pytest.approx(sklearn_auc(toy, weights, held))
        others = [name for name in NAMES if name != held]
        means = [np.mean([found["scores"][f"fold {k}"][name]["auc"] for name in others]) for k in range(4)]
        assert chosen["best single"] == int(np.argmax(means))


def test_the_section_shows_the_figures(toy, tmp_path):
    found = {**folds.measure(toy), "key": folds.key()}
    assert "Not scored yet" in "\n".join(folds_page.section(tmp_path))
    (tmp_path / folds.FILE).write_text(json.dumps(found))
    lines = folds_page.section(tmp_path)
    rows: dict[str, list[str]] = {}
    for cells in (line.split(" | ") for line in lines if line.startswith("| ")):
        rows.setdefault(cells[0].strip("| *"), cells)
    aucs = [found["scores"]["karcher"][name]["auc"] for name in NAMES]
    shown = rows["karcher"]
    assert shown[1:4] == [f"{100 * value:.2f}" for value in aucs] and shown[4] == f"{100 * np.mean(aucs):.2f}"
    assert {"fold 0", "fold 3", "mean of singles", "fold 2 to 3", "best single, chosen"} <= set(rows)
    text = "\n".join(lines)
    assert "3 structures cannot rank methods" in text
    assert "The control" not in text
    line = {"shares": [0, 0.5, 1], "losses": [1.5, 9.25, 2.0], "right": [0.5, 0.03, 0.4], "barrier": 7.5}
    text = "\n".join(folds_page.lines_of({**found, "control": {"verdict": "independent", **line}}))
    assert "| ProteinMPNN, the control | 1.500 | 9.250 | 2.000 | 7.500 |" in text
    assert "50.0 and 40.0 % are right at the ends, 3.0 % in the middle" in text
    (tmp_path / folds.FILE).write_text(json.dumps({**found, "key": {**found["key"], "points": 99}}))
    assert folds.kept(tmp_path) is None


def test_figures_are_kept_and_a_failure_is_told(toy, tmp_path, monkeypatch):
    def gone(*_):
        raise DemoError("no such wheel")

    with monkeypatch.context() as patch:
        patch.setattr(pocketnet, "fetch", gone)
        assert folds.run(tmp_path, print) == ["pocketnet: DemoError: no such wheel"]
    assert not (tmp_path / folds.FILE).exists()
    monkeypatch.setattr(pocketnet, "PocketNet", lambda _: toy)
    monkeypatch.setattr(folds, "control", lambda *_: None)
    assert folds.run(tmp_path, lambda _: None) == []
    kept = folds.kept(tmp_path)
    assert kept is not None and kept["scores"] == json.loads(json.dumps(folds.measure(toy)["scores"]))
    monkeypatch.setattr(pocketnet, "PocketNet", gone)
    assert folds.run(tmp_path, print) == []


@pytest.fixture(scope="module")
def net():
    torch.set_num_threads(1)
    try:
        return PocketNet(cache_folder(), ["4CUP"])
    except DemoError as problem:
        pytest.skip(f"the packages cannot be fetched: {problem}")


def test_the_net_finds_the_ligand_and_so_does_the_soup(net):
    surface = net.surfaces["4CUP"]
    assert len(net.folds) == 5 and 20 < surface.labels.sum() < 100 < surface.groups.max() < 150
    pair = net.folds[:2]
    found = {
        name: metrics.roc_auc_score(surface.labels, net.logits(weights, "4CUP"))
        for name, weights in {"0": pair[0], "1": pair[1], "soup": folds.merge("linear", pair)}.items()
    }
    assert found["0"] == pytest.approx(0.984, abs=0.003) and found["1"] == pytest.approx(0.989, abs=0.003)
    assert found["soup"] > 0.97
    assert len(net._known) == 3


def test_the_soup_holds_the_mean_of_the_published_weights(net):
    folder = cache_folder() / "pocketnet-0.3.0" / "pocketnet" / "weights"
    states = [torch.load(folder / f"v3_fold{k}.pt", map_location="cpu", weights_only=True) for k in range(5)]
    soup = live_tensors(folds.merge("linear", net.folds))
    assert set(soup) == set(states[0])
    for name, value in soup.items():
        mean = np.mean([state[name].double().numpy() for state in states], 0)
        np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-8)
    for name, value in live_tensors(net.folds[3]).items():
        np.testing.assert_array_equal(value, states[3][name].numpy())


def test_a_file_of_other_content_is_refused(net, tmp_path, monkeypatch):
    (tmp_path / "4CUP.cif").write_text("data_other\n")
    monkeypatch.setattr(pocketnet, "entries", lambda _: tmp_path)
    with pytest.raises(DemoError, match="is not the file that the zoo was made with"):
        PocketNet(cache_folder(), ["4CUP"])


def test_independent_starts_collapse():
    try:
        found = folds.control(cache_folder(), structures=["4CUP"])
    except DemoError as problem:
        pytest.skip(f"the packages cannot be fetched: {problem}")
    assert found["verdict"] == "independent initialisation"
    assert found["barrier"] > 1 and found["right"][2] < 0.15 < 0.3 < min(
        found["right"][0], found["right"][-1]
    )
