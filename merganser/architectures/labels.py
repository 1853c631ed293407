"""Labels of a classifier: the names that config.json gives to rows, and the tensors that have a row for each.

`id2label` decides, as in transformers; without it rows are called LABEL_0, LABEL_1 and so on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from merganser.architectures.family import family_of
from merganser.architectures.reading import name_tensors

LABELS = "labels"
"""The axis of families whose elements have names in config.json."""
_MOST = 1 << 20
_HEAD = re.compile(r"(?:^|[._])(?:\w*classif\w*|score|scores|class_\w+|cls_head|logits\w*)(?=[._])")
"""What modules with a row for each label are called, in models without a family file."""
_CLASSIFIER = re.compile(r"Classif|Detection|Segmentation|Reward")
"""Classes of transformers with such a module."""


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The label of every row, as transformers reads config.json.

    None where `id2label` does not number rows from 0, or `num_labels` says another number: releases of transformers
    then differ in which of the two they believe.
    """
    table, count = config.get("id2label"), config.get("num_labels")
    if not table:
        number = count if isinstance(count, int) and 0 < count < _MOST else 2
        return tuple(f"LABEL_{k}" for k in range(number))
    if not isinstance(table, Mapping):
        return None
    try:
        by_row = {int(key): str(value) for key, value in table.items()}
    except ValueError:
        return None
    if isinstance(count, int) and count != len(by_row):
        return None
    return tuple(by_row[k] for k in range(len(by_row))) if by_row.keys() == set(range(len(by_row))) else None


def label_count(config: Mapping[str, Any]) -> int:
    """How many labels config.json names, be it in a table that does not number rows."""
    table = config.get("id2label")
    return len(table) if isinstance(table, Mapping) else 0


def with_label_names(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The config with other labels: `id2label`, `label2id` and, where it stands there, `num_labels`."""
    changed = dict(config)
    changed["id2label"] = {str(k): name for k, name in enumerate(names)}
    changed["label2id"] = {name: k for k, name in enumerate(names)}
    if "num_labels" in changed:
        changed["num_labels"] = len(names)
    return changed


def numbered(names: Sequence[str]) -> bool:
    """Whether labels are places only: LABEL_0, LABEL_1 and so on."""
    return all(name == f"LABEL_{k}" for k, name in enumerate(names))


def label_rows(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], count: int
) -> dict[str, int] | None:
    """The tensors with an element for each of `count` labels (a detector's have one more, for none), and where.

    By the family's file; in a model without one, the one module that is called as classifiers are, or in a classifier
    the one module of so many rows. None where that is not clear.
    """
    family = family_of(str(config.get("model_type")))
    if family is None:
        return _guessed(config, shapes, count)
    found = {}
    for name, named in name_tensors(family, shapes).items():
        for dim, axes in enumerate(named.spec.dims):
            if axes.terms == ((LABELS,),) and shapes[name][dim : dim + 1] == (count,):
                found[name] = dim
    return found


def _guessed(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], count: int
) -> dict[str, int] | None:
    called = {name: shape for name, shape in shapes.items() if _HEAD.search(name)}
    found = [name for name, shape in called.items() if shape[:1] == (count,)]
    if not found:
        if not _CLASSIFIER.search(" ".join(map(str, config.get("architectures") or ()))):
            return {}
        # Detectors have one row more, the last, for no object.
        if more := [name for name, shape in called.items() if shape[:1] == (count + 1,)]:
            return dict.fromkeys(more, 0) if len({name.rpartition(".")[0] for name in more}) == 1 else None
        found = [name for name, shape in shapes.items() if shape[:1] == (count,) and "embed" not in name]
    if not found:
        return {}
    modules = {name.rpartition(".")[0] for name in found}
    return dict.fromkeys(found, 0) if len(modules) == 1 else None
