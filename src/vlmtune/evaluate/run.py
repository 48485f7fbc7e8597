"""A whole split through the closed-set scorer, into an evaluation folder. Called by `evaluate_checkpoint`.

Nothing leaves the denominator: an unreadable image is a wrong answer and is listed with its reason. A killed
evaluation goes on from its journal and writes the same predictions.parquet, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmtune.config.schema import EvaluateSection
from vlmtune.data.sampling import stratified_order
from vlmtune.data.splits import TEST_SEED, Splits, fingerprint
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.evaluate.block_cache import BLOCK_SIZE, Journal, Watch, unwatched
from vlmtune.evaluate.calibration import calibrate
from vlmtune.evaluate.files import thumbnail, thumbnail_rows, write_evaluation
from vlmtune.evaluate.metrics import measure
from vlmtune.evaluate.predictions import PredictionTable, matrix_from_arrow
from vlmtune.evaluate.scoring import (
    References,
    SurfaceForms,
    choose,
    content_free_images,
    label_log_probs,
    options,
)
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.records import Example
from vlmtune.runs.environment import environment, now
from vlmtune.train.feature_cache import features_key

NUM_PRIOR_IMAGES = 256
"""Training images that the prior of batch calibration is taken from."""

_RECORD = pa.schema(
    [
        ("prediction", pa.string()),
        ("form_scores", pa.list_(pa.float64())),
        ("num_prompt_tokens", pa.int64()),
        ("num_rows", pa.int64()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Measured:
    """An evaluation as it was written: its folder and its figures."""

    folder: Path
    facts: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return float(self.facts["metrics"]["accuracy"])


def evaluate(
    predictor: Predictor,
    examples: Sequence[Example],
    folder: Path,
    *,
    name: str,
    section: EvaluateSection | None = None,
    splits: Splits | None = None,
    facts: dict[str, Any] | None = None,
    watch: Watch = unwatched,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Score every example and write the evaluation.

    Args:
        predictor: with a label set.
        examples: the split, all of it.
        folder: replaced if it holds an older evaluation; an unfinished one beside it is gone on with.
        name: shown in tables and charts.
        section: mode, scoring and calibration; default: every label's probability, nothing chosen or fitted.
        splits: where scoring and calibration take validation and training images from.
        facts: more entries for evaluation.json: model, base, checkpoint, data.
        watch: shows progress; see `Journal.run`. say: told what a person should know.

    Raises:
        DataError: nothing to evaluate, or no images to choose or fit on. RunFolderError: the folder cannot be
            written.
    """
    if not examples:
        raise DataError("There is nothing to evaluate: the split is empty. Check data.source and evaluate.split.")
    assert predictor.labels is not None
    section, splits = section or EvaluateSection(), splits or Splits([], [], [], predictor.labels)
    _require_validation(section, splits)
    keep_freed_memory()
    facts = {"data": {"num_examples": len(examples), "fingerprint": fingerprint(examples)}, **(facts or {})}
    key = journal_key(predictor, {"data": facts["data"]["fingerprint"], "mode": section.mode})
    journal = Journal(folder, key, say=say, block_size=block_size(predictor.batch_size))
    scorer = _Scorer(predictor, section.mode, journal, watch)
    scored = scorer.score(section.split, examples, name)
    method = _Method(scorer, section, splits, examples)
    table = method.predictions(scored)
    thumbnails = {examples[row].id: thumbnail(examples[row].image.open()) for row in thumbnail_rows(table)}
    all_facts = {
        "name": name,
        "task": "classify",
        "mode": section.mode,
        **scorer.cost(scored),
        "created": now(),
        **environment(),
        **facts,
        "scoring": method.facts,
        "metrics": measure(table),
        "unreadable": [
            {"id": example.id, "error": error}
            for example, error in zip(examples, scored.errors, strict=True)
            if error is not None
        ],
    }
    if section.calibrate:
        validation = method.predictions(method.validation())
        all_facts["calibration"] = calibrate(validation, table, section.wanted_coverage, section.wanted_precision)
    write_evaluation(folder, all_facts, table, thumbnails)
    journal.discard()
    return Measured(folder, all_facts)


