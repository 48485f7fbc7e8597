"""Checks across the values of one experiment that types alone cannot express. Called by `load`; reads no files.

In: a typed `Experiment`. Out: (path of the key, what was found and expected) for every error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vlmtune.config import search_space
from vlmtune.config.augmentation import find_mistakes
from vlmtune.config.schema import PARTS, ROLES, Experiment, TaskSection, TrainSection
from vlmtune.errors import unknown_name
from vlmtune.records import clean_label

Finding = tuple[tuple[str | int, ...], str]


def _is_open(task: TaskSection) -> bool:
    return not task.is_closed


def _is_closed(task: TaskSection) -> bool:
    return task.is_closed


def _asks_from_data(task: TaskSection) -> bool:
    return task.asks_from_data


def _asks_from_prompt(task: TaskSection) -> bool:
    return not task.asks_from_data


_CLOSED = "answers of a closed set (task.type: choice, bool or score)"
_DATA, _PROMPT = "questions of the data (task.question_from: data)", "one prompt (task.question_from: prompt)"
HAS_EFFECT: dict[str, tuple[Callable[[TaskSection], bool], str]] = {
    "data.label_column": (_asks_from_prompt, _PROMPT),
    "data.question_column": (_asks_from_data, _DATA),
    "data.answer_column": (_asks_from_data, _DATA),
    "data.conversation_column": (_asks_from_data, _DATA),
    "data.turns": (_asks_from_data, _DATA),
    "data.caption_column": (_asks_from_data, _DATA),
    "data.caption_question": (_asks_from_data, _DATA),
    "task.max_answer_tokens": (_is_open, "open answers (task.type: text)"),
    "train.mix_probability": (_is_closed, _CLOSED),
    "train.answer": (_asks_from_data, _DATA),
    "train.mixup": (_is_closed, _CLOSED),
    "train.cutmix": (_is_closed, _CLOSED),
    "train.label_smoothing": (_is_closed, _CLOSED),
    "train.sampling": (_is_closed, _CLOSED),
    "train.class_weights": (_is_closed, _CLOSED),
    "evaluate.mode": (_is_closed, _CLOSED),
    "evaluate.scoring": (_is_closed, _CLOSED),
    "evaluate.calibrate": (_is_closed, _CLOSED),
    "evaluate.wanted_coverage": (_is_closed, _CLOSED),
    "evaluate.wanted_precision": (_is_closed, _CLOSED),
}
"""Key -> the tasks in which it has an effect, as a test and in words. Setting it elsewhere is an error."""


def find_contradictions(experiment: Experiment) -> Iterator[Finding]:
    """Every contradiction, in the file's order."""
    yield from _name(experiment)
    yield from _image_tokens(experiment)
    yield from _connector(experiment)
    yield from _without_effect(experiment)
    yield from _task(experiment)
    yield from _labels(experiment)
    yield from _label_names(experiment)
    yield from _adapter(experiment)
    yield from _train(experiment)
    yield from _evaluate(experiment)
    if experiment.search is not None:
        yield from search_space.find_mistakes(experiment, find_contradictions)


def _name(experiment: Experiment) -> Iterator[Finding]:
    name = experiment.name
    if name is not None and (not name.strip() or name in (".", "..") or "/" in name or "\\" in name):
        yield ("name",), f"found '{name}', expected the name of one folder (no '/'). The place is output_dir."


def _image_tokens(experiment: Experiment) -> Iterator[Finding]:
    low, high = experiment.model.min_image_tokens, experiment.model.max_image_tokens
    if low is not None and high is not None and low > high:
        yield ("model", "min_image_tokens"), f"found {low}, expected at most model.max_image_tokens ({high})."


def _connector(experiment: Experiment) -> Iterator[Finding]:
    connector, adapter = experiment.model.connector, experiment.adapter
    if connector is None:
        return
    if connector.kind == "own" and connector.start in (None, "pretrained"):
        yield (
            ("model", "connector", "kind"),
            "found own, which is what the base has: leave model.connector out, or name a kind or a start.",
        )
    if connector.kind != "dense":
        for key in ("variant", "groups"):
            if getattr(connector, key) is not None:
                yield ("model", "connector", key), f"only a dense connector has this, found kind '{connector.kind}'."
    for index, group in enumerate(connector.groups or ()):
        first, _, last = group.partition("-")
        if last and int(last) < int(first):
            yield ("model", "connector", "groups", index), f"found '{group}', expected the first layer before the last."
        if last not in ("", first) and connector.variant in ("sti", "sci"):
            yield (
                ("model", "connector", "groups", index),
                f"found '{group}', but {connector.variant} reads single layers, such as 7. Means are for dci.",
            )
    if connector.groups == []:
        yield ("model", "connector", "groups"), "found an empty list, expected layers such as [0-12, 13-25]."
    learns = adapter.parts is None or {"connector", "everything"} & set(adapter.parts)
    if not learns and connector.start in (None, "pretrained", "random"):
        yield (
            ("adapter", "parts"),
            "model.connector puts a new connector in, which nobody has trained: expected 'connector' among the parts "
            "(or model.connector.start: a run folder with a trained one).",
        )
    if "connector" in (adapter.targets or ()):
        yield (
            ("adapter", "targets"),
            "found 'connector', but a connector from model.connector is trained in full: move it to adapter.parts.",
        )


