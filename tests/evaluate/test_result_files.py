"""Results as files: whole or not at all, read back as they were, taken over after an interruption."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from evaluate.scored_models import make, sentences, write_rows, write_suite

from merganser.errors import OutputError, RequestError
from merganser.evaluate import Results, TaskResult, evaluate, evaluate_into, headline, read_results
from merganser.evaluate.output import Workspace

TASKS = ("first", "second", "third")


def result(count=3, kind="classification"):
    columns = {
        "id": [str(k) for k in range(count)],
        "input_digest": ["d"] * count,
        "answer": ["x"] * count,
        "prediction": ["x"] * count,
        "right": [True] * count,
        "loss": [0.5] * count,
    }
    return TaskResult.of(kind, columns, data="x.jsonl", data_digest="e")


def results(**tasks):
    return Results({"label": "m", "identity": "i"}, {"name": "s", "digest": "d"}, tasks or {"t": result()})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_written_and_read_back(tmp_path):
    import pyarrow.parquet as parquet

    made = results(**{"t": result(), "T": result(2), "odd, name/x": result(1)})
    made.save(tmp_path / "out")
    found = read_results(tmp_path / "out")
    assert found.as_json() == made.as_json()
    assert found.metrics["t"] == {
        "accuracy": 1.0, "accuracy_stderr": 0.0, "macro_f1": 1.0, "loss": 0.5, "loss_stderr": 0.0,
    }  # fmt: skip
    for name, task in made.tasks.items():
        assert found.tasks[name].table.equals(task.table), name
    assert names(tmp_path / "out") == ["2-T.parquet", "odd__name_x.parquet", "results.json", "t.parquet"]
    raw = parquet.read_table(tmp_path / "out" / "t.parquet")
    assert {name: str(dtype) for name, dtype in zip(raw.column_names, raw.schema.types, strict=True)} == {
        "id": "string",
        "input_digest": "string",
        "answer": "string",
        "prediction": "string",
        "right": "bool",
        "loss": "double",
        "choices": "list<element: string>",
        "log_probabilities": "list<element: double>",
    }
    assert json.loads(raw.schema.metadata[b"merganser"])["model"] == {"label": "m", "identity": "i"}
    assert read_results(tmp_path / "out" / "results.json").as_json() == made.as_json()
    with pytest.raises(RequestError, match="did you mean 'prediction'"):
        found.tasks["t"].column("predictoin")


def test_the_same_results_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        results().save(tmp_path / name)
    for file in names(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_nothing_is_replaced_unasked(tmp_path):
    results().save(tmp_path / "out")
    with pytest.raises(RequestError, match="already exists"):
        results().save(tmp_path / "out")
    results(other=result(5)).save(tmp_path / "out", overwrite=True)
    assert names(tmp_path / "out") == ["other.parquet", "results.json"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for place, words in (("mine", "does not look like results"), ("mine/thesis.txt", "not a directory")):
        with pytest.raises(RequestError, match=words):
            results().save(tmp_path / place, overwrite=True)
    with pytest.raises(RequestError, match="a file is in the place of its folder"):
        results().save(tmp_path / "mine" / "thesis.txt" / "deep" / "out")
    assert names(tmp_path) == ["mine", "out"]
    results().save(tmp_path / "results" / "math")  # its folder is made, as merge and observe do
    assert names(tmp_path / "results") == ["math"]


def test_two_processes_do_not_write_one_place(tmp_path):
    with Workspace(tmp_path / "out", overwrite=False), pytest.raises(OutputError, match="another process"):
        results().save(tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda out: (out / "t.parquet").unlink(), "cannot be read"),
        (lambda out: (out / "t.parquet").write_bytes(b"PAR1"), "damaged"),
        (
            lambda out: shutil.copy(out / "u.parquet", out / "t.parquet"),
            "has 2 rows, and results.json says 3",
        ),
        (lambda out: rewrite(out, file="../t.parquet"), "no file of these results"),
        (lambda out: rewrite(out, rows=None), "results.json says None"),
        (lambda out: rewrite(out, kind=None, drop="metrics"), "is no results file"),
        (lambda out: (out / "results.json").write_text("{"), "holds no results"),
        (lambda out: (out / "results.json").unlink(), "holds no results"),
        (lambda out: shutil.rmtree(out), "there are no results"),
    ],
)
def test_damaged_results(tmp_path, damage, words):
    results(t=result(), u=result(2)).save(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(RequestError, match=words):
        read_results(tmp_path / "out")


def rewrite(out, drop=None, **changes):
    document = json.loads((out / "results.json").read_text())
    document["tasks"]["t"] |= changes
    document["tasks"]["t"].pop(drop, None)
    (out / "results.json").write_text(json.dumps(document))


def test_a_misspelt_place_is_told(tmp_path):
    results().save(tmp_path / "math")
    with pytest.raises(RequestError, match="mtah'; did you mean 'math'"):
        read_results(tmp_path / "mtah")


@pytest.mark.parametrize("wrong", [{"model": "m"}, {"suite": 3}, {"reported": ["x"]}])
def test_results_of_another_form(tmp_path, wrong):
    results().save(tmp_path / "out")
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    (tmp_path / "out" / "results.json").write_text(json.dumps(document | wrong))
    with pytest.raises(RequestError, match="is no results file"):
        read_results(tmp_path / "out")


def test_headlines():
    assert headline("classification", {"loss": 1.0, "accuracy": 0.5}) == "accuracy"
    assert headline("generation", {"bleu": 1.0, "bleu_stderr": 0.5}) == "bleu"
    assert headline("perplexity", {}) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make("classifier", folder / "model", num_labels=2)
    make("classifier", folder / "other", seed=5, num_labels=2)
    tasks = []
    for number, name in enumerate(TASKS):
        rows = [{"text": text, "label": k % 2} for k, text in enumerate(sentences(6, seed=number))]
        write_rows(folder / f"{name}.jsonl", rows)
        tasks.append({"name": name, "kind": "classification", "data": f"{name}.jsonl", "batch": 3})
    write_suite(folder / "suite.yaml", *tasks)
    return folder


class Stopped(RuntimeError):
    pass


def stop_at(samples, error):
    def progress(done, total):
        if done >= samples:
            raise error

    return progress


@pytest.mark.models
def test_an_interrupted_run_goes_on_after_its_last_task(place, tmp_path, monkeypatch):
    whole = evaluate(place / "model", place / "suite.yaml")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as error:
        evaluate_into(place / "model", place / "suite.yaml", out, progress=stop_at(15, KeyboardInterrupt()))
    assert "2 finished tasks are kept" in error.value.__notes__[0]
    assert names(tmp_path) == [".out.merganser-partial"]
    ran = []
    from merganser.evaluate import run

    made = run._result
    monkeypatch.setattr(run, "_result", lambda task, *rest: ran.append(task.name) or made(task, *rest))
    again = evaluate_into(place / "model", place / "suite.yaml", out)
    assert ran == ["third"]
    assert again.as_json() == whole.as_json() == read_results(out).as_json()
    for name in TASKS:
        assert again.tasks[name].table.equals(whole.tasks[name].table)
    assert names(tmp_path) == ["out"]


@pytest.mark.models
@pytest.mark.parametrize("changed", ["model", "data", "no resume", "damaged"])
def test_what_changed_starts_over(place, tmp_path, monkeypatch, changed):
    shutil.copytree(place, tmp_path / "in")
    suite, out, model = tmp_path / "in" / "suite.yaml", tmp_path / "out", tmp_path / "in" / "model"
    with pytest.raises(KeyboardInterrupt):
        evaluate_into(model, suite, out, progress=stop_at(15, KeyboardInterrupt()))
    if changed == "model":
        model = tmp_path / "in" / "other"
    elif changed == "data":
        with (tmp_path / "in" / "third.jsonl").open("a") as file:
            file.write('{"text": "one more", "label": 0}\n')
    elif changed == "damaged":
        (tmp_path / ".out.merganser-partial" / "results" / "second.parquet").write_bytes(b"PAR1")
    ran = []
    from merganser.evaluate import run

    made = run._result
    monkeypatch.setattr(run, "_result", lambda task, *rest: ran.append(task.name) or made(task, *rest))
    found = evaluate_into(model, suite, out, resume=changed != "no resume")
    assert ran == (["second", "third"] if changed == "damaged" else list(TASKS))
    assert found.as_json() == evaluate(model, suite).as_json()


def test_finished_pairs_without_scores_are_taken_over(tmp_path):
    from merganser.evaluate import Suite
    from merganser.evaluate.results import parquet
    from merganser.evaluate.run import _taken_over

    (tmp_path / "pairs.jsonl").write_text('{"text_a": "x", "text_b": "y"}\n' * 2)
    task = {"name": "pairs", "kind": "similarity", "data": "pairs.jsonl", "score": None}
    suite = Suite.open({"tasks": [task]}, folder=tmp_path)
    columns = {"id": ["0", "1"], "input_digest": ["d", "e"], "similarity": [0.5, 0.25], "target": [None] * 2}
    made = TaskResult.of("similarity", columns)
    with Workspace(tmp_path / "out", overwrite=False) as folder:
        folder.add("pairs.parquet", parquet(made, "pairs", {}))
        folder.finish("pairs", {})
        found = dict(_taken_over(folder, suite.tasks))
    assert found["pairs"].metrics == made.metrics
    assert found["pairs"].table.equals(made.table)


@pytest.mark.models
def test_an_error_leaves_nothing(place, tmp_path):
    with pytest.raises(Stopped):
        evaluate_into(
            place / "model", place / "suite.yaml", tmp_path / "out", progress=stop_at(15, Stopped())
        )
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt):
        evaluate_into(
            place / "model", place / "suite.yaml", tmp_path / "out", progress=stop_at(1, KeyboardInterrupt())
        )
    assert names(tmp_path) == [], "no task was finished"


@pytest.mark.models
def test_identities_tell_models_apart(place):
    import merganser as mg

    a, b = (evaluate(place / name, place / "suite.yaml").model["identity"] for name in ("model", "other"))
    assert a != b
    mean = 0.5 * mg.open(place / "model") + 0.5 * mg.open(place / "other")
    live = [evaluate(mean, place / "suite.yaml").model["identity"] for _ in range(2)]
    assert live[0] == live[1]
    assert live[0].startswith("live-")
    unsaid = evaluate(mean, place / "suite.yaml", identify=False)
    assert unsaid.model["identity"] is None
    assert unsaid.metrics == evaluate(mean, place / "suite.yaml").metrics
    assert evaluate(place / "model", place / "suite.yaml", identify=False).model["identity"] == a


@pytest.mark.models
def test_a_live_identity_is_of_names_shapes_and_numbers():
    import torch
    import xxhash

    from merganser.evaluate.run import live_identity

    class Held:
        module = torch.nn.BatchNorm1d(3)  # has a number without dimensions

    Held.module.register_buffer("nothing", torch.zeros(0))
    state = xxhash.xxh3_128(b"live identity 1")
    for name, value in sorted(Held.module.state_dict().items()):
        state.update(f"{name}{list(value.shape)}".encode() + value.numpy().tobytes())
    assert live_identity(Held) == f"live-{state.hexdigest()}"


def test_what_stands_beside_a_score():
    from merganser.evaluate.beside import beside

    columns = {"choices": [["a", "b"], ["a", "b", "c", "d"], ["c", "a"]], "answer": ["a", "a", "a"]}
    assert beside("classification", columns) == {"chance": (0.5 + 0.25 + 0.5) / 3, "commonest_answer": 1.0}
    assert beside("multiple_choice", columns)["commonest_answer"] == 2 / 3, "by place"
    found = beside("generation", {"text": ["a a b", "a c", None]})
    assert found["distinct_words"] == 3 / 5
    assert found["word_entropy"] == pytest.approx(-(0.6 * math.log2(0.6) + 0.4 * math.log2(0.2)))
    assert beside("generation", {"text": [""]}) == beside("perplexity", {"nats": [1.0]}) == {}
