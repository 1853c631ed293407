"""PocketNet 0.3.0 (MIT): a net that finds where ligands bind on a protein, five published folds of it, and structures.

The package's own code runs the model, straight out of the wheel's files: nothing is installed, and only three of its
modules are imported. Its weights are opened by merganser.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import xxhash
from alignment.packages import entries
from demo.fetch import DemoError, digest, fetch

import merganser as mg
from merganser.running import live_tensors
from zoo.packages import LIGANDS, POCKETNET, Ligand

FOLDS = 5
NEAR = 3.0
"""Å from a ligand's heavy atom to a point of the surface that counts as binding."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Surface:
    """What is scored of a structure: `labels` [points] bool (it binds), `groups` [points] the number of its residue."""

    labels: Array
    groups: Array


class PocketNet:
    """The net, and the structures it is scored on."""

    def __init__(self, cache: Path, structures: Iterable[str] = tuple(LIGANDS)) -> None:
        folder = fetch(POCKETNET, cache) / "pocketnet"
        self.folds = [
            mg.open(folder / "weights" / f"v3_fold{k}.pt", name=f"fold {k}", allow_pickle=True)
            for k in range(FOLDS)
        ]
        code = _code(folder)
        layers = sum(name.startswith("layers.") and name.endswith("msg.0.weight") for name in self.folds[0])
        self.net = code["model"].PocketNet(self.folds[0]["emb.weight"].shape[1], layers).eval()
        self.graphs: dict[str, Any] = {}
        self.surfaces: dict[str, Surface] = {}
        self._known: dict[tuple[str, bytes], Array] = {}
        for name in structures:
            path = entries(cache) / f"{name}.cif"
            if digest(path) != LIGANDS[name].sha256:
                raise DemoError(f"{path} is not the file that the zoo was made with; remove its folder")
            self.graphs[name], self.surfaces[name] = _read(self.net, code, path, LIGANDS[name])

    @torch.no_grad()
    def logits(self, weights: mg.Weights, structure: str) -> Array:
        """The net's output for each point of the surface, f64; equal weights are run once."""
        tensors = live_tensors(weights)
        content = xxhash.xxh3_128()
        for name in sorted(tensors):
            content.update(name.encode() + b"\0" + tensors[name].tobytes())
        key = (structure, content.digest())
        if key not in self._known:
            self.net.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
            found, _ = self.net.forward_graph(self.graphs[structure])
            self._known[key] = found.double().numpy()
        return self._known[key]


def _code(folder: Path) -> Mapping[str, Any]:
    """The package's modules, without running its __init__, which imports all of them."""
    package = ModuleType("zoo_pocketnet_code")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    return {
        name: importlib.import_module(f"{package.__name__}.{name}") for name in ("feat", "model", "structure")
    }


@torch.no_grad()
def _read(net: Any, code: Mapping[str, Any], path: Path, ligand: Ligand) -> tuple[Any, Surface]:
    """What the net takes, as the package's `score_points` makes it, and the right answers."""
    feat, text = code["feat"], path.read_text()
    protein = code["structure"].parse_mmcif(text)
    types, elements = (torch.tensor(one) for one in feat.atom_types(protein.res, protein.name))
    atoms = torch.tensor(protein.xyz)
    points, normals = feat.sas_points(atoms, elements)
    features = feat.point_feats(points, normals, atoms, elements)
    graph = net.collate([net.graph(types, atoms, points, features)])
    near = torch.cdist(points, torch.tensor(_ligand(text, ligand.code))).min(1).values < NEAR
    residues = protein.residue_keys[graph["i1"].numpy()]  # of the nearest atom
    return graph, Surface(near.numpy(), np.unique(residues, return_inverse=True)[1])


def _ligand(text: str, code: str) -> list[list[float]]:
    """Its heavy atoms."""
    columns: list[str] = []
    found = []
    for line in text.splitlines():
        if line.startswith("_atom_site."):
            columns.append(line.split()[0].removeprefix("_atom_site."))
        elif columns and line.startswith("HETATM"):
            row = dict(zip(columns, line.split(), strict=False))
            if row["label_comp_id"] == code and row["type_symbol"] != "H":
                found.append([float(row[f"Cartn_{axis}"]) for axis in "xyz"])
    return found
