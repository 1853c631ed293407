"""The kinds of statistics, and what each is."""

from __future__ import annotations

from collections.abc import Iterable

from merganser.errors import RequestError, did_you_mean

ABOUT = {
    "gram": "mean over tokens of x x^T, x the input of the layer, [in, in]",
    "fisher": "mean over rows of the squared gradient of the row's loss, of the parameter's shape",
    "absmax": "largest |x| of each input channel, [in]",
    "second_moment": "mean over tokens of x^2 of each input channel, [in]",
    "mean": "mean over tokens of x of each input channel, [in]",
}
KINDS = tuple(ABOUT)
OF_INPUTS = tuple(kind for kind in KINDS if kind != "fisher")
"""Those of the inputs of matrix products."""
FISHERS = ("true", "sampled", "empirical")


def chosen(kinds: str | Iterable[str]) -> tuple[str, ...]:
    """Kinds out of `gram,mean` or a list, in the order of KINDS; `RequestError` for one that is not known."""
    words = kinds.split(",") if isinstance(kinds, str) else list(kinds)
    wanted = {word.strip() for word in words if word.strip()}
    for word in sorted(wanted - set(KINDS)):
        raise RequestError(
            f"no statistics are called {word!r}{did_you_mean(word, KINDS)} (known: {', '.join(KINDS)})"
        )
    if not wanted:
        raise RequestError(f"nothing to collect; known are {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)
