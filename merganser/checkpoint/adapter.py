"""PEFT LoRA adapter directories, read as the change they make to their base.

An adapter is read only where `scale * B @ A`, added to the base, is all that it means. Everything else (a
setting that makes it mean more, a tensor that stands beside the factors) is an error: without it
the delta would be wrong.
The tables below say for every field of PEFT's LoraConfig (0.21 and before) which of the two it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from merganser.checkpoint import layout
from merganser.checkpoint.files import StoredFile
from merganser.checkpoint.header import read_header
from merganser.checkpoint.tensor import StoredTensor
from merganser.errors import CheckpointError, RequestError, did_you_mean, listing

SAFETENSORS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
PREFIX = "base_model.model."

READ = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias",
    "init_lora_weights",
}  # fmt: skip
"""Settings that the delta is computed from or that are checked by value."""

HARMLESS = {
    "auto_mapping": "says where the adapter came from",
    "base_model_name_or_path": "says where the adapter came from",
    "corda_config": "means something with init_lora_weights only",
    "eva_config": "means something with init_lora_weights only",
    "exclude_modules": "the factors say which modules are changed",
    "inference_mode": "says how the adapter is run",
    "layers_pattern": "the factors say which modules are changed",
    "layers_to_transform": "the factors say which modules are changed",
    "loftq_config": "means something with init_lora_weights only",
    "lora_dropout": "acts in training only",
    "lora_ga_config": "means something with init_lora_weights only",
    "megatron_core": "means something with megatron_config only",
    "merge_weights": "says how the adapter is run (of old versions)",
    "peft_version": "says where the adapter came from",
    "qalora_group_size": "means something with use_qalora only",
    "revision": "says where the adapter came from",
    "runtime_config": "says how the adapter is run",
    "target_modules": "the factors say which modules are changed",
    "task_type": "says where the adapter came from",
}
"""Settings that do not change the delta whatever they hold, and why."""

REFUSED = {
    "use_dora": "DoRA rescales the sum of base and delta, so the change depends on the base",
    "lora_bias": "the adapter also changes biases",
    "modules_to_save": "whole modules are replaced, not changed by a product of factors",
    "trainable_token_indices": "rows of the embedding are replaced",
    "layer_replication": "the adapter belongs to a base with repeated layers",
    "megatron_config": "the factors are those of Megatron's parallel layers",
    "use_qalora": "the factors act on pooled inputs",
    "alora_invocation_tokens": "the adapter acts only after its invocation tokens, which no weights can say",
    "target_parameters": "the factors are those of stacked parameters and not of modules",
    "use_bdlora": "the factors are block-diagonal and stored without their zeros",
    "arrow_config": "a router chooses between adapters for every token",
    "monteclora_config": "the factors are sampled around what is stored",
    "velora_config": "tensors of the training method are stored beside the factors",
    "kasa_config": "the base was truncated before training, so the delta belongs to another base",
    "ensure_weight_tying": "one delta is stored twice, for the embedding and for the head that is tied to it",
}
"""Settings that must be off, and why the delta would be wrong otherwise."""

PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica")
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the first factors out of the base, so that the stored ones are no change to it.

PEFT can convert such an adapter on saving (`path_initial_model_for_weight_conversion`); the config then says
`init_lora_weights: true` with twice the rank, and it is read.
"""

WITHOUT_WEIGHTS = {
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT", "CARTRIDGE",
    "XLORA", "POLY",
}  # fmt: skip
"""PEFT's methods that no change of weights can say."""

CONV1D_NAMES = {"c_attn", "c_fc", "c_proj", "q_attn"}
"""What transformers calls the modules whose weight is stored as (in, out)."""

