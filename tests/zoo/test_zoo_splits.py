"""Splits, draws, readers and passages of the zoo, on tiny files."""

from __future__ import annotations

import sysconfig
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_zoo
from demo.fetch import REVIEWS, DemoError
from tiny_zoo import CUT

from zoo import domains, packages, splits, tasks
from zoo.splits import Source, drawn, split

AB = ("a", "b")
FEW = replace(CUT, pool=20, drawn=5, validation=5, test=8)


def pairs(count, word="text"):
    return [(f"{word} {n}", AB[n % 2]) for n in range(count)]


def test_splits_are_disjoint_fixed_and_do_not_depend_on_order():
    (one,) = split([Source("t", "?", AB, pairs(60))], FEW)
    (two,) = split([Source("t", "?", AB, pairs(60)[::-1])], FEW)
    assert one == two
    parts = [set(one.train.texts), set(one.validation.texts), set(one.test.texts)]
    assert list(map(len, parts)) == [20, 5, 8]
    assert len(set.union(*parts)) == 33
    for part in (one.train, one.validation, one.test):
        assert [AB[y] for y in part.labels] == [AB[int(t.split()[1]) % 2] for t in part.texts]


def test_an_official_test_set_stays_whole_and_in_its_order():
    official = [("twice", "a"), ("twice", "a"), ("other class", "c"), ("once", "b")]
    (task,) = split([Source("t", "?", AB, pairs(40), pairs(20, "held"), official)], FEW)
    assert task.test.texts == ("twice", "twice", "once")
    assert task.test.labels == (0, 0, 1)
    assert {t.split()[0] for t in task.validation.texts} == {"held"}


def test_nothing_held_out_is_trained_on_in_any_task():
    ours = [*pairs(40), ("Leaked  TEXT", "a"), ("seen in Validation", "b")]
    one = Source("one", "?", AB, ours, pairs(9, "held"), [("test of one", "a")])
    held = [*pairs(4, "other held"), ("Seen in  validation", "a"), ("Test of one", "b")]
    two = Source("two", "?", AB, pairs(40, "other"), held, [("leaked text", "b")])
    first, second = split([one, two], replace(FEW, pool=100))
    assert sorted(first.train.texts) == sorted(text for text, _ in pairs(40))
    assert sorted(second.validation.texts) == sorted(
        ["Seen in  validation", *(t for t, _ in pairs(4, "other held"))]
    )
    with pytest.raises(DemoError, match="two: too few"):
        split([one, two], replace(FEW, validation=6))


def test_equal_texts_are_kept_once_with_their_first_label():
    rows = [("Same text", "a"), ("same  TEXT", "b"), *pairs(40)]
    (task,) = split([Source("t", "?", AB, rows)], replace(FEW, pool=100))
    every = list(zip(task.train.texts, task.train.labels, strict=True))
    every += list(zip(task.validation.texts, task.validation.labels, strict=True))
    every += list(zip(task.test.texts, task.test.labels, strict=True))
    assert [row for row in every if row[0].lower().split() == ["same", "text"]] == [("Same text", 0)]


def test_the_digest_covers_what_is_trained_on():
    source = Source("t", "?", AB, pairs(60))
    (task,) = split([source], FEW)
    text = task.train.texts[3]
    changed = [(t, "b" if c == "a" else "a") if t == text else (t, c) for t, c in source.train]
    assert split([replace(source, train=changed)], FEW)[0].digest != task.digest
    assert split([replace(source, classes=("b", "a"))], FEW)[0].digest != task.digest


def test_a_seed_decides_rows_and_order():
    (task,) = split([Source("t", "?", AB, pairs(60))], FEW)
    one, again, two = drawn(task.train, 1, 8), drawn(task.train, 1, 8), drawn(task.train, 2, 8)
    assert one == again
    assert set(one.texts) != set(two.texts)
    assert len(set(one.texts)) == 8
    known = dict(zip(task.train.texts, task.train.labels, strict=True))
    assert [known[t] for t in one.texts] == list(one.labels)
    assert drawn(splits.Rows(task.train.texts[::-1], task.train.labels[::-1]), 1, 8) == one


def folders(root: Path) -> dict[str, Path]:
    return {p.name: root / p.name for p in packages.ALL}


