"""Every family through every operation: what comes out opens in transformers without a missing or unexpected tensor.

Where an operation keeps the function, the outputs are compared; where the loader cannot express a size, the refusal
must name the rule.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import merganser as mg
from merganser.algebra import axes
from merganser.algebra.axes import reading_of
from merganser.architectures import Axis
from merganser.engine.plan import plan_weights
from merganser.errors import MerganserError

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_decoders  # noqa: E402
import tiny_encoders  # noqa: E402

MODELS = {**tiny_decoders.MODELS, **tiny_encoders.MODELS}
INPUTS = {**getattr(tiny_decoders, "INPUTS", {}), **tiny_encoders.INPUTS}
CLOSE = 2e-4


class Case:
    """A tiny model on disk, and what it answers."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        torch.manual_seed(0)
        self.model = MODELS[name]()
        self.model.save_pretrained(path / "model")
        self.kind = type(self.model)
        self.weights = mg.open(path / "model")
        self.reading = reading_of(self.weights)
        self.expected = self.answer(self.model)
        self.made = 0

    def inputs(self) -> dict[str, Any]:
        if self.name in INPUTS:
            return INPUTS[self.name]()
        size = self.model.config.get_text_config().vocab_size
        return {"input_ids": torch.arange(5, 12)[None] % size}

    def answer(self, model: Any) -> np.ndarray:
        model.set_experts_implementation("eager")  # the other kernels do not take sizes as small as these
        with torch.no_grad():
            out = model(**self.inputs())
        found = next(v for v in out.values() if torch.is_tensor(v) and v.is_floating_point() and v.dim() > 0)
        return found.double().numpy()

    def reopened(self, weights: mg.Weights) -> Any:
        """The weights saved and opened by transformers, every tensor accounted for."""
        self.made += 1
        out = self.path / f"out{self.made}"
        weights.save(out, sync=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, info = self.kind.from_pretrained(out, output_loading_info=True)
        assert not info["missing_keys"], info["missing_keys"]
        assert not info["unexpected_keys"], info["unexpected_keys"]
        assert not info["mismatched_keys"], info["mismatched_keys"]
        return model.eval()

    def same(self, weights: mg.Weights) -> None:
        found = self.answer(self.reopened(weights))
        scale = np.abs(self.expected).max()
        assert np.abs(found - self.expected).max() <= CLOSE * scale


CASES = sorted(
    name for name in MODELS if "-" not in name or name in ("llama-tied", "gpt2-tied", "bert-mlm", "t5-tied")
)
"""One case of every family, and some whose head is tied; test_families.py reads all of them."""


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("case"))


def free(case: Case, *, nonlinear: bool = True) -> list[str]:
    """The axes whose elements may be moved without mapping inputs or outputs."""
    io = ("vocab", "labels")
    return [
        name
        for name in case.reading.family.axes
        if case.reading.instances(name) and name not in case.reading.family.fixed and not name.startswith(io)
    ]


def planned(weights: mg.Weights) -> mg.Weights:
    """The weights, if a plan can be made of them."""
    plan_weights(weights)
    return weights


def shuffled(case: Case, name: str, seed: int) -> dict[tuple[int, ...], np.ndarray]:
    rng = np.random.default_rng(seed)
    return {one.at: rng.permutation(case.reading.sizes[one]) for one in case.reading.instances(name)}


def is_body_with_residual_output(case: Case) -> bool:
    """Whether the model's answer is the residual stream itself."""
    if not re.search(r"For|LMHead|With", case.kind.__name__):
        return True
    residual = {size for one, size in case.reading.sizes.items() if one.name.endswith("residual")}
    return case.expected.shape[-1] in residual


def test_permuting_all_free_axes_keeps_the_function(case):
    weights = case.weights
    for k, name in enumerate(free(case)):
        if name.endswith("residual") and is_body_with_residual_output(case):
            continue
        weights = axes.permute(weights, name, shuffled(case, name, k))
    case.same(weights)


def test_take_after_repeat_gives_the_bits_back(case):
    for name in free(case):
        sizes = {one: case.reading.sizes[one] for one in case.reading.instances(name)}
        grown = axes.repeat(case.weights, name, 2)
        back = planned(axes.take(grown, name, {one.at: range(size) for one, size in sizes.items()}))
        for tensor in case.weights:
            assert np.array_equal(mg.compute(back, tensor), mg.compute(case.weights, tensor)), (name, tensor)
        assert reading_of(back).followed() == case.reading.config