_LINEAR_KEY = re.compile(
    re.escape(PREFIX) + r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_EMBEDDING_KEY = re.compile(
    re.escape(PREFIX) + r"(?P<module>.+)\.lora_embedding_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?"
)
_NOT_OF_THE_BASE = {"base_layer", "lora_A", "lora_B", "modules_to_save", "original_module"}
_MERGE = "Merge it in PEFT first (merge_and_unload) and open the merged model"
_BESIDE = "Merge the models alone, and load this adapter onto the result in PEFT"
_REMEDIES = {
    "alora_invocation_tokens": _BESIDE,
    "arrow_config": _BESIDE,
    "lora_bias": (
        "Where the layers have biases, merge it in PEFT first (merge_and_unload) and open the merged model; where they "
        "have none, no weights can say it: merge the models alone, and load this adapter onto the result in PEFT"
    ),
    "layer_replication": (
        "Make that base (merge_method: passthrough with the same ranges as slices), set layer_replication to null in "
        "a copy of the adapter, and add the copy to it. PEFT's own merge adds the changes of all copies to each"
    ),
}
"""The ways out that are not `_MERGE`, by setting."""


@dataclass(frozen=True, slots=True)
class AdapterDelta:
    """`scale * left @ right` reshaped to `shape`: the change to one tensor of the base.

    left has shape (m, r) and right (r, n), with m * n elements as in `shape` (row-major). Each factor is a
    stored 2-D tensor; the `_transposed` flags say that it is stored the other way round ((r, m) and (n, r)).
    """

    left: StoredTensor
    left_transposed: bool
    right: StoredTensor
    right_transposed: bool
    scale: float
    rank: int
    shape: tuple[int, ...]


def read_adapter(
    directory: Path, name: str, *, allow_pickle: bool = False, file: Path | None = None
) -> tuple[dict[str, AdapterDelta], tuple[StoredFile, ...]]:
    """The deltas of a PEFT LoRA adapter by the base's tensor names, and the files that they come from.

    Rules: the base's tensor of module M is `M.weight`; scale is alpha / r, with use_rslora alpha / sqrt(r); r
    and alpha are those of the first pattern that PEFT matches to M; r must be the rank of the factors. `file` is the
    weights file where it is another than PEFT's.

    Raises `CheckpointError` for anything malformed or not understood, `RequestError` where pickle is needed.
    """
    config_file = directory / layout.ADAPTER_CONFIG
    layout.refuse_link_out(config_file)
    stored_config = StoredFile(config_file)
    config = _read_config(config_file)
    held, tensors = _read_tensors(directory, name, allow_pickle, file)
    modules = _pair_factors(held.path, tensors)
    _check_orientation(config, held.path, modules)
    return {f"{m}.weight": _delta(config, held.path, m, f) for m, f in modules.items()}, (held, stored_config)


@dataclass(frozen=True, slots=True)
class _Config:
    """What the delta is computed from."""

    path: Path
    rank: int
    alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    fan_in_fan_out: bool

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        alpha = self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(slots=True)
class _Factors:
    """The stored A and B of one module."""

    is_embedding: bool
    sides: dict[str, StoredTensor] = field(default_factory=dict)


def _read_config(path: Path) -> _Config:
    told = layout.read_json(path)

    def bad(what: str) -> NoReturn:
        raise CheckpointError(f"{path}: {what}")

    def value(key: str, expected: str, valid: bool) -> Any:
        if not valid:
            bad(
                f"{key} is {_shown(told.get(key))}; it must be {expected}. "
                "Mend the file or save the adapter again"
            )
        return told.get(key)

    def flag(key: str) -> bool:
        return bool(value(key, "true or false", isinstance(told.get(key), bool | None)))

    def patterns(key: str, is_valid: Any, expected: str) -> dict[str, Any]:
        found = {} if told.get(key) is None else told[key]
        valid = isinstance(found, dict) and all(map(is_valid, found.values()))
        value(key, f"an object of module patterns and {expected}", valid)
        for pattern in found:
            if (reason := _unfit_pattern(pattern)) is not None:
                bad(
                    f"{key} has the pattern {_shown(pattern)}, which {reason}. "
                    "Write plain module names instead"
                )
        return found

    method = told.get("peft_type")
    if method is None:
        bad(
            "has no peft_type, so it is no config that PEFT wrote, and what the factors mean is not known. Put them "
            "onto their model with the program that wrote them, and open the model it makes"
        )
    if method in WITHOUT_WEIGHTS:
        bad(
            f"peft_type is {_shown(method)}, which changes no weights of the model but what runs beside them, so "
            f"there is nothing to merge. {_BESIDE}"
        )
    if method != "LORA":
        bad(
            f"peft_type is {_shown(method)}; only LORA is read, other methods change weights in other ways. {_MERGE}"
        )
    known = READ | HARMLESS.keys() | REFUSED.keys()
    for key, held in told.items():
        if key in REFUSED and held:
            bad(f"{key} is {_shown(held)}: {REFUSED[key]}. {_REMEDIES.get(key, _MERGE)}")
        if key not in known and held:
            near = did_you_mean(key, known)
            bad(
                f"{key} is {_shown(held)}; this setting is not known and may change what the adapter "
                f"means{near}. {_MERGE}"
            )
    if told.get("bias", "none") not in ("none", None):
        bad(f"bias is {_shown(told['bias'])}: the adapter also replaces biases of the base. {_MERGE}")
    init = told.get("init_lora_weights")
    value("init_lora_weights", "true, false or a name", init is None or isinstance(init, bool | str))
    if isinstance(init, str) and init.lower().startswith(BASE_CHANGING_INITS):
        bad(
            f"init_lora_weights is {_shown(init)}: the first factors were taken out of the base, so these "
            "are no change to the true base. Save it with path_initial_model_for_weight_conversion, or merge "
            "it in PEFT and open the merged model"
        )
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        near = did_you_mean(init.lower(), PLAIN_INITS + BASE_CHANGING_INITS)
        bad(
            f"init_lora_weights is {_shown(init)}, which is not known and may change the base{near}. {_MERGE}"
        )
    return _Config(
        path,
        rank=value("r", "a whole number above 0", _is_rank(told.get("r"))),
        alpha=float(value("lora_alpha", "a finite number", _is_finite(told.get("lora_alpha")))),
        rank_pattern=patterns("rank_pattern", _is_rank, "whole numbers above 0"),
        alpha_pattern={
            k: float(v) for k, v in patterns("alpha_pattern", _is_finite, "finite numbers").items()
        },
        use_rslora=flag("use_rslora"),
        fan_in_fan_out=flag("fan_in_fan_out"),
    )


def _read_tensors(
    directory: Path, name: str, allow_pickle: bool, named: Path | None
) -> tuple[StoredFile, Mapping[str, StoredTensor]]:
    """The one weights file, safetensors before pickle as in PEFT; or the signs; or the file that is named."""
    tensors: Mapping[str, StoredTensor]
    if named is None and (directory / layout.SIGNS_NAME).exists():
        from merganser.checkpoint.signs import read_signs

        file, tensors, _ = read_signs(directory, name)
        return file, tensors
    path = named or directory / SAFETENSORS_NAME
    if path.exists() and path.suffix == ".safetensors":
        layout.refuse_link_out(path)
        file = StoredFile(path)
        tensors, _ = read_header(file, name)
    else:
        path = named or directory / PICKLE_NAME
        if not path.exists():
            near = did_you_mean(SAFETENSORS_NAME, [p.name for p in directory.iterdir()])
            raise CheckpointError(
                f"{directory}: holds {layout.ADAPTER_CONFIG} but neither {SAFETENSORS_NAME} nor "
                f"{PICKLE_NAME}{near}. Copy the missing file or save the adapter again"
            )
        if not allow_pickle:
            raise RequestError(
                f"{path}: is a pickled adapter, which can carry code. With --allow-pickle "
                "(allow_pickle=True) its tensors are read and nothing else in it is run; "
                "better, save it as safetensors"
            )
        from merganser.checkpoint.pickled import read_pickled

        layout.refuse_link_out(path)
        file = StoredFile(path)
        tensors = read_pickled(file, name)
    if not tensors:
        raise CheckpointError(
            f"{path}: holds no tensors, so the adapter changes nothing. Save the adapter again"
        )
    return file, tensors


def _pair_factors(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, _Factors]:
    """The factors by module; every tensor of the file is one of them, and every module has both."""
    modules: dict[str, _Factors] = {}
    adapters: dict[str | None, str] = {}
    for name, tensor in tensors.items():
        is_embedding = ".lora_embedding_" in name
        found = (_EMBEDDING_KEY if is_embedding else _LINEAR_KEY).fullmatch(name)
        if found is None or _NOT_OF_THE_BASE.intersection(found["module"].split(".")):
            raise CheckpointError(f"{path}: tensor {name!r} {_why_not_a_factor(name)}")
        adapters.setdefault(found["adapter"], name)
        if len(adapters) > 1:
            one, other = adapters.values()
            raise CheckpointError(
                f"{path}: tensors {one!r} and {other!r} belong to different adapters, and their sum "
                "would be neither. Save each adapter to a directory of its own"
            )
        factors = modules.setdefault(found["module"], _Factors(is_embedding))
        if factors.is_embedding != is_embedding:
            raise CheckpointError(
                f"{path}: module {found['module']!r} has the factors of an embedding and those of a "
                "linear layer; it is not clear which are meant. Save the adapter again"
            )
        factors.sides[found["side"]] = tensor
    for factors in modules.values():
        if len(factors.sides) == 1:
            ((side, tensor),) = factors.sides.items()
            part = "lora_embedding_" if factors.is_embedding else "lora_"
            head, _, tail = tensor.name.rpartition(part + side)
            due = f"{head}{part}{'B' if side == 'A' else 'A'}{tail}"
            near = did_you_mean(due, (n for n in tensors if n != tensor.name))
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} stands alone: {due!r} is missing, and one factor is no "
                f"delta{near}. Save the adapter again"
            )
    return modules


