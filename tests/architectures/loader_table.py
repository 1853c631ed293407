"""`merganser/architectures/loader_defaults.json`, from the config classes of the installed transformers.

`python tests/architectures/loader_table.py` writes it anew.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

from merganser.architectures import meaning
from merganser.architectures.family import known_model_types

FILE = Path(meaning.__file__).with_name("loader_defaults.json")
HEADS = (
    "head_dim",
    "v_head_dim",
    "qk_head_dim",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "d_kv",
    "rotary_dim",
    "window_size",
)
EVERYWHERE = re.compile(
    r".*(multipliers?|softcap(ping)?|_scal(e|ing)|_eps|epsilon|_heads|sliding_window|_theta|_act)"
)
"""Keys that count whatever the model type; the others are those of types that have a family file."""


def table(kind: str) -> dict[str, Any] | None:
    """What one config class takes for granted; None where it cannot be made without arguments."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        made = CONFIG_MAPPING[kind]()
        written = made.to_dict()
    except Exception:
        return None
    plain = {"id2label", "label2id", "model_type"}
    parts = {key: one.model_type for key, one in type(made).sub_configs.items() if hasattr(one, "model_type")}
    defaults = {}
    for key, value in sorted(written.items()):
        if key in plain or key in parts or not (key in HEADS or meaning.counts(key)):
            continue
        raw = value if key == "rope_parameters" else getattr(type(made), key, value)
        raw = value if callable(raw) or isinstance(raw, property) else raw
        try:
            json.dumps(raw)
        except TypeError:
            continue
        defaults[key] = None if isinstance(raw, dict) and key != "rope_parameters" else raw
    found: dict[str, Any] = {"defaults": json.loads(json.dumps(defaults))}
    names = {a: b for a, b in sorted(type(made).attribute_map.items()) if b in defaults}
    return found | ({"names": names} if names else {}) | ({"parts": parts} if parts else {})


def tables() -> dict[str, Any]:
    """By model type, all that transformers knows."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    made = {kind: table(kind) for kind in sorted(CONFIG_MAPPING_NAMES)}
    found = {kind: one for kind, one in made.items() if one is not None}
    known = {key for kind in known_model_types() if kind in found for key in found[kind]["defaults"]}
    for one in found.values():
        one["defaults"] = {k: v for k, v in one["defaults"].items() if k in known or EVERYWHERE.fullmatch(k)}
    return {kind: one for kind, one in found.items() if one["defaults"] or "parts" in one}


def text() -> str:
    """The file: one line a model type."""
    lines = [f" {json.dumps(kind)}: {json.dumps(one)}" for kind, one in tables().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    FILE.write_text(text(), encoding="utf-8")
