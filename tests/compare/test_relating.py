"""What relating measures, without models: against definitions written out by hand: n by n matrices, SVD, gradients."""

from __future__ import annotations

import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import normal, write_model

import merganser as mg
from merganser.compare import cka, few_rows, line, relative, singular, transfer
from merganser.compare.plots import ticks
from merganser.compare.relation_page import relation_page
from merganser.compare.relation_plots import curves, layers
from merganser.errors import AlgebraError, RequestError


def rows(n: int, d: int, seed: int) -> np.ndarray:
    return normal(n, d, seed=seed).astype(float)


def rotation(d: int, seed: int) -> np.ndarray:
    return np.linalg.qr(rows(d, d, seed))[0]


# CKA ------------------------------------------------------------------------------------------------------------------


def hsic_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, with the n by n matrices."""
    n = len(x)
    k, el = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(el, 0)
    one = np.ones(n)
    total = np.trace(k @ el) + (one @ k @ one) * (one @ el @ one) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (one @ k @ el @ one)) / (n * (n - 3))


@pytest.mark.parametrize("n,p,q", [(5, 3, 7), (40, 6, 4), (12, 30, 20)])
def test_hsic_is_that_of_the_kernel_matrices(n: int, p: int, q: int) -> None:
    x, y = rows(n, p, 1) + 3, rows(n, q, 2) - 1
    assert cka.hsic(x, y) == pytest.approx(hsic_by_hand(x, y), rel=1e-9)


def test_cka_by_hand_and_its_invariances() -> None:
    x = rows(60, 8, 0)
    y = x @ rows(8, 5, 3) + rows(60, 5, 4)
    wanted = hsic_by_hand(x, y) / math.sqrt(hsic_by_hand(x, x) * hsic_by_hand(y, y))
    assert cka.cka(x, y) == pytest.approx(wanted, rel=1e-9)
    assert cka.cka(x, 7 * (x @ rotation(8, 5)) + 100) == pytest.approx(1, rel=1e-9)
    assert cka.cka(x, np.ones((60, 3))) is None


def test_cka_of_unrelated_spaces_is_about_zero_where_the_biased_one_is_not() -> None:
    found = [cka.cka(rows(30, 200, k), rows(30, 200, 1000 + k)) for k in range(20)]
    assert abs(np.mean([one for one in found if one is not None])) < 0.02
    x, y = (r - r.mean(0) for r in (rows(30, 200, 0), rows(30, 200, 1000)))
    biased = np.sum((x.T @ y) ** 2) / np.sqrt(np.sum((x.T @ x) ** 2) * np.sum((y.T @ y) ** 2))
    assert biased > 0.8


def test_layers_against_layers() -> None:
    first = [rows(20, 4, 0), rows(20, 6, 1), rows(20, 5, 2)]
    found = cka.matrix(first, [first[1], first[0]])
    assert len(found) == 3 and len(found[0]) == 2
    assert found[1][0] == pytest.approx(1) and found[0][1] == pytest.approx(1)
    assert found[2][0] == pytest.approx(cka.cka(first[2], first[1]))
    with pytest.raises(RequestError, match="4 rows or more, not 3"):
        cka.cka(rows(3, 4, 0), rows(3, 4, 0))


def test_the_spread_of_cka_is_what_its_warning_says() -> None:
    """Draws of rows: unrelated spaces of any width, and one direction that carries both."""
    draw = np.random.default_rng(0)
    for n, width in ((20, 8), (20, 300), (100, 60)):
        pairs = draw.standard_normal((300, 2, n, width))
        found = np.array([cka.cka(x, y) for x, y in pairs], float)
        assert abs(found.mean()) < 0.02 and found.std() == pytest.approx(math.sqrt(2) / n, rel=0.25)
        assert np.mean(np.abs(found) < 2 * math.sqrt(2) / n) > 0.9
    n, r = 100, math.sqrt(1 / 3)
    pairs = draw.standard_normal((2000, 2, n, 1))
    found = np.array([cka.cka(x, r * x + math.sqrt(1 - r * r) * y) for x, y in pairs], float)
    assert 1.96 * found.std() == pytest.approx(few_rows.WORST_SPREAD / math.sqrt(n), rel=0.1)


def test_neighbours_by_chance() -> None:
    draw = np.random.default_rng(0)
    shares = [
        relative._overlap(*(draw.permuted(np.tile(np.arange(40), (200, 1)), axis=1)[:, :10] for _ in "ab"))
        for _ in range(5)
    ]
    assert few_rows._chance(40) == pytest.approx(np.mean(shares), abs=0.01)


def test_what_rests_on_few_rows_is_told() -> None:
    """Each measure by itself, and none where there are enough."""
    found = document("a")
    found["models"] = [{"model": name, "kind": "encoder", "width": 24} for name in ("a", "b")]
    found["relative"]["scored_rows"] = 20
    told = {row["what"]: row["why"] for row in few_rows.warnings(found, 40, {"a": 30})}
    assert set(told) == {"line", "cka", "relative", "transfer"}
    assert "30 samples" in told["line"] and "about 0.18 (95 %)" in told["line"]
    assert "known to about 0.24 (95 %), and unrelated layers give up to 0.07 by chance" in told["cka"]
    assert "share 0.33, and shares of right answers are known to about 0.22" in told["relative"]
    assert "draw of Hopkins' statistic is 2 of them" in told["transfer"]
    for row in found["relative"]["stitched"]:
        row["absolute"] = 0.5
    (row,) = (row for row in few_rows.warnings(found, 40, {"a": 30}) if row["what"] == "stitched, absolute")
    assert "24 features and 20 rows" in row["why"]
    found["relative"]["scored_rows"] = 100
    assert few_rows.warnings(found, 200, {"a": 100}) == []
    found["relative"]["stitched"] = None
    found["relative"]["scored_rows"] = 20
    (row,) = few_rows.warnings(found | {"cka": [], "transfer": None, "lines": []}, 40, {})
    assert row["what"] == "relative" and "right answers" not in row["why"]


# Singular vectors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_agreement_of_singular_vectors_is_that_of_the_sums(shape: tuple[int, int]) -> None:
    a, b = rows(*shape, 1), rows(*shape, 2)
    (u, s, v), (x, t, y) = (np.linalg.svd(m, full_matrices=False) for m in (a, b))
    weighted = large = 0.0
    for i, j in itertools.product(range(len(s)), range(len(t))):
        both = (u[:, i] @ x[:, j]) * (v[i] @ y[j])
        weighted += s[i] * t[j] * both
        large += both if s[i] >= 0.3 * s[0] and t[j] >= 0.3 * t[0] else 0
    count = math.sqrt((s >= 0.3 * s[0]).sum() * (t >= 0.3 * t[0]).sum())
    found = singular.matrices(a, b)
    assert found["weighted"] == pytest.approx(weighted / (s @ t), rel=1e-9)
    assert found["large"] == pytest.approx(large / count, rel=1e-7)


def test_a_copy_agrees_and_other_values_alone_do_not_part() -> None:
    a = rows(7, 5, 1)
    u, s, v = np.linalg.svd(a, full_matrices=False)
    assert singular.matrices(a, 3 * a)["large"] == pytest.approx(1)
    assert singular.matrices(a, (u * s**1.1) @ v)["weighted"] == pytest.approx(1)
    assert singular.matrices(a, -a)["weighted"] == pytest.approx(-1)
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    moved = singular.matrices(a, a[order])
    assert moved["weighted"] < 0.9 and moved["most"] == pytest.approx(float(s @ s))


def test_between_models_sums_over_matrices_and_all_tensors(tmp_path: Path) -> None:
    first = {"w": normal(4, 3, seed=1), "v": normal(5, 5, seed=2), "b": normal(4, seed=3)}
    second = {name: normal(*array.shape, seed=9) for name, array in first.items()}
    a, b = (mg.open(write_model(tmp_path / n, t)) for n, t in (("a", first), ("b", second)))
    found = singular.between(a, b)
    gap = math.sqrt(sum(float(np.sum((first[n] - second[n]) ** 2)) for n in first))
    size = math.sqrt(sum(float(np.sum(m[n] ** 2)) for m in (first, second) for n in first))
    assert found["distance"] == pytest.approx(gap, rel=1e-6)
    assert found["relative_distance"] == pytest.approx(gap / size, rel=1e-6)
    assert {row["tensor"] for row in found["tensors"]} == {"w", "v"}
    most = sum(
        np.linalg.svd(first[n], compute_uv=False) @ np.linalg.svd(second[n], compute_uv=False)
        for n in ("w", "v")
    )
    assert found["weighted"] == pytest.approx(
        sum(np.sum(first[n] * second[n]) for n in ("w", "v")) / most, rel=1e-6
    )


# The line -------------------------------------------------------------------------------------------------------------


def test_the_barrier_is_the_largest_excess_over_the_chord() -> None:
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert line.barrier(shares, [1.0, 2.0, 5.0, 4.0, 3.0]) == (pytest.approx(3.0), 0.5)
    assert line.barrier(shares, [1.0, 1.2, 1.5, 2.0, 3.0]) == (0.0, 0.0)  # below its chord all the way
    assert line.barrier(shares, [1.0, 3.0, 2.0, 2.0, 1.0]) == (pytest.approx(2.0), 0.25)


def test_models_without_a_line_between_them(tmp_path: Path) -> None:
    a = mg.open(write_model(tmp_path / "a", {"w": normal(4, 3)}))
    b = mg.open(write_model(tmp_path / "b", {"w": normal(4, 4)}))
    c = mg.open(write_model(tmp_path / "c", {"w": normal(4, 3), "b": normal(4)}))
    with pytest.raises(AlgebraError, match=r"'w' is \[4, 3\] in one and \[4, 4\] in the other"):
        line.check(a, b)
    with pytest.raises(AlgebraError, match="'b' is only in 'c'"):
        line.check(a, c)


# Relative representations ---------------------------------------------------------------------------------------------


def test_relative_form_does_not_feel_rotations_and_scales() -> None:
    x = rows(50, 6, 0)
    y = 4 * x @ rotation(6, 1)
    rel = relative.relative(x, x[:10])
    by_hand = [[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in x[:10]] for u in x]
    assert np.allclose(rel, by_hand)
    assert np.allclose(rel, relative.relative(y, y[:10]))
    same = relative.similarity(rel, relative.relative(y, y[:10]))
    assert same["cosine"] == pytest.approx(1) and same["mrr"] == 1 and same["jaccard"] == pytest.approx(1)
    apart = relative.similarity(x, y)
    assert apart["mrr"] < 0.3 and apart["cosine"] < 0.5


def test_similarity_by_hand() -> None:
    x, y = rows(12, 5, 1), rows(12, 5, 2)
    unit = lambda m: m / np.linalg.norm(m, axis=1, keepdims=True)  # noqa: E731
    x, y = unit(x), unit(y)
    ranks, shares = [], []
    for k in range(12):
        for one, two in ((x, y), (y, x)):
            order = sorted(range(12), key=lambda j: -(two[j] @ one[k]))
            ranks.append(1 / (order.index(k) + 1))
        near = [
            set(sorted((j for j in range(12) if j != k), key=lambda j: -(y[j] @ q))[:3]) for q in (x[k], y[k])
        ]
        shares.append(len(near[0] & near[1]) / len(near[0] | near[1]))
    found = relative.similarity(x, y, neighbours=3)
    assert found["mrr"] == pytest.approx(np.mean(ranks)) and found["jaccard"] == pytest.approx(
        np.mean(shares)
    )
    assert found["mrr_chance"] == pytest.approx(np.mean([1 / k for k in range(1, 13)]))


def test_anchors_come_from_the_training_half_and_the_control_moves_every_one() -> None:
    anchors, train, test = relative.choose(40, 12, seed=3)
    assert set(anchors) <= set(train) and not set(train) & set(test)
    assert sorted([*train, *test]) == list(range(40))
    for count in (2, 3, 12, 101):
        order = relative.shuffled(count, 0)
        assert sorted(order) == list(range(count)) and (order != np.arange(count)).all()
    with pytest.raises(RequestError, match="of 40 rows half, 20, can be anchors"):
        relative.choose(40, 21, 0)


def test_the_head_is_at_the_optimum_of_its_convex_loss() -> None:
    """Where the gradient, written out, is 0; there is one such place but for a shift of all biases."""
    pytest.importorskip("torch")
    x = rows(90, 5, 0)
    y = np.argmax(x[:, :3] + 0.7 * rows(90, 3, 1), 1)
    found = relative.Linear(x, y, 3)
    logits = x @ found.weight + found.bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gap = (p - np.eye(3)[y]) / len(x)
    assert np.abs(x.T @ gap + relative.RIDGE * found.weight).max() < 1e-6
    assert np.abs(gap.sum(0)).max() < 1e-6
    assert found.right(x, y) == np.mean(p.argmax(1) == y) > 0.6


def test_heads_pass_between_rotated_spaces_in_relative_form_only() -> None:
    pytest.importorskip("torch")
    labels = np.arange(240) % 3
    centres = 2.5 * rows(3, 12, 5)
    x = centres[labels] + rows(240, 12, 6)
    wide = np.concatenate([x @ rotation(12, 7), np.zeros((240, 4))], 1)
    found = {
        (row["trained_on"], row["scored_on"]): row
        for row in relative.stitched({"a": x, "b": x @ rotation(12, 8), "c": wide}, labels, 3, 60, 0)
    }
    assert found["a", "b"]["relative"] == found["a", "a"]["relative"] > 0.95
    assert found["a", "b"]["absolute"] < 0.8 and found["a", "c"]["absolute"] is None
    assert found["a", "c"]["relative"] > 0.95
    assert found["a", "b"]["shuffled"] < 0.6


# The transfer score ---------------------------------------------------------------------------------------------------


def test_uniformity_by_hand() -> None:
    regular = np.array([[1.0, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]])
    assert transfer.uniformity(regular * [[1], [5], [0.2]]) == pytest.approx(0, abs=1e-20)
    weight = rows(4, 6, 1)
    ideal, total = math.acos(-1 / 3), 0.0
    for i, j in itertools.permutations(range(4), 2):
        cosine = weight[i] @ weight[j] / np.linalg.norm(weight[i]) / np.linalg.norm(weight[j])
        total += (math.acos(cosine) - ideal) ** 2
    assert transfer.uniformity(weight) == pytest.approx(total / 12, rel=1e-12)
    with pytest.raises(RequestError, match="at most 3 for features of 2, not 4"):
        transfer.uniformity(rows(4, 2, 0))


def test_mutual_information_by_hand() -> None:
    logits = rows(9, 3, 0) * 3
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = lambda q: -sum(v * math.log(v) for v in q)  # noqa: E731
    assert transfer.mutual_information(logits) == pytest.approx(
        entropy(p.mean(0)) - np.mean([entropy(row) for row in p]), rel=1e-12
    )
    sure = np.where(np.eye(3, dtype=bool)[np.arange(9) % 3], 1e4, 0)
    assert transfer.mutual_information(sure) == pytest.approx(math.log(3))
    assert transfer.mutual_information(np.ones((9, 3))) == pytest.approx(0, abs=1e-15)


def test_hopkins_tells_clusters_from_an_even_spread_and_is_the_ratio_of_the_definition() -> None:
    random = np.random.default_rng(12)
    even = transfer.hopkins(random.uniform(0, 1, (600, 2)))
    assert 0.4 < even < 0.6
    clusters = random.integers(0, 3, 600)[:, None] * 5 + 0.05 * random.standard_normal((600, 2))
    assert transfer.hopkins(clusters) > 0.9
    x = rows(40, 3, 1)
    draws = np.random.default_rng(4)
    points = draws.uniform(x.min(0), x.max(0), (8, 3))
    chosen = draws.choice(40, 8, replace=False)
    u = sum(min(np.linalg.norm(point - one) for one in x) for point in points)
    w = sum(min(np.linalg.norm(x[k] - one) for j, one in enumerate(x) if j != k) for k in chosen)
    assert transfer.hopkins(x, seed=4, share=0.2, draws=1) == pytest.approx(u / (u + w), rel=1e-9)


def test_the_score_puts_them_together() -> None:
    weight, features = rows(3, 4, 0), rows(60, 4, 1)
    logits = features @ weight.T
    found = transfer.transfer_score(weight, features, logits, seed=2)
    assert found["score"] == pytest.approx(
        -transfer.uniformity(weight)
        + transfer.hopkins(features, 2)
        + transfer.mutual_information(logits) / math.log(3)
    )


# The page -------------------------------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'&‮"


def document(name: str) -> dict[str, Any]:
    head = {"a": name, "b": "b", "aligned": None}
    tensors = [{"tensor": name, "shape": [2, 2], "weighted": 0.5, "large": 0.25}]
    likeness = {"cosine": 0.5, "mrr": 0.25, "mrr_chance": 0.125, "jaccard": 0.0625}
    line_row = {"task": name, "kind": "classification", "shares": [0.0, 0.5, 1.0], "losses": [1.0, 3.0, 2.0]}
    return {
        "version": "0",
        "models": [{"model": name, "kind": "encoder"}, {"model": "b", "kind": "encoder", "scores": {}}],
        "data": {"name": name, "digest": "", "rows": 4},
        "lines": [
            {
                **head,
                **line_row,
                "right": [0.5, 0.25, 0.5],
                "barrier": 1.5,
                "barrier_at": 0.5,
                "right_lost": 0.25,
            }
        ],
        "weights": [
            {
                **head,
                "distance": 1.0,
                "relative_distance": 0.5,
                "weighted": 0.5,
                "large": None,
                "tensors": tensors,
            }
        ],
        "cka": [{"a": name, "b": "b", "values": [[1.0, None], [0.5, 0.25]]}],
        "relative": {
            "anchors": 2,
            "scored_rows": 2,
            "pairs": [{"a": name, "b": "b", "relative": likeness, "absolute": None, "shuffled": likeness}],
            "most_common": 0.5,
            "stitched": [
                {"trained_on": x, "scored_on": y, "relative": 0.5, "absolute": None, "shuffled": 0.25}
                for x in (name, "b")
                for y in (name, "b")
            ],
        },
        "transfer": {
            "selected": name,
            "rows": [
                {"model": name, "score": 1.0, "uniformity": 0.5, "hopkins": 0.5, "mutual_information": 0.25}
            ],
        },
        "warnings": [{"what": "line", "of": name, "why": name}],
        "left_out": [{"what": "cka", "of": name, "why": name}],
    }


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_well_formed_and_safe_with_names() -> None:
    found = relation_page(document(EVIL))
    tags = Tags()
    tags.feed(found)
    assert tags.open == [] and not tags.seen & {"script", "link", "img", "iframe"}
    assert (
        "default-src 'none'" in found and "‮" not in found and "http" not in re.sub(r"http-equiv", "", found)
    )
    text = " ".join(tags.words)
    assert (
        "1.5" in text
        and "0.0625" not in text
        and "0.062" in text
        and "Left out" in text
        and "Few rows" in text
    )
    json.dumps(document(EVIL))


def test_plots_of_extremes() -> None:
    flat = curves([("a", [(0.0, 1.0), (1.0, 1.0)])], "flat")
    assert "nan" not in flat and "polyline" in flat
    assert curves([], "none") == ""
    assert layers([[None]], "a", "b", "t").count('class="none"') == 1
    assert layers([[0.5] * 60] * 60, "a", "b", "t").count("<rect") == 3600
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert 4 <= len(ticks(-3e-7, 9e-7)) <= 9