def _why_not_a_factor(name: str) -> str:
    if "lora_" in name:
        return (
            f"is no LoRA factor that is understood (those are called {PREFIX}MODULE.lora_A.weight and so "
            f"on), and a delta without it would be wrong. {_MERGE}"
        )
    if name.endswith(".base_layer.weight"):
        return (
            "is the base's own tensor, as PEFT saves it beside the factors of an embedding; it may be "
            "resized or trained, and the delta alone would then be wrong. Save the adapter with "
            "save_embedding_layers=False if the embedding itself was not changed, or merge it in PEFT and "
            "open the merged model"
        )
    return f"is a whole tensor that replaces one of the base; a delta cannot say that. {_MERGE}"


def _delta(config: _Config, path: Path, module: str, factors: _Factors) -> AdapterDelta:
    a, b = factors.sides["A"], factors.sides["B"]
    both = f"{a.name!r} of shape {a.shape} and {b.name!r} of shape {b.shape}"
    if a.dtype != b.dtype or not a.dtype.is_float:
        raise CheckpointError(
            f"{path}: {a.name!r} is {a.dtype} and {b.name!r} is {b.dtype}; the factors must have one "
            "floating dtype. Convert them to one dtype and save the adapter again"
        )
    if min(len(a.shape), len(b.shape)) < 2 or 0 in a.shape + b.shape:
        raise CheckpointError(
            f"{path}: {both} are no factors, as left by a sharded save (ZeRO-3, FSDP) that was not gathered. "
            "Gather the parameters and save the adapter again"
        )
    is_linear = len(a.shape) == len(b.shape) == 2
    is_convolution = not factors.is_embedding and 2 < len(a.shape) == len(b.shape) and set(b.shape[2:]) == {1}
    if not (is_linear or is_convolution) or a.shape[0] != b.shape[1]:
        why = (
            " (a convolution with groups has such, and its delta is no such product)"
            if is_convolution
            else ""
        )
        raise CheckpointError(f"{path}: {both} are not the factors of one product{why}. {_MERGE}")
    rank = config.rank_of(module)
    if rank != a.shape[0]:
        raise CheckpointError(
            f"{path}: {both} have rank {a.shape[0]}, but {config.path.name} says rank {rank} for module "
            f"{module!r}, and the scale follows from the rank. Take the two files from the same save"
        )
    scale = config.scale_of(module, rank)
    outputs, inputs = b.shape[0], a.shape[1:]
    if factors.is_embedding or (is_linear and config.fan_in_fan_out):
        return AdapterDelta(a, True, b, True, scale, rank, (*inputs, outputs))
    a = replace(a, shape=(rank, math.prod(inputs)))
    b = replace(b, shape=(outputs, rank))
    return AdapterDelta(b, False, a, False, scale, rank, (outputs, *inputs))


