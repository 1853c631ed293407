"""Family files against the models of transformers: every tensor named, every label true, wrong files refused.

Tiny random models (tiny_decoders.py, tiny_encoders.py) are saved by transformers and read through their family files.
Labels are proved by what they promise: an axis's elements in another order, everywhere the file says, are the same
function.
"""

from __future__ import annotations

import functools
import json
import math
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_decoders  # noqa: E402
import tiny_encoders  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from merganser.architectures import Axis, FamilyError, Reading, families, parse_family, read, read_as  # noqa: E402
from merganser.architectures.notation import NORMS, TensorSpec  # noqa: E402
from merganser.checkpoint import Checkpoint, open_checkpoint  # noqa: E402
from merganser.errors import CheckpointError  # noqa: E402

pytestmark = pytest.mark.models

MODELS: dict[str, Callable[[], Any]] = tiny_decoders.MODELS | tiny_encoders.MODELS
INPUTS: dict[str, Callable[[], dict[str, Any]]] = tiny_encoders.INPUTS
BUFFERS = re.compile(r"(\.|^)(inv_freq|masked_bias|attn\.bias|attention\.bias|causal_mask|position_ids|"
                     r"embed_positions\.weights)(\.weight|\.bias)?$")  # fmt: skip
"""Tensors that old releases carry and the installed transformers does not write."""
LENGTH = 11
CLOSE = 1e-4


@dataclass
class Case:
    """A tiny model, what it was saved as, and how that is read."""

    name: str
    model: Any
    folder: Path
    checkpoint: Checkpoint
    reading: Reading

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        return inputs_of(self.name, self.model)

    @functools.cached_property
    def outputs(self) -> dict[str, Any]:
        return run(self.model, self.inputs)

    @functools.cached_property
    def spare(self) -> Any:
        """A copy whose tensors may change."""
        return deepcopy(self.model)

    @functools.cached_property
    def tensors(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in load_file(self.folder / "model.safetensors").items()}


