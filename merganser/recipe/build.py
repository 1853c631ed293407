"""From a checked recipe to lazy weights: open the models, cut and merge the slices, put them together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from merganser._facade import open as open_weights
from merganser.algebra import Weights, axes
from merganser.algebra.expression import Apply, Constant, Expression, Round, Written
from merganser.algebra.labelled import (
    Order,
    in_label_order,
    label_order,
    labels_of,
    reference_of,
    rows_taken,
    rows_with_labels,
    with_labels,
)
from merganser.algebra.live import onto
from merganser.algebra.operations import OPERATIONS
from merganser.algebra.prefixes import aligned, under_names
from merganser.algebra.ties import levelled
from merganser.algebra.weights import need_numbers
from merganser.architectures.meaning import TOKENIZER_KEY
from merganser.checkpoint import parse_dtype
from merganser.errors import AlgebraError, RequestError, did_you_mean, listing
from merganser.methods import Parameter, Step
from merganser.methods.merge._statistics import UNOBSERVED, unobserved_note
from merganser.methods.registry import OF_INPUTS
from merganser.recipe.agreement import agreed
from merganser.recipe.dialect import promoted, without_unnamed
from merganser.recipe.experts import Mixture, build_mixture
from merganser.recipe.form import Model, Part, Recipe, Slice, Source, StepCall
from merganser.recipe.keys import note_of
from merganser.recipe.lacking import (
    extras,
    fits_for_the_most_part,
    is_vector,
    refuse_extras,
    refuse_targets,
    without_extras,
)
from merganser.recipe.mismatch import Conformed, conform, deeper, misfits
from merganser.recipe.reference import Reference, read_reference
from merganser.recipe.settings import Setting
from merganser.recipe.slices import View, cut, joined_modules, layer_axis, stacked, whole
from merganser.recipe.statistics import open_statistics, renamed, unchanged


def build(
    recipe: Recipe | Mixture, *, seed: int | None = None, allow_pickle: bool = False
) -> tuple[Weights, dict[str, Any]]:
    """The lazy result of a recipe, and the fields `save` needs with it (dtype, recipe, seed, degree).

    Only headers are read (and, for the gates of a mixture that look at hidden states, the base model). `seed` stands
    above the recipe's own; without either it is 0. Relative paths are looked for in the working directory, then in the
    recipe's. Raises `RequestError` for a model that is not there, a tensor without a value for a required parameter, a
    pattern that matches no tensor; and what the algebra raises.
    """
    return _Kitchen(seed, allow_pickle).result(recipe)


def before_steps(
    recipe: Recipe, *, seed: int | None = None, allow_pickle: bool = False
) -> tuple[Weights, list[tuple[Step, dict[str, Any]]]]:
    """The lazy result of a recipe before its steps, and each step with its settings. Raises as `build` does."""
    kitchen = _Kitchen(seed, allow_pickle)
    merge = _Merge(recipe, kitchen, seed if seed is not None else recipe.seed or 0)
    weights = merge.merged()
    return weights, [(call.step, merge.settings(call)) for call in recipe.steps]


def open_models(recipe: Recipe, *, allow_pickle: bool = False) -> list[Weights]:
    """The models of a recipe, in its order, opened as `build` does; other documents of its file are built."""
    kitchen = _Kitchen(None, allow_pickle)
    return joinable(recipe, [kitchen.open(model, recipe) for model in recipe.models])[0]


def joinable(recipe: Recipe, models: Sequence[Weights]) -> tuple[list[Weights], dict[str, Any] | None]:
    """The models of a recipe, free to be joined as far as it allows, and a note of contradictions that were let by."""
    return agreed(
        models,
        recipe.merged,
        recipe.merged[0] if recipe.base is None else recipe.base,
        recipe.allow,
        mergekit=recipe.mergekit,
        besides={TOKENIZER_KEY} if _arranged(recipe) else (),  # rows of the same tokens will meet
        place=recipe.source,
    )


def _arranged(recipe: Recipe) -> bool:
    """Whether the recipe brings the models' rows of the same tokens together."""
    return recipe.vocabulary is not None and recipe.vocabulary.source is not None


