"""What cannot work is found before anything runs, with the file, the row and the nearest spelling."""

from __future__ import annotations

import json

import numpy as np
import pytest
from evaluate.scored_models import make, sentences, write_rows, write_suite

from merganser.errors import NonFiniteError, RequestError
from merganser.evaluate import Suite, evaluate, evaluate_into
from merganser.running import Head, open_model

BASE = {"name": "t", "kind": "classification", "data": "data.jsonl"}
GOOD = [{"text": "the dog", "label": 0}, {"text": "a fox", "label": 1}]


def told(tmp_path, task, rows=None):
    """The error of a suite of one task, found without a model."""
    if rows is not None:
        write_rows(tmp_path / "data.jsonl", rows)
    with pytest.raises(RequestError) as error:
        Suite.open(write_suite(tmp_path / "suite.yaml", task)).check()
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mapping with name and tasks"),
        ("- a", "mapping with name and tasks"),
        ("name: x", "tasks: expected a list"),
        ("tasks: []", "tasks: expected a list"),
        ("task: []", "did you mean 'tasks'"),
        ("tasks: [3]", "tasks[0]: expected a mapping"),
        ("tasks: [{name: a, data: b}]", "needs 'kind'"),
        ("tasks: [{kind: classificaton}]", "did you mean 'classification'"),
        ("tasks: [{kind: [x]}]", "unknown kind"),
        ("tasks: [{kind: classification, name: a}]", "needs 'data'"),
        ("tasks: [{kind: classification, name: ../a, data: b}]", "name of a file"),
        ("tasks: [{kind: classification, name: a, data: b, lable: c}]", "did you mean 'label'"),
        (
            "tasks: [{kind: classification, name: a, data: b, batch: 0}]",
            "tasks[0].batch: expected a whole number",
        ),
        ("tasks: [{kind: classification, name: a, data: b, batch: true}]", "expected a whole number"),
        ("tasks: [{kind: classification, name: a, data: b, labels: [no, yes]}]", "quote yes, no"),
        ("tasks: [{kind: classification, name: a, data: b, labels: [x, x]}]", "texts that differ"),
        ("tasks: [{kind: generation, name: a, data: b, take: some}]", "all, first_line, last_number"),
        ("tasks: [{kind: generation, name: a, data: b, ignore: [accents]}]", "a list of case"),
        ("tasks: [{kind: similarity, name: a, data: b, pooling: max}]", "one of mean, cls"),
        (
            "tasks: [{kind: perplexity, name: a, data: b}, {kind: perplexity, name: A, data: b}]",
            "another task",
        ),
        ("name: !!python/object/apply:os.system [x]\ntasks: []", "no meaning in a suite"),
        ("a: 1\na: 2", "given twice"),
        ("tasks: [{kind: x", "not acceptable YAML"),
    ],
)
def test_a_suite_is_read_strictly(tmp_path, text, words):
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(RequestError) as error:
        Suite.open(tmp_path / "suite.yaml")
    assert words in str(error.value)
    assert "suite.yaml" in str(error.value)


def test_files_that_are_not_there(tmp_path):
    write_rows(tmp_path / "dataa.jsonl", GOOD)
    assert "did you mean" in told(tmp_path, BASE)
    assert "is no file" in told(tmp_path, {**BASE, "data": "."})
    assert "no path of this machine" in told(tmp_path, {**BASE, "data": "https://example.org/x.jsonl"})
    write_rows(tmp_path / "data.jsonl", GOOD)
    assert "head: there is no" in told(tmp_path, {**BASE, "head": "heads/x.safetensors"})
    with pytest.raises(RequestError, match=r"did you mean .*suite\.yaml"):
        Suite.open(tmp_path / "suit.yaml")
    with pytest.raises(RequestError, match="is a directory"):
        Suite.open(tmp_path)


