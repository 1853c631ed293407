"""Reading what lm-eval (EleutherAI/lm-evaluation-harness 0.4) logs with --log_samples.

Three layouts are read. From 0.4.4 on, `samples_TASK_DATE.jsonl` has a JSON object a line, arguments are
{"gen_args_0": {"arg_0": ...}} and every response is text; 0.4.3 wrote `samples_TASK_DATE.json`, one list;
before, files were called `ARGUMENTS_TASK.jsonl` and hold one indented list, with plain numbers. Beside them
stands `results_DATE.json` or `results.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from merganser.checkpoint.digest import digest_file
from merganser.errors import RequestError, listing
from merganser.evaluate.metrics import EXTRA
from merganser.evaluate.results import Results, TaskResult
from merganser.evaluate.task import digest

Sample = Mapping[str, Any]
_KINDS = {
    "multiple_choice": "multiple_choice",
    "generate_until": "generation",
    "loglikelihood": "generation",
    "loglikelihood_rolling": "perplexity",
}
_DATE = r"\d{4}-\d{2}-\d{2}T[0-9.:-]+"
_SAMPLES = re.compile(rf"samples_(?P<task>.+?)(?:_(?P<date>{_DATE}))?\.jsonl?")
_RESULTS = re.compile(rf"(?:results|.+(?=_{_DATE}\.json))(?:_(?P<date>{_DATE}))?\.json")
"""A report: `results` with or without a date, or what `--output_path FILE.json` makes of FILE."""
_KNOWN = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash",
}  # fmt: skip
_RIGHT = {"multiple_choice": ("acc",), "generation": ("exact_match", "acc")}
"""What says of a kind's sample that it is right; exact_match of choices says that greedy decoding gives the answer."""
_MEANS = ("acc", "acc_norm", "acc_bytes", "exact_match")
_NO_MEANS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "weighted_perplexity", "mcc", "ter",
             "bleu", "chrf", "brier_score")  # fmt: skip
"""Metrics whose score is no mean of the samples' numbers, where the task does not say how it is made."""
CLOSE = 1e-6


def is_lm_eval(path: str | Path) -> bool:
    """Whether `path` is a folder of lm-eval's logs (or one whose only subfolder is), or a results file of it."""
    try:
        return _results_file(Path(path)) is not None
    except RequestError:
        return True


def read_lm_eval(path: str | Path) -> Results:
    """Read logs of lm-eval as results. path: the folder (of the newest run in it), or a results file.

    A task with several filters becomes `TASK,FILTER`. Kinds: multiple_choice; generate_until is generation;
    loglikelihood_rolling is perplexity (without tokens, which the logs do not have); loglikelihood (LAMBADA)
    is generation, right where greedy decoding gives the target, with its loss and its perplexity. right is acc (of
    generation exact_match, else acc) where that is 0 or 1 in all samples. Other metrics of a number a sample, true and
    false among them, are columns `metric.NAME` where their score is a mean by the task's metric_list; those of another
    aggregation are in `reported` only, which is what the log reports. input_digest covers arguments and target, so that
    samples of other prompts do not pair.

    Raises `RequestError` for logs without samples, for lines that are damaged, naming file and line, and where a score
    of the samples is not the one that is reported.
    """
    place = _results_file(Path(path))
    if place is None:
        raise RequestError(f"{path}: holds no results_*.json of lm-eval")
    report = json.loads(place.read_bytes())
    files = _sample_files(place, report)
    if not files:
        raise RequestError(f"{place.parent}: no samples beside {place.name}; run lm-eval with --log_samples")
    tasks: dict[str, TaskResult] = {}
    for task, file in sorted(files.items()):
        samples = list(_samples(file))
        for name, (filter_, part) in _by_filter(task, samples, report, file).items():
            tasks[name] = _task(task, filter_, part, report, file)
    config = report.get("config") if isinstance(report.get("config"), dict) else {}
    label = report.get("model_name") or config.get("model_args") or config.get("model") or place.parent.name
    identity = config.get("model_sha") or None
    suite = {"name": "lm-eval", "digest": None}
    return Results({"label": str(label), "identity": identity}, suite, tasks, _reported(report))


