"""The table of differences: what mergekit 0.1.5 does, what merganser does, why, and how the comparison recognises it.

A difference is excused only by the row it matches; docs/parity.md counts what each row excused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from recipes import Case


@dataclass(frozen=True)
class Row:
    """One difference. `elements`: it is about single numbers of a tensor, and not about whole recipes or files."""

    id: str
    mergekit: str
    merganser: str
    why: str
    recognised: str
    elements: bool = False


_ROWS = (
    Row(
        "rounding",
        "rounds every step of a formula to f32",
        "the same formula, in an order of its own, rounded once at the end; a norm or a dot product is summed in f64",
        "where terms nearly cancel, the last bits of the terms are many units of the small result",
        "merganser is within 4 f32 roundings of the terms from the f64 reference, mergekit within 8",
        elements=True,
    ),
    Row(
        "sums in f32",
        "takes norms, dot products and softmax sums of a tensor in f32",
        "takes them in f64",
        "the f32 sums shift a coefficient of the whole tensor",
        "merganser is within 4 f32 roundings of the terms from the f64 reference, mergekit within 2000; only methods "
        "with such sums",
        elements=True,
    ),
    Row(
        "cut",
        "of equal magnitudes at a threshold keeps as many as fit, by an unstable sort",
        "keeps all of them (docs/decisions/0005-thresholds.md)",
        "which of them mergekit keeps is not defined",
        "the reference finds the element within rounding of the threshold and one equal to it on the other side; or "
        "what follows from keeping all of them (a norm that is rescaled to, SCE's weights) explains the element: each "
        "tool is held against the reference with its own rule",
        elements=True,
    ),
    Row(
        "sign",
        "elects by the sign of an f32 sum",
        "elects by the sign of its own f32 sum",
        "a sum that cancels to its last bits has the sign of its rounding",
        "the f64 sum is below 4 f32 roundings of its terms",
        elements=True,
    ),
    Row(
        "threshold",
        "compares with a threshold (arcee_fusion's importance, ram's epsilon) in f32",
        "compares in f64 (arcee_fusion), or with a difference rounded once (ram)",
        "f32 noise decides for elements at the threshold",
        "the reference finds the element within f32 noise of the threshold",
        elements=True,
    ),
    Row(
        "experts",
        "merges Mixtral's experts as transformers holds them: all of a layer in one tensor, and writes them so",
        "merges the tensors of the files, and writes them under the same names",
        "a norm or a quantile of all experts is another number than one expert's, and names in filters differ; the "
        "files of a model should keep their layout",
        "names of experts and routers only; each tool is held against the reference in its own layout",
        elements=True,
    ),
    Row(
        "hidden gates",
        "runs the base model in bf16 for the routers of gate_mode hidden",
        "runs it in the dtype it is stored in",
        "a router's rows are as exact as the model",
        "routers of recipes with gate_mode hidden; each row within 2% of its length",
        elements=True,
    ),
    Row(
        "templates",
        "its templates render line breaks and indents of the files they stand in; alpaca's has no end of sequence",
        "its own templates of the same names follow the makers' formats",
        "llama3's messages end with <|eot_id|> and nothing more, and a reply needs an end to be learnt from",
        "named templates that render the same talk alike but for blanks and the end-of-sequence token",
    ),
    Row(
        "saved again",
        "mergekit-moe loads the tokenizer with transformers and saves it again, less what its class does not know",
        "copies its files",
        "the tokenizer stays the one that was trained",
        "mixtures of experts; texts are cut alike but for unknown tokens, which mergekit's tokenizer leaves out",
    ),
    Row(
        "random gates",
        "draws the routers of gate_mode random from torch's global generator",
        "draws them by seed, name and place",
        "the same bytes for the same seed",
        "routers of recipes with gate_mode random; their standard deviations are compared",
        elements=True,
    ),
    Row(
        "padding rows",
        "drops the rows of an embedding behind its last token",
        "keeps them (`padding: drop` drops them)",
        "models are padded for speed, and the rows may be tokens that a tokenizer does not list",
        "embeddings of more rows than tokens in merganser's output and as many in mergekit's; these are compared",
    ),
    Row(
        "no base",
        "without a base_model takes the tokenizer and config of a model that depends on string hashing",
        "takes the first model's",
        "the same recipe gives the same bytes",
        "recipes without base_model; both vocabularies hold the same tokens, and rows are compared by token",
    ),
    Row(
        "token order",
        "numbers the tokens that a union adds in the order of a hash map, another in each run",
        "numbers them in the order of the models and their tokens",
        "the same recipe gives the same bytes",
        "both vocabularies hold the same tokens and the base's tokens keep their numbers; rows are compared by token",
    ),
    Row(
        "promoted",
        "arcee_fusion and ramplus_tl write f32 for models of 16 bits without out_dtype: a factor in f32 promotes them",
        "writes the dtype that was asked for, or that the models have",
        "nobody asked for a file twice as large",
        "these two methods, computing in 16 bits, mergekit's tensors in f32; they are rounded before they are compared",
        elements=True,
    ),
)

ROWS: Mapping[str, Row] = {row.id: row for row in _ROWS}


@dataclass(frozen=True)
class Refusal:
    """A case that one of the tools refuses. `cases`: a pattern of case ids; `message`: of what the tool says."""

    id: str
    who: str
    cases: str
    message: str
    why: str


_REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        "no pooler",
        "mergekit",
        r"edges-linear-BertForMaskedLM",
        r"pooler",
        "mergekit's file for BertForMaskedLM asks for a pooler, which such a model does not have",
    ),
    Refusal(
        "BertModel",
        "mergekit",
        r"edges-linear-BertModel",
        r"can only concatenate list",
        "mergekit fails on optional tensors that have aliases, and BertModel's file has one",
    ),
    Refusal(
        "layer types",
        "mergekit",
        r"qwen2",
        r"layer_types",
        "mergekit sets num_hidden_layers and leaves the list of layer types, which transformers then refuses",
    ),
    Refusal(
        "base alone",
        "merganser",
        r"edges-.*-base-alone",
        r"at least 1 model beside its base",
        "a method on task vectors without a task vector is likely a slip; mergekit copies the base",
    ),
    Refusal(
        "unknown key",
        "merganser",
        r"refusals-misspelt-(key|parameter)",
        r"unknown (key|parameter)",
        "mergekit reads over keys and parameters it does not know",
    ),
    Refusal(
        "share",
        "merganser",
        r"refusals-density-above-one",
        r"share",
        "mergekit takes a density above 1 as 1",
    ),
    Refusal(
        "not finite",
        "merganser",
        r"refusals-weights-sum-to-zero",
        r".",
        "mergekit divides by zero and writes NaN",
    ),
    Refusal(
        "shared expert",
        "mergekit",
        r"experts-qwen-shared-apart",
        r"get_tensor",
        "mergekit opens the models of the experts only, so a shared expert must be one of them",
    ),
    Refusal(
        "model twice",
        "mergekit",
        r"refusals-model-twice",
        r"Duplicate",
        "mergekit knows a model by its path and takes it once",
    ),
)


def refusal(case: Case, who: str, message: str) -> str | None:
    """The id of the refusal that a case and a message match."""
    for known in _REFUSALS:
        if known.who == who and re.search(known.cases, case.id) and re.search(known.message, message):
            return known.id
    return None


REFUSALS: Mapping[str, Refusal] = {known.id: known for known in _REFUSALS}