@pytest.mark.parametrize(
    ("task", "rows", "words"),
    [
        ({}, [], "has no rows"),
        ({"text": "txt"}, GOOD, "no column 'txt'; did you mean 'text'"),
        ({}, [*GOOD, {"text": "x"}], "1 of 3 rows have no 'label', the first is row 3"),
        ({}, [*GOOD, {"text": "x", "label": None}], "the first is row 3"),
        ({}, [*GOOD, {"text": 3, "label": 1}], "row 3: 'text' is no text: 3"),
        ({}, [*GOOD, {"text": "", "label": 1}], "row 3: 'text' is empty"),
        ({}, [*GOOD, {"text": "x", "label": 0.5}], "row 3: 'label' is no label"),
        ({"id": "text"}, [*GOOD, GOOD[0]], "rows 1 and 3 have the same 'text': 'the dog'"),
        ({"id": "text"}, [{"text": ["x"], "label": 0}], "is no text and no whole number"),
        (
            {"labels": ["good", "bad"]},
            [{"text": "x", "label": "god"}],
            "does not know the label 'god'; did you mean 'good'",
        ),
        (
            {"labels": ["good", "bad"]},
            [*GOOD, {"text": "x", "label": 2}],
            "row 3: the head of task 't' does not know",
        ),
        ({"text": "text", "image": "text"}, GOOD, "text and image; one of them"),
        ({"features": "text"}, GOOD, "row 1: 'text' is no list of finite numbers"),
        ({"features": ["label", "text"]}, GOOD, "row 1: 'text' is no finite number"),
        ({"image": "text"}, GOOD, "row 1: 'text' is no file in"),
        ({"image": "text"}, [{"text": "../data.jsonl", "label": 0}], "leads out of the data's folder"),
        ({"image": "text"}, [{"text": "/etc/passwd", "label": 0}], "leads out of the data's folder"),
        ({"image": "text"}, [{"text": [[1, 2], [3]], "label": 0}], "no list of pixels"),
        ({"image": "text", "max_length": 3}, GOOD, "max_length is for texts"),
        ({"image": "text", "head": "data.jsonl"}, GOOD, "a head is for texts"),
    ],
)
def test_rows_of_classification(tmp_path, task, rows, words):
    assert words in told(tmp_path, {**BASE, **task}, rows)


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ({"kind": "multiple_choice"}, {"choices": "a"}, "no list of two texts"),
        ({"kind": "multiple_choice"}, {"choices": ["a"]}, "no list of two texts"),
        ({"kind": "multiple_choice"}, {"choices": ["a", ""]}, "no list of two texts"),
        ({"kind": "multiple_choice"}, {"choices": ["a", "a"]}, "has a choice twice"),
        ({"kind": "multiple_choice"}, {"answer": 2}, "row 2: the answer 2 is none of the choices"),
        ({"kind": "multiple_choice"}, {"answer": -1}, "the answer -1"),
        ({"kind": "multiple_choice"}, {"answer": True}, "the answer True"),
        ({"kind": "multiple_choice"}, {"answer": "reed"}, "did you mean 'red'"),
        ({"kind": "multiple_choice"}, {"context": 1}, "is no text"),
        ({"kind": "generation", "answer": "reference"}, {"reference": []}, "no list of texts"),
        ({"kind": "generation", "answer": "reference"}, {"reference": {"a": 1}}, "no text and no list"),
        ({"kind": "perplexity", "window": 4, "stride": 5}, {}, "tokens would be left out"),
        ({"kind": "similarity"}, {"score": "high"}, "is no finite number"),
        ({"kind": "similarity"}, {"score": float("nan")}, "is no finite number"),
    ],
)
def test_rows_of_other_kinds(tmp_path, task, row, words):
    shared = {"context": "c", "choices": ["red", "blue"], "answer": 0, "prompt": "p", "reference": "r"}
    shared |= {"text": "t", "text_a": "a", "text_b": "b", "score": 1.5}
    assert words in told(tmp_path, {**BASE, **task}, [shared, {**shared, **row}])


@pytest.mark.parametrize(
    ("settings", "row", "shown"),
    [
        ({"kind": "classification"}, {"text": "the dog", "label": 0}, "the dog"),
        (
            {"kind": "classification", "image": "i"},
            {"i": [[0, 1, 2], [3, 4, 5]], "label": 0},
            "pixels [1, 2, 3]",
        ),
        ({"kind": "classification", "features": ["a", "b"]}, {"a": 1, "b": 2, "label": 0}, "[1.0, 2.0]"),
        (
            {"kind": "multiple_choice"},
            {"context": "2 + 2 =", "choices": ["4", "5"], "answer": 0},
            "2 + 2 = [4 | 5]",
        ),
        ({"kind": "generation", "prompt": "q"}, {"q": "2 + 2 =", "answer": "4"}, "2 + 2 ="),
        ({"kind": "perplexity"}, {"text": "the dog"}, "the dog"),
        ({"kind": "similarity"}, {"text_a": "a dog", "text_b": "a fox", "score": 2}, "a dog | a fox"),
    ],
)
def test_what_a_sample_shows(tmp_path, settings, row, shown):
    write_rows(tmp_path / "data.jsonl", [row])
    task = {"name": "t", "data": "data.jsonl", **settings}
    (made,) = Suite.open(write_suite(tmp_path / "suite.yaml", task)).tasks
    assert made.shown(0) == shown


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "x.png").symlink_to(tmp_path / "secret.png")
    write_rows(tmp_path / "inside" / "data.jsonl", [{"image": "x.png", "label": 0}])
    assert "leads out" in told(tmp_path, {**BASE, "data": "inside/data.jsonl", "image": "image"})


