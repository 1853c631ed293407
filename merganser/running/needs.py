"""What of the `models` extra must be installed."""

from __future__ import annotations

from importlib.util import find_spec

from merganser.errors import RequestError


def require(*packages: str) -> None:
    """Raise `RequestError` that names the missing packages and how to install them."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise RequestError(
            f"{' and '.join(missing)} not installed, and running models needs it: pip install 'merganser[models]'"
        )
