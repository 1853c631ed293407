"""A zoo of tiny models: made in processes, killed and taken up again, then judged by merganser's own evaluation."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("pyarrow")

import tiny_zoo  # noqa: E402
from demo import fetch  # noqa: E402
from demo.fetch import DemoError, intact  # noqa: E402
from rich.console import Console  # noqa: E402
from tiny_zoo import CUT, train  # noqa: E402

import merganser as mg  # noqa: E402
from merganser.evaluate import Suite, evaluate  # noqa: E402
from zoo import build, jobs, packages, suites, workers  # noqa: E402
from zoo.domains import domains  # noqa: E402
from zoo.splits import split  # noqa: E402
from zoo.tasks import sources  # noqa: E402

pytestmark = pytest.mark.models
NAMES = [
    "minilm base",
    "llama base",
    "minilm multitask 1",
    "llama multitask 1",
    "minilm colours 1",
    "minilm animals 1",
    "llama prose 1",
    "llama lists 1",
]


def models(root: Path) -> dict[str, Path]:
    return {p.name: p for p in root.glob("models/*") if not p.name.startswith(".")}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A zoo whose build was killed after its first model and begun again; with the models the kill left."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("zoo")
    base, root = tiny_zoo.base(place / "base"), place / "root"
    command = f"""
import sys
sys.path[:0] = {sys.path!r}
if __name__ == "__main__":
    import tiny_zoo
    from pathlib import Path
    tiny_zoo.train(Path({str(root)!r}), Path({str(base)!r}), 2)
