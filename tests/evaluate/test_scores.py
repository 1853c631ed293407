"""Scores against transformers run by hand, sample by sample, and scikit-learn's metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluate.scored_models import make, sentences, write_rows, write_suite

import merganser as mg
from merganser.errors import RequestError
from merganser.evaluate import evaluate
from merganser.evaluate.perplexity import windows
from merganser.running import Head

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    names = {0: "bad", 1: "good", 2: "odd"}
    labels = {"id2label": names, "label2id": {name: k for k, name in names.items()}}
    make("classifier", place / "classifier", num_labels=3, **labels)
    make("encoder", place / "encoder")
    make("causal", place / "causal")
    make("causal_bos", place / "causal_bos")
    make("image", place / "image")
    make("series", place / "series")
    return place


def one(model, place, task, rows):
    """Results of a suite of one task."""
    write_rows(place / "data.jsonl", rows)
    suite = write_suite(place / "suite.yaml", {"name": "t", "data": "data.jsonl", **task})
    return evaluate(model, suite).tasks["t"]


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def by_hand(folder, cls):
    """A module and tokenizer of transformers' own."""
    import transformers as t

    return getattr(t, cls).from_pretrained(folder).eval(), t.AutoTokenizer.from_pretrained(folder)


def test_own_head_against_transformers_and_sklearn(models, tmp_path):
    import torch
    from sklearn.metrics import accuracy_score, f1_score, log_loss

    texts, names = sentences(41), ["bad", "good", "odd"]
    answers = [names[k] for k in np.random.default_rng(1).integers(0, 3, 41)]
    rows = [{"text": x, "label": y} for x, y in zip(texts, answers, strict=True)]
    task = one(models / "classifier", tmp_path, {"kind": "classification", "batch": 7}, rows)
    module, tokenizer = by_hand(models / "classifier", "AutoModelForSequenceClassification")
    with torch.no_grad():
        logits = [module(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in texts]
    expected = log_softmax(np.stack(logits))
    np.testing.assert_allclose(task.column("log_probabilities"), expected, atol=1e-5)
    predicted = [names[k] for k in expected.argmax(1)]
    assert task.column("prediction") == predicted
    assert task.column("answer") == answers
    assert task.column("right") == [a == b for a, b in zip(answers, predicted, strict=True)]
    assert task.column("choices") == [names] * 41
    m = task.metrics
    assert m["accuracy"] == pytest.approx(accuracy_score(answers, predicted))
    assert m["loss"] == pytest.approx(log_loss(answers, np.exp(expected), labels=names), abs=1e-5)
    assert m["macro_f1"] == pytest.approx(f1_score(answers, predicted, average="macro"))
    p = m["accuracy"]
    assert m["accuracy_stderr"] == pytest.approx(math.sqrt(p * (1 - p) / 40))
    assert len(set(predicted)) > 1, "a model that says one thing tests little"


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_linear_head_over_pooled_states(models, tmp_path, pooling, normalize):
    import torch

    random = np.random.default_rng(3)
    head = Head(
        random.standard_normal((2, 16)).astype(np.float32),
        random.standard_normal(2).astype(np.float32),
        ("no", "yes"),
        pooling,
        normalize,
    )
    head.save(tmp_path / "head.safetensors")
    texts = sentences(19, seed=4, longest=60)  # some are cut
    rows = [{"body": text, "y": k % 2} for k, text in enumerate(texts)]
    task = {
        "kind": "classification",
        "text": "body",
        "label": "y",
        "head": "head.safetensors",
        "max_length": 20,
    }
    found = one(models / "encoder", tmp_path, task, rows)
    module, tokenizer = by_hand(models / "encoder", "AutoModel")
    for k, text in enumerate(texts):
        with torch.no_grad():
            ids = tokenizer(text, truncation=True, max_length=20, return_tensors="pt")
            states = module(**ids).last_hidden_state[0].numpy().astype(np.float64)
        feature = states.mean(0) if pooling == "mean" else states[0]
        feature = feature / np.linalg.norm(feature) if normalize else feature
        expected = log_softmax(head.weight @ feature + head.bias)
        np.testing.assert_allclose(found.column("log_probabilities")[k], expected, atol=1e-5)
        assert found.column("answer")[k] == ("no", "yes")[k % 2]
    assert max(len(tokenizer(text)["input_ids"]) for text in texts) > 20


@pytest.mark.parametrize("kind", ["causal", "causal_bos"])
def test_multiple_choice_is_the_sum_over_the_continuation(models, tmp_path, kind):
    import torch

    texts = sentences(9, seed=5)
    rows = [
        {"context": text, "choices": sentences(3, seed=10 + k, longest=5), "answer": k % 3}
        for k, text in enumerate(texts)
    ]
    rows[4]["answer"] = rows[4]["choices"][2]
    task = one(models / kind, tmp_path, {"kind": "multiple_choice", "batch": 4}, rows)
    module, tokenizer = by_hand(models / kind, "AutoModelForCausalLM")
    right, right_norm = [], []
    for k, row in enumerate(rows):
        sums = []
        for choice in row["choices"]:
            context = tokenizer(row["context"])["input_ids"]
            whole = tokenizer(row["context"] + " " + choice)["input_ids"]
            with torch.no_grad():
                logits = log_softmax(module(torch.tensor([whole])).logits[0].numpy())
            sums.append(sum(logits[at - 1, whole[at]] for at in range(len(context), len(whole))))
        np.testing.assert_allclose(task.column("log_probabilities")[k], sums, atol=1e-4, rtol=1e-5)
        answer = 2 if k == 4 else k % 3
        assert task.column("loss")[k] == pytest.approx(-sums[answer], rel=1e-5)
        assert task.column("answer")[k] == row["choices"][answer]
        right.append(int(np.argmax(sums)) == answer)
        lengths = [len(choice) for choice in row["choices"]]
        right_norm.append(int(np.argmax(np.array(sums) / lengths)) == answer)
    assert task.column("right") == right
    assert task.column("right_norm") == right_norm
    assert task.metrics["accuracy"] == pytest.approx(np.mean(right))
    assert task.metrics["accuracy_norm"] == pytest.approx(np.mean(right_norm))


def test_multiple_choice_without_context_begins_at_the_mark(models, tmp_path):
    import torch

    rows = [{"context": "", "answer": 0}, {"context": "the dog ", "answer": 1}]
    fixed = {"kind": "multiple_choice", "choices": ["the table", "a model"]}
    task = one(models / "causal_bos", tmp_path, fixed, rows)
    module, tokenizer = by_hand(models / "causal_bos", "AutoModelForCausalLM")
    for k, (context, choices) in enumerate(
        [
            ([1], ["the table", "a model"]),
            (tokenizer("the dog")["input_ids"], ["the dog the table", "the dog a model"]),
        ]
    ):
        for j, text in enumerate(choices):
            whole = tokenizer(text)["input_ids"]
            with torch.no_grad():
                logits = log_softmax(module(torch.tensor([whole])).logits[0].numpy())
            expected = sum(logits[at - 1, whole[at]] for at in range(len(context), len(whole)))
            assert task.column("log_probabilities")[k][j] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(None, None), (8, None), (8, 3), (1, 1)])
