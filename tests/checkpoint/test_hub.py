"""Models on the hub: a server of our own, commands in processes of their own, every request counted."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hub_server import COMMIT, OLDER, Hub, serving
from makers import environment, normal, read_model, write_file, write_model

TOKEN = "hf_aVerySecretTokenOfTheUser"


@pytest.fixture
def hub(tmp_path):
    tensors = {f"w.{k}": normal(300, 400, seed=k) for k in range(3)}
    base = write_model(tmp_path / "base", tensors)
    (base / "tokenizer_config.json").write_text("{}")
    write_model(tmp_path / "tuned", {name: array + 0.5 for name, array in tensors.items()})
    write_model(tmp_path / "odd", {"w.0": normal(2, 2)})
    found = Hub()
    found.add("org/base", base)
    found.add("org/tuned", tmp_path / "tuned")
    found.add("org/odd", tmp_path / "odd")
    with serving(found):
        yield found


def command(hub, tmp_path, *arguments, **more):
    env = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "MERGANSER_DEBUG": "1",
    } | more
    return subprocess.run(
        [sys.executable, "-m", "merganser", *map(str, arguments)],
        cwd=tmp_path,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def recipe(tmp_path, *models, method="linear", more=""):
    listed = "".join(f"- {{model: {model}}}\n" for model in models)
    (tmp_path / "recipe.yaml").write_text(f"method: {method}\nmodels:\n{listed}{more}")
    return "recipe.yaml"


def clean(done):
    assert TOKEN not in done.stdout + done.stderr
    return done


def test_a_merge_of_two_models_on_the_hub(hub, tmp_path):
    done = clean(command(hub, tmp_path, "merge", recipe(tmp_path, "org/base", "org/tuned"), "out", "--quiet"))
    assert done.returncode == 0, done.stderr
    merged, base = read_model(tmp_path / "out"), read_model(tmp_path / "base")
    for name, array in base.items():
        np.testing.assert_allclose(merged[name], array + 0.25, atol=1e-6)
    manifest = json.loads((tmp_path / "out" / "merganser.json").read_text())
    assert [p["path"] for p in manifest["parents"]] == [f"hf://org/base@{COMMIT}", f"hf://org/tuned@{COMMIT}"]
    assert (tmp_path / "out" / "tokenizer_config.json").exists()
    assert TOKEN not in (tmp_path / "out" / "merganser.json").read_text()
    assert hub.tokens == {TOKEN}, "the token reaches the hub and nobody else"


def test_a_plan_reads_headers_only(hub, tmp_path):
    done = clean(command(hub, tmp_path, "explain", recipe(tmp_path, "org/base", "org/tuned"), "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bytes_read"] == 2 * 3 * 300 * 400 * 4
    wanted = hub.requests("model.safetensors")
    assert wanted and all(method == "GET" and part == "bytes=0-131071" for method, part in wanted)
    assert hub.sent["model.safetensors"] == 2 * 131072


def test_headers_longer_than_the_first_part_are_read_in_full(hub, tmp_path):
    many = {f"a.very.long.name.of.a.tensor.{'x' * 150}.{k}": normal(2, seed=k) for k in range(1000)}
    write_model(tmp_path / "many", many)
    hub.add("org/many", tmp_path / "many")
    done = clean(command(hub, tmp_path, "info", "org/many", "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tensors"] == 1000


def test_a_wrong_recipe_fails_before_anything_is_downloaded(hub, tmp_path):
    for text in (
        recipe(tmp_path, "org/base", "org/odd"),
        recipe(tmp_path, "org/base", "org/tuned", more="parameters: {weight: {'no.such.*': 1}}\n"),
    ):
        done = clean(command(hub, tmp_path, "merge", text, "out"))
        assert done.returncode == 2, done.stderr
        assert all(part for _, part in hub.requests("model.safetensors")), "parts only"
        assert sum(hub.sent.values()) < 1_000_000
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    done = clean(command(hub, tmp_path, "merge", recipe(tmp_path, "org/base", "org/tuned"), "out"))
    assert done.returncode == 2 and "exists" in done.stderr
    assert all(part for _, part in hub.requests("model.safetensors"))


def test_a_revision_is_pinned(hub, tmp_path):
    write_model(tmp_path / "older", {f"w.{k}": np.zeros((300, 400), np.float32) for k in range(3)})
    hub.add("org/base", tmp_path / "older", OLDER)
    for reference, commit in (
        ("org/base@v1", OLDER),
        ("hf://org/base", COMMIT),
        (f"org/base@{OLDER}", OLDER),
    ):
        text = f"model: '{reference}'\n"
        (tmp_path / "one.yaml").write_text(text)
        done = clean(command(hub, tmp_path, "merge", "one.yaml", "out", "--quiet", "--overwrite"))
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / "out" / "merganser.json").read_text())
        assert manifest["parents"][0]["path"] == f"hf://org/base@{commit}"
        assert bool(read_model(tmp_path / "out")["w.0"].any()) == (commit == COMMIT)
    before = len(hub.asked)
    done = command(hub, tmp_path, "merge", "one.yaml", "out", "--quiet", "--overwrite")
    assert done.returncode == 0, "a commit that is in the cache"
    assert len(hub.asked) == before, "needs no network"


def test_a_download_that_broke_off_goes_on(hub, tmp_path):
    write_model(tmp_path / "large", {"w": normal(1500, 2000)})
    hub.add("org/large", tmp_path / "large")
    (tmp_path / "one.yaml").write_text("model: org/large\n")
    hub.cut = 100
    done = clean(command(hub, tmp_path, "merge", "one.yaml", "out"))
    assert done.returncode == 1, done.stderr
    assert not (tmp_path / "out").exists()
    hub.cut, hub.asked[:] = 0, []
    done = clean(command(hub, tmp_path, "merge", "one.yaml", "out", "--quiet"))
    assert done.returncode == 0, done.stderr
    assert any(part and not part.startswith("bytes=0-") for _, part in hub.requests("model.safetensors"))
    assert np.array_equal(read_model(tmp_path / "out")["w"], read_model(tmp_path / "large")["w"])


def test_a_download_with_a_wrong_bit_is_refused_and_deleted(hub, tmp_path):
    (tmp_path / "one.yaml").write_text("model: org/base\n")
    hub.wrong = True
    done = clean(command(hub, tmp_path, "merge", "one.yaml", "out"))
    assert done.returncode == 1
    assert "its SHA-256 is" in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    hub.wrong = False
    done = command(hub, tmp_path, "merge", "one.yaml", "out", "--quiet")
    assert done.returncode == 0, done.stderr


def test_shards_and_an_index_that_lies(hub, tmp_path):
    directory = tmp_path / "shards"
    directory.mkdir()
    arrays = {"a": normal(4, 4), "b": normal(4, 4, seed=1)}
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        write_file(directory / file, {name: arrays[name]})
    (directory / "config.json").write_text("{}")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    hub.add("org/shards", directory)
    (tmp_path / "one.yaml").write_text("model: org/shards\n")
    done = clean(command(hub, tmp_path, "merge", "one.yaml", "out", "--quiet"))
    assert done.returncode == 0, done.stderr
    assert set(read_model(tmp_path / "out")) == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    hub.add("org/liar", directory)
    done = clean(command(hub, tmp_path, "info", "org/liar"))
    assert done.returncode == 1 and "only plain file names" in done.stderr


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/nothing", "no model of that name on the hub"),
        ("org/base@v9", "the hub has the model, but not this revision"),
        ("org/secret", "no model of that name on the hub that you may read"),
        ("hf://base", "is not a hub id"),
    ],
)
def test_what_is_not_there(hub, tmp_path, reference, message):
    hub.add("org/secret", tmp_path / "base")
    hub.private.add("org/secret")
    done = command(hub, tmp_path, "info", reference, HF_TOKEN="")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_the_network_may_be_forbidden(hub, tmp_path):
    done = command(hub, tmp_path, "info", "org/base", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert not hub.asked
    command(hub, tmp_path, "merge", recipe(tmp_path, "org/base", "org/tuned"), "out")
    asked = len(hub.asked)
    done = command(hub, tmp_path, "info", "org/base", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert len(hub.asked) == asked


def test_a_hub_that_does_not_answer(hub, tmp_path):
    done = clean(command(hub, tmp_path, "info", "org/base", HF_ENDPOINT="http://127.0.0.1:9"))
    assert done.returncode == 1
    assert "the hub could not be asked" in done.stderr


def test_a_misspelt_path_is_no_hub_id(hub, tmp_path):
    write_model(tmp_path / "models" / "llama", {"w": normal(2)})
    done = command(hub, tmp_path, "info", "models/lama")
    assert done.returncode == 2
    assert not hub.asked


def test_parts_are_downloaded_and_copies_are_not(hub, tmp_path):
    model = write_model(tmp_path / "sentences", {"w": normal(4)})
    for name in ("2_Dense/model.safetensors", "onnx/deep/model.onnx", "mm_projector.bin", "onnx/config.json"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(name.encode())
    (model / "2_Dense" / "config.json").write_text("{}")
    (model / "modules.json").write_text(json.dumps([{"path": "2_Dense", "type": "models.Dense"}]))
    hub.add("org/sentences", model)
    done = clean(command(hub, tmp_path, "merge", recipe(tmp_path, "org/sentences", "org/sentences"), "out"))
    assert done.returncode == 0, done.stderr
    for name in ("2_Dense/model.safetensors", "2_Dense/config.json", "mm_projector.bin"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    assert "2_Dense/model.safetensors" in done.stdout and "left out onnx/" in done.stdout
    assert not hub.requests("model.onnx") and not hub.requests("onnx/config.json")


def test_two_sets_of_weights_and_pipelines_on_the_hub(hub, tmp_path):
    two = write_model(tmp_path / "two", {"w": normal(4)})
    write_file(two / "model-00001-of-00002.safetensors", {"w": normal(4)})
    hub.add("org/two", two)
    pipeline = tmp_path / "pipeline"
    write_model(pipeline / "unet", {"w": normal(4)})
    (pipeline / "model_index.json").write_text("{}")
    write_file(pipeline / "whole.safetensors", {"w": normal(4)})
    hub.add("org/pipeline", pipeline)
    cut = tmp_path / "cut"
    write_model(cut, {"w": normal(4)})
    (cut / "model.safetensors").rename(cut / "model-00002-of-00002.safetensors")
    hub.add("org/cut", cut)
    for name, expected in (
        ("two", "holds both model.safetensors and model-00001-of-00002.safetensors"),
        ("pipeline", "is a diffusers pipeline"),
        ("cut", "model-00001-of-00002.safetensors is missing"),
    ):
        done = clean(command(hub, tmp_path, "info", f"org/{name}"))
        assert done.returncode in (1, 2) and expected in done.stderr and f"hf://org/{name}" in done.stderr