def test_labels_by_name_number_and_limit(tmp_path):
    write_rows(tmp_path / "data.jsonl", [{"text": "x", "label": label} for label in ("bad", 1, "0", "wrong")])
    task = Suite.open(write_suite(tmp_path / "suite.yaml", {**BASE, "limit": 3})).tasks[0]
    assert task.answers(("good", "bad")) == [1, 1, 0]
    assert len(task.rows) == 3
    numbered = write_rows(tmp_path / "data.jsonl", [{"text": "x", "label": 1}])
    task = Suite.open({"tasks": [{**BASE, "data": str(numbered)}]}).tasks[0]
    assert task.answers(("1", "0")) == [0], "a name that is a number is a name"


pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    make("classifier", place / "classifier", num_labels=2)
    make("encoder", place / "encoder")
    make("causal", place / "causal")
    make("image", place / "image")
    make("series", place / "series")
    return place


def refused(model, tmp_path, task, rows):
    write_rows(tmp_path / "data.jsonl", rows)
    suite = write_suite(tmp_path / "suite.yaml", {**BASE, **task})
    with pytest.raises(RequestError) as error:
        evaluate_into(model, suite, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.glob("*out*")) == []
    return str(error.value)


def test_models_that_do_not_fit(models, tmp_path):
    text = {"context": "a", "choices": ["b", "c"], "answer": 0, "text": "x", "label": 0, "prompt": "p"}
    for kind in ("multiple_choice", "generation", "perplexity"):
        said = refused(
            models / "encoder",
            tmp_path,
            {"kind": kind, **({"answer": "text"} if kind == "generation" else {})},
            [text],
        )
        assert "runs on causal models" in said
    assert "needs a model with a classification head" in refused(models / "encoder", tmp_path, {}, GOOD)
    assert "gives texts" in refused(
        models / "image", tmp_path, {"kind": "similarity", "score": None}, [{"text_a": "x", "text_b": "y"}]
    )
    head = Head(np.ones((2, 8), np.float32), np.zeros(2, np.float32), ("0", "1"))
    head.save(tmp_path / "head.safetensors")
    assert "takes 8 features" in refused(models / "encoder", tmp_path, {"head": "head.safetensors"}, GOOD)
    said = refused(models / "classifier", tmp_path, {"labels": ["a", "b", "c"]}, GOOD)
    assert "labels are a, b, c, and the head's" in said
    assert "does not know the label '2'" in refused(
        models / "classifier", tmp_path, {}, [{"text": "x", "label": 2}]
    )
    pixels = [{"image": [[0.0] * 9] * 8, "label": 0}]
    assert "row 1: the image has shape [1, 8, 9]" in refused(
        models / "image", tmp_path, {"image": "image"}, pixels
    )
    numbers = [{"features": [0.0] * 11, "label": 0}]
    assert "shape [11, 1]" in refused(models / "series", tmp_path, {"features": "features"}, numbers)


def test_texts_that_are_too_long(models, tmp_path):
    long = "the dog " * 60
    rows = [{**GOOD[0]}, {"text": long, "label": 1, "context": long, "choices": ["a", "b"], "answer": 0}]
    rows[0] |= {"context": "a", "choices": ["b", "c"], "answer": 0, "prompt": "a", "reference": "b"}
    rows[1] |= {"prompt": long, "reference": "b"}
    assert "row 2 has" in refused(models / "classifier", tmp_path, {}, rows)
    assert "max_length is 41" in refused(models / "classifier", tmp_path, {"max_length": 41}, rows)
    assert "row 2 has" in refused(models / "causal", tmp_path, {"kind": "multiple_choice"}, rows)
    generation = {"kind": "generation", "answer": "reference"}
    assert "row 2 has" in refused(models / "causal", tmp_path, generation, rows)
    assert "takes 0" in refused(models / "causal", tmp_path, {**generation, "max_new_tokens": 64}, rows)
    assert "window is 65" in refused(models / "causal", tmp_path, {"kind": "perplexity", "window": 65}, rows)
    assert "row 1 has" in refused(
        models / "causal",
        tmp_path,
        {"kind": "multiple_choice", "max_length": 1},
        [{"context": "a", "choices": ["the dog sleeps", "x"], "answer": 0}],
    )
    write_rows(tmp_path / "data.jsonl", rows)
    for task in ({"max_length": 20}, {"kind": "multiple_choice", "max_length": 30}):
        kind = "causal" if "kind" in task else "classifier"
        assert (
            evaluate(models / kind, write_suite(tmp_path / "s.yaml", {**BASE, **task})).tasks["t"].rows == 2
        )