"""
    script = place / "run.py"
    script.write_text(command)
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        until(lambda: models(root) or process.poll() is not None)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers_left = [int(p) for p in children.read_text().split()] if children.exists() else []
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not any(Path(f"/proc/{p}").exists() for p in workers_left))
    left = {name: (path / workers.RECORD).stat().st_mtime_ns for name, path in models(root).items()}
    assert left, process.stderr.read().decode()
    (root / "models" / ".partial-killed").mkdir(exist_ok=True)
    workers.clear(root)
    train(root, base, 0)
    return root, base, left


def until(true, seconds=600):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_killed_build_is_taken_up_where_it_was(zoo):
    root, _, left = zoo
    assert len(models(root)) == len(NAMES) - 1  # the encoders' base lies elsewhere
    assert all(
        (root / "models" / name / workers.RECORD).stat().st_mtime_ns == at for name, at in left.items()
    )
    assert all(intact(path) for path in models(root).values())
    assert not list(root.rglob(".partial*"))


def test_the_index_names_every_model(zoo):
    root, base, _ = zoo
    index = json.loads((root / "zoo.json").read_text())
    assert index["whole"] is True
    assert [m["name"] for m in index["models"]] == NAMES
    for model in index["models"]:
        folder = root / model["folder"]
        assert fetch.digest(folder / "model.safetensors") == model["sha256"]
        assert set(mg.open(folder)) == set(
            mg.open(base if model["family"] == "minilm" else root / index["models"][1]["folder"])
        )
    assert {m["role"] for m in index["models"]} == {"base", "sibling", "multitask"}
    assert index["tasks"]["colours"]["rows"] == {"train": 60, "validation": 12, "test": 20}
    assert index["suites"] == [
        f"suites/{f}.{p}.yaml" for f in ("llama", "minilm") for p in ("test", "validation")
    ]


def test_merganser_scores_the_models_as_the_zoo_did(zoo):
    root, _, _ = zoo
    index = json.loads((root / "zoo.json").read_text())
    for model in index["models"]:
        metric = "accuracy" if model["family"] == "minilm" else "bits_per_byte"
        results = evaluate(root / model["folder"], root / "suites" / f"{model['family']}.validation.yaml")
        found = {name: results.tasks[name].metrics[metric] for name in model["validation"]}
        assert found == pytest.approx(model["validation"], rel=1e-5), model["name"]


def test_suites_hold_the_splits(zoo):
    root, _, _ = zoo
    for part in ("validation", "test"):
        for task, spec in zip(
            tiny_zoo.tasks(), Suite.open(root / "suites" / f"minilm.{part}.yaml").tasks, strict=True
        ):
            rows = getattr(task, part)
            spec.check()
            assert spec.rows.column("text") == list(rows.texts)
            assert spec.rows.column("label") == [task.classes[y] for y in rows.labels]
            assert len(set(spec.rows.column("id"))) == len(rows)
    task = tiny_zoo.tasks()[0]
    plain = [
        json.loads(line) for line in (root / "suites/calibration/colours.jsonl").read_text().splitlines()
    ]
    assert plain == [{"text": t} for t in task.train.texts[: suites.CALIBRATION]]
    labelled = (root / "suites/calibration/colours.labelled.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in labelled] == [row["text"] for row in plain]
    assert not {row["text"] for row in plain} & {*task.validation.texts, *task.test.texts}


def test_a_second_build_trains_nothing_and_a_damaged_model_is_trained_again(zoo, monkeypatch):
    root, base, _ = zoo
    made = []
    monkeypatch.setattr(workers, "make", lambda job, tick: made.append(job.name) or real(job, tick))
    train(root, base, 0)
    assert made == []
    (path,) = root.glob("models/llama-lists-1-*")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    train(root, base, 0)
    assert made == ["llama lists 1"]
    assert (path / "model.safetensors").read_bytes() == whole  # the same seed, the same bytes


real = workers.make


def listed(root, base, cut=CUT, tasks=None, **changes):
    rows = {n: root / n for n in (*cut.tasks, *cut.domains)}
    return jobs.jobs(root, base, tasks or tiny_zoo.tasks(), tiny_zoo.domains(), replace(cut, **changes), rows)


def test_names_cover_what_a_model_depends_on(zoo, tmp_path):
    root, base, _ = zoo
    before = {j.name: j.folder for j in listed(root, base)}
    assert set(before.values()) == {p for k in ("models", "heads") for p in root.glob(f"{k}/*")}

    def changed(**changes):
        after = {j.name: j.folder for j in listed(root, base, **changes)}
        return {name for name in before if after[name] != before[name]}

    llamas = {name for name in before if name.startswith("llama")}
    assert changed() == set()
    assert changed(drawn=31) == set(before) - llamas
    assert changed(steps=4) == llamas - {"llama base"}
    assert changed(steps_base=7) == llamas
    one, two = tiny_zoo.tasks()
    other = replace(two, train=replace(two.train, labels=tuple(1 - y for y in two.train.labels)))
    assert changed(tasks=[one, other]) == {"head animals", "animals 1", "multitask 1"}
    elsewhere = tmp_path / "base"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_bytes(b"other weights")
    moved = {j.name: j.folder for j in listed(root, elsewhere)}
    assert {name for name in before if moved[name] != before[name]} == set(before) - llamas


class Silent:
    def start(self, job):
        pass

    share = finish = start


def test_a_job_that_fails_names_itself_and_leaves_nothing(zoo, tmp_path):
    root, base, _ = zoo
    job = replace(
        listed(root, base)[0],
        folder=tmp_path / "heads" / "broken",
        paths={"base": base, "rows": {"colours": tmp_path / "nothing"}},
    )
    with pytest.raises(FileNotFoundError):
        workers.run([job], 0, Silent())
    assert list((tmp_path / "heads").iterdir()) == []


def test_two_builds_do_not_run_at_once(tmp_path):
    with (
        build.only_one(tmp_path),
        pytest.raises(DemoError, match="another `make zoo`"),
        build.only_one(tmp_path),
    ):
        pass


def test_real_texts_and_the_real_encoder(tmp_path):
    """A cut of the real zoo that is too small to learn anything: all its parts fit together."""
    try:
        folders = build.fetch_all(Console(file=io.StringIO()))
    except DemoError as error:
        pytest.skip(f"the packages cannot be fetched: {str(error)[:200]}")
    cut = replace(
        CUT,
        tasks=("r8", "slabs", "attacks"),
        domains=("dialogue",),
        pool=24,
        drawn=16,
        validation=8,
        test=10,
        vocabulary=400,
        steps_base=2,
        steps=1,
    )
    base = folders[fetch.ENCODER.name] / packages.BASE
    tasks, texts = split(sources(folders, cut.tasks), cut), domains(folders, cut)
    assert {t.name: len(t.test) for t in tasks} == {"r8": 2189, "slabs": 2101, "attacks": 854}
    few = [t for t in tasks if t.name == "attacks"]
    console = Console(record=True, width=120, file=io.StringIO())
    build.train(tmp_path, base, few, texts, cut, console, 0)
    index = json.loads((tmp_path / "zoo.json").read_text())
    assert [m["name"] for m in index["models"]] == [
        "minilm base",
        "llama base",
        "minilm attacks 1",
        "llama dialogue 1",
    ]
    said = console.export_text()
    assert "minilm attacks 1" in said
    assert "4 models, 0.19 GB" in said
    (job,) = Suite.open(tmp_path / "suites" / "minilm.test.yaml").tasks
    job.check()
    assert len(job.rows) == 854