def _without_effect(experiment: Experiment) -> Iterator[Finding]:
    """Keys that are set but have no effect in this task."""
    for key, (has_effect, needs) in HAS_EFFECT.items():
        section_name, name = key.split(".")
        section = getattr(experiment, section_name)
        default = type(section).model_fields[name].get_default(call_default_factory=True)
        if getattr(section, name) not in (None, default) and not has_effect(experiment.task):
            yield (section_name, name), f"has no effect here: it is for {needs}. Remove it."


def _task(experiment: Experiment) -> Iterator[Finding]:
    """Keys that belong to another task type."""
    task = experiment.task
    if task.labels is not None and task.type != "choice":
        instead = {"bool": "The labels of a bool are no and yes.", "score": "Name the levels in task.levels."}
        advice = instead.get(task.type, "Set task.type: choice, or leave the labels out.")
        yield ("task", "labels"), f"found with task.type: {task.type}, expected none. {advice}"
    if task.levels is not None and not task.is_ordered:
        yield ("task", "levels"), f"found with task.type: {task.type}, expected task.type: score."
    if task.label_names is not None and not task.is_closed:
        yield ("task", "label_names"), f"found with task.type: {task.type}, which has no labels to name. Remove it."
    if task.list_labels not in (None, "never") and not task.is_closed:
        yield ("task", "list_labels"), f"found '{task.list_labels}', but open answers have no labels. Remove it."
    if task.is_bool and not task.asks_from_data and not (task.user_prompt or "").strip():
        yield ("task", "user_prompt"), "found none, and nothing else says what is asked: write the yes-or-no question."


def _labels(experiment: Experiment) -> Iterator[Finding]:
    for key, labels in (("labels", experiment.task.labels), ("levels", experiment.task.levels)):
        if labels is None:
            continue
        if len(labels) < 2:
            many = "an empty list" if not labels else f"one {key[:-1]}"
            yield ("task", key), f"found {many}, expected at least two to choose from (or none, to take the data's)."
        first: dict[str, int] = {}
        for index, label in enumerate(labels):
            cleaned = clean_label(label)
            if not cleaned:
                yield ("task", key, index), f"found an empty {key[:-1]}, expected text."
            elif cleaned in first:
                yield ("task", key, index), f"found '{label}' again (first as item {first[cleaned] + 1}). Remove one."
            else:
                first[cleaned] = index


def _label_names(experiment: Experiment) -> Iterator[Finding]:
    task, names = experiment.task, experiment.task.label_names
    if names is None or not task.is_closed:
        return
    known = "the labels of a bool" if task.is_bool else "task.levels" if task.is_ordered else "task.labels"
    given = task.fixed_labels
    labels = None if given is None else [clean_label(label) for label in given]
    owner: dict[str, str] = {}
    for stored, spelling in ((clean_label(stored), spelling) for stored, spelling in names.items()):
        path = ("task", "label_names", stored)
        if labels is not None and stored not in labels:
            yield path, f"not among {known}. " + unknown_name("label", stored, labels)
        forms = [clean_label(form) for form in ([spelling] if isinstance(spelling, str) else spelling)]
        if not forms or not all(forms):
            yield path, "found an empty name, expected the text the model is shown."
        for form in forms:
            if owner.setdefault(form, stored) != stored:
                yield path, f"'{form}' is already the name of '{owner[form]}': two labels cannot share a name."
    if labels is not None:
        for stored in (label for label in labels if label not in names and owner.get(label, label) != label):
            path = ("task", "label_names", owner[stored])
            yield path, f"'{stored}' is the name of another label in {known}: two labels cannot share a name."


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


def _train(experiment: Experiment) -> Iterator[Finding]:
    train = experiment.train
    for index, message in find_mistakes(train.augment or []):
        yield ("train", "augment", index), message
    if train.average_last == 1:
        yield ("train", "average_last"), "found 1, expected 0 (off) or at least 2 checkpoints to average."
    if train.patience is None and train.min_gain:
        yield ("train", "min_gain"), "found without train.patience, which it belongs to. Set how many validations."
    if train.mix_probability != 1 and not (train.mixup or train.cutmix):
        yield ("train", "mix_probability"), "found without train.mixup or train.cutmix, whose probability it is."
    if train.class_weights == "balanced" and train.sampling == "balanced":
        yield (
            ("train", "class_weights"),
            "found 'balanced' beside train.sampling: balanced: rare labels would count twice. Choose one of the two.",
        )


def closed_only_keys(train: TrainSection) -> list[str]:
    """The options in use that need a closed set of answers: to spread a target over, to balance, or to mix."""
    keys = [key.removeprefix("train.") for key, (has_effect, _) in HAS_EFFECT.items() if has_effect is _is_closed]
    fields = TrainSection.model_fields
    return [key for key in keys if key in fields and getattr(train, key) != fields[key].default]


def _evaluate(experiment: Experiment) -> Iterator[Finding]:
    section, scoring = experiment.evaluate, experiment.evaluate.scoring
    adjusts = scoring.reduce != "sum" or scoring.prior not in (None, "none")
    chooses = "auto" in (scoring.reduce, scoring.prior)
    if section.mode == "argmax":
        for key, is_wanted in (("scoring", adjusts), ("calibrate", section.calibrate)):
            if is_wanted:
                yield ("evaluate", key), "needs every label's score; mode: argmax finds the best only. Set mode: full."
    if section.split == "validation":
        for key, is_wanted in (("scoring", chooses), ("calibrate", section.calibrate)):
            if is_wanted:
                yield ("evaluate", key), "is decided on validation, so it cannot be measured there. Set split: test."
