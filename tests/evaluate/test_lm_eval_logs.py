"""Logs of lm-eval's --log_samples, in the layouts that its versions write."""

from __future__ import annotations

import json
import math

import pytest

from merganser.errors import RequestError
from merganser.evaluate import read_lm_eval, read_results

DATE = "2026-03-01T10-11-12.345678"
CONFIGS = {
    "arc": {"task": "arc", "output_type": "multiple_choice"},
    "gsm": {"task": "gsm", "output_type": "generate_until"},
    "wiki": {"task": "wiki", "output_type": "loglikelihood_rolling"},
    "lambada": {"task": "lambada", "output_type": "loglikelihood"},
}


def choice(doc_id, target, values, **metrics):
    """A sample as the evaluator keeps it, before any version writes it."""
    arguments = [("Q" + str(doc_id), f" choice {k}") for k in range(len(values))]
    responses = [(value, False) for value in values]
    return {
        "doc_id": doc_id,
        "doc": {"q": doc_id},
        "target": target,
        "arguments": arguments,
        "resps": [[one] for one in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": "d",
        "prompt_hash": "p",
        "target_hash": "t",
        **metrics,
    }


def plain(doc_id, target, response, filtered=None, filter_="none", arguments=None, **metrics):
    return {
        **choice(doc_id, target, [], **metrics),
        "arguments": [arguments or ("Q" + str(doc_id), {"until": ["\n"]})],
        "resps": [[response]],
        "filtered_resps": [response if filtered is None else filtered],
        "filter": filter_,
    }


SAMPLES = {
    "arc": [
        choice(0, 1, [-3.0, -2.5, -9.0], acc=1.0, acc_norm=0.0),
        choice(1, 0, [-3.0, -2.0, -1.0], acc=0.0, acc_norm=1.0),
    ],
    "gsm": [
        plain(0, "#### 7", "so 7.", "7", "strict-match", exact_match=1.0),
        plain(1, "#### 8", "so 9.", "9", "strict-match", exact_match=0.0),
        plain(0, "#### 7", "so 7.", "[invalid]", "flexible-extract", exact_match=0.0),
        plain(1, "#### 8", "so 9.", "9", "flexible-extract", exact_match=0.0),
    ],
    "wiki": [
        plain(0, "text", -40.0, arguments=("text",), word_perplexity=[-40.0, 9], byte_perplexity=[-40.0, 50]),
        plain(1, "more", -20.0, arguments=("more",), word_perplexity=[-20.0, 3], byte_perplexity=[-20.0, 10]),
    ],
    "lambada": [plain(0, " door", (-1.25, True), arguments=("the", " door"), perplexity=-1.25, acc=1)],
}  # fmt: skip
REPORT = {
    "results": {
        "arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.5},
        "gsm": {
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": "N/A",
            "exact_match,flexible-extract": 0.0,
        },
    },
    "configs": CONFIGS,
    "config": {"model": "hf", "model_args": "pretrained=org/m", "model_sha": "abc"},
    "model_name": "org/m",
}  # fmt: skip


def reporting(task, **scores):
    """A report with other scores of one task."""
    return {**REPORT, "results": {task: {f"{name},none": value for name, value in scores.items()}}}


def as_text(value):
    """What lm-eval's sanitize_list does."""
    return [as_text(one) for one in value] if isinstance(value, list | tuple) else str(value)


def write_new(folder, samples=SAMPLES, date=DATE, report=REPORT):
    """As 0.4.4 and later: a line a sample, arguments by name, responses as text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"results_{date}.json").write_text(json.dumps(report))
    for task, rows in samples.items():
        lines = []
        for row in rows:
            arguments = {
                f"gen_args_{i}": {f"arg_{j}": one for j, one in enumerate(args)}
                for i, args in enumerate(row["arguments"])
            }
            changed = {
                "arguments": arguments,
                "resps": as_text(row["resps"]),
                "filtered_resps": as_text(row["filtered_resps"]),
                "target": str(row["target"]),
            }
            lines.append(json.dumps({**row, **changed}))
        (folder / f"samples_{task}_{date}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_middle(folder):
    """As 0.4.3: a list a file."""
    folder.mkdir()
    (folder / f"results_{DATE}.json").write_text(json.dumps(REPORT))
    for task, rows in SAMPLES.items():
        (folder / f"samples_{task}_{DATE}.json").write_text(json.dumps(rows, indent=2))
    return folder


def write_old(folder):
    """As 0.4.2 and before: an indented list in a .jsonl named by the model's arguments; no filters, no hashes."""
    folder.mkdir()
    (folder / "results.json").write_text(
        json.dumps({key: REPORT[key] for key in ("results", "configs", "config")})
    )
    for task, rows in SAMPLES.items():
        left_out = ("filter", "metrics", "doc_hash", "prompt_hash", "target_hash")
        # Documents one after the other, each with its filters in their order.
        rows = sorted(rows, key=lambda row: row["doc_id"])
        kept = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
        (folder / f"pretrained__org__m_{task}.jsonl").write_text(json.dumps(kept, indent=2))
    return folder


WRITERS = {"new": write_new, "middle": write_middle, "old": write_old}


@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_says_the_same(tmp_path, layout):
    found = read_results(WRITERS[layout](tmp_path / "log"))
    assert found.model["identity"] == "abc"
    assert found.model["label"] == ("pretrained=org/m" if layout == "old" else "org/m")
    assert set(found.tasks) == {"arc", "gsm,strict-match", "gsm,flexible-extract", "wiki", "lambada"}
    arc = found.tasks["arc"]
    assert arc.kind == "multiple_choice"
    assert arc.column("right") == [True, False]
    assert arc.column("right_norm") == [False, True]
    assert arc.column("choices")[0] == [" choice 0", " choice 1", " choice 2"]
    assert arc.column("log_probabilities") == [[-3.0, -2.5, -9.0], [-3.0, -2.0, -1.0]]
    assert arc.column("answer") == [" choice 1", " choice 0"]
    assert arc.column("prediction") == [" choice 1", " choice 2"]
    assert arc.column("loss") == [2.5, 3.0]
    assert arc.metrics["accuracy"] == arc.metrics["accuracy_norm"] == 0.5
    assert arc.metrics["accuracy_stderr"] == pytest.approx(0.5)
    strict, loose = (found.tasks[f"gsm,{name}"] for name in ("strict-match", "flexible-extract"))
    assert strict.kind == loose.kind == "generation"
    assert strict.column("right") == [True, False]
    assert strict.column("prediction") == ["7", "9"]
    assert strict.column("text") == ["so 7.", "so 9."]
    assert loose.column("right") == [False, False]
    wiki = found.tasks["wiki"]
    assert wiki.column("nats") == [40.0, 20.0]
    assert wiki.column("bytes") == [50, 10]
    assert wiki.metrics["bits_per_byte"] == pytest.approx(60 / math.log(2) / 60)
    assert "perplexity" not in wiki.metrics, "logs do not count tokens"
    lambada = found.tasks["lambada"]
    assert lambada.column("right") == [True]
    assert lambada.column("loss") == [1.25]
    assert lambada.metrics["perplexity"] == pytest.approx(math.exp(1.25))
    assert "metric.perplexity" not in lambada.table.column_names, "its score is no mean"
    assert found.reported["arc"]["acc,none"] == 0.5
    assert "exact_match_stderr,strict-match" not in found.reported["gsm"]


def test_choices_without_context_for_mutual_information_are_no_choices(tmp_path):
    sample = choice(0, 1, [-3.0, -2.5], acc=1.0, acc_mutual_info=0.0)
    bare = choice(0, 1, [-2.0, -1.0])
    sample["arguments"] += [("", text) for _, text in bare["arguments"]]
    for key in ("resps", "filtered_resps"):
        sample[key] += bare[key]
    report = reporting("arc", acc=1.0, acc_mutual_info=0.0)
    found = read_results(write_new(tmp_path / "log", {"arc": [sample]}, report=report)).tasks["arc"]
    assert found.column("choices") == [[" choice 0", " choice 1"]]
    assert found.column("log_probabilities") == [[-3.0, -2.5]]
    assert found.column("prediction") == [" choice 1"]
    assert found.column("metric.acc_mutual_info") == [0.0]


def test_layouts_pair_with_each_other_and_other_prompts_do_not(tmp_path):
    found = [read_results(WRITERS[name](tmp_path / name)) for name in WRITERS]
    for task in found[0].tasks:
        pairs = []
        for one in (results.tasks[task] for results in found):
            pairs.append(list(zip(one.column("id"), one.column("input_digest"), strict=True)))
        assert pairs[0] == pairs[1] == pairs[2], task
    other = {
        "arc": [
            {**row, "arguments": [("shot " + q, a) for q, a in row["arguments"]]} for row in SAMPLES["arc"]
        ]
    }
    moved = read_results(write_new(tmp_path / "other", other))
    assert not set(moved.tasks["arc"].column("input_digest")) & set(
        found[0].tasks["arc"].column("input_digest")
    )


def test_the_newest_run_is_read_and_a_folder_above_is_fine(tmp_path):
    write_new(tmp_path / "logs" / "org__m", {"arc": SAMPLES["arc"]}, "2026-02-01T10-11-12.345678")
    write_new(tmp_path / "logs" / "org__m", {"arc": SAMPLES["arc"][:1]}, report=reporting("arc", acc=1.0))
    assert read_results(tmp_path / "logs").tasks["arc"].rows == 1
    old = tmp_path / "logs" / "org__m" / "results_2026-02-01T10-11-12.345678.json"
    assert read_results(old).tasks["arc"].rows == 2
    write_new(tmp_path / "logs" / "org__n", {"arc": SAMPLES["arc"]})
    with pytest.raises(RequestError, match="several models"):
        read_results(tmp_path / "logs")


def test_greedy_agreement_is_not_accuracy_of_choices(tmp_path):
    rows = [choice(k, 0, [-1.0, -2.0], acc=1.0, exact_match=k % 2, acc_bytes=0.0) for k in range(4)]
    report = reporting("arc", acc=1.0, exact_match=0.5, acc_bytes=0.0)
    found = read_results(write_new(tmp_path / "log", {"arc": rows}, report=report)).tasks["arc"]
    assert (found.metrics["accuracy"], found.metrics["exact_match"], found.metrics["acc_bytes"]) == (
        1,
        0.5,
        0,
    )


def test_a_mass_is_a_number_and_no_right_or_wrong(tmp_path):
    masses = [0.25, 1.0, 0.0, 0.5]
    rows = [choice(k, 0, [-1.0, -2.0], acc=mass) for k, mass in enumerate(masses)]
    report = reporting("arc", acc=0.4375)
    found = read_results(write_new(tmp_path / "log", {"arc": rows}, report=report)).tasks["arc"]
    assert found.column("right") == [None] * 4
    assert found.column("metric.acc") == masses
    assert found.metrics["acc"] == 0.4375 and "accuracy" not in found.metrics


def test_scores_that_are_no_means_are_reported_only(tmp_path):
    """F1 over all samples, corpus BLEU, an aggregation of the task's own."""
    metric_list = [
        {"metric": "em", "aggregation": "mean"},
        {"metric": "f1", "aggregation": "def own(items): ..."},
    ]
    rows = [plain(k, "a", "b", em=k % 2, f1=0.5, strict=k == 0, each=[True, False]) for k in range(2)]
    report = reporting("gsm", em=0.5, f1=0.9, strict=0.5, each=0.25)
    report["configs"] = {"gsm": {**CONFIGS["gsm"], "metric_list": metric_list}}
    found = read_results(write_new(tmp_path / "log", {"gsm": rows}, report=report))
    gsm = found.tasks["gsm"]
    assert gsm.column("metric.em") == [0.0, 1.0]
    assert gsm.column("metric.strict") == [1.0, 0.0], "true and false of IFEval"
    assert not {"metric.f1", "metric.each"} & set(gsm.table.column_names)
    assert found.reported["gsm"]["f1,none"] == 0.9


def test_targets_that_are_numbers_are_places_or_choices_by_what_is_called_right(tmp_path):
    def numbered(target, best, acc):
        sample = choice(target, target, [-5.0 + 4.0 * (k == best) for k in range(3)], acc=acc)
        return sample | {"doc_id": f"{target}{best}", "arguments": [("Q", f" {k + 1}") for k in range(3)]}

    for rows, answers in (
        ([numbered(1, 1, 1.0), numbered(2, 1, 0.0)], [" 2", " 3"]),  # places
        ([numbered(1, 1, 0.0), numbered(2, 1, 1.0)], [" 1", " 2"]),  # choices
    ):
        folder = tmp_path / answers[0].strip()
        report = reporting("arc", acc=0.5)
        found = read_results(write_new(folder, {"arc": rows}, report=report)).tasks["arc"]
        assert found.column("answer") == answers


@pytest.mark.parametrize(
    ("task", "rows", "scores"),
    [
        ("arc", SAMPLES["arc"], {"acc": 0.75}),
        ("arc", SAMPLES["arc"], {"acc": 0.5, "acc_norm": 0.0}),
        (
            "gsm",
            [plain(0, "a", "a", exact_match=1.0), plain(1, "a", "b", exact_match=0.0)],
            {"exact_match": 1.0},
        ),
        ("lambada", SAMPLES["lambada"], {"perplexity": 3.0}),
        ("wiki", SAMPLES["wiki"], {"bits_per_byte": 9.0}),
    ],
)
def test_a_score_that_is_not_the_reported_one_is_an_error_that_names_both(tmp_path, task, rows, scores):
    if task == "wiki":
        rows = [{**row, "bits_per_byte": row["byte_perplexity"]} for row in rows]
    with pytest.raises(RequestError, match=r"in the report and .* over the samples") as error:
        read_results(write_new(tmp_path / "log", {task: rows}, report=reporting(task, **scores)))
    name, told = list(scores.items())[-1]
    assert f"{name} is {told:g}" in str(error.value)


def test_a_report_of_a_name_of_its_own(tmp_path):
    """`--output_path run7.json` writes run7_DATE.json and the samples beside it."""
    folder = write_new(tmp_path / "log")
    named = (folder / f"results_{DATE}.json").rename(folder / f"run7_{DATE}.json")
    for place in (named, folder):
        assert read_results(place).tasks["arc"].metrics["accuracy"] == 0.5


def test_a_metric_of_one_number_a_sample_is_compared(tmp_path, capsys):
    from merganser.cli import run

    for name, step in (("a", 2), ("b", 4)):
        rows = [plain(k, "y", "x", **{"pass@1": float(k % step == 0)}) for k in range(40)]
        report = {**reporting("code"), "configs": {"code": {"task": "code", "output_type": "generate_until"}}}
        write_new(tmp_path / name, {"code": rows}, report=report)
    assert run(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    told = capsys.readouterr().out
    assert "pass@1" in told and "25.0%" in told


def test_saved_as_results(tmp_path):
    found = read_lm_eval(write_new(tmp_path / "log"))
    found.save(tmp_path / "out")
    again = read_results(tmp_path / "out")
    assert again.as_json() == found.as_json()
    for name, task in found.tasks.items():
        assert again.tasks[name].table.equals(task.table)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", r"line 1 is not JSON"),
        (
            '{"doc_id": 0, "filtered_resps": [[["x"]]], "target": "0", "arguments": []}\n[1]',
            "line 2 is no sample",
        ),
        ('{"a": 1}', "line 1 is no sample"),
        ("", "has no samples"),
        ("[1", "is not JSON"),
        ("[1]", "sample 1 is no sample"),
        ('{"doc_id": 0, "filtered_resps": [["x", "y"]], "target": "0", "arguments": []}', "not of the form"),
        (
            2 * '{"doc_id": 0, "filtered_resps": [["-1", "True"]], "filter": "none"}\n',
            "doc_id 0 is there twice",
        ),
        (b"\xff", "cannot be read"),
    ],
)
def test_damaged_logs(tmp_path, content, words):
    folder = write_new(tmp_path / "log", {})
    file = folder / f"samples_arc_{DATE}.jsonl"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RequestError, match=words) as error:
        read_results(folder)
    assert file.name in str(error.value)


def test_logs_without_samples(tmp_path):
    with pytest.raises(RequestError, match="--log_samples"):
        read_results(write_new(tmp_path / "log", {}))
    with pytest.raises(RequestError, match="holds no results_"):
        read_lm_eval(tmp_path / "log" / "no")
