"""`merganser relate` and `observe-pair` on tiny transformers: permuted copies, encoders with heads, language models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra.axes import permute, reading_of
from merganser.cli import run
from merganser.compare.relation import read_data, relate
from merganser.errors import RequestError
from merganser.observe import statistics

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.models

WORDS = [f"w{k}" for k in range(40)]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="[CLS]", eos_token="[SEP]", **names)


def bert(name: str, seed: int, path: Path, **settings: Any) -> Path:
    import transformers

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36}
    config = transformers.BertConfig(
        vocab_size=44, max_position_embeddings=20, num_labels=3, **(sizes | settings)
    )
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def llama(seed: int, path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    LlamaForCausalLM(LlamaConfig(vocab_size=44, max_position_embeddings=64, **sizes)).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def copy(source: Path, path: Path) -> Path:
    """The same model with its units in another order."""
    weights, draw = mg.open(source), np.random.default_rng(3)
    sizes = reading_of(weights).sizes
    for name in ("residual", "heads", "head_dim", "value_dim", "neurons"):
        orders = {axis.at: draw.permutation(size) for axis, size in sizes.items() if axis.name == name}
        weights = permute(weights, name, orders)
    weights.save(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    draw = random.Random(0)
    lines = []
    for _ in range(48):
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(4, 12)))
        lines.append(json.dumps({"text": text, "label": f"LABEL_{draw.randrange(3)}"}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def relabel(model: Path, rows: Path) -> None:
    """The model's own answers as labels, so that it is right and what is another function is not."""
    from transformers import BertForSequenceClassification

    running, tok = BertForSequenceClassification.from_pretrained(model).eval(), tokenizer()
    given = [json.loads(line) for line in rows.read_text().splitlines()]
    with torch.no_grad():
        for row in given:
            row["label"] = f"LABEL_{int(running(**tok(row['text'], return_tensors='pt')).logits.argmax())}"
    rows.write_text("\n".join(map(json.dumps, given)) + "\n")