class _Kitchen:
    """Builds documents, each once."""

    def __init__(self, seed: int | None, allow_pickle: bool) -> None:
        self.seed = seed
        self.allow_pickle = allow_pickle
        self.made: dict[int, Weights] = {}
        self.labels: dict[tuple[str, str | None, str], str] = {}
        self.top: Recipe | Mixture | None = None

    def result(self, recipe: Recipe | Mixture) -> tuple[Weights, dict[str, Any]]:
        self.top = self.top or recipe
        if isinstance(recipe, Mixture):
            seed = self.seed or 0
            weights = build_mixture(
                recipe, lambda raw, place: self._of_mixture(recipe, raw, place), seed=seed
            )
        else:
            seed = self.seed if self.seed is not None else recipe.seed or 0
            weights = _Merge(recipe, self, seed).weights()
        if recipe.ignored and recipe is self.top:
            weights = weights.with_note(note_of(recipe.ignored))
        fields: dict[str, Any] = {
            "dtype": recipe.dtype,
            "recipe": {**recipe.canonical, "seed": seed},
            "seed": seed,
        }
        if isinstance(recipe, Recipe) and recipe.degree is not None:
            fields["degree"] = recipe.degree
        return weights, fields

    def _of_mixture(self, mixture: Mixture, raw: Any, place: str) -> Weights:
        reference = read_reference(raw, place, mergekit=True, directory=mixture.directory)
        if reference.identity not in self.labels:
            label, number = reference.short, 2
            while label in self.labels.values():
                label, number = f"{reference.short}#{number}", number + 1
            self.labels[reference.identity] = label
        return self._opened(reference, self.labels[reference.identity], mixture.directory, mixture.allow)

    def open(self, model: Model, recipe: Recipe) -> Weights:
        """A model of a recipe: another document, or what lies at a path, with its LoRA added."""
        reference = model.reference
        document = recipe.documents.get(reference.path)
        if document is None:
            try:
                return self._opened(reference, model.label, recipe.directory, recipe.allow)
            except RequestError as error:
                word = did_you_mean(reference.path, ("union", "base")) if "tokenizer" in model.place else ""
                raise type(error)(f"{model.place}: {error}{word}") from error
        if id(document) not in self.made:
            weights, fields = self.result(document)
            self.made[id(document)] = as_saved(weights, fields["dtype"])
        made = self.made[id(document)]
        weights = made._with(
            {name: made.entry(name) for name in made}, label=model.label, allowed=frozenset()
        )
        if reference.lora is None:
            return weights
        adapter = self._opened(reference.lora, f"{model.label}/lora", recipe.directory)
        return _with_lora(weights, adapter, recipe.allow)

    def _opened(self, reference: Reference, label: str, directory: Any, allow: Sequence[str] = ()) -> Weights:
        path = reference.path if reference.revision is None else f"{reference.path}@{reference.revision}"
        # Parents need names of their own: the manifest's digests go by them.
        own = label if reference.lora is None else f"{label}/model"
        weights = open_weights(path, name=own, allow_pickle=self.allow_pickle, relative_to=directory)
        if reference.lora is None:
            return weights
        adapter = self._opened(reference.lora, f"{label}/lora", directory)
        return _with_lora(weights, adapter, allow).relabel(label)

    def open_path(self, path: str, recipe: Recipe) -> Weights:
        """A model that a step names."""
        return open_weights(path, allow_pickle=self.allow_pickle, relative_to=recipe.directory)


def _with_lora(model: Weights, adapter: Weights, allow: Sequence[str]) -> Weights:
    if abs(adapter.degree) > 1e-6:
        raise RequestError(
            f"{adapter.label!r} is a model, not a LoRA adapter that can be added to {model.label!r}"
        )
    free = adapter._with({name: adapter.entry(name) for name in adapter}, allowed=frozenset(allow))
    made = (model + free).relabel(model.label)
    return made._with({name: made.entry(name) for name in made}, allowed=model.allowed)


def as_saved(weights: Weights, dtype: str | None) -> Weights:
    """A document as it would be if it had been saved and opened again: rounded to its dtype."""
    to = None if dtype is None else parse_dtype(dtype)

    def rounded(name: str, expression: Expression) -> Expression:
        held = None if weights.origin is None else weights.origin.tensors.get(name)
        if to is None and isinstance(expression, Written):
            return expression
        target = to or (held.dtype if held is not None else None)
        return expression if target is None or not target.is_float else Round(target, expression)

    return weights.map(rounded)


