"""What papers claim of methods, as differences that the zoo can show: which of two has the better mean over tasks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """`paper`: id or citation; that `better` scores above `worse` on the mean of the tasks."""

    paper: str
    text: str
    better: str
    worse: str


CLAIMS = (
    Claim("P267 (TIES)", "Trimming and electing signs beats task arithmetic", "ties", "task_arithmetic"),
    Claim(
        "P070 (Breadcrumbs)",
        "Dropping outliers and small changes beats task arithmetic",
        "breadcrumbs",
        "task_arithmetic",
    ),
    Claim("P076 (PCB)", "Balancing competition beats TIES", "pcb", "ties"),
    Claim("P059 (Fisher)", "Fisher information as weights beats the plain average", "fisher", "mean"),
    Claim("arXiv:2212.09849 (RegMean)", "Regression beats the plain average", "regmean", "mean"),
    Claim("arXiv:2212.09849 (RegMean)", "Regression beats Fisher averaging", "regmean", "fisher"),
    Claim(
        "P185 (AdaMerging)",
        "Coefficients by entropy beat task arithmetic",
        "adamerging, by task",
        "task_arithmetic",
    ),
    Claim(
        "P185 (AdaMerging)",
        "A coefficient a tensor beats one a task",
        "adamerging, by tensor",
        "adamerging, by task",
    ),
    Claim("arXiv:2311.03099 (DARE)", "TIES after dropping at random beats TIES", "dare_ties", "ties"),
    Claim(
        "arXiv:2412.00081 (TSV-M)",
        "Singular vectors made orthogonal beat task arithmetic",
        "tsv_m",
        "task_arithmetic",
    ),
    Claim("arXiv:2412.00081 (TSV-M)", "... and beat TIES", "tsv_m", "ties"),
    Claim(
        "arXiv:2502.04959 (Iso-C)", "An isotropic spectrum beats task arithmetic", "iso_c", "task_arithmetic"
    ),
    Claim("arXiv:2502.04959 (Iso-CTS)", "... and adding task subspaces beats that", "iso_cts", "iso_c"),
    Claim(
        "arXiv:2405.07813 (Consensus)",
        "Dropping what only one task wants beats task arithmetic",
        "consensus",
        "task_arithmetic",
    ),
    Claim("arXiv:2405.07813 (TALL masks)", "A mask a task beats one merged model", "tall_masks", "consensus"),
    Claim("arXiv:2405.17461 (EMR)", "A mask and a scale a task beat one merged model", "emr", "ties"),
    Claim("arXiv:2503.08099 (WUDI)", "Least interference beats TSV-M", "wudi", "tsv_m"),
    Claim(
        "arXiv:2403.19522 (Model Stock)",
        "The ratio from angles beats the plain average",
        "model_stock",
        "mean",
    ),
    Claim("P094 (aTLAS)", "A learned coefficient a block beats one for all", "atlas", "task_arithmetic"),
    Claim(
        "P457 (Self-Positioning)",
        "Coefficients by gradients beat training on all tasks",
        "self_positioning",
        "multitask",
    ),
    Claim("P058", "Evolved weights beat one weight for all", "cma", "task_arithmetic"),
    Claim(
        "arXiv:2203.05482 (Model soups)",
        "The greedy soup is above the uniform one",
        "greedy soup",
        "mean",
    ),
    Claim("arXiv:2406.11617 (DELLA)", "Dropping by rank beats dropping at random", "della", "dare_ties"),
    Claim("arXiv:2407.06322 (MagMax)", "The largest change beats the plain average", "magmax", "mean"),
    Claim("arXiv:2501.09522 (OPCM)", "Projected changes beat task arithmetic", "opcm", "task_arithmetic"),
    Claim("arXiv:2408.07990 (SCE)", "Weights by variance beat TIES", "sce", "ties"),
    Claim("P069", "A multitask-trained control is above merging", "multitask", "task_arithmetic"),
    Claim("P069", "Merging is above the base", "task_arithmetic", "base"),
)
"""Directions, as the papers report them for the mean over their own tasks; scale and models differ from ours."""