def test_a_permuted_copy(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One function in two orders: a barrier as it is, none after either alignment; one space, seen as one."""
    a = bert("BertForSequenceClassification", 0, tmp_path / "a")
    b = copy(a, tmp_path / "b")
    relabel(a, rows)
    page = tmp_path / "page.html"
    told = [
        "relate",
        str(a),
        str(b),
        str(rows),
        "--align",
        "both",
        "--points",
        "3",
        "--html",
        str(page),
        "--json",
    ]
    assert run(told) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["left_out"] == []
    as_is, *aligned = found["lines"]
    assert [row["aligned"] for row in (as_is, *aligned)] == [None, "weights", "activations"]
    assert as_is["barrier"] > 0.01 and as_is["shares"] == [0, 0.5, 1]
    assert all(row["barrier"] < 1e-5 for row in aligned)
    assert max(abs(x - as_is["losses"][0]) for row in aligned for x in row["losses"]) < 1e-5
    before, *after = found["weights"]
    assert before["distance"] > 5 and before["weighted"] < 0.9
    assert all(row["distance"] < 1e-6 and row["weighted"] == pytest.approx(1, abs=1e-6) for row in after)
    layers = found["cka"][0]["values"]
    assert len(layers) == len(layers[0]) == 3
    assert all(layers[k][k] == pytest.approx(1, abs=1e-5) for k in range(3))
    pair = found["relative"]["pairs"][0]
    assert pair["relative"]["cosine"] == pytest.approx(1, abs=1e-6) and pair["relative"]["mrr"] > 0.99
    assert pair["shuffled"]["mrr"] < 0.5 > pair["absolute"]["mrr"]
    scores = [row["score"] for row in found["transfer"]["rows"]]
    # Hopkins' box changes with the order of dimensions, so its draws do
    assert scores[0] == pytest.approx(scores[1], abs=0.02)
    assert page.read_text().count("<svg") == 2
    assert [row["what"] for row in found["warnings"]] == ["line", "cka", "relative", "transfer"]
    assert "48 rows" in found["warnings"][1]["why"] and "Few rows" in page.read_text()
    assert run(told) == 2  # the page is not replaced unless asked


def test_ends_and_middle_are_those_of_independent_runs(tmp_path: Path, rows: Path) -> None:
    """Plain torch: load both, average the state dicts, mean cross-entropy."""
    from transformers import BertForSequenceClassification

    paths = [bert("BertForSequenceClassification", seed, tmp_path / f"m{seed}") for seed in (0, 1)]
    found = relate([mg.open(p) for p in paths], read_data(rows), parts=["line"], points=3)
    models = [BertForSequenceClassification.from_pretrained(p).eval() for p in paths]
    one, two = (m.state_dict() for m in models)
    middle = BertForSequenceClassification.from_pretrained(paths[0]).eval()
    middle.load_state_dict(
        {n: one[n] * 0.5 + two[n] * 0.5 if one[n].is_floating_point() else one[n] for n in one}
    )
    tok, given = tokenizer(), [json.loads(x) for x in rows.read_text().splitlines()]
    wanted, right = [], []
    for model in (models[0], middle, models[1]):
        with torch.no_grad():
            logits = torch.cat([model(**tok(r["text"], return_tensors="pt")).logits for r in given])
        labels = torch.tensor([int(r["label"][-1]) for r in given])
        wanted.append(torch.nn.functional.cross_entropy(logits.double(), labels).item())
        right.append((logits.argmax(1) == labels).double().mean().item())
    (row,) = found["lines"]
    assert row["losses"] == pytest.approx(wanted, rel=1e-5) and row["right"] == pytest.approx(right)
    assert row["barrier"] == pytest.approx(max(0, wanted[1] - (wanted[0] + wanted[2]) / 2), rel=1e-4)
    assert found["cka"] == [] and found["relative"] is None


def test_spaces_are_those_of_plain_hidden_states(tmp_path: Path, rows: Path) -> None:
    from merganser.compare import spaces
    from merganser.running import encode, open_model

    model = open_model(bert("BertForSequenceClassification", 0, tmp_path / "a"))
    texts = read_data(rows).texts
    ids = encode(model, texts)
    for pooling in spaces.POOLINGS:
        found = spaces.of_texts(model, ids, pooling=pooling, batch=5)
        with torch.no_grad():
            plain = model.module(input_ids=torch.tensor([ids[7]]), output_hidden_states=True)
        state = {"mean": lambda s: s[0].mean(0), "cls": lambda s: s[0, 0], "last": lambda s: s[0, -1]}[
            pooling
        ]
        assert len(found.layers) == 3
        for layer, states in zip(found.layers, plain.hidden_states, strict=True):
            assert np.allclose(layer[7], state(states), atol=1e-5)
        assert found.logits is not None and found.inputs is not None and found.weight is not None
        assert np.allclose(found.logits[7], plain.logits[0], atol=1e-5)
        bias = model.module.classifier.bias.numpy()
        assert np.allclose(found.inputs @ found.weight.T + bias, found.logits, atol=1e-5)


def test_encoders_of_two_widths_with_a_head(tmp_path: Path, rows: Path) -> None:
    """No line between them; spaces and heads can be compared all the same, and it is said what cannot."""
    from merganser.running import Head

    a = bert("BertModel", 0, tmp_path / "a")
    b = bert("BertModel", 1, tmp_path / "b", hidden_size=36, num_hidden_layers=3)
    head = tmp_path / "head.safetensors"
    draw = np.random.default_rng(0)
    Head(
        draw.standard_normal((3, 24)).astype(np.float32),
        np.zeros(3, np.float32),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
    ).save(head)
    data = read_data(rows, head=head)
    one = relate([mg.open(a), mg.open(bert("BertModel", 2, tmp_path / "c"))], data, points=3)
    assert one["lines"] and one["transfer"]["rows"][0]["score"] > 0 and one["left_out"] == []
    found = relate([mg.open(a), mg.open(b)], read_data(rows), points=3)
    assert np.shape(found["cka"][0]["values"]) == (3, 4)
    assert found["relative"]["pairs"][0]["absolute"] is None and found["relative"]["stitched"]
    why = {row["what"]: row["why"] for row in found["left_out"]}
    assert (
        "no line between" in why["line and weights"]
        and "needs a model with a classification head" in why["scores"]
    )
    assert "no linear last layer" in why["transfer"]
    with pytest.raises(RequestError, match="no linear last layer"):
        relate([mg.open(a), mg.open(b)], read_data(rows), parts=["transfer"])


def test_language_models_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    draw = random.Random(1)
    texts.write_text("\n".join(" ".join(draw.choice(WORDS) for _ in range(9)) for _ in range(20)) + "\n")
    a, b = llama(0, tmp_path / "a"), llama(1, tmp_path / "b")
    assert run(["relate", str(a), str(b), str(texts), "--points", "3", "--anchors", "6"]) == 0
    told = capsys.readouterr().out
    assert "perplexity" not in told and "loss in the middle" in told and "6 anchors, 10 rows compared" in told
    assert "left out: transfer" in told and "warning, cka: 20 rows: " in told
    assert "warning, line" not in told  # a perplexity has no share of right answers
    suite = tmp_path / "suite.yaml"
    suite.write_text("tasks:\n  - {name: words, kind: perplexity, data: texts.txt}\n")
    assert (
        run(["relate", str(a), str(b), str(suite), "--only", "line,weights", "--points", "3", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["lines"][0]["task"] == "words" and found["lines"][0]["right"] is None
    assert 3 < found["lines"][0]["losses"][0] < 5  # about ln 44


def test_from_moments_to_a_wider_merge(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = bert("BertForSequenceClassification", 0, tmp_path / "a")
    b = bert("BertForSequenceClassification", 1, tmp_path / "b", intermediate_size=28)
    out = tmp_path / "moments"
    assert run(["observe-pair", str(a), str(b), str(rows), str(out), "--rows", "30"]) == 0
    assert "from 30 rows with" in capsys.readouterr().out
    note = json.loads((out / "merganser.json").read_text())["notes"][0]["statistics"]
    assert note["rows"] == 30 and note["data"] == "rows.jsonl" and note["kind"] == "paired"
    assert [one["identity"] for one in note["models"]] != [None, None]
    assert run(["info", str(out)]) == 0
    assert f"statistics: paired of {a} and {b} over 30 rows of rows.jsonl" in capsys.readouterr().out
    with pytest.raises(RequestError, match=r"joint moments of two models \(.*a and .*b\)"):
        statistics(out)
    step = f"pleas: {{other: {b}, statistics: {out}, size: 1.25}}"
    assert run(["reshape", str(a), str(tmp_path / "wide"), step, "--quiet"]) == 0
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(tmp_path / "wide")
    assert model.config.intermediate_size == 45
    capsys.readouterr()
    assert run(["observe-pair", str(a), str(b), str(rows), str(out)]) != 0
    assert "already exists" in capsys.readouterr().err
    assert run(["reshape", str(b), str(tmp_path / "x"), step.replace(str(b), str(a)), "--quiet"]) == 2
    assert "are of other models" in capsys.readouterr().err and not (tmp_path / "x").exists()


def spoil(source: Path, path: Path, change: Any) -> Path:
    """A copy with other values."""
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(source)
    with torch.no_grad():
        change(dict(model.named_parameters()))
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def test_a_model_of_a_pair_that_returns_nan(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model, the layer and the row are named, and nothing is written."""
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("w1 w2", "w3 w4 w1 w2", "w5 w6")))
    a = bert("BertForSequenceClassification", 0, tmp_path / "a")
    nan = float("nan")
    at = "bert.encoder.layer.0"

    def word(found: Any) -> None:
        found["bert.embeddings.word_embeddings.weight"][4 + 5] = nan  # w5

    def row(found: Any) -> None:
        found[f"{at}.intermediate.dense.weight"][0] = nan

    def last(found: Any) -> None:
        found["classifier.weight"][0] = nan

    def large(found: Any) -> None:
        found[f"{at}.intermediate.dense.weight"][:] = 1e25

    for change, message in (
        (word, f"bad: the inputs of {at}.attention.self.query.weight of row 3 hold NaN (1 of"),
        (row, f"bad: the inputs of {at}.output.dense.weight of row 1 hold NaN"),
        (last, "bad: the outputs of row 1 hold NaN"),
        (large, f"products of the inputs of {at}.output.dense.weight are beyond what f32 holds"),
    ):
        bad = spoil(a, tmp_path / "bad", change)
        for pair in ((a, bad), (bad, a)):
            assert (
                run(["observe-pair", *map(str, pair), str(rows), str(tmp_path / "out"), "--batch", "2"]) == 1
            )
            assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bad", "rows.jsonl"]


