"""Images as rows of data hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def image_of(cell: Any) -> Any:
    """The cell; of a mapping of `bytes` and `path`, as the `datasets` library writes it, the bytes, else the path."""
    if isinstance(cell, dict) and cell.keys() <= {"bytes", "path"}:
        return cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    return cell


def not_beside(data: Path, name: str) -> str | None:
    """What is wrong with a file that a row of `data` names: rows may lead nowhere but below the data's folder."""
    home = data.parent.resolve()
    try:
        place = (home / name).resolve()
        inside = place.is_relative_to(home) and not Path(name).is_absolute()
    except (OSError, ValueError):
        inside = False
    if not inside:
        return "leads out of the data's folder"
    return None if place.is_file() else f"is no file in {str(home)!r}"


def upright(image: Any) -> Any:
    """A picture of Pillow's as RGB, turned as its EXIF data says, as viewers show it.

    Raises `ValueError` for pixels of more than 8 bits, which a conversion would cut off at 255.
    """
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"its pixels have more than 8 bits (mode {image.mode}); save it with 8 bits, scaled as the model knows it"
        )
    return ImageOps.exif_transpose(image).convert("RGB")