def put(root: Path, package, name: str, text: str) -> None:
    path = root / package.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_readers_of_labelled_texts(tmp_path):
    put(
        tmp_path,
        packages.REVIEWS,
        REVIEWS.wanted[0],
        "text,label,source\nGood<br /><br />film,1,imdb\nBad one,0,rotten_tomatoes\n",
    )
    for part in ("train", "test"):
        put(
            tmp_path,
            packages.TEXTS,
            f"{packages.ORANGE}reuters-r8-{part}.tab",
            f"Category\tText\nd\tstring\nclass\t\n\nearn\t {part} net shr \n",
        )
    put(
        tmp_path,
        packages.TEXTS,
        f"{packages.ORANGE}friends-transcripts.tab",
        "Season & Episode\tAuthor\tQuote\nd\td\tstring\n\t\tinclude=True\n\n"
        "0101\tRoss\t I  just feel like someone reached down my throat\n"
        "0101\tRoss\tHi.\n"
        "0101\tPaul\tsomebody who is not one of the six main ones\n"
        "0102\tMonica\tOkay everybody relax, please try to relax now okay\n",
    )
    for part in ("train", "validation", "test"):
        put(
            tmp_path,
            packages.PROMPTS,
            f"{packages.PROMPTS.wanted[0]}{part}.csv",
            f"text,label\n{part},1\nx,0\n",
        )
    where = folders(tmp_path)
    assert tasks.imdb(where).train == [("Good film", "positive")]
    assert tasks.rt(where).train == [("Bad one", "negative")]
    r8 = tasks.r8(where)
    assert (r8.train, r8.test) == ([("train net shr", "earn")], [("test net shr", "earn")])
    assert tasks.friends(where).train == [
        ("I just feel like someone reached down my throat", "Ross"),
        ("Okay everybody relax, please try to relax now okay", "Monica"),
    ]
    slabs = tasks.slabs(where)
    assert slabs.test == [("test", "injection"), ("x", "harmless")]
    assert slabs.validation == [("validation", "injection"), ("x", "harmless")]
    assert domains.dialogue(where)[0].splitlines()[1] == "Ross: Hi."
    assert len(domains.dialogue(where)) == 2
    assert domains.reviews(where) == ["Good\n\nfilm"]


def test_attacks_are_read_from_parquet_without_rare_kinds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for part in ("train", "validation", "test"):
        path = tmp_path / packages.PROMPTS.name / packages.PROMPTS.wanted[1] / f"core-{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"text": [f" {part} ", "rare"], "category": ["benign", "prompt_leak"], "label": [0, 1]}
        parquet.write_table(pyarrow.table(columns), path)
    source = tasks.attacks(folders(tmp_path))
    assert source.test == [("test", "benign"), ("rare", "prompt_leak")]
    assert "prompt_leak" not in source.classes


def test_passages_are_the_whole_document():
    text = "\n".join(tiny_zoo.sentences(tiny_zoo.GOOD, 80, 0))
    found = domains.cut_up(text, 200)
    assert "".join(found) == text
    assert max(map(len, found)) <= 200
    assert all(p.endswith("\n") for p in found[:-1])
    words = text.replace("\n", " ")
    assert "".join(domains.cut_up(words, 200)) == words
    assert all(p.endswith(" ") for p in domains.cut_up(words, 200)[:-1])
    assert domains.cut_up("x" * 450, 200) == ["x" * 200, "x" * 200, "x" * 50]


def test_domains_are_split_by_document():
    documents = [". ".join(tiny_zoo.sentences(tiny_zoo.GOOD, 60, n)) for n in range(14)]
    domain = domains.split("prose", documents, CUT)
    assert domain == domains.split("prose", documents[::-1], CUT)
    assert [len(p) for p in (domain.train, domain.validation, domain.test)] == [12, 2, 3]

    def of(passages):
        return {n for n, d in enumerate(documents) for p in passages if p in d}

    train, validation, test = of(domain.train), of(domain.validation), of(domain.test)
    assert train and validation and test
    assert not (train & validation) and not (train & test) and not (validation & test)
    with pytest.raises(DemoError, match="prose: too little text"):
        domains.split("prose", documents[:1], CUT)


def test_the_code_domain_is_the_standard_library_without_its_tests():
    found = domains.code({})
    library = Path(sysconfig.get_paths()["stdlib"])
    assert (library / "textwrap.py").read_text() in found
    tests = library / "test" / "test_textwrap.py"
    assert not tests.exists() or tests.read_text() not in found
    assert Counter(found)[(library / "textwrap.py").read_text()] == 1
