"""Checks across the values of one experiment that types alone cannot express. Called by `load`, free of files.

In: a typed `Experiment`. Out: (path of the key, what was found and expected) for everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

from vlmtune.config.schema import PARTS, ROLES, Experiment
from vlmtune.errors import unknown_name

Finding = tuple[tuple[str | int, ...], str]


def find_contradictions(experiment: Experiment) -> Iterator[Finding]:
    """Every contradiction, in the file's order."""
    yield from _name(experiment)
    yield from _image_tokens(experiment)
    yield from _labels(experiment)
    yield from _label_names(experiment)
    yield from _adapter(experiment)


def _name(experiment: Experiment) -> Iterator[Finding]:
    name = experiment.name
    if name is not None and (not name.strip() or name in (".", "..") or "/" in name or "\\" in name):
        yield ("name",), f"found '{name}', expected the name of one folder (no '/'). The place is output_dir."


def _image_tokens(experiment: Experiment) -> Iterator[Finding]:
    low, high = experiment.model.min_image_tokens, experiment.model.max_image_tokens
    if low is not None and high is not None and low > high:
        yield ("model", "min_image_tokens"), f"found {low}, expected at most model.max_image_tokens ({high})."


def _labels(experiment: Experiment) -> Iterator[Finding]:
    labels = experiment.task.labels
    if labels is None:
        return
    if len(labels) < 2:
        many = "an empty list" if not labels else "one label"
        yield ("task", "labels"), f"found {many}, expected at least two to choose from (or none, to take the data's)."
    first: dict[str, int] = {}
    for index, label in enumerate(labels):
        if not label.strip():
            yield ("task", "labels", index), "found an empty label, expected text."
        elif label in first:
            yield ("task", "labels", index), f"found '{label}' again (first as item {first[label] + 1}). Remove one."
        else:
            first[label] = index


def _label_names(experiment: Experiment) -> Iterator[Finding]:
    names = experiment.task.label_names
    if names is None:
        return
    labels = experiment.task.labels
    owner: dict[str, str] = {}
    for stored, shown in names.items():
        path = ("task", "label_names", stored)
        if labels is not None and stored not in labels:
            yield path, "not among task.labels. " + unknown_name("label", stored, labels)
        forms = [shown] if isinstance(shown, str) else shown
        if not forms or not all(form.strip() for form in forms):
            yield path, "found an empty name, expected the text the model is shown."
        for form in forms:
            if owner.setdefault(form, stored) != stored:
                yield path, f"'{form}' is already the name of '{owner[form]}': two labels cannot share a name."
    if labels is not None:
        for stored in (label for label in labels if label not in names and owner.get(label, label) != label):
            path = ("task", "label_names", owner[stored])
            yield path, f"'{stored}' is the name of another label in task.labels: two labels cannot share a name."


def _adapter(experiment: Experiment) -> Iterator[Finding]:
    adapter = experiment.adapter
    for index, part in enumerate(adapter.parts or ()):
        if part not in PARTS:
            yield ("adapter", "parts", index), unknown_name("part", part, PARTS)
    for name in adapter.learning_rate_factors:
        known = {*ROLES, *PARTS, *(adapter.targets or ())}
        if name not in known:
            yield ("adapter", "learning_rate_factors", name), unknown_name("role or part", name, known)
    if adapter.targets == [] and not adapter.parts:
        yield (
            ("adapter", "targets"),
            "found an empty list and no adapter.parts, so nothing would be learned. Name targets, parts or both.",
        )
    if "everything" in (adapter.parts or ()) and adapter.targets:
        yield (
            ("adapter", "parts"),
            "found 'everything' beside adapter.targets: layers trained fully need no LoRA. Drop one of the two.",
        )
