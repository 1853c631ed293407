"""A tokenizer in another format (SentencePiece's tokenizer.model, vocab.txt) as the tokenizer.json that transformers
makes of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from merganser.errors import RequestError, listing
from merganser.tokenizer.companions import TOKENIZER

_SMALL = (
    "config.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_VOCABULARIES = (".model", ".tiktoken", ".txt", ".spm")


def with_json(files: Mapping[str, bytes], label: str, why: str = "") -> Mapping[str, bytes]:
    """The files with a tokenizer.json, made by transformers of the others where there is none.

    No code of the model is run. why: what needs it, for the message. Raises `RequestError` where there is no
    vocabulary, transformers (with sentencepiece and protobuf for a .model) is not installed, or it cannot read the
    files.
    """
    if TOKENIZER in files:
        return files
    held = [name for name in files if name.endswith(_VOCABULARIES) or name == "vocab.json"]
    hint = f" (it has {', '.join(held)})" if held else ""
    text = f"{label!r} has no {TOKENIZER}{hint}{why}"
    way_out = (
        "AutoTokenizer.from_pretrained(MODEL).save_pretrained(MODEL) of transformers writes one (it reads a .model "
        "with sentencepiece and protobuf installed)"
    )
    if not held:
        raise RequestError(f"{text}. Copy it from where the model comes from; {way_out}")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise RequestError(f"{text}, and transformers, which reads it, is not installed. {way_out}") from None
    with tempfile.TemporaryDirectory(prefix="merganser-") as folder:
        for name, content in files.items():
            if "/" not in name and (name in _SMALL or name in held):
                (Path(folder) / name).write_bytes(content)
        try:
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            made = found.backend_tokenizer.to_str().encode()
        except Exception as error:  # its own and those of the libraries below it
            told = " ".join(str(error).replace(folder, label).split())[:200]
            raise RequestError(
                f"{text}, and transformers cannot read {listing(held)}: {told} ({type(error).__name__}). {way_out}"
            ) from None
    return {**files, TOKENIZER: made}
