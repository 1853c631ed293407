"""Skill localization: masks against autograd and NumPy, the graft that is written, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from makers import files_of, read_model
from two_tasks import write_rows, write_siblings

import merganser as mg
from merganser.cli import run
from merganser.errors import NonFiniteError, OutputError, RequestError
from merganser.recipe import build, load
from merganser.running import Head, open_model, read_rows
from merganser.search.localization import LocalizeOptions, localize

pytestmark = pytest.mark.models
QUICK = {"shares": (0.1,), "steps": 8, "batch": 64, "rows_a_step": 64}


@pytest.fixture(scope="module")
def siblings(tmp_path_factory):
    import torch

    torch.set_num_threads(1)
    return write_siblings(tmp_path_factory.mktemp("siblings"))


@pytest.fixture(scope="module")
def found(siblings):
    return localize(
        siblings / "base", siblings / "red", read_rows(siblings / "red.jsonl").head(64),
        test=siblings / "red.test.jsonl", options=LocalizeOptions(**QUICK),
    )  # fmt: skip


def grafted_and_texts(siblings, patterns=("*",), count=40):
    from merganser.search._grafted import Grafted
    from merganser.search._texts import read_texts

    base, tuned = open_model(siblings / "base"), open_model(siblings / "red")
    rows = read_rows(siblings / "red.jsonl").head(count)
    texts = read_texts(base, rows, text="text", label="label", head=None, max_length=None, batch=7)
    return Grafted(base, tuned, patterns), texts


def test_the_gradient_by_the_mask_is_that_of_autograd(siblings):
    import torch
    from torch.func import functional_call

    grafted, texts = grafted_and_texts(siblings)
    mask = torch.rand(grafted.size, generator=torch.Generator().manual_seed(0))
    ours = grafted.gradient(mask, texts, range(len(texts)))
    fresh = open_model(siblings / "base").module
    old, new = read_model(siblings / "base"), read_model(siblings / "red")
    leaf = mask.clone().requires_grad_(True)
    values = {
        name: torch.from_numpy(old[name].copy())
        + leaf[stretch].view(shape) * torch.from_numpy(new[name] - old[name])
        for name, (stretch, shape) in grafted.tensors.items()
    }
    loss = 0.0
    for ids, answer in zip(texts.ids, texts.answers, strict=True):
        logits = functional_call(fresh, values, kwargs={"input_ids": torch.tensor([ids])}).logits
        loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor([answer])) / len(texts)
    loss.backward()
    torch.testing.assert_close(ours, leaf.grad, rtol=1e-3, atol=1e-6)


def test_a_learned_mask_keeps_more_than_controls_of_its_size(found):
    lines = {line["mask"]: line for line in found.report["grafts"]}
    assert len({line["entries"] for line in lines.values()}) == 1
    assert lines["learned"]["entries"] <= round(0.1 * found.report["parameters"])
    assert lines["learned"]["loss"] < min(lines["largest"]["loss"], lines["random"]["loss"])
    assert found.report["model"]["accuracy"] > 0.9
    assert found.report["base"]["accuracy"] < 0.7


def test_the_largest_changes_are_those(siblings, found):
    from merganser.search._grafted import largest

    changes = np.abs(np.random.default_rng(0).integers(-9, 9, 500).astype(float))
    for count in (0, 1, 77, 500):
        mask = largest(changes, count)
        assert mask.sum() == count
        assert not count or changes[mask].min() >= changes[~mask].max(initial=-1)


def test_without_steps_the_mask_is_that_of_the_largest_changes(siblings):
    options = LocalizeOptions(**QUICK | {"steps": 0})
    found = localize(siblings / "base", siblings / "red", siblings / "red.jsonl", options=options)
    old, new = read_model(siblings / "base"), read_model(siblings / "red")
    changes = np.concatenate([np.abs(new[n] - old[n])[mask] for n, mask in found.masks.items()])
    rest = np.concatenate([np.abs(new[n] - old[n])[~mask] for n, mask in found.masks.items()])
    assert changes.min() >= rest.max()
    lines = {line["mask"]: line for line in found.report["grafts"]}
    assert lines["learned"]["loss"] == lines["largest"]["loss"]
    assert found.report["measured_on"]["rows of the search"]


def test_a_mask_of_all_entries_is_the_fine_tune(siblings):
    options = LocalizeOptions(**QUICK | {"shares": (1.0,), "steps": 0})
    found = localize(siblings / "base", siblings / "red", siblings / "red.jsonl", options=options)
    assert {line["kept"] for line in found.report["grafts"]} == {1.0}


def test_the_written_recipe_rebuilds_the_graft_that_was_scored(siblings, found, tmp_path):
    import torch

    found.save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mask", "recipe.yaml", "report.json"]
    assert not list(tmp_path.glob(".out*"))
    masks = read_model(tmp_path / "out" / "mask")
    assert all(mask.dtype == bool for mask in masks.values())
    assert run(["merge", str(tmp_path / "out" / "recipe.yaml"), str(tmp_path / "merged"), "--quiet"]) == 0
    merged, old, new = (read_model(p) for p in (tmp_path / "merged", siblings / "base", siblings / "red"))
    for name, array in merged.items():
        np.testing.assert_array_equal(array, np.where(masks[name], new[name], old[name]), err_msg=name)
    model = open_model(tmp_path / "merged")
    rows = read_rows(siblings / "red.test.jsonl")
    with torch.no_grad():
        logits = torch.cat(
            [model.module(**model.tokenizer(row["text"], return_tensors="pt")).logits for row in rows]
        )
    labels = torch.tensor(rows.column("label"))
    line = found.report["grafts"][0]
    assert line["mask"] == "learned"
    assert line["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert line["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-4)
    ends = [found.report[name]["accuracy"] for name in ("base", "model")]
    assert line["kept"] == pytest.approx((line["accuracy"] - ends[0]) / (ends[1] - ends[0]))


def test_the_same_request_gives_the_same_bytes(siblings, found, tmp_path):
    again = localize(
        siblings / "base", siblings / "red", read_rows(siblings / "red.jsonl").head(64),
        test=siblings / "red.test.jsonl", options=LocalizeOptions(**QUICK),
    )  # fmt: skip
    found.save(tmp_path / "one")
    again.save(tmp_path / "two")
    assert files_of(tmp_path / "one" / "mask") == files_of(tmp_path / "two" / "mask")
    assert found.report == again.report


def test_calibration_error_by_hand():
    from merganser.search._texts import calibration_error

    rng = np.random.default_rng(0)
    sure, right = rng.random(400), rng.random(400) < 0.5
    sure[0] = 1.0
    expected = 0.0
    for b in range(15):
        inside = (sure >= b / 15) & ((sure < (b + 1) / 15) | (b == 14))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
    assert calibration_error(sure, right) == pytest.approx(expected)


def test_overlaps_with_the_mask_of_another_task(siblings, found, tmp_path):
    options = LocalizeOptions(**QUICK | {"steps": 0, "shares": (0.2,)})
    found.save(tmp_path / "red")
    blue = localize(
        siblings / "base",
        siblings / "blue",
        siblings / "blue.jsonl",
        against=[tmp_path / "red"],
        options=options,
    )
    (told,) = blue.report["overlaps"]
    shared = sum(int((mask & found.masks[name]).sum()) for name, mask in blue.masks.items())
    mine = sum(int(mask.sum()) for mask in blue.masks.values())
    theirs = sum(int(mask.sum()) for mask in found.masks.values())
    assert (told["shared"], told["entries"]) == (shared, theirs)
    assert told["of_this"] == shared / mine
    assert told["of_that"] == shared / theirs
    assert told["of_both"] == shared / (mine + theirs - shared)


def test_masks_may_cover_some_tensors(siblings):
    options = LocalizeOptions(**QUICK | {"tensors": ("*attention*", "classifier*"), "steps": 1})
    found = localize(siblings / "base", siblings / "red", siblings / "red.jsonl", options=options)
    assert found.masks and all("attention" in n or n.startswith("classifier") for n in found.masks)


def test_an_encoder_with_a_head_and_a_language_model(siblings, tmp_path):
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from two_tasks import SIZES, tokenizer

    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]")
    llama = {key: value for key, value in SIZES.items() if "dropout" not in key and key != "num_labels"}
    for kind, make in {
        "encoder": lambda: BertModel(BertConfig(**SIZES)),
        "causal": lambda: LlamaForCausalLM(LlamaConfig(**llama, tie_word_embeddings=True)),
    }.items():
        torch.manual_seed(1)
        model = make()
        for name in ("base", "tuned"):
            model.save_pretrained(tmp_path / kind / name)
            wrapped.save_pretrained(tmp_path / kind / name)
            with torch.no_grad():
                for value in model.parameters():
                    value += 0.05 * torch.randn(value.shape)
    rng = np.random.default_rng(0)
    Head(rng.standard_normal((2, 16)).astype(np.float32), np.zeros(2, np.float32), ("0", "1")).save(
        tmp_path / "h"
    )
    (tmp_path / "h").rename(tmp_path / "h.safetensors")
    rows = read_rows(siblings / "red.jsonl").head(12)
    options = LocalizeOptions(**QUICK | {"steps": 2})
    place = tmp_path / "encoder"
    found = localize(place / "base", place / "tuned", rows, head=tmp_path / "h.safetensors", options=options)
    assert found.report["metric"] == "accuracy"
    with pytest.raises(RequestError, match="an encoder with a head"):
        localize(place / "base", place / "tuned", rows, options=options)
    place = tmp_path / "causal"
    found = localize(place / "base", place / "tuned", rows, options=options)
    assert found.report["metric"] == "loss"
    assert "accuracy" not in found.report["base"]
    found.save(tmp_path / "out")
    weights, fields = build(load(tmp_path / "out" / "recipe.yaml"))
    mg.save(weights, tmp_path / "merged", **fields)
    from merganser.search._texts import read_texts

    merged = open_model(tmp_path / "merged")
    texts = read_texts(merged, rows, text="text", label="label", head=None, max_length=None, batch=5)
    assert texts.score(merged)["loss"] == pytest.approx(found.report["grafts"][0]["loss"], rel=1e-5)


def test_the_command_writes_and_reports(siblings, tmp_path, capsys):
    arguments = [
        "localize",
        *(str(siblings / name) for name in ("base", "red", "red.jsonl")),
        str(tmp_path / "out"),
    ]
    arguments += ["--share", "0.05", "--share", "0.2", "--steps", "1", "--batch", "64", "--rows-a-step", "32"]
    assert run(arguments) == 0
    said = capsys.readouterr().out
    for word in ("learned", "largest", "random", "calibration error", "kept", "at most 20.0000%"):
        assert word in said, said
    assert run(arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert run([*arguments, "--overwrite", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "out" / "report.json").read_text())
    assert [line["asked"] for line in told["grafts"]] == [0.05] * 3 + [0.2] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": ()}, "shares of a mask must be above 0"),
        ({"shares": (1.5,)}, "shares of a mask must be above 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"rate": -1.0}, "rate and bias above 0"),
        ({"keep": 2.0}, r"keep must be in \[0, 1\]"),
    ],
)
def test_options_out_of_range(change, message):
    with pytest.raises(RequestError, match=message):
        LocalizeOptions(**change)


def test_what_cannot_be_localized_is_refused(siblings, tmp_path):
    def refused(message, base="base", model="red", data=siblings / "red.jsonl", error=RequestError, **more):
        options = LocalizeOptions(**QUICK | more.pop("options", {}))
        with pytest.raises(error, match=message):
            localize(siblings / base, siblings / model, data, options=options, **more)

    refused("do not differ, so there is nothing to localize", model="base")
    refused("no column 'labels'; did you mean 'label'", options={"label": "labels"})
    refused(r"no parameter of .* matches \*mpl\*", options={"tensors": ("*mpl*",)})
    (tmp_path / "rows.jsonl").write_text('{"text": "w1", "label": "green"}\n')
    refused("row 1: the head does not know the label 'green'", data=tmp_path / "rows.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    refused("has no rows", data=tmp_path / "empty.jsonl")
    refused("is no mask that merganser localize wrote", against=[siblings / "blue"])
    other = read_model(siblings / "red")
    broken = tmp_path / "broken"
    import shutil

    shutil.copytree(siblings / "red", broken)
    from safetensors.numpy import save_file

    other["classifier.bias"] = other["classifier.bias"] * np.float32(np.nan)
    save_file(other, broken / "model.safetensors", metadata={"format": "pt"})
    refused("with entries of .*broken: logits of row 1 hold NaN", model=broken, error=NonFiniteError)


def test_nothing_half_written(found, siblings, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="already exists"):
        found.save(tmp_path / "out")
    with pytest.raises(OutputError, match="not what localize writes"):
        found.save(tmp_path / "out", overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file is in the place of its folder"):
        found.save(tmp_path / "file" / "out")
    (tmp_path / "file").unlink()
    found.save(tmp_path / "new" / "folder" / "out")
    assert (tmp_path / "new" / "folder" / "out" / "recipe.yaml").is_file()
    shutil.rmtree(tmp_path / "new")
    (tmp_path / "out").rmdir()

    def broken(self, mask):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(found), "_recipe", broken)
    with pytest.raises(OutputError, match="No space left"):
        found.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_written_recipe_moves_with_its_neighbours(found, siblings, tmp_path, monkeypatch):
    from dataclasses import replace

    (tmp_path / "home").mkdir()
    for name in ("base", "red"):
        shutil.copytree(siblings / name, tmp_path / "home" / name)
    monkeypatch.chdir(tmp_path / "home")
    replace(found, base="base", model="red").save("runs/out")
    told = yaml.safe_load((tmp_path / "home/runs/out/recipe.yaml").read_text())
    assert told == {
        "method": "graft",
        "base_model": "../../base",
        "models": [{"model": "../../red", "statistics": "mask"}],
    }
    before, _ = build(load(tmp_path / "home/runs/out/recipe.yaml"))
    kept = {name: before.compute(name) for name in before}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "home").rename(tmp_path / "moved")
    after, _ = build(load(tmp_path / "moved/runs/out/recipe.yaml"))
    assert all(np.array_equal(after.compute(name), kept[name]) for name in kept)


def test_what_was_chosen_and_why(found, capsys):
    from merganser.cli.localize import report
    from merganser.search.localization import _chosen

    shares = [(0.1, None, 0.5), (0.2, None, 0.97), (0.3, None, 0.99)]
    assert _chosen(shares, 0.95) == shares[1]
    assert _chosen(shares, 0.999) == shares[2]
    assert _chosen([(0.1, None, None), (0.2, None, None)], 0.95)[0] == 0.1
    assert found.report["kept_enough"] == (found.report["chosen_kept"] >= 0.95)
    base = dict(found.report) | {"chosen": 0.2}
    taken = "taken: at most 20.0000% of the entries"
    for kept, enough, words in (
        (0.97, True, "the smallest share that keeps 95% of the gain on red.jsonl (97.0%)"),
        (0.5, False, f"no share keeps 95% of the gain on red.jsonl; {taken}, which keep most of it (50.0%)"),
        (None, False, f"the fine-tune is no better than its base (accuracy); {taken}, the smallest"),
    ):
        report(base | {"chosen_kept": kept, "kept_enough": enough}, "out")
        said = capsys.readouterr().out
        assert words in said and ("chosen: at most 20.0000% of the entries" in said) == enough, said


def test_an_observed_mask_belongs_to_its_model(found, siblings, tmp_path):
    found.save(tmp_path / "out")
    told = {
        "method": "graft",
        "base_model": str(siblings / "base"),
        "models": [{"model": str(siblings / "blue"), "statistics": str(tmp_path / "out" / "mask")}],
    }
    with pytest.raises(RequestError, match="statistics of another model"):
        build(load(told))


def test_rows_of_two_tasks_differ(tmp_path):
    one, two = (write_rows(tmp_path / f"{task}.jsonl", task, 20, 0).read_text() for task in ("red", "blue"))
    assert one != two


def test_a_fine_tune_whose_config_contradicts_the_base_is_refused_and_the_way_out_works(siblings, tmp_path):
    shutil.copytree(siblings / "red", tmp_path / "other")
    file = tmp_path / "other" / "config.json"
    config = json.loads(file.read_text())
    key = next(key for key in ("layer_norm_eps", "rms_norm_eps", "layer_norm_epsilon") if key in config)
    file.write_text(json.dumps(config | {key: 0.125}))
    rows = read_rows(siblings / "red.jsonl").head(64)
    options = LocalizeOptions(**QUICK | {"steps": 1})
    with pytest.raises(RequestError, match=f"is no fine-tune of .*{key} is .* and 0.125 .* same value there"):
        localize(
            siblings / "base", tmp_path / "other", rows, test=siblings / "red.test.jsonl", options=options
        )
    file.write_text(json.dumps(config))
    assert localize(
        siblings / "base", tmp_path / "other", rows, test=siblings / "red.test.jsonl", options=options
    )