def test_what_cannot_be(tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = bert("BertForSequenceClassification", 0, tmp_path / "a")
    b = bert("BertForSequenceClassification", 1, tmp_path / "b")
    for told, message in (
        ([a, rows], "two models or more"),
        ([a, b, a], "is a directory; the last argument is the data"),
        ([a, b, rows, "--only", "lines"], "unknown part 'lines'; did you mean 'line'"),
        ([a, b, rows, "--align", "weight"], "'weight' is unknown; did you mean 'weights'"),
        ([a, b, rows, "--text", "tekst"], "no column 'tekst'; did you mean 'text'"),
        ([a, a, rows], "two models are called"),
        ([a, b, rows, "--only", "relative", "--anchors", "40"], "of 48 rows half, 24, can be anchors"),
        ([a, b, tmp_path / "none.jsonl"], "there is no"),
        ([a, b, rows, "--task", "x"], "is no suite"),
        ([a, b, rows, "--html", rows / "page.html"], "a file is in the place of its folder"),
    ):
        assert run(["relate", *map(str, told), "--quiet"]) == 2, told
        assert message in capsys.readouterr().err
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"text": "w1 w2", "lable": "LABEL_1"}\n')
    assert run(["relate", str(a), str(b), str(bare), "--only", "line", "--quiet"]) == 2
    assert "bare.jsonl: no column 'label'; did you mean 'lable'" in capsys.readouterr().err
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"text": "w1 w2", "label": "LABEL_7"}\n')
    assert run(["relate", str(a), str(b), str(wrong), "--only", "line", "--quiet"]) == 2
    assert "does not know the label 'LABEL_7'" in capsys.readouterr().err