@functools.cache
def home() -> Path:
    return Path(tempfile.mkdtemp(prefix="merganser-families-"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(threads)
    case.cache_clear()
    shutil.rmtree(home())
    home.cache_clear()


@functools.cache
def case(name: str) -> Case:
    model = MODELS[name]()
    folder = home() / name
    model.save_pretrained(folder)
    checkpoint = open_checkpoint(folder)
    return Case(name, model, folder, checkpoint, read(checkpoint))


@functools.cache
def by_family() -> dict[str, list[str]]:
    """The cases of every family. One that cannot be read fails the tests of its own name."""
    found: dict[str, list[str]] = {}
    for name in MODELS:
        try:
            found.setdefault(case(name).reading.family.name, []).append(name)
        except Exception:
            continue
    return found


def cases_of(family: str) -> list[Case]:
    return [case(name) for name in by_family().get(family, [])]


def special_tokens(config: Any) -> set[int]:
    """Tokens that a loader knows by number."""
    found: set[int] = set()
    for key, value in config.to_dict().items():
        if key.endswith("token_id") and value is not None:
            found |= set(value) if isinstance(value, list) else {value}
    for sub in config.sub_configs:
        if getattr(config, sub, None) is not None:
            found |= special_tokens(getattr(config, sub))
    return found


def inputs_of(name: str, model: Any) -> dict[str, Any]:
    """What the case is called with; random tokens where it does not say."""
    if name in INPUTS:
        return INPUTS[name]()
    rng = np.random.default_rng(1)
    free = [k for k in range(model.config.vocab_size) if k not in special_tokens(model.config)]
    return {"input_ids": torch.tensor(rng.choice(free, size=(2, LENGTH)))}


def run(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The float outputs, by name."""
    model.set_experts_implementation("eager")  # the other kernels do not take sizes as small as these
    more = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    with torch.no_grad():
        result = model(**inputs, **more)
    return {k: v for k, v in result.items() if isinstance(v, torch.Tensor) and v.is_floating_point()}


def loaded(one: Case, tensors: Mapping[str, np.ndarray]) -> Any:
    """The model with other tensors, by the stock loader where names in files and in memory differ."""
    changed = {n: torch.from_numpy(np.array(a, order="C")) for n, a in tensors.items()}
    if changed.keys() <= one.spare.state_dict().keys():
        one.spare.load_state_dict(changed, strict=False)
        return one.spare
    folder = one.folder / "changed"
    folder.mkdir(exist_ok=True)
    shutil.copy(one.folder / "config.json", folder)
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return type(one.model).from_pretrained(folder).eval()


# The file and the module tree -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_the_file_says_what_the_model_has(name: str) -> None:
    one = case(name)
    check_names(one)
    check_ties(one)
    check_sizes_and_kinds(one)
    assert one.reading.resized(one.reading.sizes, one.reading.tensors).config == one.checkpoint.config


def check_names(one: Case) -> None:
    """Every tensor is named, and once."""
    reading = one.reading
    family = reading.family
    assert reading.tensors.keys() == one.checkpoint.tensors.keys()
    patterns = {spec.pattern: pattern_of(spec.pattern) for spec in family.tensors}
    for tensor in one.checkpoint.tensors:
        bare = tensor.removeprefix(reading.prefix)
        named = [p for p, regex in patterns.items() if regex.fullmatch(tensor if p in family.heads else bare)]
        assert len(named) == 1, (tensor, named)


def check_ties(one: Case) -> None:
    """What the file ties, the model would share, and the other way round."""
    ties = {
        f"{place}.{name}".lstrip("."): f"{place}.{source}".lstrip(".")
        for place, module in one.model.named_modules()
        for name, source in (getattr(module, "_tied_weights_keys", None) or {}).items()
    }
    parameters = {n for n, _ in one.model.named_parameters(remove_duplicate=False)}

    def origin(name: str) -> str:
        return origin(ties[name]) if name in ties else name

    for head, shared in one.reading.tied.items():
        if head in parameters:
            assert origin(head) == origin(shared)
    heads = {
        one.reading.name(s, {}) for s in one.reading.family.tensors if s.pattern in one.reading.family.heads
    }
    assert heads & set(ties) <= set(one.reading.tied)


@functools.cache
def pattern_of(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(pattern)))


KINDS = {
    "linear": ("Linear", "Router", "Gate"),
    "conv1d": ("Conv1D",),
    "conv": ("Conv1d", "Conv2d", "Conv3d"),
    "embedding": ("Embedding",),
    "rmsnorm": ("RMSNorm", "LayerNorm"),
    "rmsnorm+1": ("RMSNorm",),
    "layernorm": ("LayerNorm", "GroupNorm"),
    "layernorm+1": ("LayerNorm1P",),
}


def check_sizes_and_kinds(one: Case) -> None:
    """Modules are of the kind and have the sizes that the file gives them."""
    modules = dict(one.model.named_modules())
    seen = 0
    for tensor, named in one.reading.tensors.items():
        spec = named.spec
        module = modules.get(tensor.rpartition(".")[0])
        if module is None or spec.kind in ("parameter", "scale") or getattr(module, "weight", None) is None:
            continue
        assert any(word in type(module).__name__ for word in KINDS[spec.kind]), (
            tensor,
            spec.kind,
            type(module),
        )
        seen += 1
        if not tensor.endswith(".weight"):
            continue
        sizes = [sum(map(one.reading.length, parts)) for parts in one.reading.parts(tensor)]
        if hasattr(module, "in_features"):
            assert (sizes[spec.reads], sizes[spec.writes]) == (module.in_features, module.out_features), (
                tensor
            )
        elif hasattr(module, "in_channels"):
            assert sizes[:2] == [module.out_channels, module.in_channels // module.groups], tensor
            assert tuple(sizes[2:]) == tuple(module.kernel_size), tensor
        elif hasattr(module, "num_embeddings"):
            assert sizes == [module.num_embeddings, module.embedding_dim], tensor
        elif spec.kind == "conv1d":
            assert sizes == [module.nx, module.nf], tensor
        else:
            assert tuple(sizes) == tuple(module.weight.shape), tensor
    assert seen


# Labels ---------------------------------------------------------------------------------------------------------------


def orders(one: Case) -> dict[Axis, np.ndarray]:
    """A random order of every axis whose elements have no fixed places."""
    reading = one.reading
    rng = np.random.default_rng(2)
    family = reading.family
    held = {a.name for tensor in reading.tensors for dim in reading.parts(tensor) for p in dim for a in p
            if isinstance(a, Axis)}  # fmt: skip
    chosen = {
        name for spec in family.tensors if spec.writes is not None for name in spec.dims[spec.writes].axes
    }
    found = {}
    for axis, size in reading.sizes.items():
        if axis.name in family.fixed or axis.name not in held or size < 2:
            continue
        if axis.name in family.indices and axis.name not in chosen:
            continue  # layers run in their order, be there a head that reads something of each
        free = np.arange(size)
        if "vocab" in axis.name:
            free = np.array([k for k in free if k not in special_tokens(one.model.config)])
        order = np.arange(size)
        while (order == np.arange(size)).all():
            order[free] = rng.permutation(free)
        found[axis] = order
    return found


def indices(reading: Reading, parts: list[tuple[Any, ...]], by: Mapping[Axis, np.ndarray]) -> np.ndarray:
    """Which old element stands at each place of a dimension."""
    pieces, offset = [], 0
    for part in parts:
        shape = [factor if isinstance(factor, int) else reading.sizes[factor] for factor in part]
        grid = np.arange(math.prod(shape)).reshape(shape)
        for k, factor in enumerate(part):
            if factor in by:
                grid = np.take(grid, by[factor], axis=k)
        pieces.append(offset + grid.ravel())
        offset += grid.size
    return np.concatenate(pieces)


def in_order(
    one: Case, tensors: Mapping[str, np.ndarray], by: Mapping[Axis, np.ndarray], but: str = ""
) -> dict[str, np.ndarray]:
    """All tensors with their axes in another order, and copies (experts) as well; `but` one is left as it is."""
    reading = one.reading
    moved = {}
    for name, array in tensors.items():
        named = reading.tensors[name]
        for dim, parts in enumerate(reading.parts(name) if name != but else ()):
            array = np.take(array, indices(reading, parts, by), axis=dim)
        place = dict(named.at)
        for index in place:
            scope = tuple(place[outer] for outer in reading.family.indices[index].scope)
            order = by.get(Axis(index, scope))
            if order is not None:
                place[index] = int(np.flatnonzero(order == place[index])[0])
        moved[reading.name(named.spec, place)] = array
    assert moved.keys() == tensors.keys()
    return moved


def told(one: Case, by: Mapping[Axis, np.ndarray]) -> dict[str, Any]:
    """The inputs in the new order."""
    found = dict(one.inputs)
    for name, kind in (
        ("input_ids", "vocab"),
        ("decoder_input_ids", "vocab"),
        ("token_type_ids", "token_types"),
    ):
        order = next((order for axis, order in by.items() if kind in axis.name), None)
        if name in found and order is not None:
            found[name] = torch.from_numpy(np.argsort(order))[found[name]]
    return found


def answered(one: Case, by: Mapping[Axis, np.ndarray]) -> dict[str, Any]:
    """The outputs in the new order: their dimensions are known by their sizes."""
    found = {}
    for name, output in one.outputs.items():
        for dim in range(1, output.ndim):
            fitting = {
                axis: order for axis, order in by.items() if not axis.at and len(order) == output.shape[dim]
            }
            assert len(fitting) < 2, (name, output.shape, *fitting)
            for order in fitting.values():
                output = output.index_select(dim, torch.from_numpy(order))
        found[name] = output
    return found


def answers(one: Case) -> list[str]:
    """The outputs that are no hidden states: those are what norms write."""
    return [name for name in one.outputs if not name.endswith("hidden_state")]


def factors(one: Case) -> tuple[dict[str, np.ndarray], set[str]]:
    """Tensors with each norm that matrices read multiplied, and those matrices divided; and which norms those were."""
    rng = np.random.default_rng(3)
    reading, tensors, proved = one.reading, dict(one.tensors), set()
    for norm in reading.family.norms.values():
        readers = set(norm.readers)
        if norm.place != "folded" or (not answers(one) and "{" not in norm.module):
            continue  # the last one's output is the model's
        shares = {head for head in reading.tied if head not in tensors}
        if any(
            reading.name(s, {}) in shares
            for s in reading.family.tensors
            if s.module in readers and not s.indices
        ):
            continue
        for name, named in reading.tensors.items():
            if named.spec.module != norm.module or not name.endswith(".weight"):
                continue
            at = set(named.at)
            matrices = {
                other: tensor.spec
                for other, tensor in reading.tensors.items()
                if tensor.spec.module in readers and tensor.spec.reads is not None and at <= set(tensor.at)
            }
            if not matrices:
                continue
            by = rng.uniform(0.5, 2, tensors[name].shape).astype(np.float32)
            offset = NORMS[named.spec.kind]
            tensors[name] = (tensors[name] + np.float32(offset)) * by - np.float32(offset)
            bias = name.removesuffix("weight") + "bias"
            if bias in tensors:
                tensors[bias] = tensors[bias] * by
            for other, spec in matrices.items():
                shape = [1] * tensors[other].ndim
                shape[spec.reads] = -1
                tensors[other] = tensors[other] / by.reshape(shape)
            proved.add(norm.module)
    return tensors, proved


def difference(
    one: Case, tensors: Mapping[str, np.ndarray], by: Mapping[Axis, np.ndarray], only: list[str]
) -> float:
    """How far the outputs of changed tensors are from those of the model, in the new order."""
    outputs = run(loaded(one, tensors), told(one, by))
    assert outputs.keys() == one.outputs.keys()
    expected = answered(one, by)
    return max(float((outputs[k] - expected[k]).abs().max() / expected[k].abs().max()) for k in only)


@pytest.mark.parametrize("name", MODELS)
def test_another_order_is_the_same_function(name: str) -> None:
    """All axes in a random order at once, and every norm's factors moved to the matrices that are said to read it."""
    one = case(name)
    by = orders(one)
    tensors, proved = factors(one)
    only = (answers(one) if proved else []) or list(one.outputs)
    if difference(one, in_order(one, tensors, by), by, only) > CLOSE:
        wrong = {"norms": difference(one, tensors, {}, only)}
        for axis in dict.fromkeys(axis.name for axis in by):
            some = {a: order for a, order in by.items() if a.name == axis}
            wrong[axis] = difference(one, in_order(one, one.tensors, some), some, list(one.outputs))
        pytest.fail(f"each alone: {wrong}")


@pytest.mark.parametrize("family", families())
def test_an_order_that_leaves_out_a_tensor_is_another_function(family: str) -> None:
    """The proof above can fail: a tensor that stays as it is shows."""
    one = cases_of(family)[0]
    by = orders(one)
    held = [
        tensor
        for tensor, named in one.reading.tensors.items()
        if tensor.endswith("weight") and len(named.at) < 2 and holds(one.reading, tensor, by)
    ]
    left = random.Random(family).choice(held)
    assert difference(one, in_order(one, one.tensors, by, but=left), by, list(one.outputs)) > 3 * CLOSE, left


def holds(reading: Reading, tensor: str, by: Mapping[Axis, np.ndarray]) -> bool:
    return any(factor in by for dim in reading.parts(tensor) for part in dim for factor in part)


# All files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", families())
def test_every_line_is_proved(family: str) -> None:
    """Some case has the tensor, some case multiplied the norm, and every model type has a case."""
    known = families()[family]
    tiny = cases_of(family)
    assert {one.checkpoint.config["model_type"] for one in tiny} == set(known.model_types)
    held = {named.spec.pattern for one in tiny for named in one.reading.tensors.values()}
    biases = {spec.pattern for spec in known.tensors if spec.optional and spec.pattern.endswith(".bias")}
    unread = {spec.module for spec in known.tensors if known.beyond and AFTER_THE_LAST.search(spec.pattern)}
    missing = [
        s.pattern
        for s in known.tensors
        if s.pattern not in held | biases and not BUFFERS.search(s.pattern) and s.module not in unread
    ]
    assert not missing
    folded = {norm.module for norm in known.norms.values() if norm.place == "folded"} - unread
    assert folded <= {norm for one in tiny for norm in factors(one)[1]}


AFTER_THE_LAST = re.compile(r"\{layer\}\.(enorm|hnorm|eh_proj|embed_tokens|shared_head)\b")
"""Of the layer that released checkpoints have and stock loaders pass over: test_what_follows.py."""
OLD = {
    "llama": {"model.layers.1.self_attn.rotary_emb.inv_freq": (2,)},
    "gpt2": {"transformer.h.1.attn.bias": (1, 1, 29, 29), "transformer.h.1.attn.masked_bias": ()},
    "gpt_neo": {
        "transformer.h.1.attn.attention.bias": (1, 1, 29, 29),
        "transformer.h.1.attn.attention.masked_bias": (),
    },
    "gptj": {"transformer.h.1.attn.bias": (1, 1, 29, 29), "transformer.h.1.attn.masked_bias": ()},
    "codegen": {"transformer.h.1.attn.causal_mask": (1, 1, 29, 29)},
    "gpt_neox": {
        "gpt_neox.layers.1.attention.bias": (1, 1, 29, 29),
        "gpt_neox.layers.1.attention.masked_bias": (),
        "gpt_neox.layers.1.attention.rotary_emb.inv_freq": (1,),
    },
    "openai-gpt": {"transformer.h.1.attn.bias": (1, 1, 29, 29), "transformer.position_ids": (29,)},
    "xglm": {"model.embed_positions.weights": (31, 24)},
}


@pytest.mark.parametrize("name", OLD)
def test_buffers_of_old_releases_are_named(name: str, tmp_path: Path) -> None:
    one = case(name)
    tensors = {n: torch.from_numpy(a) for n, a in one.tensors.items()}
    save_file(
        tensors | {n: torch.ones(shape) for n, shape in OLD[name].items()}, tmp_path / "model.safetensors"
    )
    config = {**one.checkpoint.config, "rotary_pct": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    reading = read(open_checkpoint(tmp_path))
    assert reading.tensors.keys() >= OLD[name].keys()
    assert reading.resized(reading.sizes, reading.tensors).config == config


def test_speeds_of_gpt_neox_where_the_config_says_them_as_transformers_5_does(tmp_path: Path) -> None:
    one = case("gpt_neox")
    tensors = {n: torch.from_numpy(a) for n, a in one.tensors.items()}
    name = "gpt_neox.layers.1.attention.rotary_emb.inv_freq"
    config = {key: value for key, value in one.checkpoint.config.items() if key != "rotary_pct"}
    for share, speeds in ((0.5, 1), (1.0, 2)):
        told = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}
        save_file(tensors | {name: torch.ones(speeds)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | {"rope_parameters": told}))
        assert name in read(open_checkpoint(tmp_path)).tensors


@pytest.mark.parametrize("family", families())
def test_no_key_is_there_twice(family: str) -> None:
    """YAML would keep the last one and say nothing."""

    def look(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(set(keys)) == len(keys), keys
            for _, value in node.value:
                look(value)

    look(yaml.compose(text_of(family), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


@functools.cache
def text_of(family: str) -> str:
    for path in files("merganser.architectures").joinpath("families").iterdir():
        text = path.read_text(encoding="utf-8")
        if re.search(rf"^family: {re.escape(family)}$", text, re.MULTILINE):
            return text
    raise LookupError(family)


def refused(text: str, tiny: list[Case]) -> bool:
    """Whether a changed file is refused, by itself or for one of its models."""
    try:
        family = parse_family(text, "changed.yaml")
        for one in tiny:
            read_as(one.checkpoint, family, one.checkpoint.config)
    except (FamilyError, CheckpointError):
        return True
    return False


def mutations(family: str, tiny: list[Case]) -> Iterator[tuple[str, str]]:
    """What is changed, and the changed text."""
    known, text = families()[family], text_of(family)
    rng = random.Random(family)
    held = {
        named.spec.pattern: (one, tensor) for one in tiny for tensor, named in one.reading.tensors.items()
    }
    lines = text.splitlines()
    body = range(lines.index("modules:") + 1, len(lines))
    modules = [
        k for k in body if re.search(r": (linear|conv1d|conv|embedding|parameter|\S*norm\S*)\b", lines[k])
    ]
    prefixes = prefixes_of(lines)

    def spec_of(k: int) -> TensorSpec | None:
        own = prefixes[k] + lines[k].split(":")[0].strip().rstrip("?")
        return next((s for s in known.tensors if s.module == own and s.pattern in held), None)

    def with_line(k: int, line: str | None) -> str:
        after = k + 1
        while lines[k].endswith(">-") and depth_of(lines[after]) > depth_of(lines[k]):
            after += 1
        return "\n".join([*lines[:k], *([] if line is None else [line]), *lines[after:]])

    present = [k for k in modules if spec_of(k) is not None]
    for k in rng.sample(present, min(2, len(present))):
        leaf = lines[k].split(":")[0].strip().rstrip("?")
        yield f"without {leaf}", with_line(k, None)
        yield f"{leaf} renamed", re.sub(rf"(?<!\w){re.escape(leaf)}(?!\w)", f"{leaf}_x", text)
    oblong = [k for k in present if (spec := spec_of(k)) is not None and unequal(spec, held)]
    for k in rng.sample(oblong, min(2, len(oblong))):
        kind, rest = lines[k].split(": ", 1)[1].split(" ", 1)
        before, after = rest.split(" -> ")
        yield f"{lines[k]} turned", with_line(k, lines[k].replace(rest, f"{after} -> {before}"))
        if kind in ("linear", "conv1d"):
            other = "conv1d" if kind == "linear" else "linear"
            yield f"{lines[k]} as {other}", with_line(k, lines[k].replace(f": {kind} ", f": {other} "))
    sizes = {axis.name: size for one in tiny for axis, size in one.reading.sizes.items()}
    keys = {spec.size.key for spec in (*known.axes.values(), *known.indices.values())} - {None, *known.axes}
    for axis in (*known.axes.values(), *known.indices.values()):
        if axis.name not in sizes:
            continue
        k = next(k for k, line in enumerate(lines) if re.match(rf"  {axis.name}(\[.*\])?: ", line))
        start = lines[k].split(": ")[0]
        wrong = [key for key in sorted(keys) if all(differs(one, key, sizes[axis.name]) for one in tiny)]
        if wrong:
            key = rng.choice(wrong)
            yield f"{axis.name} from {key}", with_line(k, f"{start}: {key}")
        if axis.name in known.indices:
            yield f"one {axis.name} more", with_line(k, f"{start}: ({axis.size}) + 1")
            yield f"one {axis.name} less", with_line(k, f"{start}: ({axis.size}) - 1")


def depth_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def prefixes_of(lines: list[str]) -> dict[int, str]:
    """The mappings that each line of a YAML file stands in, as a prefix."""
    found, stack = {}, []
    for k, line in enumerate(lines):
        depth = depth_of(line)
        stack = [(d, word) for d, word in stack if d < depth]
        found[k] = "".join(f"{word}." for d, word in stack if d)
        stack.append((depth, line.split(":")[0].strip()))
    return found


def unequal(spec: TensorSpec, held: Mapping[str, tuple[Case, str]]) -> bool:
    """Whether turning a matrix shows in its shape."""
    if spec.kind not in ("linear", "conv1d", "embedding") or spec.pattern.endswith(".bias"):
        return False
    one, tensor = held[spec.pattern]
    return len(set(one.checkpoint.tensors[tensor].shape)) == 2


def differs(one: Case, key: str, size: int) -> bool:
    value: Any = one.checkpoint.config
    for word in key.split("."):
        value = value.get(word) if isinstance(value, Mapping) else None
    return isinstance(value, int) and value != size


def shows(text: str, tiny: list[Case]) -> bool:
    """Whether a changed file is not refused, and what it promises of one of its models is not true."""
    family = parse_family(text, "changed.yaml")
    for one in tiny:
        other = replace(one, reading=read_as(one.checkpoint, family, one.checkpoint.config))
        by = orders(other)
        if difference(other, in_order(other, other.tensors, by), by, list(one.outputs)) > CLOSE:
            return True
    return False


@pytest.mark.parametrize("family", families())
def test_a_wrong_file_is_refused(family: str) -> None:
    """By the shapes; where they cannot tell (24 heads of 1 element are as long as 6 of 4), by the proof of labels."""
    tiny = cases_of(family)
    assert not refused(text_of(family), tiny)
    changed = list(mutations(family, tiny))
    assert len(changed) >= 10
    unnoticed = {what: text for what, text in changed if not refused(text, tiny)}
    assert all(re.match(r"\w*heads from ", what) for what in unnoticed), list(unnoticed)
    assert all(shows(text, tiny) for text in unnoticed.values()), list(unnoticed)