def _results_file(path: Path) -> Path | None:
    """The newest results file of lm-eval at `path`."""
    if path.is_file():
        return path if _RESULTS.fullmatch(path.name) and _is_report(path) else None
    if not path.is_dir():
        return None
    found = sorted(
        (match["date"] or "", one)
        for one in path.iterdir()
        if (match := _RESULTS.fullmatch(one.name)) and one.is_file() and _is_report(one)
    )
    if found:
        return found[-1][1]
    below = [one for one in sorted(path.iterdir()) if one.is_dir() and not one.is_symlink()]
    inside = [
        one
        for one in below
        if any(_RESULTS.fullmatch(file.name) and _is_report(file) for file in one.iterdir())
    ]
    if len(inside) > 1:
        raise RequestError(
            f"{path}: logs of several models ({listing(one.name for one in inside)}); name one of them"
        )
    return _results_file(inside[0]) if inside else None


def _is_report(path: Path) -> bool:
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(report, dict) and "merganser" not in report and isinstance(report.get("results"), dict)


def _sample_files(place: Path, report: Mapping[str, Any]) -> dict[str, Path]:
    """The file of each task: of the run's own date, or of the old names that end in the task's."""
    match = _RESULTS.fullmatch(place.name)
    date = match["date"] if match else None
    found: dict[str, Path] = {}
    others = []
    for one in sorted(place.parent.iterdir()):
        named = _SAMPLES.fullmatch(one.name)
        if named and named["date"] == date:
            found[named["task"]] = one
        elif one.suffix == ".jsonl" and date is None:
            others.append(one)
    # Longest first: `ARGUMENTS_mmlu_law.jsonl` is of mmlu_law, not of law.
    for task in sorted(report.get("configs") or report["results"], key=len, reverse=True):
        for one in others:
            if task not in found and one.stem.endswith(f"_{task}") and one not in found.values():
                found[task] = one
    return found


def _samples(file: Path) -> Iterator[Sample]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read: {error}") from None
    numbered: Iterator[tuple[int, Any]]
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{file}: is not JSON: {error}") from None
        numbered = enumerate(rows, 1)
        what = "sample"
    else:
        numbered = _lines(file, text)
        what = "line"
    empty = True
    for number, row in numbered:
        if not isinstance(row, dict) or "doc_id" not in row or "filtered_resps" not in row:
            raise RequestError(
                f"{file}: {what} {number} is no sample of lm-eval (doc_id, target, filtered_resps ...)"
            )
        empty = False
        yield row
    if empty:
        raise RequestError(f"{file}: has no samples")


