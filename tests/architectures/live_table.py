"""Writes merganser/architectures/live_names.json: builds every model class of transformers and asks it.

    python tests/architectures/live_table.py [MODEL_TYPE ...]

With model types it prints only theirs. It takes some minutes. A class that cannot be built with its default config has
no entry.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[2] / "merganser" / "architectures" / "live_names.json"
SIZES = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)


def classes(model_type: str) -> list[type]:
    """The model classes with the config class of a type."""
    from transformers import PreTrainedModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]
    try:
        module = importlib.import_module(config.__module__.replace("configuration_", "modeling_"))
    except ImportError:
        return []
    return [
        one
        for one in vars(module).values()
        if inspect.isclass(one)
        and issubclass(one, PreTrainedModel)
        and one.__module__ == module.__name__
        and getattr(one, "config_class", None) is config
        and not one.__name__.endswith("PreTrainedModel")
    ]


def built(one: Any) -> Any:
    """A model of a class without weights, of two layers where its config lets it; None where it cannot be built."""
    import torch

    for few in (True, False):
        try:
            config = one.config_class()
            if few:
                shrink(config)
            with torch.device("meta"):
                return one(config)
        except Exception:  # whatever a class's default config lacks
            continue
    return None


def shrink(config: Any) -> None:
    """Two layers in a config and those inside it, and numbers where the defaults are None."""
    from transformers import PretrainedConfig

    for key in SIZES:
        value = getattr(config, key, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 2:
            setattr(config, key, 2)
    heads, size = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    for key, value in (("num_key_value_heads", heads), ("vocab_size", 64)):
        if getattr(config, key, 0) is None and value is not None:
            setattr(config, key, value)
    if getattr(config, "head_dim", 0) is None and isinstance(heads, int) and isinstance(size, int):
        config.head_dim = size // heads
    for inner in list(vars(config).values()):
        if isinstance(inner, PretrainedConfig):
            shrink(inner)


def firsts(model: Any, prefix: str) -> list[str]:
    """The first words of a model's names, of the body's names the first two."""
    words = (name.split(".") for name in model.state_dict())
    return list(dict.fromkeys(".".join(w[:2]) if w[0] == prefix and len(w) > 2 else w[0] for w in words))


def line(transform: Any) -> list[Any]:
    """A transform as the table has it."""
    from transformers import core_model_loading as loading

    simple = type(transform) in (loading.WeightRenaming, loading.PrefixChange)
    converts = isinstance(transform, loading.WeightConverter)
    return [
        "rename" if simple else "convert" if converts else "other",
        transform.scope_prefix,
        transform.base_model_prefix or "",
        transform.compiled_sources.pattern,
        transform.target_patterns[0],
    ]


def kinds(model: Any) -> dict[str, list[str]]:
    """Modules with a 2-D weight that are no nn.Linear, numbers as `#`, by what they are."""
    import torch
    from transformers.pytorch_utils import Conv1D

    found: dict[str, dict[str, None]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or isinstance(module, torch.nn.Linear):
            continue
        embedding, conv1d = isinstance(module, torch.nn.Embedding), isinstance(module, Conv1D)
        kind = "embedding" if embedding else "conv1d" if conv1d else "other"
        found.setdefault(kind, {})[re.sub(r"(?<![^.])\d+(?![^.])", "#", name)] = None
    return {kind: list(modules) for kind, modules in sorted(found.items())}


def table(model_types: list[str]) -> dict[str, Any]:
    """The whole document."""
    import transformers
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        get_model_conversion_mapping,
    )

    lists: list[list[Any]] = []
    types: dict[str, Any] = {}
    for model_type in model_types:
        found: dict[str, Any] = {}
        prefix, others = "", {}
        for one in classes(model_type):
            model = built(one)
            own = [] if model is None else firsts(model, one.base_model_prefix)
            if not own:
                continue
            lines = [line(t) for t in get_model_conversion_mapping(model, add_legacy=False)]
            if lines not in lists:
                lists.append(lines)
            prefix = one.base_model_prefix
            for kind, modules in kinds(model).items():
                for module in modules:
                    others.setdefault(module.removeprefix(f"{prefix}."), kind)
            found[one.__name__] = [own, lists.index(lines)]
        if found:
            by_kind = {
                kind: [m for m in others if others[m] == kind] for kind in dict.fromkeys(others.values())
            }
            types[model_type] = {"prefix": prefix, "kinds": by_kind, "classes": found}
            print(model_type, *found, file=sys.stderr, flush=True)
    legacy = [line(t) for t in get_checkpoint_conversion_mapping("legacy")]
    return {"transformers": transformers.__version__, "legacy": legacy, "transforms": lists, "types": types}


def main() -> None:
    """The command."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if sys.argv[1:]:
        print(json.dumps(table(sys.argv[1:]), indent=1))
        return
    found = table(sorted(CONFIG_MAPPING))
    rows = [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in found["types"].items()
    ]
    lists = [json.dumps(one, separators=(",", ":")) for one in found["transforms"]]
    TARGET.write_text(
        f'{{"transformers": "{found["transformers"]}",\n"legacy": {json.dumps(found["legacy"])},\n"transforms": [\n'
        + ",\n".join(lists)
        + '\n],\n"types": {\n'
        + ",\n".join(rows)
        + "\n}}\n"
    )


if __name__ == "__main__":
    main()