def test_perplexity_predicts_every_token_once(models, tmp_path, window, stride):
    import torch

    texts = sentences(6, seed=6, longest=14)
    settings = {key: value for key, value in (("window", window), ("stride", stride)) if value}
    task = one(models / "causal", tmp_path, {"kind": "perplexity", **settings}, [{"text": t} for t in texts])
    module, tokenizer = by_hand(models / "causal", "AutoModelForCausalLM")
    window = window or 64
    stride = stride or window
    for k, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"]
        whole = [tokenizer.eos_token_id, *ids]
        nats = 0.0
        for at in range(len(ids)):  # token `at` of the text, alone
            # The first window sees all before it; a later one begins window - stride before its first token.
            begin = 0 if at < window else window + (at - window) // stride * stride - (window - stride)
            with torch.no_grad():
                logits = log_softmax(module(torch.tensor([whole[begin : at + 1]])).logits[0, -1].numpy())
            assert at + 1 - begin <= window
            nats -= logits[whole[at + 1]]
        assert task.column("nats")[k] == pytest.approx(nats, rel=1e-5)
        assert task.column("tokens")[k] == len(ids)
        assert task.column("bytes")[k] == len(text.encode())
    nats, tokens, size = (np.array(task.column(name), float) for name in ("nats", "tokens", "bytes"))
    m = task.metrics
    assert m["perplexity"] == pytest.approx(math.exp(nats.sum() / tokens.sum()))
    assert m["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / size.sum())


@pytest.mark.parametrize("length", [1, 5, 8, 9, 30])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 1), (8, 5), (1, 1)])
def test_windows_cover_a_text_once(length, window, stride):
    ids = list(range(100, 100 + length))
    scored = []
    for span in windows(0, 7, ids, window, stride):
        assert span.start >= 1
        assert len(span.ids) - 1 <= window
        scored += span.ids[span.start :]
        assert span.ids == [7, *ids][[7, *ids].index(span.ids[0]) :][: len(span.ids)], "one run of the text"
    assert scored == ids


