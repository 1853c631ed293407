"""`--check`: steps go through a small model of the same config, which transformers opens and runs before and after."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import merganser as mg
from merganser.algebra import Weights
from merganser.algebra.axes import reading_of
from merganser.cli import app
from merganser.errors import RequestError, VerificationError
from merganser.methods import all_steps, get_step, step
from merganser.methods.check import check_steps
from merganser.methods.steps import STAYS, _registered

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

MEMORY = 8 << 30
LLAMA = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def stored(place: Path, kind: str = "llama", head: str = "CausalLM", **more) -> Path:
    torch.manual_seed(3)
    auto = transformers.AutoModel if head == "Body" else getattr(transformers, f"AutoModelFor{head}")
    model = auto.from_config(transformers.AutoConfig.for_model(kind, **{**LLAMA, **more}))
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape)
    model.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return stored(tmp_path_factory.mktemp("llama") / "model")


def checked(place: Path, *calls) -> dict:
    return check_steps(
        mg.open(place), [(get_step(name), settings) for name, settings in calls], memory=MEMORY
    )


@pytest.mark.parametrize(
    "calls",
    [
        [("upcycle", {"experts": 3})],
        [("g_stack", {"factor": 2, "silent": True}), ("widen", {"axis": "neurons", "factor": 2})],
        [("permute", {"axis": "kv_heads", "order": [3, 1, 0, 2]}), ("fold_norms", {})],
        [("layers", {"keep": [0, 1, 1, 2], "silent": True})],
    ],
)
def test_claims_that_hold_are_shown_by_numbers(llama, calls):
    found = checked(llama, *calls)
    assert found["exact"]
    assert found["largest_difference"] < 1e-3 * found["largest_value"]
    named = json.dumps([settings for _, settings in calls])
    for axis, (old, new) in found["sizes"].items():
        assert new < old
        assert f'"{axis}"' not in named


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("layers", {"keep": [1, 2], "silent": True}),
        ("g_stack", {"factor": 2}),
        ("narrow", {"axis": "neurons", "size": 90}),
        ("average_experts", {}),
    ],
)
def test_steps_that_change_the_function_are_only_opened(llama, tmp_path, name, settings):
    place = llama
    if name == "average_experts":
        get_step("upcycle").function(mg.open(llama), experts=2).save(place := tmp_path / "moe", sync=False)
    found = checked(place, (name, settings))
    assert not found["exact"]
    assert "changes the function" in found["not_compared"]


def test_pictures_are_run_and_a_body_whose_stream_changes_is_not(tmp_path):
    vit = stored(
        tmp_path / "vit", "vit", "ImageClassification", image_size=8, patch_size=4, num_key_value_heads=8
    )
    assert checked(vit, ("widen", {"axis": "neurons", "factor": 2}))["largest_value"] > 0
    body = stored(tmp_path / "body", head="Body")
    order = [*range(1, 64), 0]
    assert (
        "residual stream" in checked(body, ("permute", {"axis": "residual", "order": order}))["not_compared"]
    )


def test_a_step_with_numbers_that_only_the_whole_model_has_is_checked_on_the_whole(llama):
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
    path = llama.parent / "turn.npy"
    np.save(path, matrix)
    assert checked(llama, ("rotate", {"matrix": path}))["exact"]


@pytest.fixture
def liars():
    """Steps that claim that the function stays, and do not keep the claim."""

    @step("louder", claim=STAYS)
    def louder(weights: Weights) -> Weights:
        return weights.map(lambda name, e: e * 3.0 if "down_proj" in name else e).map(
            lambda _, e: e, degree=1.0
        )

    @step("says_biases", claim=STAYS)
    def says_biases(weights: Weights) -> Weights:
        """A config that the tensors do not fit."""
        reading = reading_of(weights)
        config = {**reading.config, "attention_bias": True}
        kept = {name: weights.entry(name) for name in weights}
        return weights._with(kept, reading=reading.resized(reading.sizes, reading.tensors, config))

    yield
    for name in ("louder", "says_biases"):
        _registered.pop(name)


def test_claims_that_do_not_hold_are_refused_before_anything_is_written(llama, tmp_path, liars):
    with pytest.raises(VerificationError, match=r"outputs differ by .*claim that the function stays"):
        checked(llama, ("louder", {}))
    done = CliRunner().invoke(app, ["reshape", str(llama), str(tmp_path / "out"), "louder", "--check"])
    assert done.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert CliRunner().invoke(app, ["reshape", str(llama), str(tmp_path / "out"), "louder"]).exit_code == 0


def test_tensors_that_are_lost_are_named(llama, liars):
    with pytest.raises(VerificationError, match=r"it lacks .*self_attn\.\w_proj\.bias"):
        checked(llama, ("says_biases", {}))


def test_what_stands_in_the_way_is_said_with_a_way_out(llama, monkeypatch, tmp_path):
    calls = [(get_step("fold_norms"), {})]
    with pytest.raises(RequestError, match=r"--memory is .*; give --memory more, or leave --check away"):
        check_steps(mg.open(llama), calls, memory=1000)
    monkeypatch.setattr("merganser.running.needs.find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"pip install 'merganser\[models\]'"):
        check_steps(mg.open(llama), calls, memory=MEMORY)


def test_the_commands_say_what_was_checked(llama, tmp_path):
    run = CliRunner().invoke
    more = ["--check", "--memory", "8GiB"]
    done = run(app, ["reshape", str(llama), str(tmp_path / "a"), "upcycle: {experts: 2}", *more, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["check"]["exact"] is True
    recipe = tmp_path / "moe.yaml"
    recipe.write_text(
        f"base_model: {llama}\ngate_mode: random\nexperts: [{{source_model: {llama}}}, {{source_model: {llama}}}]\n"
    )
    done = run(app, ["merge", str(recipe), str(tmp_path / "b"), *more])
    assert done.exit_code == 0, done.output
    assert "it opens in transformers" in done.output.replace("\n", " ")
    recipe.write_text(f"model: {llama}\nsteps:\n  - g_stack: {{factor: 2, silent: true}}\n")
    done = run(app, ["merge", str(recipe), str(tmp_path / "c"), *more])
    assert done.exit_code == 0, done.output
    assert "outputs differ by at most" in done.output.replace("\n", " ")


def test_the_page_lists_every_steps_claim():
    page = (Path(__file__).parents[2] / "docs" / "named-axes.md").read_text()
    rows = dict(
        line.strip("|\n ").split(" | ")
        for line in page.splitlines()
        if line.startswith("| `") and line.count("|") == 3
    )
    assert rows == {f"`{name}`": str(found.claim) for name, found in all_steps().items()}
