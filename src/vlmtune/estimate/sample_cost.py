"""The size of an experiment's samples in tokens and patches, from the data and the small files of the base.

In: an experiment as loaded. Out: `EstimateInputs`. Called by `vlmtune estimate`, before any weights are loaded.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlmtune.config import defaults
from vlmtune.config.schema import Experiment
from vlmtune.data.splits import Splits, load_splits
from vlmtune.errors import DataError, UserError
from vlmtune.estimate.costs import SampleShape
from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl.images import Lfm2VlImageProcessor, Lfm2VlImageSettings
from vlmtune.models.paligemma.images import PaliGemmaImageProcessor, PaliGemmaImageSettings
from vlmtune.models.registry import KNOWN_CONFIGS, ImageProcessor, family_of, read_config
from vlmtune.models.source import locate
from vlmtune.records import LabelSet
from vlmtune.runs.prepare import image_overrides
from vlmtune.text.defaults import CLASSIFY_SYSTEM_PROMPT, CLASSIFY_USER_PROMPT, fill_labels
from vlmtune.text.prompt import PromptBuilder
from vlmtune.text.tokenizer import Tokenizer

_NUM_READ = 32
_CHARACTERS_PER_TOKEN = 3.5  # for English with the large vocabularies of these models
_TEMPLATE_TOKENS = 12  # what a chat template adds
_ANSWER_TOKENS = 3.0


@dataclass(frozen=True)
class EstimateInputs:
    """What `estimate` needs: the resolved experiment, the base's config.json, a sample, and their number."""

    experiment: Experiment
    config: dict[str, Any]
    shape: SampleShape
    num_samples: int


def estimate_inputs(
    experiment: Experiment, num_samples: int | None, image_size: tuple[int, int] | None
) -> EstimateInputs:
    """Read the data and the base's small files; assume what is not available, and say so.

    Args:
        experiment: as loaded.
        num_samples: training examples, if the data are not available; None is data.limit.
        image_size: width and height in pixels, likewise; None is 512 × 512.

    Raises UserError where neither the data nor ``num_samples`` give the number of examples, or the base is unknown.
    """
    assumed = num_samples if num_samples is not None else experiment.data.limit
    splits = _splits(experiment, assumed)
    labels = splits.labels if splits else _labels(experiment)
    count = num_samples or (len(splits.train) if splits else assumed or 0)
    resolved = defaults.apply(experiment, num_train=count, num_labels=len(labels) if labels else 0)
    config, tokenizer, processor, origin = _base(resolved)

    images, answers, questions = [], [], []
    for example in (splits.train if splits else [])[:: max(1, count // _NUM_READ)][:_NUM_READ]:
        images.append(processor.process(example.image.open()))
        answers.append(example.answers[0] if labels is None else labels.shown[labels.index(example.answers[0])][0])
        questions.append(example.question)
    if not images:
        size = image_size or (512, 512)
        images = [processor.process(Image.new("RGB", size))]
        questions = ["What is shown?" if resolved.task.asks_from_data else None]
        answers = [forms[0] for forms in labels.shown] if labels else []
        origin += f"; images of {size[0]} × {size[1]} pixels assumed"
    largest = max(images, key=lambda image: image.num_tokens)
    if tokenizer is None:
        prefix, unshared, answer = _counted_by_letters(resolved, labels, answers, largest)
    else:
        prompt = PromptBuilder(tokenizer, resolved.task, labels)
        prefix = len(prompt.shared_prefix())
        rests = [
            len(prompt.build(question, image.text).ids) - prefix
            for question, image in zip(questions, images, strict=True)
        ]
        unshared = round(statistics.mean(rests))
        lengths = [len(prompt.answer_tokens(text)) for text in answers]
        answer = statistics.mean(lengths) if lengths else _ANSWER_TOKENS
    shape = SampleShape(prefix, unshared, answer, tuple(grid for _, grid in largest.tiles), origin)
    return EstimateInputs(resolved, config, shape, count)


def _splits(experiment: Experiment, num_samples: int | None) -> Splits | None:
    """The data, or None if they are not available and their number was given."""
    try:
        return load_splits(experiment.data, experiment.task, experiment.seed)
    except (DataError, UserError) as error:
        if num_samples is None:
            raise UserError(f"{error}\nTo estimate without the data, say how many there are: --samples N.") from error
        return None


def _labels(experiment: Experiment) -> LabelSet | None:
    task = experiment.task
    if task.labels is None:
        return None
    names = task.label_names or {}
    forms = [names.get(label, label) for label in task.labels]
    return LabelSet(tuple(task.labels), tuple((form,) if isinstance(form, str) else tuple(form) for form in forms))


def _base(experiment: Experiment) -> tuple[dict[str, Any], Tokenizer | None, ImageProcessor, str]:
    """config.json, tokenizer and image processor of the base; by its known shape if it is not available."""
    source = experiment.model.base
    overrides = {key: value for key, value in image_overrides(experiment.model).items() if value is not None}
    try:
        folder = locate(source, experiment.model.revision, with_weights=False)
    except UserError:
        if source not in KNOWN_CONFIGS:
            raise
        config = KNOWN_CONFIGS[source]
        processor: ImageProcessor
        if config["model_type"] == "paligemma":
            vision = config["vision_config"]
            processor = PaliGemmaImageProcessor(
                PaliGemmaImageSettings(size=vision["image_size"], image_seq_length=vision["num_image_tokens"])
            )
        else:
            processor = Lfm2VlImageProcessor(Lfm2VlImageSettings(**overrides))  # type: ignore[arg-type]
        return config, None, processor, f"{source} is out of reach: its known shape, and tokens counted by letters"
    config = read_config(folder)
    family = family_of(config, str(folder))
    tokenizer = Tokenizer.from_folder(folder, family.prompt_format)
    return config, tokenizer, family.open_processor(folder, **overrides), "tokens and images as the base's files say"


def _counted_by_letters(
    experiment: Experiment, labels: LabelSet | None, answers: list[str], image: ProcessedImage
) -> tuple[int, int, float]:
    """Tokens of the shared prompt, of the rest and of an answer, from the number of letters."""
    task = experiment.task
    is_listed = task.list_labels != "never" and labels is not None
    names = [forms[0] for forms in labels.shown] if labels is not None and is_listed else None
    system = CLASSIFY_SYSTEM_PROMPT if task.system_prompt is None else task.system_prompt
    user = CLASSIFY_USER_PROMPT if task.user_prompt is None else task.user_prompt
    before, after = len(fill_labels(system, names)), len(fill_labels(user, names))
    if task.image_position == "last":
        before, after = before + after, 0
    answer = statistics.mean(map(len, answers)) / _CHARACTERS_PER_TOKEN + 1 if answers else _ANSWER_TOKENS
    unshared = image.num_tokens + after / _CHARACTERS_PER_TOKEN + _TEMPLATE_TOKENS
    return math.ceil(before / _CHARACTERS_PER_TOKEN) + _TEMPLATE_TOKENS, math.ceil(unshared), answer
