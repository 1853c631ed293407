"""Files of adapters' factors (LoRA, LoHa, LoKr ...), told from models by their tensor names.

What such a file changes is a product of its tensors. So it is no model, and adding or averaging two of them tensor by
tensor gives the change of neither. Every way of opening asks `find_factors`, whatever the file is called and whether
it lies bare, in a directory, behind an index, in a pickle or on the hub.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

PEFT, DIFFUSERS, KOHYA, LYCORIS = "PEFT", "diffusers", "kohya", "LyCORIS"
PEFT_ROOT = "base_model.model."

_FLAT_ROOT = re.compile(r"(?:lora|lycoris|loha|lokr|boft|oft)_[A-Za-z0-9_]+")
"""The name of a module as kohya and LyCORIS write it: a word of theirs, and `_` for every dot."""

_PARTS: tuple[tuple[str, str, str], ...] = (
    (r"lora_(?:down|up|mid)(?:\.weight)?", "LoRA", KOHYA),
    (r"lora\d*(?:_linear_layer)?\.(?:down|up)\.weight", "LoRA", DIFFUSERS),
    (r"lora_(?:embedding_)?[AB](?:\.[^.]+)?(?:\.weight)?", "LoRA", f"{PEFT} and {DIFFUSERS}"),
    (r"lora_[ab](?:\.weight)?", "LoRA", "MLX and torchtune"),
    (r"dora_scale|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "DoRA", f"{PEFT} and {LYCORIS}"),
    (r"hada_(?:w[12]_[ab]|t[12])(?:\.[^.]+)?", "LoHa", LYCORIS),
    (r"lokr_(?:w[12](?:_[ab])?|t[12])(?:\.[^.]+)?", "LoKr", LYCORIS),
    (r"oft_blocks", "OFT", LYCORIS),
    (r"b?oft_[RrSs](?:\.[^.]+)?(?:\.weight)?", "OFT", PEFT),
    (r"ia3_l(?:\.[^.]+)?", "IA3", PEFT),
    (r"on_input", "IA3", LYCORIS),
    (r"(?<=\.)diff(?:_b)?", "full-difference", LYCORIS),
    (r"hra_u(?:\.[^.]+)?", "HRA", PEFT),
    (r"p?vera_lambda_[bd](?:\.[^.]+)?|vera_[AB](?:\.[^.]+)?", "VeRA", PEFT),
)
"""How the name of a factor ends, the method it belongs to, and the programs that write it so."""
_ENDINGS = re.compile(rf"(?:^|[._])(?:{'|'.join(f'({ending})' for ending, _, _ in _PARTS)})\Z")


@dataclass(frozen=True, slots=True)
class FactorFile:
    """What a file of factors is: the method (`LoRA`), who names tensors so (`kohya`), one of its tensors.

    `unmerged` says that the layers that they belong to lie beside them.
    """

    method: str
    writer: str
    example: str
    unmerged: bool = False

    def __str__(self) -> str:
        return f"{self.method} factors, named as {self.writer} names them"

    @property
    def way_out(self) -> str:
        """What to do with the file instead, as the end of a message."""
        if self.unmerged:
            return (
                "It is a model under PEFT that was not merged: load it there, and open what "
                "merge_and_unload().save_pretrained(DIRECTORY) writes"
            )
        if self.writer == PEFT:
            return (
                "The adapter_config.json that says their scale is not beside them: put it and the factors, as "
                "adapter_model.safetensors, into a directory, and open that as the adapter"
            )
        if DIFFUSERS in self.writer or self.writer == KOHYA:
            return (
                "Put them onto their model first, in diffusers for instance (load_lora_weights, with set_adapters for "
                "the weights of several, fuse_lora, unload_lora_weights, save_pretrained), and open the saved component"
            )
        return (
            "Put them onto their model first, with the program that wrote them, and open the model it makes"
        )


def find_factors(names: Collection[str]) -> FactorFile | None:
    """The factors among tensors of these names; None where there are none, as in a model.

    One is enough: a model that keeps factors beside its layers (PEFT's, not merged) cannot be averaged either.
    """
    other = None
    for name in names:
        if (found := _ENDINGS.search(name)) is not None and found.lastindex is not None:
            _, method, writer = _PARTS[found.lastindex - 1]
            if name.startswith(PEFT_ROOT):
                writer = PEFT
            elif _is_flat(name) and writer != LYCORIS:
                writer = KOHYA
            return FactorFile(method, writer, name, any(".base_layer." in one for one in names))
        if other is None and (name.startswith(PEFT_ROOT) or name == "prompt_embeddings"):
            other = FactorFile("adapter", PEFT, name)
        elif other is None and _is_flat(name):
            other = FactorFile("adapter", LYCORIS, name)
    return None if other is not None and other.writer == PEFT and _is_whole(names) else other


def _is_whole(names: Collection[str]) -> bool:
    """Whether these are the names of a whole model under PEFT's root: layers with many tensors each, and no factor.

    An adapter's file without factors holds a few modules that were trained whole (a head, an embedding).
    """
    layers = Counter(found[0] for name in names if (found := re.match(r".*?\.\d+\.", name)) is not None)
    return all(name.startswith(PEFT_ROOT) for name in names) and max(layers.values(), default=0) >= 4


def _is_flat(name: str) -> bool:
    module, dot, _ = name.partition(".")
    return bool(dot) and _FLAT_ROOT.fullmatch(module) is not None
