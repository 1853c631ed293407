"""What is proved after a save: a trimmed vocabulary, by a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merganser.algebra import Weights
    from merganser.engine import Report

TRIM, PAD = "trim_vocabulary", "pad_vocabulary"


def of_trimming(
    weights: Weights, report: Report, steps: Sequence[str], *, alone: bool, memory: int
) -> dict[str, Any] | None:
    """The proof of a model that was trimmed (and padded) and else left as it was, or why there is none.

    alone: no method and no other dtype made the weights, beside the steps.

    None where no vocabulary was trimmed. Raises `VerificationError` where outputs differ: OUT is there all the same.
    """
    if TRIM not in steps:
        return None
    from merganser.methods.vocabulary.proof import NotRun, prove_trimmed

    origin = weights.origin
    try:
        if (
            steps[0] != TRIM
            or steps.count(TRIM) > 1
            or {*steps} - {TRIM, PAD}
            or not alone
            or len(weights.checkpoints) > 1
        ):
            raise NotRun("other steps or models change the outputs as well")
        if origin is None or origin.directory is None:
            raise NotRun("the model it came from is no directory")
        if origin.loadable is None:
            raise NotRun("transformers would load other files of the directory than those that were read")
        if Path(origin.directory).resolve() == report.path.resolve():
            raise NotRun("the model it came from was replaced")
        note = next(note for note in report.notes if note.get("step") == TRIM)
        return prove_trimmed(origin.directory, report.path, note, memory=memory)
    except NotRun as reason:
        return {"not_run": str(reason)}
    except Exception as error:
        error.add_note(f"{report.path} was sealed before; delete it")
        raise


def line(proof: dict[str, Any]) -> str:
    """A proof, or why there is none, for a person."""
    if "not_run" in proof:
        return f"not proved by a forward pass: {proof['not_run']}"
    from merganser.methods.vocabulary.proof import sentence

    return sentence(proof)


def checked(found: Mapping[str, Any]) -> str:
    """What `--check` found, for a person."""
    from merganser.methods.check import sentence

    return sentence(found)
