"""The manifest says what a checkpoint is made of; verify finds every change, and trusts no name in it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from makers import normal, read_model, write_file, write_model

import merganser as mg
from merganser.errors import MerganserError, RequestError, VerificationError
from merganser.lineage.manifest import own_digest


@pytest.fixture
def sealed(tmp_path):
    for k, name in enumerate(("base", "tune")):
        write_model(
            tmp_path / name, {"w": normal(300_000, seed=k), "v": normal(4, 5, seed=9), "ids": np.arange(7)}
        )
    base, tune = mg.open(tmp_path / "base"), mg.open(tmp_path / "tune")
    merged = base + 0.5 * (tune - base)
    merged.save(tmp_path / "out", sync=False, shard_size=10**6, seed=5, recipe={"what": "half"})
    return tmp_path / "out"


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def shard_with(directory, name):
    return next(p for p in directory.glob("*.safetensors") if name in read_tensors(p))


def read_tensors(path):
    from makers import read_file

    return read_file(path)


def test_what_was_sealed_verifies(sealed):
    told = mg.verify(sealed)
    assert told["tensors"] == 3 and told["bytes"] == 300_000 * 4 + 80 + 56
    assert [p["name"] for p in told["parents"]] == ["base", "tune"]
    seen = []
    mg.verify(str(sealed), threads=1, progress=lambda *pair: seen.append(pair))
    assert seen[-1] == (told["bytes"], told["bytes"])


def test_the_manifest_says_what_it_is_made_of(sealed):
    manifest = json.loads((sealed / "merganser.json").read_text())
    assert (
        manifest["tool"] == "merganser" and manifest["seed"] == 5 and manifest["recipe"] == {"what": "half"}
    )
    assert set(manifest["tensors"]) == {"w", "v", "ids"} and "config.json" in manifest["files"]
    assert manifest["tensors"]["v"]["dtype"] == "F32" and manifest["tensors"]["v"]["shape"] == [4, 5]
    assert manifest["run"]["seconds"] > 0


def test_a_digest_does_not_depend_on_shards(sealed, tmp_path):
    base, tune = mg.open(tmp_path / "base"), mg.open(tmp_path / "tune")
    report = (base + 0.5 * (tune - base)).save(tmp_path / "one", sync=False)
    assert report.digest == mg.verify(sealed)["digest"] == mg.verify(tmp_path / "one")["digest"]


def test_the_digest_of_a_parent_is_that_of_its_content(sealed, tmp_path):
    """An identity of the parent has the digest that the manifest gives for the parent itself."""
    base = mg.open(tmp_path / "base")
    report = base.save(tmp_path / "copy", sync=False)
    manifest = json.loads((tmp_path / "copy/merganser.json").read_text())
    assert manifest["parents"][0]["digest"] == report.digest


@pytest.mark.parametrize("name", ["w", "v", "ids"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_one_flipped_bit_is_found(sealed, name, place):
    path = shard_with(sealed, name)
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8 : 8 + length])[name]["data_offsets"]
    raw[8 + length + (begin if place == "first" else end - 1)] ^= 1
    path.write_bytes(raw)
    with pytest.raises(VerificationError, match=rf"tensor '{name}' in {path.name} has changed$"):
        mg.verify(sealed)


def rewrite(directory, change):
    """Other tensors in the same directory, honestly indexed."""
    tensors = dict(read_model(directory))
    change(tensors)
    for path in [*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"]:
        path.unlink()

    def change_words(document):
        document["files"].pop("model.safetensors.index.json")
        document["own_digest"] = own_digest(document)

    edit(directory / "merganser.json", change_words)
    write_file(directory / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("v"), "tensor 'v' is missing"),
        (lambda t: t.update(extra=normal(3)), "tensor 'extra' is not in the manifest"),
        (lambda t: t.update(v=t["v"].reshape(5, 4)), r"tensor 'v' is F32 \[5, 4\], not as in the manifest"),
        (lambda t: t.update(v=t["v"].view(np.int32)), r"tensor 'v' is I32 \[4, 5\], not as in the manifest"),
        (lambda t: t.update(v=t["v"][::-1].copy()), "tensor 'v' in model.safetensors has changed"),
        (lambda t: t.update(v=t["w"], w=t["v"]), "tensor 'w' is F32"),
    ],
)
def test_missing_added_and_other_tensors_are_found(sealed, change, words):
    rewrite(sealed, change)
    with pytest.raises(VerificationError, match=words):
        mg.verify(sealed)


def test_other_shards_with_the_same_content_verify(sealed):
    rewrite(sealed, lambda tensors: None)
    assert mg.verify(sealed)["tensors"] == 3


def test_every_fault_is_named(sealed):
    rewrite(sealed, lambda t: (t.pop("v"), t.update(ids=t["ids"] + 1)))
    (sealed / "config.json").write_text("{}")
    with pytest.raises(VerificationError) as caught:
        mg.verify(sealed)
    for words in ("file 'config.json' has changed", "tensor 'v' is missing", "tensor 'ids' in"):
        assert words in str(caught.value)


def test_a_lost_file_is_found(sealed):
    (sealed / "config.json").unlink()
    with pytest.raises(VerificationError, match=r"file 'config\.json' is missing"):
        mg.verify(sealed)


def test_a_lost_shard_is_found(sealed):
    shard_with(sealed, "w").unlink()
    with pytest.raises(MerganserError, match=r"model-0000\d-of-0000\d\.safetensors"):
        mg.verify(sealed)


def test_files_that_the_user_added_do_not_matter(sealed):
    """A README or a log beside the weights is not part of what was sealed."""
    (sealed / "README.md").write_text("# mine")
    mg.verify(sealed)


# edited manifests


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["tensors"]["v"].update(digest="0" * 32), "tensor 'v' in .* has changed"),
        (lambda d: d["tensors"].pop("v"), "tensor 'v' is not in the manifest"),
        (lambda d: d["tensors"].update(u=d["tensors"]["v"]), "tensor 'u' is missing"),
        (lambda d: d.update(digest="0" * 32), "the manifest was edited"),
        (lambda d: d["tensors"]["v"].pop("digest"), "entry of tensor 'v' is not complete"),
        (lambda d: d.update(tensors=[]), "no valid 'tensors'"),
        (lambda d: d.update(files=None), "no valid 'files'"),
        (lambda d: d.pop("digest"), "no valid 'digest'"),
        (lambda d: d.update(format=99), "not a manifest of format 1"),
        (lambda d: d.update(tool="other"), "not a manifest"),
        (lambda d: d.update(digest_algorithm="md5"), "digests are 'md5'"),
        (lambda d: d["files"].update({"config.json": 7}), r"'config\.json' has changed"),
        (lambda d: d["tensors"].update(v=None), "entry of tensor 'v' is not complete"),
    ],
)
def test_an_edited_manifest_is_found(sealed, change, words):
    edit(sealed / "merganser.json", change)
    with pytest.raises(VerificationError, match=words):
        mg.verify(sealed)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"tool": "merganser", "tool": "merganser"}', "\xff\xfe", "[" * 100_000]
)
def test_a_manifest_that_is_no_json_object_is_an_error(sealed, text):
    (sealed / "merganser.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(MerganserError, match=r"merganser\.json"):
        mg.verify(sealed)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "a/../../secret", "link", "linked/secret", "a\0b", "", "."]
)
def test_a_manifest_cannot_make_verify_read_elsewhere(sealed, name, monkeypatch):
    """Names in a manifest are hostile: absolute, upwards, through links, with NUL, or no file at all."""
    secret = sealed.parent / "secret"
    secret.write_text("secret")
    (sealed / "link").symlink_to(secret)
    (sealed / "linked").symlink_to(sealed.parent)
    edit(sealed / "merganser.json", lambda d: d["files"].update({name: "0" * 32}))
    read = []
    from merganser.lineage import verify as module

    real = module.__globals__["digest_file"]
    monkeypatch.setitem(
        module.__globals__, "digest_file", lambda path: (read.append(os.path.realpath(path)), real(path))[1]
    )
    with pytest.raises(VerificationError, match=r"does not match|not inside|missing"):
        mg.verify(sealed)
    assert all(path.startswith(os.path.realpath(sealed) + os.sep) for path in read), read


def test_what_was_not_sealed_says_so(tmp_path):
    model = write_model(tmp_path / "m", {"w": normal(3)})
    with pytest.raises(VerificationError, match=r"has no merganser\.json, so it was not sealed by merganser"):
        mg.verify(model)
    with pytest.raises(RequestError, match="is not a directory"):
        mg.verify(tmp_path / "nowhere")


def test_a_manifest_does_not_travel_to_what_is_made_of_it(sealed, tmp_path):
    """A merge of sealed models has its own manifest and none of its parents' as a file."""
    (mg.open(sealed) * 1.0).save(tmp_path / "next", sync=False)
    manifest = json.loads((tmp_path / "next/merganser.json").read_text())
    assert "merganser.json" not in manifest["files"]
    assert manifest["parents"][0]["digest"] == mg.verify(sealed)["digest"]
    assert mg.verify(tmp_path / "next")["tensors"] == 3
