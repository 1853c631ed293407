"""What family files say of stock loaders, against the config classes and models of the installed transformers."""

from __future__ import annotations

import itertools

import pytest

from merganser.architectures import FamilyError, families, parse_family

pytestmark = pytest.mark.models
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LOADERS = {loader.model_type: loader for family in families().values() for loader in family.loaders.values()}
KNOWN = sorted(kind for kind, loader in LOADERS.items() if loader.defaults)
WHOLE = sorted(kind for kind in KNOWN if "hidden_act" in LOADERS[kind].defaults)
"""Those from which or to which a step may go."""
SIZES = {
    "vocab_size": 31,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "moe_intermediate_size": 10,
    "shared_expert_intermediate_size": 10,
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "pad_token_id": 0,
}


def config_class(kind: str):
    return type(transformers.AutoConfig.for_model(kind))


def built(kind: str, name: str, **more):
    """A model on the meta device."""
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **more})
    with torch.device("meta"):
        return getattr(transformers, name)._from_config(config)


@pytest.mark.parametrize("kind", KNOWN)
def test_defaults_are_those_of_the_config_class(kind):
    found = config_class(kind)
    for key, value in LOADERS[kind].defaults.items():
        if key == "rope_theta":
            assert found.default_theta == value
        else:
            assert getattr(found, key, None) == value, key


@pytest.mark.parametrize("kind", WHOLE)
def test_biases_are_where_the_model_has_them(kind):
    loader = LOADERS[kind]
    keys = [key for key in loader.biases if key != "always"]
    name = config_class(kind).__name__.replace("Config", "ForCausalLM")
    for values in itertools.product((False, True), repeat=len(keys)):
        told = dict(zip(keys, values, strict=True))
        model = built(kind, name, **told)
        expected = {m for key, modules in loader.biases.items() if told.get(key, True) for m in modules}
        within = "model.layers.1."
        found = {
            n.removeprefix(within).removesuffix(".bias")
            for n, _ in model.named_parameters()
            if n.startswith(within) and n.endswith(".bias")
        }
        assert found == expected, told


@pytest.mark.parametrize("kind", WHOLE)
def test_windows_are_those_that_the_loader_derives(kind):
    loader = LOADERS[kind]
    for gate, window, first in itertools.product((True, False, None), (3, None, ...), (0, 1, 3, ...)):
        told = {"use_sliding_window": gate, "sliding_window": window, "max_window_layers": first}
        told = {key: value for key, value in told.items() if value is not ...}
        if gate is None:
            told.pop("use_sliding_window")
        config = transformers.AutoConfig.for_model(kind, **{**SIZES, "num_hidden_layers": 4, **told})
        held = getattr(config, "sliding_window", None) if loader.windows is not None else None
        kinds = getattr(config, "layer_types", None) if loader.windows and loader.windows.types else None
        kinds = kinds or ["sliding_attention"] * 4
        expected = [held or None if one == "sliding_attention" else None for one in kinds]
        assert loader.windows_of(told, 4) == expected, told


@pytest.mark.parametrize("kind", WHOLE)
def test_prefixes_are_those_of_the_classes(kind):
    stem = config_class(kind).__name__.removesuffix("Config")
    seen = 0
    for head in (
        "ForCausalLM",
        "ForSequenceClassification",
        "ForTokenClassification",
        "ForQuestionAnswering",
    ):
        if not hasattr(transformers, stem + head):
            continue
        model = built(kind, stem + head)
        name = next(n for n, _ in model.named_parameters() if n.endswith("embed_tokens.weight"))
        prefix = LOADERS[kind].prefix({"architectures": [stem + head]}, "model")
        assert name == f"{prefix}embed_tokens.weight"
        seen += 1
    assert seen


@pytest.mark.parametrize("kind", [kind for family in families().values() for kind in family.model_types])
def test_sizes_that_config_json_may_leave_out_are_those_of_the_config_class(kind):
    """Where a formula has another way out than the loader's own number."""
    try:
        found = config_class(kind)
    except ValueError:
        pytest.skip("transformers does not have it")
    family = next(one for one in families().values() if kind in one.model_types)
    for spec in family.axes.values():
        key = str(spec.size).partition(" or ")[0]
        default = getattr(found, key, None) if " or " in str(spec.size) and key.isidentifier() else None
        if key in ("num_key_value_heads", "head_dim") and isinstance(default, int):
            assert LOADERS[kind].defaults[key] == default


FILE = """
family: short
model_types: [short]
axes: {residual: hidden_size}
modules: {norm: linear residual -> residual}
loaders:
"""


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("  shrt: {computes: a}", "shrt: is no model type of this file; did you mean 'short'"),
        ("  short: {defaults: {}}", "says what it computes"),
        ("  short: {computes: a, default: {}}", "unknown key 'default'; did you mean 'defaults'"),
        ("  short: {computes: a, plain: {scale: 1}}", "plain: scale has no default"),
        ("  short: {computes: a, windows: {gate: x}}", "windows: has layers"),
        ("  short: {computes: a, biases: [q]}", "biases: expected a mapping"),
    ],
)
def test_wrong_lines_are_refused(lines, match):
    with pytest.raises(FamilyError, match=match):
        parse_family(FILE + lines, "short.yaml")