def _check_orientation(config: _Config, path: Path, modules: Mapping[str, _Factors]) -> None:
    """Refuse a square delta that may lie the other way round.

    PEFT asks the base which modules are Conv1D and leaves in the config the fan_in_fan_out of the last one it
    met, so for a model with both kinds the flag is wrong for one of them. Shapes tell, except where the
    weight is square; there the module's name must agree with the flag. With the flag off it may disagree if
    all names do: the model then has one kind only.
    """
    linear = {m: f for m, f in modules.items() if not f.is_embedding and len(f.sides["A"].shape) == 2}
    is_conv1d = {m: m.rpartition(".")[2] in CONV1D_NAMES for m in linear}
    if not config.fan_in_fan_out and len(set(is_conv1d.values())) < 2:
        return
    for module, factors in linear.items():
        is_square = factors.sides["A"].shape[1:] == factors.sides["B"].shape[:1]
        if is_square and is_conv1d[module] != config.fan_in_fan_out:
            raise CheckpointError(
                f"{path}: fan_in_fan_out is {config.fan_in_fan_out} in {config.path.name}, but the weight of "
                f"module {module!r} is square and may be stored the other way round, as PEFT writes one flag "
                f"for a model that mixes Conv1D and Linear. {_MERGE}"
            )


def _pattern_key(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that matches `module` by PEFT's rule (its `get_pattern_key`), or `module` itself."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), module)


def _unfit_pattern(pattern: str) -> str | None:
    """Why a pattern of the config is not used: it does not compile, or could take forever on a long name."""
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression ({error})"
    if re.search(r"\)[*+{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 4 or len(pattern) > 1000:
        return (
            "repeats a group, repeats more than four times or is very long, and could take forever to match"
        )
    return None


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _shown(value: Any) -> str:
    """A value from the file, short enough for a message."""
    if isinstance(value, list) and value:
        return f"[{listing(repr(v)[:80] for v in value)}]"
    return repr(value)[:80]