def test_a_tokenizer_that_does_not_fit_or_is_missing(models, tmp_path):
    import shutil

    shutil.copytree(models / "classifier", tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    make("classifier", tmp_path / "small", num_labels=2, vocab_size=50)
    assert config["vocab_size"] == 320
    assert "do not belong together" in refused(tmp_path / "small", tmp_path, {}, GOOD)
    for path in (tmp_path / "small").glob("tokenizer*"):
        path.unlink()
    assert "tokenizer" in refused(tmp_path / "small", tmp_path, {}, GOOD)


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("classification", "classifier"),
        ("multiple_choice", "causal"),
        ("perplexity", "causal"),
        ("generation", "causal"),
        ("similarity", "encoder"),
    ],
)
def test_nan_is_an_error_that_names_model_task_and_row(models, tmp_path, kind, model):
    import torch

    rows = [{"text": text, "label": 0, "context": text, "choices": ["a b", "c d"]} for text in sentences(4)]
    rows = [
        {**row, "answer": "a b", "prompt": row["text"], "text_a": row["text"], "text_b": "dog"}
        for row in rows
    ]
    write_rows(tmp_path / "data.jsonl", rows)
    opened = open_model(models / model)
    # Only texts with this token go wrong.
    for row in (2,):
        token = opened.tokenizer(rows[row]["text"], add_special_tokens=False)["input_ids"][-1]
    with torch.no_grad():
        opened.module.get_input_embeddings().weight[token] = float("nan")
    task = {**BASE, "kind": kind, "score": None} if kind == "similarity" else {**BASE, "kind": kind}
    bad = [k for k, row in enumerate(rows, 1) if token in opened.tokenizer(row["text"])["input_ids"]]
    with pytest.raises(NonFiniteError) as error:
        evaluate_into(opened, write_suite(tmp_path / "suite.yaml", task), tmp_path / "out")
    said = str(error.value)
    assert str(models / model) in said
    assert "task 't'" in said
    assert any(f"row {row} " in said for row in bad)
    assert sorted(path.name for path in tmp_path.glob("*out*")) == [], "nothing is left"


def test_checks_of_all_tasks_come_before_any_runs(models, tmp_path):
    """The second task is wrong, so the first does not run."""
    write_rows(tmp_path / "data.jsonl", GOOD)
    suite = write_suite(tmp_path / "s.yaml", BASE, {**BASE, "name": "u", "labels": ["a", "b", "c"]})
    seen = []
    with pytest.raises(RequestError, match="task 'u'"):
        evaluate(models / "classifier", suite, progress=lambda done, total: seen.append(done))
    assert seen == []
    done = []
    evaluate(
        models / "classifier",
        write_suite(tmp_path / "s.yaml", BASE),
        progress=lambda d, n: done.append((d, n)),
    )
    assert done[-1] == (2, 2)


@pytest.mark.parametrize("family", ["Roberta", "MPNet", "Bert"])
def test_positions_behind_the_paddings_id_are_not_counted_as_tokens(tmp_path, family):
    import torch
    import transformers as t

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = getattr(t, f"{family}Config")(**sizes, vocab_size=20, max_position_embeddings=12, pad_token_id=1)
    getattr(t, f"{family}Model")(config).eval().save_pretrained(tmp_path / "model")
    model = open_model(tmp_path / "model")
    assert model.positions == (12 if family == "Bert" else 10)
    for length in (model.positions, model.positions + 1):
        ids = torch.full((1, length), 5)
        if length == model.positions:
            assert model.states(ids, torch.ones_like(ids)).isfinite().all()
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model.states(ids, torch.ones_like(ids))