@pytest.mark.parametrize("stop", [[], ["e"]])
def test_generation_is_what_transformers_generates(models, tmp_path, stop):
    import torch

    texts = sentences(7, seed=8)
    rows = [{"prompt": text, "answer": ["nothing", "none"]} for text in texts]
    module, tokenizer = by_hand(models / "causal_bos", "AutoModelForCausalLM")
    expected = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            out = module.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
        written = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        expected.append(written.split("e")[0] if stop else written)
    rows[2]["answer"] = f"  {expected[2].upper()} "
    task = {"kind": "generation", "max_new_tokens": 9, "ignore": ["case"], "batch": 3}
    found = one(models / "causal_bos", tmp_path, {**task, **({"stop": stop} if stop else {})}, rows)
    assert found.column("text") == expected
    assert found.column("right") == [k == 2 for k in range(7)] or expected[2].strip() == ""
    assert found.metrics["exact_match"] == pytest.approx(sum(found.column("right")) / 7)
    assert len(set(expected)) > 1


def test_similarity_against_scipy(models, tmp_path):
    import torch
    from scipy.stats import pearsonr, spearmanr

    a, b = sentences(25, seed=11), sentences(25, seed=12)
    scores = [round(float(x), 1) for x in np.random.default_rng(0).random(25)]  # with ties
    rows = [{"text_a": x, "text_b": y, "score": s} for x, y, s in zip(a, b, scores, strict=True)]
    task = one(models / "encoder", tmp_path, {"kind": "similarity", "batch": 6}, rows)
    module, tokenizer = by_hand(models / "encoder", "AutoModel")

    def embedded(text):
        with torch.no_grad():
            return (
                module(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0).numpy()
            )

    expected = [
        float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        for x, y in ((embedded(p), embedded(q)) for p, q in zip(a, b, strict=True))
    ]
    np.testing.assert_allclose(task.column("similarity"), expected, atol=1e-5)
    assert task.metrics["spearman"] == pytest.approx(spearmanr(task.column("similarity"), scores).statistic)
    assert task.metrics["pearson"] == pytest.approx(pearsonr(task.column("similarity"), scores).statistic)
    plain = one(models / "encoder", tmp_path, {"kind": "similarity", "score": None}, rows)
    assert "spearman" not in plain.metrics
    assert plain.metrics["cosine"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_images_and_series(models, tmp_path):
    import torch
    import transformers as t

    random = np.random.default_rng(0)
    images = random.random((5, 8, 8)).round(3)
    rows = [{"pixels": image.tolist(), "label": k % 3} for k, image in enumerate(images)]
    task = {"kind": "classification", "image": "pixels", "batch": 2}
    found = one(models / "image", tmp_path, task, rows)
    module = t.AutoModelForImageClassification.from_pretrained(models / "image").eval()
    with torch.no_grad():
        expected = log_softmax(module(torch.tensor(images[:, None]).float()).logits.numpy())
    np.testing.assert_allclose(found.column("log_probabilities"), expected, atol=1e-5)
    series = random.random((5, 12, 2)).round(3)
    rows = [{"features": one_.tolist(), "label": k % 3} for k, one_ in enumerate(series)]
    found = one(models / "series", tmp_path, {"kind": "classification", "features": "features"}, rows)
    module = t.PatchTSTForClassification.from_pretrained(models / "series").eval()
    with torch.no_grad():
        expected = log_softmax(module(past_values=torch.tensor(series).float()).prediction_logits.numpy())
    np.testing.assert_allclose(found.column("log_probabilities"), expected, atol=1e-5)


def test_image_files_go_through_the_models_processor(models, tmp_path):
    import torch
    import transformers as t
    from PIL import Image

    make("image", tmp_path / "vit", num_channels=3)
    t.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    (tmp_path / "pictures").mkdir()
    random = np.random.default_rng(0)
    images = []
    for k in range(3):
        images.append(Image.fromarray(random.integers(0, 256, (11, 9, 3), dtype=np.uint8)))
        images[-1].save(tmp_path / "pictures" / f"{k}.png")
    rows = [{"file": f"pictures/{k}.png", "label": str(k)} for k in range(3)]
    found = one(tmp_path / "vit", tmp_path, {"kind": "classification", "image": "file"}, rows)
    module = t.AutoModelForImageClassification.from_pretrained(tmp_path / "vit").eval()
    processor = t.AutoImageProcessor.from_pretrained(tmp_path / "vit")
    with torch.no_grad():
        expected = log_softmax(module(**processor(images=images, return_tensors="pt")).logits.numpy())
    np.testing.assert_allclose(found.column("log_probabilities"), expected, atol=1e-5)


SETS = {
    "classification": ("classifier", {"kind": "classification"}, ("log_probabilities", "loss")),
    "multiple_choice": ("causal", {"kind": "multiple_choice"}, ("log_probabilities", "loss")),
    "perplexity": ("causal_bos", {"kind": "perplexity", "window": 9, "stride": 4}, ("nats",)),
    "generation": ("causal", {"kind": "generation", "max_new_tokens": 6}, ()),
    "similarity": ("encoder", {"kind": "similarity", "score": None}, ("similarity",)),
}


@pytest.mark.parametrize("name", SETS)
def test_batch_and_order_change_nothing(models, tmp_path, name):
    """Every sample has the numbers that it has alone, under its own id, wherever it stands."""
    model, task, columns = SETS[name]
    rows = []
    for k, text in enumerate(sentences(11, seed=20)):
        shared = {"key": f"k{k}", "text": text, "label": k % 3, "context": text, "answer": 1, "prompt": text}
        rows.append({**shared, "text_a": text, "text_b": "the dog", "choices": ["rows", "the layers of it"]})
    if name == "generation":
        rows = [{**row, "answer": "x"} for row in rows]
    task = {**task, "id": "key"}
    whole = one(models / model, tmp_path, {**task, "batch": 11}, rows)
    assert whole.column("id") == [row["key"] for row in rows]
    for batch, turned in ((1, rows[::-1]), (4, rows[5:] + rows[:5])):
        other = one(models / model, tmp_path, {**task, "batch": batch}, turned)
        places = [other.column("id").index(key) for key in whole.column("id")]
        assert other.column("id") == [row["key"] for row in turned]
        for column in ("input_digest", "answer", "prediction", "right", "choices"):
            assert [other.column(column)[k] for k in places] == whole.column(column), column
        for column in columns:
            moved = [other.column(column)[k] for k in places]
            np.testing.assert_allclose(moved, whole.column(column), atol=1e-5, rtol=1e-5)


def test_a_merge_is_scored_without_being_written(models, tmp_path):
    labels = json.loads((models / "classifier" / "config.json").read_text())["id2label"]
    make(
        "classifier",
        tmp_path / "other",
        seed=9,
        num_labels=3,
        id2label={int(k): v for k, v in labels.items()},
    )
    a, b = mg.open(models / "classifier"), mg.open(tmp_path / "other")
    rows = [{"text": text, "label": k % 3} for k, text in enumerate(sentences(8))]
    merged = (0.5 * a + 0.5 * b).relabel("mean")
    live = one(merged, tmp_path, {"kind": "classification"}, rows)
    merged.save(tmp_path / "merged")
    written = one(tmp_path / "merged", tmp_path, {"kind": "classification"}, rows)
    np.testing.assert_allclose(
        live.column("log_probabilities"), written.column("log_probabilities"), atol=1e-6
    )
    single = one(models / "classifier", tmp_path, {"kind": "classification"}, rows)
    assert not np.allclose(live.column("log_probabilities"), single.column("log_probabilities"), atol=1e-3)


def test_numbers_as_choices_mean_the_same_in_every_file_or_are_refused(models, tmp_path):
    task = {"kind": "multiple_choice", "choices": list("0123")}
    rows = [{"context": "the fox", "answer": k} for k in range(4)]
    assert one(models / "causal", tmp_path, task, rows).column("answer") == list("0123")
    (tmp_path / "data.csv").write_text("context,answer\n" + "".join(f"the fox,{k}\n" for k in range(4)))
    suite = write_suite(tmp_path / "csv.yaml", {"name": "t", "data": "data.csv", **task})
    assert evaluate(models / "causal", suite).tasks["t"].column("answer") == list(
        "0123"
    )  # text and place agree
    other = write_suite(
        tmp_path / "other.yaml", {"name": "t", "data": "data.csv", **task, "choices": list("1230")}
    )
    with pytest.raises(
        RequestError, match=r"row 1: the answer 0 is the text of choice 3 and the number of choice 0"
    ):
        evaluate(models / "causal", other)
    given = [{"context": "the fox", "answer": "0"}]  # as the message says
    assert one(models / "causal", tmp_path, {**task, "choices": list("1230")}, given).column("answer") == [
        "0"
    ]


def test_stops_that_are_special_tokens_stop(models, tmp_path):
    """Each token is followed by the next id: a, b, the stop, c."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(models / "causal")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    tokenizer.save_pretrained(tmp_path / "m")
    a, b, c = (tokenizer.convert_tokens_to_ids(one) for one in "abc")
    stop, size = tokenizer.convert_tokens_to_ids("<|stop|>"), len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=size + size % 2,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=4,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        for now, then in ((a, b), (b, stop), (stop, c), (c, c)):
            model.model.embed_tokens.weight[now, now] = 1.0
            model.lm_head.weight[then, now] = 1.0
    model.save_pretrained(tmp_path / "m")
    for stops, text in ((["<|stop|>"], "b"), (["c", "<|stop|>"], "b"), (["z"], "bcc"), ([], "bcc")):
        task = {"kind": "generation", "max_new_tokens": 4, **({"stop": stops} if stops else {})}
        found = one(tmp_path / "m", tmp_path, task, [{"prompt": "a", "answer": text}])
        assert (found.column("text"), found.column("right")) == ([text], [True]), stops


def test_photographs_stand_upright_and_deep_pixels_are_refused(tmp_path):
    from io import BytesIO

    from PIL import Image

    from merganser.running import upright

    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 12
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = BytesIO()
    image.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(np.asarray(upright(Image.open(file))), np.rot90(pixels, -1))
    deep = Image.fromarray(np.full((2, 2), 40000, np.uint16))
    with pytest.raises(ValueError, match="more than 8 bits"):
        upright(deep)


def test_a_correlation_that_does_not_exist_is_undefined_and_wins_nothing(models, tmp_path, capsys):
    import json
    import math

    from transformers import AutoModel

    from merganser.cli import run
    from merganser.evaluate import headline
    from merganser.search.fitness import SuiteFitness

    flat = AutoModel.from_pretrained(models / "encoder")
    for parameter in flat.parameters():
        parameter.data.zero_()
    flat.encoder.layer[-1].output.LayerNorm.bias.data.fill_(1.0)
    make("encoder", tmp_path / "flat")
    flat.save_pretrained(tmp_path / "flat")
    rows = [
        {"text_a": a, "text_b": b, "score": k}
        for k, (a, b) in enumerate(zip(sentences(6), sentences(7)[1:], strict=True))
    ]
    found = one(tmp_path / "flat", tmp_path, {"kind": "similarity"}, rows)
    assert found.metrics["spearman"] is None and found.metrics["pearson"] is None
    assert found.metrics["cosine"] == pytest.approx(1.0)
    assert headline("similarity", found.metrics) == "spearman"
    fitness = SuiteFitness(tmp_path / "suite.yaml")
    measured = {"tasks": {"t": {"kind": "similarity", "metrics": found.metrics}}}
    assert fitness.score(measured) == -math.inf
    arguments = ["evaluate", str(tmp_path / "flat"), str(tmp_path / "suite.yaml"), str(tmp_path / "o")]
    assert run(arguments) == 0
    assert "undefined" in capsys.readouterr().out
    told = json.loads((tmp_path / "o" / "results.json").read_text())
    assert told["tasks"]["t"]["metrics"]["spearman"] is None
    assert (
        run(
            [
                "evaluate",
                str(models / "encoder"),
                str(tmp_path / "suite.yaml"),
                str(tmp_path / "p"),
                "--quiet",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert run(["compare", str(tmp_path / "o"), str(tmp_path / "p"), "--html", str(tmp_path / "c.html")]) == 0


def test_two_classes_of_one_name_are_refused_and_names_of_the_task_help(models, tmp_path):
    make("classifier", tmp_path / "m", num_labels=3, id2label={0: "good", 1: "bad", 2: "bad"})
    rows = [{"text": text, "label": "bad"} for text in sentences(3)]
    with pytest.raises(RequestError, match=r"two classes of .* are called 'bad'"):
        one(tmp_path / "m", tmp_path, {"kind": "classification"}, rows)
    given = {"kind": "classification", "labels": ["good", "bad", "worse"]}
    assert one(tmp_path / "m", tmp_path, given, rows).column("choices")[0] == ["good", "bad", "worse"]


@pytest.mark.parametrize("angle", [0.0, 1.1], ids=["one embedding", "one angle"])
def test_an_order_of_rounding_is_no_correlation(angle):
    """A model that gives all texts one embedding gives cosines that differ in their last digits, here in f32's way."""
    from scipy import stats

    from merganser.evaluate import metrics_of

    draws = np.random.default_rng(4)
    target = np.arange(12.0)
    first = np.eye(24)[0] + np.eye(24)[1]
    second = np.cos(angle) * first + np.sin(angle) * (np.eye(24)[0] - np.eye(24)[1])

    def rounded(size):
        pair = [one + size * draws.standard_normal((12, 24)) for one in (first, second)]
        a, b = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in pair)
        return (a * b).sum(1).clip(-1, 1)

    for size, defined in ((3e-8, False), (1e-3, True)):
        cosines = rounded(size)
        assert len(set(cosines)) > 2, "the numbers themselves differ"
        columns = {"similarity": cosines.tolist(), "target": target.tolist()}
        found = metrics_of("similarity", columns)
        for name, theirs in (("spearman", stats.spearmanr), ("pearson", stats.pearsonr)):
            expected = pytest.approx(theirs(cosines, target).statistic) if defined else None
            assert found[name] == expected
            assert (f"{name}_stderr" in found) is defined
    equal = {"similarity": cosines.tolist(), "target": [0.1] * 12}
    assert metrics_of("similarity", equal)["pearson"] is None, "0.1 twelve times has another mean than 0.1"
