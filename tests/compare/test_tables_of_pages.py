"""Every table of every page, cell by cell: what stands under a heading is what the JSON says of it.

What a heading means is said here once more, in terms of the document alone. A table, or a column, that is not described
here fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from makers import write_model
from result_makers import classification, classified, judged, perplexity, run, similarity

import merganser as mg
from merganser.compare import Run, Samples, compare, comparison_page, diagnose, page
from merganser.compare.parts import table
from merganser.compare.relation_page import relation_page

Row = dict[str, Any]
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?")
SHARES = ("accuracy", "accuracy, normalised", "exact match")


class Tables(HTMLParser):
    """Each table with the headings and summaries above it: (title, heads, rows of texts)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str], list[list[str]]]] = []
        self.title = ""
        self.into: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "table":
            self.found.append((self.title, [], []))
        elif tag == "tr":
            self.row: list[str] = []
        elif tag in ("td", "th", "h1", "h2", "h3", "summary"):
            self.into = []

    def handle_data(self, data: str) -> None:
        if self.into is not None:
            self.into.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2", "h3", "summary"):
            self.title = "".join(self.into or [])
            self.into = None
        elif tag == "th":
            self.found[-1][1].append("".join(self.into or []))
            self.into = None
        elif tag == "td":
            self.row.append("".join(self.into or []))
            self.into = None
        elif tag == "tr" and self.row:
            self.found[-1][2].append(self.row)


def tables(content: str) -> list[tuple[str, list[str], list[list[str]]]]:
    reader = Tables()
    reader.feed(content)
    for title, heads, rows in reader.found:
        assert rows, title
        assert all(head.strip() for head in heads), (title, heads)
        assert len(set(heads)) == len(heads), (title, heads)
        for row in rows:
            assert len(row) == len(heads), (title, heads, row)
    return reader.found


def agrees(shown: str, value: Any) -> bool:
    """Whether a cell shows a value of the document: a text as it is, numbers as exactly as they are written."""
    if isinstance(value, list | tuple):
        written = NUMBER.findall(shown)
        return len(written) == len(value) and all(map(agrees, written, value))
    if value is None:
        return shown == ""
    if isinstance(value, str):
        return shown == value
    if shown == "< 0.0001":
        return 0 <= value < 0.0001
    written = NUMBER.findall(shown)
    if len(written) != 1:
        return False
    digits = written[0].replace(",", "").replace("−", "-")
    scale = 0.01 if digits.endswith("%") else 1.0
    mantissa, _, power = digits.rstrip("%").partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    return abs(float(digits.rstrip("%")) * scale - value) <= 0.500001 * unit * scale + 1e-12


Columns = Mapping[str, Callable[[Any], Any]]


def check(found: tuple[str, list[str], list[list[str]]], sources: Sequence[Any], columns: Columns) -> None:
    title, heads, rows = found
    assert set(heads) <= set(columns), (title, set(heads) - set(columns))
    assert len(rows) == len(sources), title
    for row, source in zip(rows, sources, strict=True):
        for head, shown in zip(heads, row, strict=True):
            value = columns[head](source)
            assert agrees(shown, value), (title, head, shown, value)
    for head in set(columns) - set(heads):  # a column that is not there has nothing to say
        assert all(columns[head](source) in (None, "", []) for source in sources), (title, head)


def average(rows: Sequence[Row], *keys: str) -> float | None:
    found = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = (value or {}).get(key)
        if value is not None:
            found.append(value)
    return fmean(found) if found else None


# diagnose