def _lines(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RequestError(f"{file}: line {number} is not JSON: {error}") from None


def _by_filter(
    task: str, samples: Sequence[Sample], report: Mapping[str, Any], file: Path
) -> dict[str, tuple[str, list[Sample]]]:
    """The filter and the samples, by name. Logs from before 0.4.6 name no filter: a document's samples are in order."""
    groups: dict[str, list[Sample]] = {}
    if all("filter" in sample for sample in samples):
        for sample in samples:
            groups.setdefault(str(sample["filter"]), []).append(sample)
    else:
        reported = report["results"].get(task, {})
        names = list(dict.fromkeys(key.split(",", 1)[1] for key in reported if "," in key))
        seen: dict[str, int] = {}
        for sample in samples:
            turn = seen[str(sample["doc_id"])] = seen.get(str(sample["doc_id"]), -1) + 1
            groups.setdefault(names[turn] if turn < len(names) else str(turn), []).append(sample)
    for name, part in groups.items():
        ids = [str(sample["doc_id"]) for sample in part]
        if len(set(ids)) < len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            raise RequestError(f"{file}: doc_id {twice} is there twice for the filter {name!r}")
    return {task if len(groups) == 1 else f"{task},{name}": (name, part) for name, part in groups.items()}


def _task(
    task: str, filter_: str, samples: Sequence[Sample], report: Mapping[str, Any], file: Path
) -> TaskResult:
    config = (report.get("configs") or {}).get(task) or {}
    kind = _KINDS.get(str(config.get("output_type")), "")
    told = report["results"].get(task)
    told = told if isinstance(told, Mapping) else {}
    scores = {name: told.get(f"{name},{filter_}", told.get(name)) for name in _metrics(samples)}
    reported = {name: float(v) for name, v in scores.items() if _is_number(v) and math.isfinite(v)}
    try:
        kind = kind or _guessed(samples[0])
        extra = _extra(kind, samples, config, reported, f"{file}: task {task!r}")
        columns = _columns(kind, samples, extra)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RequestError(f"{file}: samples are not of the form that lm-eval logs: {error}") from None
    found = TaskResult.of(kind, columns, data=file.name, data_digest=digest_file(file))
    if kind == "generation" and "perplexity" in _metrics(samples) and "loss" in found.metrics:
        perplexity = math.exp(min(found.metrics["loss"] or 0.0, 700.0))
        found = replace(found, metrics={**found.metrics, "perplexity": perplexity})
    ours = {_right_of(kind, samples): "exact_match" if kind == "generation" else "accuracy"}
    ours |= {"acc_norm": "accuracy_norm", "perplexity": "perplexity", "bits_per_byte": "bits_per_byte"}
    for theirs, name in ours.items():
        made = found.metrics.get(name)
        if theirs in reported and made is not None:
            _check(theirs, made, reported[theirs], f"{file}: task {task!r}")
    return found


def _check(name: str, made: float, told: float, place: str) -> None:
    """Raise where the score of the samples is not the reported one."""
    if not math.isclose(made, told, rel_tol=CLOSE, abs_tol=CLOSE):
        raise RequestError(
            f"{place}: {name} is {told:g} in the report and {made:g} over the samples, so these are not of one run, or "
            "the metric is another one here. Take both from one run of lm-eval"
        )


def _metrics(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What the samples hold beside the fields that all logs have, by name."""
    names = dict.fromkeys(name for sample in samples for name in sample if name not in _KNOWN)
    return {name: [sample.get(name) for sample in samples] for name in names}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _right_of(kind: str, samples: Sequence[Sample]) -> str | None:
    """The metric that is 1 or 0 for right or wrong."""
    found = _metrics(samples)
    for name in _RIGHT.get(kind, ()):
        told = [value for value in found.get(name, []) if value is not None]
        if told and all(_is_number(value) and value in (0, 1) for value in told):
            return name
    return None


def _extra(
    kind: str,
    samples: Sequence[Sample],
    config: Mapping[str, Any],
    reported: Mapping[str, float],
    place: str,
) -> dict[str, list[float | None]]:
    """Metrics of one number a sample whose score is their mean, but for those that have columns of their own."""
    listed = config.get("metric_list")
    declared = {
        str(one.get("metric")): one.get("aggregation") for one in listed or () if isinstance(one, Mapping)
    }
    own = {_right_of(kind, samples)} | ({"acc_norm"} if kind == "multiple_choice" else set())
    found: dict[str, list[float | None]] = {}
    for name, values in _metrics(samples).items():
        if name in own or not all(value is None or _is_number(value) for value in values):
            continue
        numbers = [None if value is None else float(value) for value in values]
        known = [value for value in numbers if value is not None and math.isfinite(value)]
        how = declared.get(name)
        if (name in _NO_MEANS if how is None else how not in ("mean", "nanmean")) or not known:
            continue
        if name in reported:
            mean = sum(known) / len(known)
            if how is None and name not in _MEANS and not math.isclose(mean, reported[name], rel_tol=CLOSE):
                continue  # the task makes its score in a way of its own, and does not say which
            _check(name, mean, reported[name], place)
        found[name] = [None if value is None or not math.isfinite(value) else value for value in numbers]
    return found


def _guessed(sample: Sample) -> str:
    """The kind where no config says it."""
    if any(name in sample for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")):
        return "perplexity"
    responses = sample["filtered_resps"]
    if len(responses) > 1 and all(_pair(one) is not None for one in responses):
        return "multiple_choice"
    return "generation"


def _columns(
    kind: str, samples: Sequence[Sample], extra: Mapping[str, list[float | None]]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {"id": [], "input_digest": []}
    right, by_text = _right_of(kind, samples), kind == "multiple_choice" and _targets_are_texts(samples)
    rows = [_row(kind, sample, right, by_text) for sample in samples]
    for sample, row in zip(samples, rows, strict=True):
        row["id"] = str(sample["doc_id"])
        row["input_digest"] = _digest(sample)
    for name in dict.fromkeys(name for row in rows for name in row):
        columns[name] = [row.get(name) for row in rows]
    return columns | {f"{EXTRA}{name}": values for name, values in extra.items()}


def _row(kind: str, sample: Sample, right: str | None, by_text: bool) -> dict[str, Any]:
    told = None if right is None else sample.get(right)
    row: dict[str, Any] = {
        "answer": str(sample.get("target", "")),
        "right": None if told is None else bool(told),
    }
    responses = sample["filtered_resps"]
    if kind == "multiple_choice":
        row |= _choice(sample, by_text)
    elif kind == "perplexity":
        row["answer"] = None
        counted = sample.get("byte_perplexity", sample.get("bits_per_byte"))
        nats = -float(counted[0]) if counted else -_number(responses[0])
        row |= {"nats": nats, "loss": nats, "tokens": None, "bytes": int(counted[1]) if counted else None}
    elif (pair := _pair(responses[0])) is not None and not isinstance(responses[0], str):
        row["loss"] = -pair[0]
    else:
        output = _first(sample.get("resps", responses))
        row |= {"prediction": _first(responses), "text": output}
    return row


def _targets_are_texts(samples: Sequence[Sample]) -> bool:
    """Whether targets that are numbers are choices and not places of choices: by what the log calls right."""
    by_place = by_text = 0
    for sample in samples:
        told = sample.get("acc")
        if not _is_number(told) or told not in (0, 1):
            continue
        rows = [_choice(sample, text) for text in (False, True)]
        place, text = ((row["prediction"] == row["answer"]) == bool(told) for row in rows)
        by_place, by_text = by_place + place, by_text + text
    return by_text > by_place


def _choice(sample: Sample, by_text: bool) -> dict[str, Any]:
    pairs = [_pair(one) for one in sample["filtered_resps"]]
    if not pairs or any(pair is None for pair in pairs):
        raise ValueError(f"doc_id {sample['doc_id']}: responses are no log-probabilities")
    arguments = _arguments(sample)
    values = [pair[0] for pair in pairs if pair is not None]
    if arguments and len(arguments) != len(values):
        raise ValueError(f"doc_id {sample['doc_id']}: {len(values)} responses to {len(arguments)} requests")
    if "acc_mutual_info" in sample:  # behind the choices stand the same ones without context
        half = len(values) // 2
        arguments, values = arguments[:half], values[:half]
    texts = [str(one[1]) if len(one) > 1 else str(k) for k, one in enumerate(arguments)] or [
        str(k) for k in range(len(values))
    ]
    if len(set(texts)) < len(texts) and arguments:  # the context differs, not the continuation (Winogrande)
        texts = [str(one[0]) for one in arguments]
    best = values.index(max(values))
    row: dict[str, Any] = {
        "choices": texts,
        "log_probabilities": values,
        "prediction": texts[best],
        "right_norm": None if sample.get("acc_norm") is None else bool(float(sample["acc_norm"])),
    }
    target = str(sample.get("target", ""))
    same = [k for k, text in enumerate(texts) if text.strip() == target.strip()]
    if target.isdecimal() and int(target) < len(texts) and not (by_text and same):
        same = [int(target)]
    row |= {"answer": texts[same[0]], "loss": -values[same[0]]} if same else {"answer": target}
    if row.get("loss") is not None and not math.isfinite(row["loss"]):
        row["loss"] = None
    return row


def _pair(response: Any) -> tuple[float, Any] | None:
    """(log-probability, greedy) of a response to loglikelihood, numbers or their text."""
    if isinstance(response, list | tuple) and len(response) == 1:
        response = response[0]
    if (
        isinstance(response, list | tuple)
        and len(response) == 2
        and str(response[1]) in ("True", "False", "0", "1")
    ):
        try:
            return float(response[0]), response[1]
        except (TypeError, ValueError):
            return None
    return None


def _number(response: Any) -> float:
    while isinstance(response, list | tuple):
        response = response[0]
    return float(response)


def _first(response: Any) -> str:
    while isinstance(response, list | tuple):
        response = response[0] if response else ""
    return str(response)


def _arguments(sample: Sample) -> list[list[Any]]:
    """Requests as lists of arguments, of either layout."""
    found = sample.get("arguments") or []
    if isinstance(found, Mapping):
        found = [
            list(one.values()) if isinstance(one, Mapping) else [one]
            for _, one in sorted(found.items(), key=lambda item: int(re.sub(r"\D", "", item[0]) or 0))
        ]
    return [list(one) if isinstance(one, list | tuple) else [one] for one in found]


def _digest(sample: Sample) -> str:
    """Of what was asked and the target; where logs lack arguments, of lm-eval's own hashes or the document."""
    target = str(sample.get("target", ""))
    if arguments := _arguments(sample):
        return digest(arguments, target)
    hashes = [sample.get(name) for name in ("doc_hash", "prompt_hash", "target_hash")]
    return digest(hashes if any(hashes) else sample.get("doc"), target)


def _reported(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {
        task: {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        for task, values in report["results"].items()
        if isinstance(values, dict)
    }
