"""Fisher averaging and RegMean, from observing to the merged model, against plain torch written apart.

Tolerance: 1e-4 of the largest entry of a tensor. Both sides sum thousands of f32 products in another order.
"""

from __future__ import annotations

import numpy as np
import pytest
from makers import read_model
from two_tasks import TASKS, write_siblings

import merganser as mg
from merganser.recipe import build, load

pytestmark = pytest.mark.models
ROWS = 24


@pytest.fixture(scope="module")
def siblings(tmp_path_factory):
    """The siblings, with stats/red and stats/blue as observe writes them."""
    import torch

    from merganser.observe import observe

    torch.set_num_threads(1)
    place = write_siblings(tmp_path_factory.mktemp("siblings"))
    for task in TASKS:
        observe(
            place / task,
            place / f"{task}.jsonl",
            place / "stats" / task,
            collect="fisher,gram",
            rows=ROWS,
            batch=8,
        )
    return place


def merged(siblings, method, **parameters):
    models = [{"model": str(siblings / task), "statistics": str(siblings / "stats" / task)} for task in TASKS]
    weights, fields = build(load({"method": method, "models": models, "parameters": parameters}))
    out = siblings / f"{method}-{len(list(siblings.iterdir()))}"
    report = mg.save(weights, out, **fields)
    return read_model(out), report


def rows(siblings, task):
    import json

    lines = (siblings / f"{task}.jsonl").read_text().splitlines()[:ROWS]
    return [json.loads(line)["text"] for line in lines]


def in_transformers(siblings, task):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    place = siblings / task
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    return model, [tokenizer(text, return_tensors="pt") for text in rows(siblings, task)]


def close(ours, theirs):
    for name, value in theirs.items():
        expected = value.detach().numpy()
        np.testing.assert_allclose(
            ours[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name
        )


def plain_fisher(siblings, task):
    """E_x E_(y ~ p) of the squared gradient of log p(y | x), a row and a class at a time."""
    import torch

    model, inputs = in_transformers(siblings, task)
    found = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for one in inputs:
        for label in range(2):
            model.zero_grad()
            logs = model(**one).logits[0].log_softmax(0)
            logs[label].backward()
            for name, value in model.named_parameters():
                found[name] += logs[label].detach().exp() * value.grad**2 / len(inputs)
    return dict(model.named_parameters()), found


@pytest.mark.parametrize("normalize", [False, True])
def test_fisher(siblings, normalize):
    import torch

    ours, _ = merged(siblings, "fisher", normalize=normalize, floor=1e-9)
    pairs = [plain_fisher(siblings, task) for task in TASKS]
    scales = [
        1 / torch.sqrt(sum((f.double() ** 2).sum() for f in found.values())) if normalize else 1.0
        for _, found in pairs
    ]
    theirs = {}
    for name in pairs[0][0]:
        parts = [s * f[name].double().clamp(min=1e-9) for s, (_, f) in zip(scales, pairs, strict=True)]
        theirs[name] = sum(p * m[name].double() for p, (m, _) in zip(parts, pairs, strict=True)) / sum(parts)
    close(ours, theirs)


def plain_grams(siblings, task):
    import torch

    model, inputs = in_transformers(siblings, task)
    found, tokens = {}, {}

    def hook(name):
        def keep(module, given, _):
            x = given[0].detach().reshape(-1, given[0].shape[-1]).double()
            found[name] = found.get(name, 0) + x.T @ x
            tokens[name] = tokens.get(name, 0) + len(x)

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        for one in inputs:
            model(**one)
    return dict(model.named_parameters()), {name: gram / tokens[name] for name, gram in found.items()}


@pytest.mark.parametrize("alpha", [0.9, 0.1])
def test_regmean(siblings, alpha):
    import torch

    ours, report = merged(siblings, "regmean", alpha=alpha)
    pairs = [plain_grams(siblings, task) for task in TASKS]
    theirs = {}
    for name in pairs[0][0]:
        tensors = [model[name].double() for model, _ in pairs]
        if name not in pairs[0][1]:
            theirs[name] = sum(tensors) / len(tensors)
            continue
        grams = [alpha * g[name] + (1 - alpha) * torch.diag(torch.diagonal(g[name])) for _, g in pairs]
        right = sum(g @ t.T for g, t in zip(grams, tensors, strict=True))
        theirs[name] = (torch.inverse(sum(grams)) @ right).T
    close(ours, theirs)
    (note,) = report.notes
    assert sorted(note["tensors without statistics"]) == sorted(set(theirs) - set(pairs[0][1]))


def test_statistics_of_the_other_sibling_are_refused(siblings):
    models = [
        {"model": str(siblings / one), "statistics": str(siblings / "stats" / two)}
        for one, two in zip(TASKS, reversed(TASKS), strict=True)
    ]
    with pytest.raises(mg.MerganserError, match="statistics of another model"):
        build(load({"method": "fisher", "models": models}))


def test_observed_tokens_weigh_the_grams(siblings):
    from merganser.observe import observe

    place = siblings / "stats" / "fewer"
    observe(siblings / "blue", siblings / "blue.jsonl", place, collect="gram", rows=ROWS // 3, batch=8)
    found = []
    for weight, parameters in (((1, 1), {"by_tokens": True}), ((3, 1), {}), ((1, 1), {})):
        models = [
            {"model": str(siblings / task), "statistics": str(place), "parameters": {"weight": w}}
            for task, place, w in zip(TASKS, (siblings / "stats" / "red", place), weight, strict=True)
        ]
        weights, _ = build(load({"method": "regmean", "models": models, "parameters": parameters}))
        found.append(mg.compute(weights, "bert.encoder.layer.0.output.dense.weight"))
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)  # every row has 14 tokens
    assert np.abs(found[0] - found[2]).max() > 1e-4
