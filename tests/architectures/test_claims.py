"""Every step's claim on every family, also with configs as older releases wrote them: the sweep behind `--check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import merganser as mg
from merganser.algebra.axes import reading_of
from merganser.engine.plan import plan_weights
from merganser.errors import MerganserError, VerificationError
from merganser.methods import get_step
from merganser.methods.check import check_steps

pytestmark = [pytest.mark.models, pytest.mark.nightly]
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_decoders  # noqa: E402
import tiny_encoders  # noqa: E402

MODELS = {**tiny_decoders.MODELS, **tiny_encoders.MODELS}


def older(place: Path) -> bool:
    """Rewrite config.json to what older releases wrote, key by key as long as transformers reads the same from it."""
    file = place / "config.json"
    told = json.loads(file.read_text())
    meant = transformers.AutoConfig.from_pretrained(place).to_dict()
    changed = False
    for key in [*told]:
        if key in ("model_type", "architectures"):
            continue
        tried = {k: v for k, v in told.items() if k != key}
        if key == "rope_parameters" and isinstance(told[key], dict) and "rope_theta" in told[key]:
            scaling = {k: v for k, v in told[key].items() if k not in ("rope_theta", "partial_rotary_factor")}
            tried["rope_theta"] = told[key]["rope_theta"]
            if "partial_rotary_factor" in told[key]:
                tried["partial_rotary_factor"] = told[key]["partial_rotary_factor"]
            if scaling.get("rope_type", "default") != "default":
                tried["rope_scaling"] = scaling
        file.write_text(json.dumps(tried))
        try:
            same = transformers.AutoConfig.from_pretrained(place).to_dict() == meant
        except Exception:
            same = False
        if same:
            told, changed = tried, True
    file.write_text(json.dumps(told))
    return changed


def exact_ones(reading: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps that may keep the function, with settings for a model as it is now."""
    for axis in reading.family.axes:
        sizes = {reading.sizes[one] for one in reading.instances(axis)}
        if (
            len(sizes) != 1
            or min(sizes) < 2
            or axis.startswith(("vocab", "labels", "positions", "token_types"))
        ):
            continue
        size = sizes.pop()
        yield "permute", {"axis": axis, "order": [*range(1, size), 0]}
        yield "pad", {"axis": axis, "size": 2 * size}
        yield "widen", {"axis": axis, "factor": 2}
        yield "rotate", {"axis": axis}
    for index, spec in reading.family.indices.items():
        count = max((reading.sizes[one] for one in reading.instances(index)), default=0)
        if spec.scope or count < 2:
            continue
        yield "layers", {"keep": [*range(count), 0], "silent": True, "index": index}
        yield "g_stack", {"factor": 2, "silent": True, "index": index}
        yield "interleave", {"factor": 2, "silent": True, "index": index}
    yield "fold_norms", {}
    yield "split_experts", {"parts": 2}
    yield "upcycle", {"experts": 3, "per_token": 2}


def others(reading: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps that change the function."""
    for axis in reading.family.axes:
        sizes = {reading.sizes[one] for one in reading.instances(axis)}
        if len(sizes) == 1 and min(sizes) > 3:
            yield "take", {"axis": axis, "keep": list(range(2, min(sizes)))}
    for index, spec in reading.family.indices.items():
        count = max((reading.sizes[one] for one in reading.instances(index)), default=0)
        if not spec.scope and count > 1:
            yield "layers", {"keep": [count - 1, *range(count)], "index": index}
            yield "drop_layers", {"layers": [0], "index": index}
    yield "average_experts", {"scale": 1.0}


def accepted(weights: mg.Weights, wanted: Any) -> list[tuple[Any, dict[str, Any]]]:
    """The steps, one after the other, that do not refuse the model as the ones before have made it."""
    calls: list[tuple[Any, dict[str, Any]]] = []
    for name in dict.fromkeys(name for name, _ in wanted(reading_of(weights))):
        for place in range(len(list(wanted(reading_of(weights))))):
            ready = list(wanted(reading_of(weights)))
            if place >= len(ready) or ready[place][0] != name:
                continue
            step, settings = get_step(name), ready[place][1]
            if wanted is exact_ones and not step.claim.exact(weights, settings):
                continue
            try:
                made = step.function(weights, **settings)
                plan_weights(made)
            except MerganserError:
                continue
            calls.append((step, settings))
            weights = made
    return calls


@pytest.mark.parametrize("form", ["as-saved", "older"])
@pytest.mark.parametrize("name", MODELS)
def test_every_step_keeps_its_claim_or_is_refused(name, form, tmp_path):
    MODELS[name]().save_pretrained(tmp_path / "model")
    if form == "older" and not older(tmp_path / "model"):
        pytest.skip("config.json has nothing that older releases left out")
    weights = mg.open(tmp_path / "model")
    for wanted in (exact_ones, others):
        calls = accepted(weights, wanted)
        if not calls:
            continue
        try:
            check_steps(weights, calls, memory=16 << 30)
        except VerificationError as error:
            alone = []
            for call in calls:  # which of them it is
                try:
                    check_steps(weights, [call], memory=16 << 30)
                except MerganserError as one:
                    alone.append(f"{call[0].name} {str(call[1])[:90]}: {one}")
            told = [f"{step.name} {str(settings)[:60]}" for step, settings in calls]
            pytest.fail("\n".join([str(error), *(alone or ["only together: ", *told])]), pytrace=False)