def _widened(weights: Weights) -> Weights:
    """The same values, computed with in f64."""

    def wide(_: str, e: Expression) -> Expression:
        return e if e.wide else Apply(OPERATIONS["div"], (e, Constant(1.0)), e.shape, True, False)

    return weights.map(wide)


class _Merge:
    """One merge at work."""

    def __init__(self, recipe: Recipe, kitchen: _Kitchen, seed: int) -> None:
        self.recipe = recipe
        self.kitchen = kitchen
        self.seed = seed
        # mergekit gives the first point of a gradient to what stands after the layers.
        self.after = 0.0 if recipe.mergekit else 1.0

    def weights(self) -> Weights:
        """The merged model, after the steps."""
        weights = self.merged()
        for call in self.recipe.steps:
            settings = self.settings(call)
            try:
                weights = call.step.function(weights, **settings)
            except (RequestError, AlgebraError) as error:
                raise type(error)(f"{call.place}: {error}") from error
        return weights

    def settings(self, call: StepCall) -> dict[str, Any]:
        """The settings of a step, its models opened."""
        return call.step.settings(
            call.raw,
            call.place,
            self.recipe.directory,
            lambda path: self.kitchen.open_path(path, self.recipe),
        )

    def merged(self) -> Weights:
        """The merged model, before the steps."""
        recipe = self.recipe
        self.opened = [self.kitchen.open(model, recipe) for model in recipe.models]
        if len(self.opened) > 1 or recipe.steps:
            need_numbers(checkpoint for weights in self.opened for checkpoint in weights.checkpoints)
        self.stored = list(self.opened)
        prefixes: dict[str, str] = {}
        if len(recipe.merged) > 1:
            reference = recipe.merged[0] if recipe.base is None else recipe.base
            self.opened, prefixes = aligned(self.opened, reference)
        if recipe.base is not None:
            self.opened = [onto(self.opened[recipe.base], weights) for weights in self.opened]
        self.opened, differ = joinable(recipe, self.opened)
        if recipe.dtype == "float64":
            self.opened = [_widened(weights) for weights in self.opened]
        simple = all(not part.sliced for part in recipe.parts)
        names = list(dict.fromkeys(name for weights in self.opened for name in weights))
        for setting in recipe.settings if simple else recipe.settings_by_names(inward=True):
            setting.check_patterns(names)
        files: dict[str, bytes | None] = {}
        self.left_out: dict[str, None] = {}
        self.opened, some, self.unnamed = without_unnamed(
            self.opened, recipe.merged, mergekit=recipe.mergekit, axes=recipe.needs_axes
        )
        self.left_out |= dict.fromkeys(some)
        self.on_disk = list(self.opened)
        self.statistics: dict[tuple[str, int], Weights] = {}
        self.unobserved: dict[str, None] = {}
        if recipe.vocabulary is not None:
            from merganser.recipe.vocabularies import merge_vocabularies

            self.opened, files = merge_vocabularies(
                recipe.vocabulary, self.opened, recipe.base, merged=recipe.merged, ends=recipe.ends
            )
            if _arranged(recipe):  # all have the result's tokenizer now
                joined = {*recipe.merged, *([] if recipe.base is None else [recipe.base])}
                self.opened = [
                    model.with_files(files) if k in joined else model for k, model in enumerate(self.opened)
                ]
        self._line_up()
        parts = [self._part(part) for part in recipe.parts]
        weights = parts[0][1] if recipe.parts[0].name is None else self._modules(parts)
        for setting in (
            [] if simple else recipe.settings_by_names(inward=False)
        ):  # layers have other numbers there
            setting.check_patterns(list(weights))
        weights = self._note_idle(weights, names)
        if prefixes:
            weights = weights.with_note({"step": "names", **prefixes})
        if recipe.mergekit and recipe.dtype is None:
            weights = promoted(weights)
        if self.left_out:
            weights = weights.with_note({"step": "left out", "only some models have": list(self.left_out)})
        if self.unnamed:
            weights = weights.with_note({"step": "left out", "no family names": self.unnamed})
        if differ is not None:
            weights = weights.with_note(differ)
        if self.reordered:
            weights = weights.with_note({"step": "labels", **self.reordered})
        if self.unobserved:
            weights = weights.with_note(unobserved_note(recipe.method.name, list(self.unobserved)))
        if files:
            weights = weights.with_files(files)
        return weights

    def _line_up(self) -> None:
        """Put classifiers' rows in the order of the base's labels (without a base with such rows, the first model's).

        Models with other labels stay: where their rows are merged, that is an error or the recipe's mismatch policy.
        """
        recipe, self.before_labels = self.recipe, list(self.opened)
        order = [] if recipe.base is None else [recipe.base]
        order += [k for k in recipe.merged if k != recipe.base]
        self.rows: dict[int, Order] = {}
        self.reordered: dict[str, Any] = {}
        first = reference_of(self.opened[k] for k in order)
        if first is None:
            return
        for k in order:
            try:
                found = label_order(self.opened[k], first)
            except AlgebraError:
                continue
            if found:
                self.rows[k] = found
                self.opened[k] = in_label_order(self.opened[k], first)
        if self.rows:
            self.reordered = {
                "rows in the order of": first.label,
                "labels": list(labels_of(first) or ()),
                "rows moved of": [self.opened[k].label for k in self.rows],
            }

    def _note_idle(self, weights: Weights, names: Sequence[str]) -> Weights:
        """The weights with a note of filters and patterns that no tensor has; mergekit's filters may be idle."""
        everything = [*names, *weights]
        idle = [text for setting in self.recipe.settings for text in setting.idle_filters(everything)]
        idle = [text.replace(f"{self.recipe.source}: ", "") for text in idle]
        if self.recipe.mismatch is not None:
            idle += self.recipe.mismatch.idle(everything)
        if not idle:
            return weights
        return weights.with_note({"step": "filters", "found in no tensor": list(dict.fromkeys(idle))})

    def _modules(self, parts: Sequence[tuple[str, Weights]]) -> Weights:
        weights = joined_modules(parts)
        reading = axes.reading_of(weights)
        held = {axis for axis, _ in parts}
        for axis, spec in reading.family.indices.items():
            if not spec.scope and "layer" in axis and axis not in held:
                name = axis.removesuffix("_layer")
                raise RequestError(f"{self.recipe.source}: modules: gives no {name}, which the model has")
        return weights

    def _part(self, part: Part) -> tuple[str, Weights]:
        """The result of a part, and the index of its layers ("" where that is not asked for)."""
        if part.name is None and not part.sliced and len(part.slices) == 1:
            only = part.slices[0]
            models = [self.opened[source.model] for source in only.sources] or [self._base(only)]
            view = whole(models, self.after)
            return "", self._slice(part, only, view)
        place = f"{self.recipe.source}: " + (f"modules.{part.name}" if part.name else part.slices[0].place)
        first = self.opened[part.slices[0].sources[0].model]
        axis = layer_axis(axes.reading_of(first), part.name, place)
        done, stack = 0, []
        for one in part.slices:
            models = [self.opened[source.model] for source in one.sources]
            ranges = [source.layers for source in one.sources]
            what = [f"{self.recipe.source}: {source.place}" for source in one.sources]
            view, count = cut(models, ranges, axis, done, what, self.after)
            made = self._slice(part, one, view)
            reading = axes.reading_of(view.models[0])
            named = reading.named(name for name in made if name not in reading.tensors)
            reading = replace(reading, tensors={**reading.tensors, **named})
            stack.append((made._with({n: made.entry(n) for n in made}, reading=reading), count))
            done += count
        weights = stacked(stack, axis)
        base = None if self.recipe.base is None else self.opened[self.recipe.base]
        if base is not None and base.origin is not None and weights.origin is not base.origin:
            weights = _dressed_by(weights, base)
        return axis, weights

    def _base(self, slice_: Slice) -> Weights:
        assert slice_.base is not None
        return self.opened[slice_.base]

    def _slice(self, part: Part, slice_: Slice, view: View) -> Weights:
        """The method on the models of a view."""
        recipe = self.recipe
        if recipe.mergekit and slice_.base_alone(recipe.method):
            return view.models[0]
        chosen = slice_.inputs(recipe.method)
        index = {id(source): k for k, source in enumerate(slice_.sources)}
        base_source = slice_.base_source
        base: Weights | None = None
        if base_source is not None:
            base = view.models[index[id(base_source)]]
        elif slice_.base is not None:
            base = self.opened[slice_.base]
            if part.sliced:  # it lends its files, which it does at the end
                base = None
        models = [view.models[index[id(source)]] for source in chosen]
        places = [index[id(source)] for source in chosen]
        observed = self._observed(part, chosen, view, places)
        cook = _Cook(recipe, part, slice_, view, chosen, places, self.seed, observed, self.unobserved)
        if base is None:
            models = levelled(*models)
        else:
            base, *models = levelled(base, *models)
        reference = base if base is not None else models[0]
        place = f"{recipe.source}: {slice_.place}"
        if recipe.mismatch is None:
            if not part.sliced and (wrong := deeper(reference, models)):
                raise RequestError(f"{place}: {wrong}")
            models = self._without_extras(recipe.method.base_apart, base, models, place)
            return self._fitting(reference, models, lambda: cook.variants(base, models, None))
        policy = recipe.mismatch
        found = extras(reference, models)
        unnamed = [
            (model, [n for n in names if policy.word(n) in ("error", "zero") or policy.for_all(n)])
            for model, names in found
            if is_vector(model)
        ]
        refuse_targets(reference, [one for one in unnamed if one[1]], place)
        refused = [
            (model, [n for n in names if policy.word(n) in ("error", "zero")]) for model, names in found
        ]
        refuse_extras(
            reference, [one for one in refused if one[1]], place, reorder=not recipe.method.base_apart
        )
        try:
            fitted = conform(reference, models, recipe.mismatch)
        except AlgebraError as error:
            raise type(error)(f"{place}: {error}") from error
        observed[:] = [
            unchanged(found, before, after)
            for found, before, after in zip(observed, models, fitted.models, strict=bool(observed))
        ]
        weights = self._fitting(reference, fitted.models, lambda: cook.variants(base, fitted.models, fitted))
        return weights if fitted.note is None else weights.with_note(fitted.note)

    def _without_extras(
        self, apart: bool, base: Weights | None, models: list[Weights], place: str
    ) -> list[Weights]:
        """The models without what the base (the first model) lacks: mergekit's rule; an error in our form."""
        holder = base if base is not None and apart else models[0]
        found = extras(holder, models)
        refuse_targets(holder, [one for one in found if is_vector(one[0])], place)
        if not self.recipe.mergekit:
            alike = [one for one in found if fits_for_the_most_part(holder, one[0])]
            refuse_extras(holder, alike, place, reorder=not apart)
        self.left_out |= {f"{name} of {model.label}": None for model, names in found for name in names}
        return without_extras(holder, models) if found else models

    def _observed(
        self, part: Part, chosen: Sequence[Source], view: View, places: Sequence[int]
    ) -> list[Weights]:
        """The statistics of the models of a view, in its names; none where the method takes none."""
        kind = self.recipe.method.statistics
        if kind is None:
            return []
        found = []
        for source, k in zip(chosen, places, strict=True):
            assert source.statistics is not None
            key = (source.statistics, source.model)
            model = self.on_disk[source.model]
            if key not in self.statistics:
                same = sum(number == source.model for _, number in self.statistics)
                opened = open_statistics(
                    source.statistics,
                    kind,
                    self.stored[source.model],
                    f"{model.label}/{kind}" + (f"#{same + 1}" if same else ""),
                    f"{self.recipe.source}: {source.place}.statistics",
                    self.recipe.directory,
                )
                names = dict(zip(self.stored[source.model], model, strict=True))
                self.statistics[key] = under_names(opened, {a: b for a, b in names.items() if a != b})
            kept = unchanged(self.statistics[key], model, self.before_labels[source.model])
            if kind != OF_INPUTS:
                kept = rows_taken(kept, self.rows.get(source.model, {}))
            found.append(renamed(kept, view.models[k], view.inward[k]) if part.sliced else kept)
        return found

    def _fitting(self, reference: Weights, models: list[Weights], make: Callable[[], Weights]) -> Weights:
        """What `make` gives; an error of the algebra says what does not fit in all, and the way out."""
        try:
            return make()
        except AlgebraError as error:
            wrong = misfits(reference, models)
            if not wrong:
                raise
            text = f"{self.recipe.source}: {str(error).rstrip('?')}"
            if 2 * len({name.rpartition(" of ")[0] for name in wrong}) > len(reference):
                raise type(error)(
                    f"{text}. These are models of another kind or size than {reference.label!r}"
                ) from error
            raise type(error)(
                f"{text}. Of the models' tensors {len(wrong)} do not fit {reference.label!r} ({listing(wrong, 3)}); "
                "`mismatch` in the recipe says what happens to such: skip, base, crop, pad or zero"
            ) from error


