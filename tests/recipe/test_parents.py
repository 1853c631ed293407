"""Parents that contradict each other, and what one has and another lacks: refused, or named."""

from __future__ import annotations

import numpy as np
import pytest
from makers import BF16, read_model, write_model
from tiny_llamas import config, llama_arrays

import merganser as mg
from merganser.algebra import axes

# Precisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "dtype"), [(BF16, BF16), (np.float16, np.dtype(np.float16))])
def test_parents_of_two_precisions_give_one_and_the_report_says_which(tmp_path, first, dtype):
    second = np.float16 if first is BF16 else BF16
    arrays = llama_arrays(1, num_hidden_layers=2)
    norms = {name: array.astype(np.float32) for name, array in arrays.items() if "norm" in name}
    for name, kind in (("a", first), ("b", second)):
        kept = {n: norms.get(n, array.astype(kind)) for n, array in arrays.items()}
        write_model(tmp_path / name, kept, config(num_hidden_layers=2))
    a, b = mg.open(tmp_path / "a"), mg.open(tmp_path / "b")
    made = axes.stack([(a, [0, 1]), (b, [1])])
    report = made.save(tmp_path / "out", sync=False)
    found = read_model(tmp_path / "out")
    assert len(found) == len(arrays) + 9
    assert {array.dtype for name, array in found.items() if "norm" not in name} == {dtype}
    assert {array.dtype for name, array in found.items() if "norm" in name} == {np.dtype(np.float32)}
    (note,) = [note for note in report.notes if note["step"] == "dtype"]
    names = {BF16: "bfloat16", np.dtype(np.float16): "float16"}
    assert note["written in"] == f"{names[dtype]}, as a is stored"
    assert note["stored otherwise"] == {"b": names[np.dtype(second)]}
    report = made.save(tmp_path / "out", sync=False, overwrite=True, dtype="float32")
    assert {array.dtype for array in read_model(tmp_path / "out").values()} == {np.dtype(np.float32)}
    assert not report.notes
