"""Vocabulary: fewer, more or other tokens. The tokenizer, the rows of every tensor and ids in configs follow."""