def _dressed_by(weights: Weights, base: Weights) -> Weights:
    """The weights with the small files of another model, whose config they must fit."""
    known = {id(checkpoint) for checkpoint in weights.checkpoints}
    extra = tuple(c for c in base.checkpoints if id(c) not in known)
    reading = axes.reading_of(weights)
    own = axes.reading_of(base)
    names = labels_of(weights) if rows_with_labels(weights) else None
    result = weights._with(
        {name: weights.entry(name) for name in weights},
        origin=base.origin,
        checkpoints=(*weights.checkpoints, *extra),
        reading=own.resized(reading.sizes, reading.tensors) if own.family is reading.family else reading,
        row_labels=None,
    )
    return with_labels(result, names)


@dataclass(frozen=True)
class _Cook:
    """Calls the method with the values that a recipe gives for the tensors of a view."""

    recipe: Recipe
    part: Part
    slice_: Slice
    view: View
    chosen: tuple[Source, ...]
    places: list[int]
    seed: int
    observed: list[Weights]
    unobserved: dict[str, None]

    def variants(self, base: Weights | None, models: list[Weights], fitted: Conformed | None) -> Weights:
        """Call the method; where a switch or the models that take part differ between tensors, once for each group."""
        shared: dict[str, Any] = {}
        switches: dict[str, Callable[[str], Any]] = {}
        for parameter in self.recipe.method.parameters:
            if parameter.name == "seed":
                shared["seed"] = self.seed
            elif parameter.kind == "coefficient":
                value = self._coefficient(parameter)
                if value is not None:
                    shared[parameter.name] = value
            else:
                found = self._chain(
                    self._above(parameter), self._default(parameter), parameter.key, "", self.view.outward
                )
                if found is not None:
                    switches[parameter.name] = found
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name in dict.fromkeys(n for w in ([base] if base is not None else []) + models for n in w):
            absent = frozenset() if fitted is None else fitted.absent.get(name, frozenset())
            if fitted is not None and name in fitted.kept:
                absent = frozenset(range(len(models)))
            key = (absent, *(of(name) for of in switches.values()))
            groups.setdefault(key, []).append(name)
        results = []
        for (absent, *values), members in groups.items():
            given = shared | dict(zip(switches, values, strict=True))
            results.append((self._call(base, models, absent, given, members), set(members)))
        return _joined(results)

    def _call(
        self,
        base: Weights | None,
        models: list[Weights],
        absent: frozenset[int],
        values: Mapping[str, Any],
        members: Sequence[str],
    ) -> Weights:
        method = self.recipe.method
        if not absent:
            given = self._statistics(range(len(models)))
            return self._collected(method(base, models, **values, **given), members)
        here = [k for k in range(len(models)) if k not in absent]
        per_model = {p.name for p in method.parameters if p.per_model}
        values = {
            name: [value[k] for k in here] if name in per_model and isinstance(value, list) else value
            for name, value in values.items()
        }
        reference = base if base is not None else models[0]
        only = reference._with({name: reference.entry(name) for name in members if name in reference})
        if not here or (base is not None and method.base_apart and not here):
            return only
        chosen = [models[k]._with({n: models[k].entry(n) for n in only if n in models[k]}) for k in here]
        try:
            given = self._statistics(here)
            given = {
                key: [one._with({n: one.entry(n) for n in only if n in one}) for one in found]
                for key, found in given.items()
            }
            made = method(only if base is not None else None, chosen, **values, **given)
            return self._collected(made, members)
        except RequestError as error:
            raise RequestError(
                f"mismatch: skip leaves {len(here)} of {len(models)} models for tensor {members[0]!r}: {error}"
            ) from None

    def _statistics(self, models: Iterable[int]) -> dict[str, list[Weights]]:
        """The keyword by which the method is given statistics of these models, if it takes any."""
        return {"statistics": [self.observed[k] for k in models]} if self.recipe.method.statistics else {}

    def _collected(self, weights: Weights, members: Sequence[str]) -> Weights:
        """The weights without their note of tensors that lacked statistics, which are told once for all slices."""
        taken = set(members)
        for note in weights.notes:
            if UNOBSERVED in note:
                names = [self.view.outward(name) for name in note[UNOBSERVED] if name in taken]
                self.unobserved.update(dict.fromkeys(names))
        entries = {name: weights.entry(name) for name in weights}
        return weights._with(entries, notes=tuple(note for note in weights.notes if UNOBSERVED not in note))

    def _above(self, parameter: Parameter) -> list[Setting | None]:
        """The settings for all models, the nearest first."""
        holders = (self.slice_.parameters, self.part.parameters, self.recipe.parameters)
        return [holder.get(parameter.name) for holder in holders]

    def _default(self, parameter: Parameter) -> Any:
        dialect = self.recipe.method.mergekit if self.recipe.mergekit else None
        if dialect is not None and parameter.name in dialect.defaults:
            return dialect.defaults[parameter.name]
        if parameter.required or (dialect is not None and parameter.name in dialect.required):
            return None
        return parameter.default

    def _coefficient(self, parameter: Parameter) -> Any:
        """A parameter's value for the method.

        A number or a function of the tensor's name, or a list of those by model.
        """
        default, above = self._default(parameter), self._above(parameter)
        if not parameter.per_model:
            return self._number(above, default, parameter.key, "", self.view.outward)
        values = []
        for source, k in zip(self.chosen, self.places, strict=True):
            own = [source.parameters.get(parameter.name), *above]
            label = self.view.models[k].label
            values.append(self._number(own, default, parameter.key, label, self.view.inward[k]))
        return None if all(value is None for value in values) else values

    def _number(
        self,
        settings: Iterable[Setting | None],
        default: Any,
        key: str,
        label: str,
        named: Callable[[str], str],
    ) -> Any:
        given = [setting for setting in settings if setting is not None]
        if not given:
            return default
        if given[0].constant:
            return given[0].rules[0].value
        return self._chain(given, default, key, label, named)

    def _chain(
        self,
        settings: Iterable[Setting | None],
        default: Any,
        key: str,
        label: str,
        named: Callable[[str], str],
    ) -> Callable[[str], Any] | None:
        """The value by tensor name: of the first setting that has one, else the default."""
        given = [setting for setting in settings if setting is not None]
        if not given and default is None:
            return None
        graded = any(setting.graded for setting in given)
        known: dict[str, Any] = {}

        def value(name: str) -> Any:
            if name not in known:
                t = self.view.place(name) if graded else 0.0
                called = named(name)
                known[name] = next((v for s in given if (v := s.value(called, t)) is not None), default)
            if known[name] is None:
                place = given[-1].place
                of = f" of {label!r}" if label else ""
                raise RequestError(
                    f"{place}: gives no {key} for tensor {name!r}{of}; add a last entry without a filter"
                )
            return known[name]

        return value


def _joined(results: list[tuple[Weights, set[str]]]) -> Weights:
    first, _ = results[0]
    if len(results) == 1:
        return first
    home = {name: weights for weights, members in results for name in members}
    order = dict.fromkeys(name for weights, _ in results for name in weights)
    entries = {name: home[name].entry(name) for name in order if name in home and name in home[name]}
    checkpoints = {id(c): c for weights, _ in results for c in weights.checkpoints}
    return first._with(entries, checkpoints=tuple(checkpoints.values()))


__all__ = ["as_saved", "build", "open_models"]