def test_wider_models_open_and_keep_their_function(case):
    done = []
    for name in free(case):
        size = max(case.reading.sizes[one] for one in case.reading.instances(name))
        target = 2 * size
        if name in case.reading.family.inexact:
            with pytest.raises(MerganserError, match=re.escape(case.reading.family.inexact[name])):
                axes.widen(case.weights, name, target)
            continue
        if name.endswith("residual") and is_body_with_residual_output(case):
            continue
        try:
            wider = planned(axes.widen(case.weights, name, target))
        except MerganserError as refusal:
            assert re.search(r"stock loader|fixed places|nearest", str(refusal)), str(refusal)
            continue
        case.same(wider)
        done.append(name)
    if case.name in ("llama", "gpt2", "bert", "vit", "whisper", "qwen3", "gemma2", "opt", "phi3"):
        assert any(name.endswith("neurons") for name in done)


def test_narrower_models_open_or_the_refusal_says_why(case):
    for name in free(case):
        sizes = {case.reading.sizes[one] for one in case.reading.instances(name)}
        if min(sizes) < 2:
            continue
        try:
            narrower = planned(axes.take(case.weights, name, range(min(sizes) - 1)))
        except MerganserError as refusal:
            assert re.search(r"stock loader|fixed places", str(refusal)), str(refusal)
            continue
        case.reopened(narrower)


def test_fewer_and_more_layers(case):
    for name, spec in case.reading.family.indices.items():
        if spec.scope or not case.reading.instances(name):
            continue
        count = case.reading.sizes[Axis(name)]
        if count < 2:
            continue
        try:
            fewer = planned(axes.take(case.weights, name, range(count - 1)))
            more = planned(axes.repeat(case.weights, name, 2))
        except MerganserError as refusal:
            assert "stock loader" in str(refusal) or "fixed places" in str(refusal), str(refusal)
            continue
        case.reopened(fewer)
        case.reopened(more)
        try:
            silent = axes.silence(more, name, range(count, 2 * count))
        except MerganserError as refusal:
            assert "stream" in str(refusal)
            continue
        case.same(silent)


def test_rotation_keeps_the_function_or_says_what_stands_in_the_way(case):
    from merganser.methods.axes.elements import random_rotation

    for name in free(case):
        if not (name.endswith("residual") or name == "value_dim"):
            continue
        if name.endswith("residual") and is_body_with_residual_output(case):
            continue
        centred = name != "value_dim"
        matrices = {
            one.at: random_rotation(case.reading.sizes[one], 1, keep_ones=centred)
            for one in case.reading.instances(name)
        }
        try:
            turned = planned(axes.rotate(case.weights, name, matrices))
        except MerganserError as refusal:
            assert re.search(
                r"norm|bias|reads its output|nonlinearity|one by one|fixed places", str(refusal)
            ), str(refusal)
            continue
        case.same(turned)


def test_operations_on_different_axes_commute(case):
    names = free(case)[:3]
    orders = {name: shuffled(case, name, k) for k, name in enumerate(names)}
    forward = backward = case.weights
    for name in names:
        forward = axes.permute(forward, name, orders[name])
    for name in reversed(names):
        backward = axes.permute(backward, name, orders[name])
    for tensor in list(case.weights)[:40]:
        assert np.array_equal(mg.compute(forward, tensor), mg.compute(backward, tensor))


def test_padded_scaled_and_joined_models_open(case):
    """On the first axis of the family that the config can double: neurons wherever there are some."""
    names = sorted(free(case), key=lambda name: "neurons" not in name)
    for name in names:
        if case.reading.family.axes[name].scope == ():
            continue
        size = max(case.reading.sizes[one] for one in case.reading.instances(name))
        try:
            padded = planned(axes.pad(case.weights, name, 2 * size))
        except MerganserError as refusal:
            assert re.search(r"stock loader|fixed places|does not keep", str(refusal)), str(refusal)
            continue
        case.reopened(padded)
        case.reopened(axes.scale(case.weights, name, [2.0] * size, side="write"))
        case.reopened(axes.resize(padded, name, size))
        case.reopened(axes.drop(padded, name, range(size, 2 * size)))
        try:
            joined = planned(axes.concat([case.weights, case.weights], name))
        except MerganserError as refusal:
            assert "one outer dimension" in str(refusal), str(refusal)
            return
        case.reopened(joined)
        return
