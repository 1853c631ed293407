"""What a model card (README.md beside the weights) says of its licence."""

from __future__ import annotations

import re

MOST = 1 << 20
"""Bytes of a card that are read; its head is at the beginning."""
_HEAD = re.compile(r"\A---\s*\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LINE = r"^{key}:[ \t]*[\"']?([^\s\"'#\[\]][^\n\"'#\[\]]*)"


def licence_in(card: str) -> str | None:
    """The licence that the head of a card states, None where it states none or a list.

    The hub's heads say `license: other` and give its name apart, as `license_name`.
    """
    head = _HEAD.match(card)
    if head is None:
        return None
    found = {
        key: re.search(_LINE.format(key=key), head[1], re.MULTILINE) for key in ("license", "license_name")
    }
    stated, name = (None if one is None else one[1].strip() for one in found.values())
    return name if stated == "other" and name else stated
