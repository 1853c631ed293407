"""Results per sample: in memory, as files, and read back."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merganser._version import __version__
from merganser.errors import RequestError, did_you_mean, listing
from merganser.evaluate.beside import beside
from merganser.evaluate.metrics import Metrics, metrics_of
from merganser.evaluate.output import RESULTS, Workspace, check_target
from merganser.running import require

if TYPE_CHECKING:
    import pyarrow as pa

_COMMON = {
    "id": "string",
    "input_digest": "string",
    "answer": "string",
    "prediction": "string",
    "right": "bool",
    "loss": "double",
    "choices": "texts",
    "log_probabilities": "doubles",
}
_OF_KIND = {
    "classification": {},
    "multiple_choice": {"prediction_norm": "string", "right_norm": "bool"},
    "generation": {"text": "string"},
    "perplexity": {"nats": "double", "tokens": "int64", "bytes": "int64"},
    "similarity": {"similarity": "double", "target": "double"},
}
_MOST = 1 << 30


@dataclass(frozen=True, eq=False)
class TaskResult:
    """One task's results: `table` has a row a sample, in the order of the data.

    Columns: id, input_digest, answer, prediction (strings), right (bool), loss (nats), choices (strings) and
    log_probabilities (nats) over them; of multiple choice prediction_norm and right_norm; of generation text;
    of perplexity nats, tokens, bytes; of similarity similarity and target. What a kind does not have is null.
    """

    kind: str
    table: pa.Table
    metrics: Metrics
    data: str | None = None
    data_digest: str | None = None

    @classmethod
    def of(
        cls,
        kind: str,
        columns: Mapping[str, Sequence[Any]],
        *,
        data: str | None = None,
        data_digest: str | None = None,
    ) -> TaskResult:
        """From columns; those that are missing are null throughout."""
        return cls(kind, table_of(kind, columns), metrics_of(kind, columns), data, data_digest)

    @property
    def beside(self) -> dict[str, float]:
        """What chance and the commonest answer would reach, how varied outputs are; see `merganser.evaluate.beside`."""
        names = [name for name in ("choices", "answer", "text") if name in self.table.column_names]
        return beside(self.kind, {name: self.column(name) for name in names})

    @property
    def rows(self) -> int:
        """Number of samples."""
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """A column as a list; `RequestError` for one that is not there."""
        if name not in self.table.column_names:
            raise RequestError(
                f"results have no column {name!r}{did_you_mean(name, self.table.column_names)}; they have "
                f"{listing(self.table.column_names, 20)}"
            )
        return self.table.column(name).to_pylist()  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Results:
    """A model's results on a suite.

    `model` has label and identity (None where no weights are known), `suite` name and digest; `reported` are
    metrics by task as another tool wrote them, where the results are its.
    """

    model: Mapping[str, str | None]
    suite: Mapping[str, str | None]
    tasks: Mapping[str, TaskResult]
    reported: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Metrics]:
        """Metrics by task."""
        return {name: task.metrics for name, task in self.tasks.items()}

    def as_json(self) -> dict[str, Any]:
        """What results.json holds."""
        files = _files(self.tasks)
        tasks = {name: record(task, files[name]) for name, task in self.tasks.items()}
        found = {
            "merganser": __version__,
            "model": dict(self.model),
            "suite": dict(self.suite),
            "tasks": tasks,
        }
        if self.reported:
            found["reported"] = {name: dict(values) for name, values in self.reported.items()}
        return found

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write results.json and a Parquet file a task into the directory `out`, which appears whole or not at all."""
        check_target(Path(out), overwrite)
        with Workspace(Path(out), overwrite=overwrite) as place:
            for name, file in _files(self.tasks).items():
                place.add(file, parquet(self.tasks[name], name, self.model))
            place.add(RESULTS, as_bytes(self.as_json()))
            place.seal()


