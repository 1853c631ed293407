"""Paths whose bytes are no UTF-8: every command gives a result or its own error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from makers import normal, python, write_file, write_model

SCRIPT = """
import contextlib, io, json, os, sys
from merganser.cli import run
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(errors="backslashreplace")
home = os.fsdecode(bytes.fromhex(sys.argv[1]))
os.chdir(home)
odd = [name for name in sorted(os.listdir(".")) if not name.isascii()]
a, b, file = odd
index = a + "/model.safetensors.index.json"
told = {}
for words in json.loads(sys.argv[2]):
    words = [{"A": a, "B": b, "F": file, "OUT": a + "-out", "FOUT": a + "-out2"}.get(word, word) for word in words]
    status = run(words)
    print("STATUS", status, words[0])
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        place.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    for seed, name in enumerate((b"a\xff", b"b\xfe")):
        write_model(Path(os.fsdecode(os.fsencode(place) + b"/" + name)), {"w": normal(4, seed=seed)})
    write_file(Path(os.fsdecode(os.fsencode(place) + b"/c\xe9.safetensors")), {"w": normal(4)})
    return place


def test_bytes_that_are_no_utf_8(home: Path) -> None:
    (home / "recipe.yaml").write_text("method: passthrough\nmodels: [{model: .}]")
    commands = [
        ["info", "A"], ["info", "F", "--json"], ["diff", "A", "B"], ["diff", "A", "B", "--json"], ["architecture", "A"],
        ["reshape", "A", "OUT", "layers: {keep: '0'}"], ["merge", "recipe.yaml", "OUT"], ["explain", "recipe.yaml"],
        ["verify", "A"], ["verify", "OUT", "--json"], ["evaluate", "A", "F", "OUT"], ["observe", "A", "B", "OUT"],
    ]  # fmt: skip
    done = python(SCRIPT, os.fsencode(home).hex(), json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("STATUS")]
    assert len(statuses) == len(commands)
    assert [status for status, command in statuses if command in ("info", "diff")] == ["0"] * 4
    assert "unexpected" not in done.stderr and "Traceback" not in done.stderr


SAVE = """
import os, sys
import merganser as mg
a, b, out = (os.fsdecode(bytes.fromhex(word)) for word in sys.argv[1:])
x, y = mg.open(a), mg.open(b, name=b)
report = (0.5 * x + 0.5 * y).save(out, recipe={"models": [a, b]})
drawn = mg.random_drop(x - y, 0.5, seed=1) + y
mg.compute(drawn, "w")
found = mg.verify(out)
assert found["tensors"] == 1
again = mg.open(out)
assert again.degree == 1
try:
    mg.open(out + "-none")
except mg.MerganserError as error:
    print(ascii(str(error)))
"""


def test_saved_under_such_a_name(home: Path) -> None:
    places = [os.fsencode(home) + b"/" + name for name in (b"a\xff", b"b\xfe", b"o\xf1")]
    done = python(SAVE, *(place.hex() for place in places))
    assert done.returncode == 0, done.stderr[-2000:]
    raw = (Path(os.fsdecode(places[2])) / "merganser.json").read_bytes()
    document = json.loads(raw.decode("utf-8"))
    assert [parent["name"] for parent in document["parents"]] == ["a\\xff", document["recipe"]["models"][1]]
    assert document["parents"][1]["path"].endswith("b\\xfe")
