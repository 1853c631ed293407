"""Tiny tokenizers of every kind, trained on the spot."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

ENGLISH = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "Weights are data; a model is a function of its weights and its data.",
    "Merging two models that were trained from one base often works better than either of them.",
    "When the tokens of a text are known, the rows of the other tokens are never read.",
    "There were 1234 rows, 56 columns and 7 layers in the table.",
]
RUSSIAN = [
    "Быстрая коричневая лиса прыгает через ленивую собаку, и собака спит.",
    "Модель есть функция своих весов, а веса есть данные.",
    "Когда слова текста известны, остальные строки таблицы не читаются.",
]
TEXTS = (ENGLISH + RUSSIAN) * 4
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def trained_once(make: Callable[..., Tokenizer]) -> Callable[..., Tokenizer]:
    """Training gives ids in another order each time, and models that are merged have one tokenizer."""
    known: dict[object, str] = {}

    @functools.wraps(make)
    def made(*sizes: int) -> Tokenizer:
        key = (sizes, tuple(TEXTS))
        if key not in known:
            known[key] = make(*sizes).to_str()
        return Tokenizer.from_str(known[key])

    return made


def byte_level(size: int = 420, **options: object) -> Tokenizer:
    """Like GPT-2: its special token is the last of the model's own."""
    made = Tokenizer(models.BPE(**options))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return made


def byte_fallback(size: int = 480) -> Tokenizer:
    """Like Llama 2: no pre-tokenizer, a sign for the space, bytes for unknown characters."""
    plain = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    plain.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    plain.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    plain.train_from_iterator(TEXTS, trainer)
    document = json.loads(plain.to_str())
    document["pre_tokenizer"] = None
    document["added_tokens"] = document["added_tokens"][:3]
    document["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    made = Tokenizer.from_str(json.dumps(document))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


@trained_once
def unigram(size: int = 260) -> Tokenizer:
    """Like T5."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_special_tokens(["<extra_id_0>", "<extra_id_1>"])
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return made


@trained_once
def word_piece(size: int = 300) -> Tokenizer:
    """Like BERT, uncased; its special tokens stand in the middle, as 100 to 103 do in BERT."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=40))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    unused = [f"[unused{k}]" for k in range(6)]
    special = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    document = json.loads(made.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("[unused")]
    made = Tokenizer.from_str(json.dumps(document))
    ids = {token: made.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    made.enable_padding(pad_id=0, pad_token="[PAD]", length=64)
    made.enable_truncation(max_length=64)
    return made


@trained_once
def word_level() -> Tokenizer:
    """Whole words."""
    made = Tokenizer(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))
    return made


def suffixed(size: int = 420) -> Tokenizer:
    """Like CLIP: byte letters, and a sign at the end of a word."""
    made = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens([AddedToken("lol", single_word=True)])
    return made


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "word_piece": word_piece,
    "word_level": word_level,
    "suffixed": suffixed,
}


def write_corpus(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