def read_results(path: str | Path) -> Results:
    """Read what `Results.save` or `merganser evaluate` wrote, or the logs of lm-eval's --log_samples.

    path: the directory, or its results.json. Raises `RequestError` for what is neither, or is damaged.
    """
    path = Path(path)
    folder = path.parent if path.name == RESULTS else path
    document = _document(folder / RESULTS)
    if document is not None and "merganser" in document:
        return _read(folder, document)
    from merganser.evaluate.lm_eval import is_lm_eval, read_lm_eval

    if is_lm_eval(path):
        return read_lm_eval(path)
    if not path.exists():
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise RequestError(f"there are no results at {str(path)!r}{did_you_mean(path.name, beside)}")
    raise RequestError(
        f"{path}: holds no results: neither a results.json of `merganser evaluate` nor results and samples of lm-eval"
    )


def _read(folder: Path, document: dict[str, Any]) -> Results:
    require("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as parquet

    place = folder / RESULTS
    try:
        tasks = {}
        for name, one in document["tasks"].items():
            file = one["file"]
            if Path(file).name != file or not file.endswith(".parquet"):
                raise RequestError(f"{place}: {file!r} is no file of these results")
            try:
                # Pathlib opens it, so that a name that Arrow would take for an address stays a name.
                table = parquet.read_table(pa.BufferReader((folder / file).read_bytes()))
            except OSError as error:
                raise RequestError(f"{folder / file}: cannot be read: {error.strerror or error}") from None
            if table.num_rows != one["rows"]:
                raise RequestError(
                    f"{folder / file}: has {table.num_rows} rows, and results.json says {one['rows']}"
                )
            tasks[name] = TaskResult(
                str(one["kind"]), table, dict(one["metrics"]), one.get("data"), one.get("data_digest")
            )
        about = dict(document["model"]), dict(document["suite"])
        return Results(*about, tasks, dict(document.get("reported", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RequestError(f"{place}: is no results file ({type(error).__name__}: {error})") from None
    except pa.ArrowException as error:
        raise RequestError(f"{folder}: a file is damaged: {error}") from None


def record(task: TaskResult, file: str) -> dict[str, Any]:
    """A task in results.json."""
    return {
        "kind": task.kind,
        "rows": task.rows,
        "data": task.data,
        "data_digest": task.data_digest,
        "metrics": task.metrics,
        **({"beside": told} if (told := task.beside) else {}),
        "file": file,
    }


def table_of(kind: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """An Arrow table of the columns of a kind, and of others that are there, as doubles."""
    require("pyarrow")
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "double": pa.float64(),
        "int64": pa.int64(),
        "texts": pa.list_(pa.string()),
        "doubles": pa.list_(pa.float64()),
    }
    wanted = _COMMON | _OF_KIND[kind]
    wanted |= {name: "double" for name in columns if name not in wanted}
    count = len(columns["id"])
    arrays = {
        name: pa.array(columns.get(name, [None] * count), types[dtype]) for name, dtype in wanted.items()
    }
    return pa.table(arrays)


def parquet(task: TaskResult, name: str, model: Mapping[str, str | None]) -> bytes:
    """A task's file, with the model's label and identity in its metadata."""
    import pyarrow.parquet as parquet

    about = {"task": name, "kind": task.kind, "model": dict(model), "data_digest": task.data_digest}
    table = task.table.replace_schema_metadata({"merganser": json.dumps(about)})
    sink = io.BytesIO()
    parquet.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def as_bytes(document: Mapping[str, Any]) -> bytes:
    """Results.json."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def file_of(name: str) -> str:
    """The name of a task's file."""
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".")[:100] + ".parquet"


def _files(names: Mapping[str, Any]) -> dict[str, str]:
    """A file name for each task, all different even where case does not count."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        file = file_of(name)
        number = 1
        while file.casefold() in taken:
            number += 1
            file = f"{number}-{file_of(name)}"
        taken.add(file.casefold())
        found[name] = file
    return found


def _document(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
