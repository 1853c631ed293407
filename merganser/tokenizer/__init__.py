"""Vocabularies as data: the tokenizer.json of fast tokenizers and the small files that number tokens.

What is known here: which tokens there are, their ids, merges, scores, special tokens, and which other files name ids.
Nothing here knows of weights.
"""

from merganser.tokenizer.companions import Followed, follow, is_vocabulary_file, mentioned, read_small
from merganser.tokenizer.document import Tokenizer
from merganser.tokenizer.library import count, encode_texts, load, same_ids, texts_of
from merganser.tokenizer.scripts import in_scripts, ranges_of
from merganser.tokenizer.spelling import Spelling
from merganser.tokenizer.together import read_tokenizer, token_ids

__all__ = [
    "Followed",
    "Spelling",
    "Tokenizer",
    "count",
    "encode_texts",
    "follow",
    "in_scripts",
    "is_vocabulary_file",
    "load",
    "mentioned",
    "ranges_of",
    "read_small",
    "read_tokenizer",
    "same_ids",
    "texts_of",
    "token_ids",
]
