"""Ways of lying on disk: whether a checkpoint's tensors are numbers, or codes that stand for numbers."""

from merganser.checkpoint.encodings.detect import Encoding, detect

__all__ = ["Encoding", "detect"]