def _require_validation(section: EvaluateSection, splits: Splits) -> None:
    """Before any image is scored. Raises DataError."""
    if (section.calibrate or len(options(section.scoring)) > 1) and not splits.validation:
        raise DataError(
            "evaluate.scoring: auto and evaluate.calibrate need validation images, found none. Name some "
            "(data.validation_split), or leave both away."
        )


def journal_key(predictor: Predictor, more: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on besides the examples, for a `Journal`: weights and preprocessing, prompts, versions."""
    opened, labels = predictor.opened, predictor.labels
    versions = environment()["versions"]
    every_tensor = ("",)  # as the beginning of its name
    return {
        "model": features_key(opened, every_tensor, str(next(opened.model.parameters()).dtype)),
        "device": opened.model.device.type,
        "task": predictor.task.model_dump(mode="json"),
        "labels": None if labels is None else [labels.stored, labels.shown],
        "batch_size": predictor.batch_size,
        "version of vlmtune or torch": [versions["vlmtune"], versions["torch"]],
        **more,
    }


def block_size(batch_size: int | None) -> int:
    """Whole batches, so that no block ends with a part of one."""
    return BLOCK_SIZE if batch_size is None else -(-BLOCK_SIZE // batch_size) * batch_size


@dataclass(frozen=True)
class _Scored:
    """What the scorer gave for a list of images, in their order.

    Attributes:
        predictions: the winner by the plain sum; None for an unreadable image.
        form_scores: float64[N, F], NaN for an unreadable image; None in arg-max mode.
        num_rows: int64[N] decoder rows run for each image alone.
        num_blocks: calls of the predictor, each of which ran the shared prefix once.
    """

    examples: Sequence[Example]
    predictions: list[str | None]
    form_scores: NDArray[np.float64] | None
    errors: list[str | None]
    num_prompt_tokens: NDArray[np.int64]
    num_rows: NDArray[np.int64]
    seconds: NDArray[np.float32]
    num_blocks: int


class _Scorer:
    """The predictor behind the journal."""

    def __init__(self, predictor: Predictor, mode: Literal["full", "argmax"], journal: Journal, watch: Watch) -> None:
        assert predictor.labels is not None
        self.predictor, self.mode, self.journal, self.watch = predictor, mode, journal, watch
        self.labels = predictor.labels
        self.forms = SurfaceForms.of(predictor.trie.forms)

    def score(self, part: str, examples: Sequence[Example], name: str) -> _Scored:
        """Scores of these examples, kept in the journal as ``part``."""
        table = self.journal.run(part, examples, self._work, _RECORD, self.watch, f"evaluate {name}")
        is_full = self.mode == "full" and table["form_scores"].null_count < len(table)
        return _Scored(
            examples=examples,
            predictions=table["prediction"].to_pylist(),
            form_scores=matrix_from_arrow(table["form_scores"], len(self.forms.label)) if is_full else None,
            errors=table["error"].to_pylist(),
            num_prompt_tokens=table["num_prompt_tokens"].to_numpy(),
            num_rows=table["num_rows"].to_numpy(),
            seconds=table["seconds"].to_numpy(),
            num_blocks=-(-len(examples) // self.journal.block_size),
        )

    def cost(self, scored: _Scored) -> dict[str, float | None]:
        """``seconds`` of all images; ``num_tokens`` and ``num_tokens_unshared`` as the mean of an image."""
        num, prompts = len(scored.examples), scored.num_prompt_tokens[scored.num_prompt_tokens > 0]
        shared = len(self.predictor.prefix) * scored.num_blocks / num
        return {
            "seconds": float(scored.seconds.sum()),
            "num_tokens": float(scored.num_rows.mean()) + shared,
            "num_tokens_unshared": float(self.forms.num_rows_unshared(prompts).mean()) if len(prompts) else None,
        }

    def _work(self, block: Sequence[Example]) -> Iterator[dict[str, Any]]:
        queries = map(Query.of, block)
        for result in self.predictor.classify(queries, self.mode):
            if isinstance(result, UnreadableImageError):
                yield {"error": result.reason, "num_prompt_tokens": 0, "num_rows": 0}
                continue
            yield {
                "prediction": result.prediction,
                "form_scores": result.form_scores,
                "num_prompt_tokens": result.num_prompt_tokens,
                "num_rows": result.num_rows,
            }


class _Method:
    """How scores become probabilities here: what was asked for, or what validation chose.

    Attributes:
        facts: the entry ``scoring`` of evaluation.json.
    """

    def __init__(self, scorer: _Scorer, section: EvaluateSection, splits: Splits, examples: Sequence[Example]) -> None:
        self.scorer, self.splits, self.labels = scorer, splits, scorer.labels
        self._validation: _Scored | None = None
        candidates = options(section.scoring)
        wanted = {option.calibration for option in candidates}
        self.references = References(
            content_free=self._content_free(examples) if "content-free" in wanted else References().content_free,
            training=self._training() if "prior" in wanted else References().training,
        )
        self.option = candidates[0]
        self.facts: dict[str, Any] = {"chosen_on": None, "num_validation": None, "candidates": []}
        if len(candidates) > 1:
            validation = self.validation()
            truth = np.asarray([self.labels.index(example.label) for example in validation.examples])
            scores = _scores(validation, "validation")
            self.option, figures = choose(scores, truth, scorer.forms, candidates, self.references)
            self.facts = {"chosen_on": "validation", "num_validation": len(truth), "candidates": figures}
        self.facts = {**self.option._asdict(), **self.facts}

    def validation(self) -> _Scored:
        """The validation split's scores, computed once."""
        if self._validation is None:
            self._validation = self.scorer.score("validation", self.splits.validation, "validation")
        return self._validation

    def predictions(self, scored: _Scored) -> PredictionTable:
        """The table of predictions under the chosen option."""
        names, log_probs = scored.predictions, None
        if scored.form_scores is not None:
            log_probs = label_log_probs(scored.form_scores, self.scorer.forms, self.option, self.references)
            best = np.where(np.isnan(log_probs).any(axis=1), -1, np.nan_to_num(log_probs).argmax(axis=1))
            names = [self.labels.stored[place] if place >= 0 else None for place in best]
        return PredictionTable.from_columns(
            self.labels.stored,
            ids=[example.id for example in scored.examples],
            images=[str(example.image.path) if example.image.path else None for example in scored.examples],
            truth=[example.label for example in scored.examples],
            prediction=names,
            log_probs=None if log_probs is None else log_probs.astype(np.float32),
            seconds=scored.seconds,
            errors=scored.errors,
            num_tokens=scored.num_rows,
        )

    def _content_free(self, examples: Sequence[Example]) -> NDArray[np.float64]:
        """Scores of images without content, of the size of the first readable one."""
        for example in examples:
            try:
                size = example.image.open().size
            except UnreadableImageError:
                continue  # counted and listed as a wrong answer
            images = content_free_images(size)
            return _scores(self.scorer.score("content-free", images, "content-free images"), "content-free")
        raise DataError("None of the images to evaluate can be read. See: vlmtune data check CONFIG")

    def _training(self) -> NDArray[np.float64]:
        """Scores of some training images, drawn without regard to their labels."""
        train = self.splits.train
        order = stratified_order([example.id for example in train], [""] * len(train), TEST_SEED, "prior")
        chosen = [train[place] for place in sorted(order[:NUM_PRIOR_IMAGES])]
        return _scores(self.scorer.score("prior", chosen, "training images for the prior"), "training")


def _scores(scored: _Scored, what: str) -> NDArray[np.float64]:
    """float64[n, F] with NaN rows for unreadable images (validation), or without them (references)."""
    if scored.form_scores is None:
        raise DataError(f"evaluate.scoring needs {what} images, found none that can be read.")
    return scored.form_scores if what == "validation" else scored.form_scores[~np.isnan(scored.form_scores).any(axis=1)]
