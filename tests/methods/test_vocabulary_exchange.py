"""One vocabulary for several models, and another model's tokenizer, proved by what transformers opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from makers import same_bytes  # noqa: E402
from tiny_tokenizers import ENGLISH, RUSSIAN  # noqa: E402
from vocabulary_models import Model, clean, make, run  # noqa: E402

import merganser as mg  # noqa: E402
from merganser.errors import AlgebraError, RequestError  # noqa: E402
from merganser.methods.steps import get_step  # noqa: E402
from merganser.methods.vocabulary._pursuit import pursue  # noqa: E402

pytestmark = pytest.mark.models


@pytest.fixture(scope="module", autouse=True)
def _tidy() -> Iterator[None]:
    yield
    clean()


# Union ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte_level", "word_piece", "unigram"])
def test_two_models_come_to_one_vocabulary_and_merge(kind: str, tmp_path: Path) -> None:
    places = [make(kind, texts="en", seed=1, spare=4), make(kind, texts="ru", seed=2)]
    olds = [Model(place) for place in places]
    opened = [mg.open(place) for place in places]
    first, note = run("union_tokenizers", opened[0], tmp_path / "a", others=opened[1])
    second, other_note = run("union_tokenizers", opened[1], tmp_path / "b", others=[opened[0]], place=1)
    vocabulary = first.tokenizer.get_vocab()
    assert second.tokenizer.get_vocab() == vocabulary
    assert set(vocabulary) == set(olds[0].tokenizer.get_vocab()) | set(olds[1].tokenizer.get_vocab())
    assert all(vocabulary[t] == i for t, i in olds[0].tokenizer.get_vocab().items())
    assert (first.place / "tokenizer.json").read_bytes() == (second.place / "tokenizer.json").read_bytes()
    for text in ENGLISH + RUSSIAN:
        assert first.ids(text) == second.ids(text)
    for new, (own, other) in ((first, olds), (second, olds[::-1])):
        for token, i in vocabulary.items():
            home = own if token in own.tokenizer.get_vocab() else other
            old = home.tokenizer.get_vocab()[token]
            assert same_bytes(new.embedding[i], home.embedding[old]) and same_bytes(
                new.head[i], home.head[old]
            )
    assert note["rows_from"][opened[0].label] == len(olds[0].tokenizer) and note["moved"] == 0
    assert note["dropped_padding_rows"] == 4 and other_note["moved"] > 0
    for name in ("eos", "pad", "unk"):
        token = getattr(olds[1].tokenizer, f"{name}_token")
        if token is not None and second.config.get(f"{name}_token_id") is not None:
            assert second.config[f"{name}_token_id"] == vocabulary[token]
    mean = 0.5 * mg.open(first.place) + 0.5 * mg.open(second.place)
    mean.save(tmp_path / "merged", threads=1)
    merged = Model(tmp_path / "merged")
    np.testing.assert_allclose(merged.embedding, (first.embedding + second.embedding) / 2, atol=1e-6)
    assert np.isfinite(merged.logits(merged.ids(ENGLISH[0]))).all()


def test_a_union_of_a_model_with_itself_is_the_model(tmp_path: Path) -> None:
    place = make("byte_level", texts="en", seed=1)
    old = Model(place)
    new, note = run("union_tokenizers", place, tmp_path / "out", others=mg.open(place, name="same"))
    assert note["added"] == 0 and note["unreachable"] == []
    assert new.tokenizer.get_vocab() == old.tokenizer.get_vocab()
    assert all(same_bytes(new.tensors[name], array) for name, array in old.tensors.items())
    assert json.loads((new.place / "tokenizer.json").read_text()) == json.loads(
        (place / "tokenizer.json").read_text()
    )


def test_a_head_of_its_own_where_one_has_it(tmp_path: Path) -> None:
    tied, own = make("byte_level", texts="en", tied=True), make("byte_level", texts="ru", seed=2)
    new, note = run("union_tokenizers", tied, tmp_path / "out", others=mg.open(own))
    assert note["untied"] and new.config["tie_word_embeddings"] is False
    old, other = Model(tied), Model(own)
    assert same_bytes(new.head[: len(old.tokenizer)], old.embedding)
    token = next(t for t in other.tokenizer.get_vocab() if t not in old.tokenizer.get_vocab())
    i, k = new.tokenizer.get_vocab()[token], other.tokenizer.get_vocab()[token]
    assert same_bytes(new.head[i], other.head[k]) and not same_bytes(new.head[i], new.embedding[i])


def test_models_that_have_no_union() -> None:
    step = get_step("union_tokenizers").function
    base = mg.open(make("byte_level", texts="en"))
    with pytest.raises(AlgebraError, match=r"is \d+ in .* and \d+ in .*; only vocab may differ"):
        step(base, others=mg.open(make("byte_level", texts="ru", hidden=8)))
    with pytest.raises(RequestError, match=r"cannot be joined\. transplant_tokenizer"):
        step(base, others=mg.open(make("byte_fallback", texts="en")))
    with pytest.raises(RequestError, match="place must be from 0 to 1, not 2"):
        step(base, others=base, place=2)
    with pytest.raises(RequestError, match="at least one other model"):
        step(base, others=[])


# Pursuit ----------------------------------------------------------------------------------------------------


def reference(target: np.ndarray, atoms: np.ndarray, most: int) -> tuple[list[int], np.ndarray]:
    """The textbook form: choose, then least squares by lstsq over all chosen ones."""
    left, chosen = target.astype(np.float64), []
    atoms = atoms.astype(np.float64)
    unit = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    solved = np.zeros(0)
    for _ in range(most):
        likeness = np.abs(unit @ left)
        likeness[chosen] = -1
        chosen.append(int(likeness.argmax()))
        solved = np.linalg.lstsq(atoms[chosen].T, target.astype(np.float64), rcond=None)[0]
        left = target - atoms[chosen].T @ solved
    return chosen, solved


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), most=st.integers(1, 12), count=st.integers(12, 60))
def test_pursuit_is_the_textbook_s(seed: int, most: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((count, 24)).astype(np.float32) * rng.uniform(0.1, 3, (count, 1)).astype(
        np.float32
    )
    targets = rng.standard_normal((3, 24)).astype(np.float32)
    rows, coefficients, left = pursue(targets, atoms, most)
    for k, target in enumerate(targets):
        chosen, solved = reference(target, atoms, most)
        assert rows[k].tolist() == chosen
        np.testing.assert_allclose(coefficients[k], solved, rtol=1e-3, atol=1e-4)
        rest = np.linalg.norm(target - solved @ atoms[chosen]) / np.linalg.norm(target)
        assert abs(left[k] - rest) < 1e-4


def test_pursuit_finds_a_sparse_sum_and_stops() -> None:
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((200, 64)).astype(np.float32)
    atoms[7] = 0
    atoms[9] = atoms[8]
    targets = np.stack([2 * atoms[3] - atoms[50], atoms[8], np.zeros(64)]).astype(np.float32)
    rows, coefficients, left = pursue(targets, atoms, 16)
    assert dict(zip(rows[0][:2].tolist(), coefficients[0][:2].round(4).tolist(), strict=True)) == {
        3: 2.0,
        50: -1.0,
    }
    assert (rows[0][2:] == -1).all() and rows[1].tolist() == [8] + [-1] * 15 and (rows[2] == -1).all()
    assert left.max() < 1e-5


def test_pursuit_of_more_than_there_is() -> None:
    rng = np.random.default_rng(0)
    rows, coefficients, left = pursue(
        rng.standard_normal((2, 8)), rng.standard_normal((5, 8)).astype(np.float32), 64
    )
    assert (
        rows.shape == coefficients.shape == (2, 5) and sorted(rows[0]) == [0, 1, 2, 3, 4] and (left < 1).all()
    )


# Transplant -------------------------------------------------------------------------------------------------


def text_of(model: Model, token: str) -> bytes:
    """What a token stands for, by hand for the kinds of these tests."""
    from merganser.tokenizer import Tokenizer

    raw = (model.place / "tokenizer.json").read_bytes()
    return Tokenizer.parse(raw, "test").spelling.text(token)


PAIRS = [
    ("byte_level", "byte_fallback"),
    ("byte_fallback", "byte_level"),
    ("byte_level", "unigram"),
    ("word_piece", "byte_level"),
]


@pytest.mark.parametrize("rows", ["pursuit", "subtokens", "mean"])
@pytest.mark.parametrize(("kind", "donor_kind"), PAIRS)
def test_shared_rows_are_copied(kind: str, donor_kind: str, rows: str, tmp_path: Path) -> None:
    place, donor = make(kind, seed=1, spare=2), make(donor_kind, seed=2, hidden=24, spare=3)
    old, other = Model(place), Model(donor)
    new, note = run("transplant_tokenizer", place, tmp_path / "out", donor=mg.open(donor), rows=rows, k=8)
    size = len(other.tokenizer)
    assert new.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    assert len(new.embedding) == len(new.head) == new.config["vocab_size"] == size
    assert note["copied"] + note["approximated"] + note["by_mean"] == size and note["copied"] > 30
    added = {
        t.content
        for t in (
            *old.tokenizer.added_tokens_decoder.values(),
            *other.tokenizer.added_tokens_decoder.values(),
        )
    }
    texts: dict[bytes, list[int]] = {}
    for token, i in old.tokenizer.get_vocab().items():
        if token not in added:
            texts.setdefault(text_of(old, token), []).append(i)
    copied = 0
    for token, i in other.tokenizer.get_vocab().items():
        same = texts.get(text_of(other, token)) if token not in added else None
        if same:
            assert any(same_bytes(new.embedding[i], old.embedding[k]) for k in same), token
            assert any(same_bytes(new.head[i], old.head[k]) for k in same), token
            copied += 1
    assert note["copied"] - 4 <= copied <= note["copied"]
    for text in ENGLISH + RUSSIAN:
        assert new.ids(text) == other.ids(text)
    assert np.isfinite(new.logits(new.ids(ENGLISH[0]))).all()
    untouched = [n for n, t in old.tensors.items() if len(old.embedding) not in t.shape]
    assert untouched and all(same_bytes(old.tensors[n], new.tensors[n]) for n in untouched)
    if rows == "mean":
        missing = next(
            i
            for t, i in other.tokenizer.get_vocab().items()
            if t not in added and text_of(other, t) not in texts
        )
        mean = old.embedding[: len(old.tokenizer)].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(new.embedding[missing], mean, rtol=1e-5, atol=1e-6)


def test_coefficients_of_the_donor_s_space(tmp_path: Path) -> None:
    """Where the donor's embedding is the recipient's in other coordinates, pursuit gives back what it lost."""
    place = make("byte_level", seed=1, hidden=16)
    old = Model(place)
    size = len(old.tokenizer)
    rng = np.random.default_rng(0)
    # Rows that are sums of two others, so that a sparse sum exists.
    sums = {size - 60 + k: (k + 5, 2 * k + 90) for k in range(50)}
    changed = rng.standard_normal((size, 16)).astype(np.float32)
    for row, (a, b) in sums.items():
        changed[row] = changed[a] - 0.5 * changed[b]
    turned = changed @ np.linalg.qr(rng.standard_normal((16, 16)))[0].astype(np.float32)
    donor = write_embedding(place, tmp_path / "donor", turned)
    source = write_embedding(place, tmp_path / "source", changed)
    names = [old.tokenizer.convert_ids_to_tokens(k) for k in range(size)]
    lacking = get_step("trim_vocabulary").function(
        mg.open(source), tokens=[names[k] for k in range(size) if k not in sums], characters=False
    )
    lacking.save(tmp_path / "lacking", threads=1)
    lost = [k for k in sums if names[k] not in Model(tmp_path / "lacking").tokenizer.get_vocab()]
    assert len(lost) > 5
    new, note = run(
        "transplant_tokenizer",
        tmp_path / "lacking",
        tmp_path / "out",
        donor=mg.open(donor),
        rows="pursuit",
        k=2,
    )
    assert note["approximated"] == len(lost)
    near = [np.linalg.norm(new.embedding[k] - changed[k]) / np.linalg.norm(changed[k]) for k in lost]
    # Two of 370 atoms in 16 dimensions are not always found, but what the donor's space lacks this one's does too.
    assert note["residual_share"]["largest"] == pytest.approx(max(near), abs=1e-4)
    assert note["residual_share"]["mean"] == pytest.approx(np.mean(near), abs=1e-4)
    full, full_note = run(
        "transplant_tokenizer",
        tmp_path / "lacking",
        tmp_path / "full",
        donor=mg.open(donor),
        rows="pursuit",
        k=16,
    )
    for k in lost:
        np.testing.assert_allclose(full.embedding[k], changed[k], atol=1e-3)
    assert full_note["residual_share"]["largest"] < 1e-4
    for text in ENGLISH:
        np.testing.assert_allclose(
            full.logits(full.ids(text)), Model(source).logits(old.ids(text)), atol=1e-2
        )


def write_embedding(place: Path, out: Path, rows: np.ndarray) -> Path:
    model = Model(place).model
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.tensor(rows))
        model.get_output_embeddings().weight.copy_(torch.tensor(rows))
    shutil.copytree(place, out)
    model.save_pretrained(out)
    return out


def test_subtokens_are_those_of_the_old_tokenizer(tmp_path: Path) -> None:
    place, donor = make("byte_level", texts="en", seed=1), make("byte_level", texts="ru", seed=2)
    old, other = Model(place), Model(donor)
    new, _ = run("transplant_tokenizer", place, tmp_path / "out", donor=mg.open(donor), rows="subtokens")
    vocabulary = other.tokenizer.get_vocab()
    longest = max((t for t in vocabulary if t not in old.tokenizer.get_vocab() and t[0] == "Ġ"), key=len)
    pieces = old.tokenizer(other.tokenizer.convert_tokens_to_string([longest])).input_ids
    np.testing.assert_allclose(
        new.embedding[vocabulary[longest]], old.embedding[pieces].mean(axis=0), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        new.head[vocabulary[longest]], old.head[pieces].mean(axis=0), rtol=1e-4, atol=1e-6
    )


def test_special_tokens_and_configs_follow_the_donor(tmp_path: Path) -> None:
    place, donor = make("byte_fallback", seed=1), make("byte_level", seed=2)
    new, note = run("transplant_tokenizer", place, tmp_path / "out", donor=mg.open(donor), rows="mean")
    old, other = Model(place), Model(donor)
    end = other.tokenizer.eos_token_id
    assert new.config["eos_token_id"] == end and new.config["pad_token_id"] is None
    # </s> and <|endoftext|> end a text, so the row is the old one's.
    assert same_bytes(new.embedding[end], old.embedding[old.tokenizer.eos_token_id])
    generation = json.loads((new.place / "generation_config.json").read_text())
    assert generation["eos_token_id"] == end
    assert new.config["bos_token_id"] is None and note["config_changed"]["config.json: bos_token_id"] == [
        1,
        None,
    ]
    assert note["chat_template"] == "donor" and new.tokenizer.chat_template == other.tokenizer.chat_template
    parents = [p["name"] for p in json.loads((new.place / "merganser.json").read_text())["parents"]]
    assert set(parents) == {place.name, donor.name}


def test_chat_templates_are_checked(tmp_path: Path) -> None:
    place, donor = make("byte_level", seed=1), make("byte_fallback", seed=2)
    with pytest.raises(
        RequestError, match=r"chat template of .* writes <\|im_start\|>, <\|im_end\|>, which are no tokens of"
    ):
        run(
            "transplant_tokenizer",
            place,
            tmp_path / "none",
            donor=mg.open(donor),
            rows="mean",
            chat_template="own",
        )
    new, note = run("transplant_tokenizer", place, tmp_path / "out", donor=mg.open(donor), rows="mean")
    assert new.tokenizer.chat_template is None and note["chat_template"] == "none"
    extended = get_step("extend_vocabulary").function(
        mg.open(donor), tokens=["<|im_start|>", "<|im_end|>"], special=True, rows="mean"
    )
    new, note = run(
        "transplant_tokenizer", place, tmp_path / "own", donor=extended, rows="mean", chat_template="own"
    )
    old = Model(place)
    assert new.tokenizer.chat_template == old.tokenizer.chat_template and note["chat_template"] == "own"
    i = new.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert same_bytes(new.embedding[i], old.embedding[old.tokenizer.convert_tokens_to_ids("<|im_start|>")])
    bare, note = run(
        "transplant_tokenizer",
        donor,
        tmp_path / "bare",
        donor=mg.open(place),
        rows="mean",
        chat_template="none",
    )
    assert bare.tokenizer.chat_template is None


def test_an_id_that_cannot_be_placed(tmp_path: Path) -> None:
    place, donor = tmp_path / "m", make("byte_fallback", seed=2)
    shutil.copytree(make("byte_level", seed=1), place)
    config = json.loads((place / "config.json").read_text())
    image = Model(place).tokenizer.convert_tokens_to_ids("<|im_end|>")
    (place / "config.json").write_text(json.dumps(config | {"image_token_id": image}))
    with pytest.raises(
        RequestError, match=r"image_token_id is \d+ \('<\|im_end\|>'\), which .* does not have. Extend"
    ):
        run("transplant_tokenizer", place, tmp_path / "out", donor=mg.open(donor), rows="mean")
    with pytest.raises(RequestError, match="k must be from 1 to 64, not 65"):
        get_step("transplant_tokenizer").function(mg.open(place), donor=mg.open(donor), k=65)


def test_its_own_tokenizer_changes_nothing(tmp_path: Path) -> None:
    place = make("byte_level", seed=1)
    old = Model(place)
    new, note = run("transplant_tokenizer", place, tmp_path / "out", donor=mg.open(place, name="same"))
    assert (
        note["copied"] == len(old.tokenizer)
        and note["approximated"] == note["by_mean"] == note["dropped"] == 0
    )
    assert all(same_bytes(new.tensors[name], array) for name, array in old.tensors.items())


def settings_of(text: str, directory: Path) -> dict[str, Any]:
    import yaml

    (name, raw), *_ = yaml.safe_load(text).items()
    return get_step(name).settings(raw, "test", directory, mg.open)


def test_recipes_can_name_them(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("x\n")
    found = settings_of("trim_vocabulary: {corpus: c.txt, most: 300, scripts: [latin]}", tmp_path)
    assert found == {"corpus": tmp_path / "c.txt", "most": 300, "scripts": ["latin"]}
    assert (
        settings_of("trim_vocabulary: {corpus: [c.txt, c.txt]}", tmp_path)["corpus"]
        == [tmp_path / "c.txt"] * 2
    )
    assert settings_of("trim_vocabulary: {tokens: [c.txt]}", tmp_path)["tokens"] == ["c.txt"]
    assert settings_of("trim_vocabulary: {tokens: c.txt}", tmp_path)["tokens"] == tmp_path / "c.txt"
    place = make("byte_level", seed=1)
    found = settings_of(f"union_tokenizers: {{others: [{place}, {place}], place: 1}}", tmp_path)
    assert [type(w) for w in found["others"]] == [mg.Weights] * 2
    assert isinstance(settings_of(f"transplant_tokenizer: {{donor: {place}}}", tmp_path)["donor"], mg.Weights)