@pytest.mark.parametrize("kind", ["base", "no base", "one"])
def test_diagnose(tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(0)
    base = {
        f"layers.{k}.{part}.weight": random.standard_normal((12, 9 + k)).astype(np.float32)
        for k in range(3)
        for part in ("mlp", "attn")
    } | {"norm.weight": np.ones(9, np.float32)}
    names = ["first", "second", "third"]
    for j, name in enumerate(["base", *names]):
        change = {
            n: x + (0.03 + 0.1 * j) * random.standard_normal(x.shape).astype("f") for n, x in base.items()
        }
        write_model(tmp_path / name, change)
    models = [mg.open(tmp_path / name, name=name) for name in (names[:1] if kind == "one" else names)]
    origin = None if kind == "no base" else mg.open(tmp_path / "base", name="base")
    document = diagnose(models, origin, rank="all")
    found = {title: (title, heads, rows) for title, heads, rows in tables(page(document))}
    numbers = {row["name"]: str(k + 1) for k, row in enumerate(document["models"])} | {"base": "base"}
    whole = {row["model"]: row for row in document["whole"]["models"]}

    def of_whole(key: str) -> Callable[[Row], Any]:
        return lambda row: whole.get(row["name"], {}).get(key)

    check(
        found.pop("Side by side"),
        [*([document["base"]] if document["base"] else []), *document["models"]],
        {
            "no.": lambda row: numbers[row["name"]],
            "checkpoint": lambda row: row["name"],
            "tensors": lambda row: row["tensors"],
            "numbers": lambda row: row["parameters"],
            "norm": of_whole("norm"),
            "norm of change": of_whole("change"),
            "of base": of_whole("relative_change"),
            "entries changed": of_whole("changed"),
        },
    )
    between = next(t for t in tables(page(document)) if t[1][:2] == ["pair", "verdict"])
    found.pop(between[0])
    check(
        between,
        document["whole"]["pairs"],
        {
            "pair": lambda row: f"{numbers[row['a']]} and {numbers[row['b']]}",
            "verdict": lambda row: row["verdict"],
            "comparable": lambda row: row["comparable"],
            "correspondence": lambda row: row.get("correspondence"),
            "cosine": lambda row: row.get("cosine"),
            "distance": lambda row: row.get("distance"),
            "task vectors": lambda row: row.get("vector_cosine"),
            "conflicts": lambda row: row.get("sign_conflicts"),
            "why": lambda row: row["reason"],
        },
    )

    def pairs(group: Row) -> list[Row]:
        alone = len(document["models"]) < 2 or document["base"] is None
        return [row for row in group["pairs"] if alone or row["a"] != "base"]

    def verdict(group: Row) -> str:
        said = {row["verdict"] for row in pairs(group)}
        return said.pop() if len(said) == 1 else "mixed"

    def mean(*keys: str) -> Callable[[Row], Any]:
        return lambda group: average(pairs(group), *keys)

    check(
        found.pop("By kind of tensor"),
        document["by_kind"],
        {
            "kind": lambda row: row["kind"],
            "verdict": verdict,
            "tensors": lambda row: row["tensors"],
            "numbers": lambda row: row["elements"],
            "correspondence": mean("correspondence"),
            "cosine": mean("cosine"),
            "task vectors": mean("vector_cosine"),
            "conflicts": mean("sign_conflicts"),
            "among large": mean("large_conflicts"),
            "overlap 1 %": mean("overlap", "1%"),
            "overlap 10 %": mean("overlap", "10%"),
            "cancelled": lambda row: row["together"].get("cancelled"),
        },
    )
    ranks: dict[str, list[Row]] = {}
    for row in document["rank"]:
        ranks.setdefault(row["tensor"], []).append(row)

    def span(key: str) -> Callable[[list[Row]], Any]:
        def ends(rows: list[Row]) -> list[float]:
            low, high = (choose(row[key] for row in rows) for choose in (min, max))
            return [low] if f"{low:.1f}" == f"{high:.1f}" else [low, high]

        return ends

    what = "task vector" if document["base"] else "difference from the first model"
    check(
        found.pop(f"Rank of the {what}"),
        list(ranks.values()),
        {
            "tensor": lambda rows: rows[0]["tensor"],
            "effective": span("effective"),
            "of full, mean": lambda rows: average(rows, "share"),
            "stable": span("stable"),
            "full": lambda rows: rows[0]["full"],
        },
    )
    key = "vector_cosine" if "vector_cosine" in document["whole"]["pairs"][-1] else "correspondence"
    alike = [row for row in document["tensors"] if average(pairs(row), key) is not None]
    alike.sort(key=lambda row: average(pairs(row), key) or 0.0)
    least = found.pop("Tensors least alike", None)
    assert (least is not None) == bool(alike)
    if least is not None:
        check(
            least,
            alike,
            {
                "tensor": lambda row: row["tensor"],
                "shape": lambda row: " x ".join(map(str, row["shape"])),
                "cosine of task vectors": mean("vector_cosine"),
                "cosine of weights": mean("cosine"),
                "conflicts": mean("sign_conflicts"),
                "change": lambda row: average(row["models"], "relative_change"),
            }
            | ({} if key == "vector_cosine" else {"correspondence": mean("correspondence")}),
        )
    assert not found


# relate


def relation() -> Row:
    random = np.random.default_rng(3)
    names = ["one", "two", "three"]

    def number() -> float:
        return float(random.uniform(0.01, 1.0))

    def likeness() -> Row:
        return {key: number() for key in ("cosine", "mrr", "mrr_chance", "jaccard")}

    heads = [{"a": "one", "b": "two", "aligned": None}, {"a": "one", "b": "two", "aligned": "weights"}]
    heads.append({"a": "two", "b": "three", "aligned": None})

    def line(head: Row, right: bool) -> Row:
        losses = [number() for _ in range(5)]
        shares = [0.0, 0.25, 0.5, 0.75, 1.0]
        row = head | {"task": "imdb", "kind": "classification", "shares": shares, "losses": losses}
        row |= {"right": [number() for _ in range(5)] if right else None}
        return row | {"barrier": number(), "barrier_at": 0.25, "right_lost": number() if right else None}

    def weights(head: Row) -> Row:
        tensors = [
            {"tensor": f"layers.{k}.weight", "shape": [4, 4], "weighted": number(), "large": number()}
            for k in range(3)
        ]
        keys = ("distance", "relative_distance", "weighted", "large")
        return head | {key: number() for key in keys} | {"tensors": tensors}

    return {
        "version": "0",
        "models": [
            {
                "model": name,
                "kind": "encoder",
                "width": 8 + k,
                "layers": 2 + k,
                "scores": {
                    "imdb": {"loss": number(), "right": number()},
                    "text": {"loss": number(), "right": None},
                },
            }
            for k, name in enumerate(names)
        ],
        "data": {"name": "rows", "digest": "", "rows": 40},
        "lines": [line(head, right) for head, right in zip(heads, (True, False, True), strict=True)],
        "weights": [weights(head) for head in heads],
        "cka": [{"a": "one", "b": "two", "values": [[1.0, None], [0.5, 0.25]]}],
        "relative": {
            "anchors": 2,
            "scored_rows": 2,
            "pairs": [
                {"a": "one", "b": "two", "relative": likeness(), "absolute": None, "shuffled": likeness()},
                {
                    "a": "one",
                    "b": "three",
                    "relative": likeness(),
                    "absolute": likeness(),
                    "shuffled": likeness(),
                },
            ],
            "most_common": 0.5,
            "stitched": [
                {"trained_on": x, "scored_on": y}
                | {form: number() for form in ("relative", "absolute", "shuffled")}
                for x in names
                for y in names
            ],
        },
        "transfer": {
            "selected": "two",
            "rows": [
                {"model": name, "score": 0.1 + k}
                | {key: number() for key in ("uniformity", "hopkins", "mutual_information")}
                for k, name in enumerate(names)
            ],
        },
        "warnings": [{"what": "line", "of": "one", "why": "few rows"}],
        "left_out": [{"what": "cka", "of": "two", "why": "no states"}],
    }


def test_relate() -> None:
    document = relation()
    found = tables(relation_page(document))
    numbers = {row["model"]: str(k + 1) for k, row in enumerate(document["models"])}

    def pair(row: Row) -> str:
        return f"{numbers[row['a']]} and {numbers[row['b']]}"

    def way(row: Row) -> str:
        return f"aligned by {row['aligned']}" if row["aligned"] else "as it is"

    def take(title: str) -> tuple[str, list[str], list[list[str]]]:
        return found.pop(next(k for k, one in enumerate(found) if one[0] == title))

    scores: Columns = {
        f"{word}, {task}": lambda row, task=task, key=key: row["scores"][task][key]
        for task in ("imdb", "text")
        for word, key in (("loss", "loss"), ("right", "right"))
    }
    check(
        take("Related by running"),
        document["models"],
        {
            "no.": lambda row: numbers[row["model"]],
            "model": lambda row: row["model"],
            "kind": lambda row: row["kind"],
            "width": lambda row: row["width"],
            "layers": lambda row: row["layers"],
            **scores,
        },
    )
    for title, key in (("Few rows", "warnings"), ("Left out", "left_out")):
        check(take(title), document[key], {k: lambda row, k=k: row[k] for k in ("what", "of", "why")})
    check(
        next(found.pop(k) for k, one in enumerate(found) if "barrier" in one[1]),
        document["lines"],
        {
            "pair": pair,
            "task": lambda row: row["task"],
            "second model": way,
            "barrier": lambda row: row["barrier"],
            "at": lambda row: row["barrier_at"],
            "middle": lambda row: row["losses"][2],
            "right in the middle": lambda row: row["right"][2] if row["right"] else None,
            "right lost": lambda row: row["right_lost"],
        },
    )
    check(
        take("Weights"),
        document["weights"],
        {
            "pair": pair,
            "second model": way,
            "L2 distance": lambda row: row["distance"],
            "relative": lambda row: row["relative_distance"],
            "weighted by singular value": lambda row: row["weighted"],
            "large ones": lambda row: row["large"],
        },
    )
    for a, b in (("one", "two"), ("two", "three")):
        ways = [row for row in document["weights"] if (row["a"], row["b"]) == (a, b)]
        names = [row["tensor"] for row in ways[0]["tensors"]]
        by_way: Columns = {
            way(row): lambda name, row=row: next(t["weighted"] for t in row["tensors"] if t["tensor"] == name)
            for row in ways
        }
        check(
            take(f"{numbers[a]} and {numbers[b]}: weighted by singular value, by matrix"),
            names,
            {"matrix": lambda name: name, **by_way},
        )
    forms = {"relative": "relative", "absolute": "absolute", "shuffled": "wrong anchors"}
    check(
        take("Relative representations"),
        [(row, form) for row in document["relative"]["pairs"] for form in forms if row[form] is not None],
        {
            "pair": lambda it: pair(it[0]),
            "form": lambda it: forms[it[1]],
            "mrr": lambda it: it[0][it[1]]["mrr"],
            "by chance": lambda it: it[0][it[1]]["mrr_chance"],
            "neighbours shared": lambda it: it[0][it[1]]["jaccard"],
            "cosine": lambda it: it[0][it[1]]["cosine"],
        },
    )
    stitched = {(row["trained_on"], row["scored_on"]): row for row in document["relative"]["stitched"]}
    for form, word in (
        ("relative", "relative form"),
        ("absolute", "absolute form"),
        ("shuffled", "relative form, anchors of the second in a wrong order"),
    ):
        on: Columns = {f"on {numbers[b]}": lambda a, b=b, form=form: stitched[a, b][form] for b in numbers}
        check(
            take(f"Right answers, {word}"),
            list(numbers),
            {"head": lambda a: f"trained on {numbers[a]}", **on},
        )
    check(
        take("Transfer score"),
        sorted(document["transfer"]["rows"], key=lambda row: -row["score"]),
        {
            "no.": lambda row: numbers[row["model"]],
            "model": lambda row: row["model"],
            "transfer score": lambda row: row["score"],
            "uniformity": lambda row: row["uniformity"],
            "Hopkins": lambda row: row["hopkins"],
            "mutual information": lambda row: row["mutual_information"],
        },
    )
    assert not found


# compare


def compared() -> Row:
    def made(name: str, seed: int, skill: float) -> Run:
        columns = classification(seed, skill, 60, data=7)
        said = Samples.of("generation", columns | {"text": [f"text {k}" for k in range(60)]})
        tasks = {"imdb": classified(seed, skill), "said": said, "wiki": perplexity(seed, skill)}
        tasks |= {"sts": similarity(seed, skill), "r8": classified(seed, 2 - skill, data=2)}
        return Run(name, tasks)

    models = {"one": made("one", 0, 0.5), "two": made("two", 1, 1.5)}
    models |= {"merged": [made("m1", 2, 0.9), made("m2", 3, 1.0)], "other": made("other", 4, 1.1)}
    models |= {"base": [made("b1", 5, 0.2), made("b2", 6, 0.3)]}
    return compare(models, base="base", parents=["one", "two"], resampled=100)


def two_judged() -> Row:
    right = [1, 0, 1, 1, 0, 1, 0, 0]
    return compare({"a": run("a", t=judged(right)), "b": run("b", t=judged(right[::-1]))}, resampled=100)


def points(value: float | None, measure: str) -> float | None:
    return None if value is None else (100 * value if measure in SHARES else value)


def counted(row: Row) -> list[float]:
    return [row["count"], row["share"]]


@pytest.mark.parametrize("make", [compared, two_judged])
def test_compare(make: Callable[[], Row]) -> None:
    document = make()
    found = tables(comparison_page(document))

    def difference(
        measure: str, of: Callable[[Any], Row | None], holm: bool
    ) -> dict[str, Callable[[Any], Any]]:
        def get(key: str, as_points: bool = True) -> Callable[[Any], Any]:
            def one(it: Any) -> Any:
                row = of(it)
                if row is None or row["difference"] is None:
                    return None
                return points(row[key], measure) if as_points else row[key]

            return one

        def interval(it: Any) -> Any:
            low, high = get("low")(it), get("high")(it)
            return None if low is None else [low, high]

        columns = {"difference": get("difference"), "interval": interval, "p": get("p", False)}
        columns |= {"p, Holm": get("p_holm", False)} if holm else {}
        return columns | {"detectable": get("detectable")}

    left = []
    for title, heads, rows in found:
        one = (title, heads, rows)
        if title in ("Mean of the tasks", "all samples in one, whatever their task"):
            key = "pooled" if title.startswith("all") else "mean_of_tasks"
            sources = [(r, s) for r in document["overall"] if key in r for s in r[key]["scores"]]
            assert len(rows) == len(sources)
            for row, (overall, score) in zip(rows, sources, strict=True):
                apart = {d["model"]: d for d in overall[key]["differences"]}
                held = apart.get(score["model"])
                columns = {
                    "measure": lambda it, o=overall: o["measure"],
                    "tasks": lambda it, o=overall: len(o["tasks"]),
                    "model": lambda it: it["model"],
                    "score": lambda it: it["score"],
                    **difference(overall["measure"], lambda it, held=held: held, False),
                }
                for head, shown in zip(heads, row, strict=True):
                    assert agrees(shown, columns[head](score)), (title, head, shown)
        elif "p, Holm" in heads or ("detectable" in heads and "task" in heads):
            left.append(one)  # by measure, below
        elif "expected calibration error" in heads:
            check(
                one,
                [(t["task"], r) for t in document["tasks"] for r in t["calibration"] or []],
                {
                    "task": lambda it: it[0],
                    "model": lambda it: it[1]["model"],
                    "samples": lambda it: it[1]["samples"],
                    "expected calibration error": lambda it: it[1]["ece"],
                    "Brier": lambda it: it[1]["brier"],
                    "overconfidence, points": lambda it: 100 * it[1]["overconfidence"],
                },
            )
        elif "KL(reference ‖ model), nats" in heads:

            def divergence(key: str) -> Callable[[Any], Any]:
                return lambda it: [
                    it[1][key][k] for k in ("mean", "low", "high") if it[1][key][k] is not None
                ]

            check(
                one,
                [(t["task"], r) for t in document["tasks"] for r in t["outputs"]],
                {
                    "task": lambda it: it[0],
                    "model": lambda it: it[1]["model"],
                    "samples": lambda it: it[1]["samples"],
                    "KL(reference ‖ model), nats": divergence("reference_to_model"),
                    "KL(model ‖ reference), nats": divergence("model_to_reference"),
                },
            )
        elif "sd over runs" in heads:
            check(
                one,
                [(r, m) for r in document["seeds"] for m in r["measures"]],
                {
                    "task": lambda it: it[0]["task"],
                    "model": lambda it: it[0]["model"],
                    "measure": lambda it: it[1]["measure"],
                    "runs": lambda it: it[0]["runs"],
                    "mean": lambda it: it[1]["mean"],
                    "sd over runs": lambda it: points(it[1]["sd"], it[1]["measure"]),
                    "se of samples": lambda it: points(it[1]["sampling"], it[1]["measure"]),
                    "mean / sd": lambda it: it[1]["signal_to_noise"],
                },
            )
        elif "beyond seeds" in heads:

            def seeds(key: str, in_points: bool) -> Callable[[Any], Any]:
                return lambda it: points(it[2]["seeds"][key], it[1]) if in_points else it[2]["seeds"][key]

            def beyond(it: Any) -> str | None:
                p = it[2]["seeds"]["p"]
                return None if p is None else ("yes" if p < 0.05 else "no")

            check(
                one,
                [
                    (t["task"], m["measure"], d)
                    for t in document["tasks"]
                    for m in t["measures"]
                    for d in m["differences"]
                    if d["seeds"] is not None
                ],
                {
                    "task": lambda it: it[0],
                    "model": lambda it: it[2]["model"],
                    "measure": lambda it: it[1],
                    "difference": seeds("difference", True),
                    "sd of a run": seeds("sd", True),
                    "difference / sd": seeds("ratio", False),
                    "p": seeds("p", False),
                    "beyond seeds": beyond,
                },
            )
        elif "gained" in heads:
            drawn = [
                (t["task"], r)
                for t in document["tasks"]
                for r in t["flips"]
                if "of" not in r and r["model"] != document["reference"]
            ]

            def floor(it: Any) -> float | None:
                known = [v for v in it[1]["negative_between_seeds"].values() if v is not None]
                return fmean(known) if known else None

            flips: dict[str, Callable[[Any], Any]] = {
                "task": lambda it: it[0],
                "model": lambda it: it[1]["model"],
                "lost": lambda it: counted(it[1]["negative"]),
                "gained": lambda it: counted(it[1]["positive"]),
                "kept": lambda it: it[1]["kept"],
                "between seeds": floor,
            }
            for head, key in (
                ("inconsistent", "inconsistent"),
                ("both wrong, differ", "both_wrong_differ"),
                ("both right, differ", "both_right_differ"),
                ("agreement", "agreement"),
            ):
                flips[head] = lambda it, key=key: it[1].get(key)
            check(one, drawn, flips)
        elif "mean regression" in heads:
            check(
                one,
                [(t["task"], r) for t in document["tasks"] for r in t["flips"] if "of" in r],
                {
                    "task": lambda it: it[0],
                    "model": lambda it: it[1]["model"],
                    "of": lambda it: it[1]["of"],
                    "worse": lambda it: it[1]["worse"],
                    "better": lambda it: it[1]["better"],
                    "mean regression": lambda it: it[1]["regression"],
                    "mean gain": lambda it: it[1]["gain"],
                },
            )
        elif "before" in heads:
            kinds = {"lost": "negative", "gained": "positive", "both wrong, differ": "both_wrong_differ"}
            examples = {
                (t["task"], r["model"], word, str(e["id"])): e
                for t in document["tasks"]
                for r in t["flips"]
                if "of" not in r
                for word, kind in kinds.items()
                for e in r["examples"].get(kind, [])
            }
            for row in rows:
                cells = dict(zip(heads, row, strict=True))
                example = examples[cells["task"], cells["model"], cells["change"], cells["sample"]]
                old, new = example["outputs"]["old"], example["outputs"]["new"]
                assert agrees(
                    cells.get("answer", ""), None if example["answer"] is None else str(example["answer"])
                )
                for head, value in (("before", old["output"]), ("now", new["output"])):
                    assert agrees(cells.get(head, ""), None if value is None else str(value)), head
                for head, value in (("loss before", old["loss"]), ("loss now", new["loss"])):
                    assert agrees(cells.get(head, ""), value), head
        elif "only merged, by chance" in heads:
            check(
                one,
                document["after_merge"],
                {
                    "task": lambda row: row["task"],
                    "model": lambda row: row["model"],
                    "only merged": lambda row: counted(row["only_merged"]),
                    "only merged, by chance": lambda row: row["only_merged"]["expected"],
                    "rescued": lambda row: row["rescued"],
                    "parents alone": lambda row: list(row["alone"].values()),
                    "lost by all": lambda row: counted(row["lost_by_all"]),
                    "lost by all, by chance": lambda row: row["lost_by_all"]["expected"],
                    "lost by some": lambda row: counted(row["lost_by_some"]),
                    "lost by some, by chance": lambda row: row["lost_by_some"]["expected"],
                    "any parent": lambda row: row["any_parent"],
                },
            )
        elif "merged" in heads and "change" in heads:
            words = {"gained": "only_merged", "lost by all": "lost_by_all"}
            after = {
                (row["task"], row["model"], word, str(e["id"])): e
                for row in document["after_merge"]
                for word, key in words.items()
                for e in row[key]["examples"]
            }
            for row in rows:
                cells = dict(zip(heads, row, strict=True))
                example = after[cells["task"], cells["model"], cells["change"], cells["sample"]]
                assert agrees(cells["answer"], str(example["answer"]))
                for head in ("merged", *document["parents"], "base"):
                    assert agrees(cells[head], str(example["outputs"][head]["output"])), head
        elif heads[:2] == ["model", "against"]:
            turned = document["concordance"]["turned"]
            assert [row[:2] for row in rows] == [[one["a"], one["b"]] for one in turned[:12]]
            for row, one_turned in zip(rows, turned, strict=False):
                assert row[2].split(", ")[0].strip("'") in map(str, one_turned["better_on"])
                assert row[3].split(", ")[0].strip("'") in map(str, one_turned["worse_on"])
        else:
            raise AssertionError(f"a table that no test describes: {title}: {heads}")
    measures = list(dict.fromkeys(m["measure"] for t in document["tasks"] for m in t["measures"]))
    assert len(left) == len(measures)
    first = {t["measures"][0]["measure"] for t in document["tasks"]} | {"loss"}
    for measure, one in zip(
        [m for m in measures if m in first] + [m for m in measures if m not in first], left, strict=True
    ):
        sources = [
            (t["task"], s, {d["model"]: d for d in m["differences"]}.get(s["model"]))
            for t in document["tasks"]
            for m in t["measures"]
            if m["measure"] == measure
            for s in m["scores"]
        ]
        check(
            one,
            sources,
            {
                "task": lambda it: it[0],
                "model": lambda it: it[1]["model"],
                "score": lambda it: it[1]["score"],
                **difference(measure, lambda it: it[2], True),
            },
        )


def test_a_row_that_does_not_fit_its_headings_is_no_table() -> None:
    for row in (["1"], ["1", "2", "3"]):
        with pytest.raises(ValueError, match="under the 2 headings"):
            table(["a", "b"], [["1", "2"], row])
