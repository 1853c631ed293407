"""The measurement itself: tool by tool inside each repeat, so that a busy moment meets all of them alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tools
from cases import Case
from dataset import Dataset
from measure import Sample, must_work, timed
from reshapes import Reshape

Samples = dict[str, list[dict[str, float]]]


def say(text: str) -> None:
    """One line about what is going on."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Bench:
    """A place to work in and the tools to measure."""

    work: Path
    filesystem: str
    mergekit: tools.Mergekit | None
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scratch = self.work / "scratch"
        self.clear(self.scratch)
        self.scratch.mkdir(parents=True)
        self.log = self.scratch / "log.txt"
        self.warm_kernels = self.scratch / "kernels"

    @staticmethod
    def clear(*directories: Path) -> None:
        """Delete what a run wrote; never inside a timed stretch."""
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)

    def startup(self, repeats: int = 5) -> Samples:
        """`--help` of both tools, alternating, after one untimed start each."""
        commands = {"merganser": [sys.executable, "-m", "merganser", "--help"]}
        if self.mergekit:
            commands["mergekit"] = self.mergekit.command("--help")
        samples: Samples = {name: [] for name in commands}
        for turn in range(repeats + 1):
            for name, command in commands.items():
                sample = must_work(self._run(name, command), f"{name} --help", self.log)
                if turn:
                    samples[name].append(sample.as_json())
        return samples

    def case(self, case: Case, dataset: Dataset, repeats: int, mergekit_repeats: int) -> dict[str, Any]:
        """All the runs of one merge."""
        recipe = self._recipe(case, dataset)
        inputs = [dataset.weights(name) for name in case.parents]
        out, theirs = self.scratch / "out", self.scratch / "out-mergekit"
        record: dict[str, Any] = {
            "recipe": case.recipe(lambda name: name),
            "input_bytes": sum(path.stat().st_size for path in inputs),
            "output_bytes": dataset.model_bytes(),
        }
        steps: dict[str, Callable[[], Sample]] = {
            "floor": lambda: self._run("floor", self._floor(inputs, out, sync=False)),
            "merganser": lambda: self._merganser(recipe, out, sync=False),
            "merganser_cold": lambda: self._cold(recipe, out),
            "floor_sync": lambda: self._run("floor", self._floor(inputs, out, sync=True)),
            "merganser_sync": lambda: self._merganser(recipe, out, sync=True),
        }
        kit = self.mergekit
        if kit:
            steps["mergekit"] = lambda: self._run("mergekit", kit.command(recipe, theirs))
        order = ["floor", "merganser", "mergekit", "merganser_cold", "floor_sync", "merganser_sync"]
        order = [name for name in order if name in steps]
        samples: Samples = {name: [] for name in order}
        failed: set[str] = set()
        self._note(
            case, "merganser", self._merganser(recipe, out, sync=False), failed
        )  # compiles the kernels
        self.clear(out)
        for turn in range(repeats):
            self._read(inputs)
            for name in order:
                if name in failed or (name == "mergekit" and turn >= mergekit_repeats):
                    continue
                sample = steps[name]()
                self._note(case, name, sample, failed)
                samples[name].append(sample.as_json())
                say(f"  {case.method} {name} {sample.seconds:.2f} s, {sample.peak_bytes / 1e6:.0f} MB")
                if name == "mergekit" and turn == 0 and not failed & {"merganser", "mergekit"}:
                    self._note(case, "merganser", self._merganser(recipe, out, sync=False), failed)
                    record["agreement"] = self._agreement(out, theirs)
                self.clear(out, theirs)
        return record | {"samples": samples, "failed": sorted(failed)}

    def twice(self, case: Case, dataset: Dataset) -> dict[str, float]:
        """One merge of a set that is twice as large, for its memory."""
        out = self.scratch / "out"
        sample = self._merganser(self._recipe(case, dataset), out, sync=False)
        self._note(case, "merganser at twice the size", sample, set())
        self.clear(out)
        say(f"  {case.method} at twice the size {sample.seconds:.2f} s, {sample.peak_bytes / 1e6:.0f} MB")
        return sample.as_json()

    def reshape(self, reshape: Reshape, dataset: Dataset, repeats: int) -> dict[str, Any]:
        """All the runs of one reshaping, beside cat + cp of the bytes that it moves."""
        recipe = self.scratch / f"{reshape.name}.yaml"
        recipe.write_text(reshape.recipe(dataset))
        out, sized = self.scratch / "out", self.scratch / "sized"
        reads = {dataset.weights(name): count for name, count in reshape.reads(dataset).items()}
        with dataset.weights("alpha").open("rb") as source, sized.open("wb") as target:
            left = reshape.writes(dataset)
            while left > 0 and (part := source.read(min(left, 1 << 24))):
                target.write(part)
                left -= len(part)
        samples: Samples = {"floor": [], "merganser": []}
        failed: set[str] = set()
        self._merganser(recipe, out, sync=False)  # compiles the kernels
        self.clear(out)
        for _ in range(repeats):
            self._read([*reads, sized])
            floor = tools.moved_floor(reads, sized, out, filesystem=self.filesystem)
            samples["floor"].append(self._run("floor", floor).as_json())
            self.clear(out)
            sample = self._merganser(recipe, out, sync=False)
            if sample.status:
                failed.add("merganser")
                self.failures.append(f"{reshape.name}: merganser ended with status {sample.status}")
            samples["merganser"].append(sample.as_json())
            self.clear(out)
            say(
                f"  {reshape.name} floor {samples['floor'][-1]['seconds']:.2f} s, merganser {sample.seconds:.2f} s"
            )
        sized.unlink()
        record = {
            "what": reshape.what,
            "read_bytes": sum(reads.values()),
            "output_bytes": reshape.writes(dataset),
        }
        return record | {"samples": samples, "failed": sorted(failed)}

    def _recipe(self, case: Case, dataset: Dataset) -> Path:
        path = self.scratch / f"{case.method}.yaml"
        path.write_text(case.recipe(dataset.model))
        return path

    def _floor(self, inputs: Sequence[Path], out: Path, *, sync: bool) -> list[str]:
        return tools.floor(inputs, out, filesystem=self.filesystem, sync=sync)

    def _merganser(self, recipe: Path, out: Path, *, sync: bool, kernels: Path | None = None) -> Sample:
        return self._run("merganser", tools.merganser(recipe, out, sync=sync), kernels)

    def _cold(self, recipe: Path, out: Path) -> Sample:
        kernels = self.scratch / "kernels-cold"
        sample = self._merganser(recipe, out, sync=False, kernels=kernels)
        self.clear(kernels)
        return sample

    def _run(self, tool: str, command: Sequence[str], kernels: Path | None = None) -> Sample:
        environment: Mapping[str, str] = {"MERGANSER_CACHE": str(kernels or self.warm_kernels)}
        if tool == "mergekit":
            environment = tools.Mergekit.environment
        return timed(command, self.log, environment=environment, cwd=tools.REPOSITORY)

    def _note(self, case: Case, name: str, sample: Sample, failed: set[str]) -> None:
        if sample.status:
            failed.add(name)
            self.failures.append(f"{case.method}: {name} ended with status {sample.status}")
            say(f"{self.failures[-1]}\n{self.log.read_text(errors='replace').strip()[-1500:]}")

    @staticmethod
    def _read(files: Sequence[Path]) -> None:
        """Bring the inputs back into the page cache."""
        subprocess.run(["cat", *map(str, files)], stdout=subprocess.DEVNULL, check=True)

    @staticmethod
    def _agreement(one: Path, other: Path) -> dict[str, float] | None:
        program = Path(__file__).with_name("agree.py")
        done = subprocess.run(
            [sys.executable, str(program), str(one), str(other)], capture_output=True, text=True
        )
        if done.returncode:
            say(f"could not compare the outputs: {done.stderr.strip()[-500:]}")
            return None
        found: dict[str, float] = json.loads(done.stdout)
        return found
