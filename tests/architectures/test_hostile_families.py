"""Family files from outside: nesting that would exhaust a parser's stack is an error, not a crash."""

from __future__ import annotations

import pytest

from merganser.architectures import FamilyError, families, parse_family


@pytest.mark.parametrize("text", ["[" * 60_000, "family: " + "{a: " * 60_000, "family: " + "[" * 1_900])
def test_deep_nesting_is_refused(text):
    with pytest.raises(FamilyError):
        parse_family(text, "outside")


def test_every_shipped_file_is_read():
    assert len(families()) > 80
