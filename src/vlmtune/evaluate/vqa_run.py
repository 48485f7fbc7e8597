"""A whole split of questions through the predictor, into an evaluation folder. Called by `evaluate_checkpoint`.

Nothing leaves the denominator: a question about an unreadable image is a wrong answer and is listed. A killed
evaluation goes on from its journal. Questions are asked image by image, so that each image is encoded once;
results stand in the split's own order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmtune.config.schema import EvaluateSection
from vlmtune.data.sampling import image_order
from vlmtune.data.splits import fingerprint
from vlmtune.errors import DataError, UnreadableImageError
from vlmtune.evaluate.block_cache import Journal, Watch, unwatched
from vlmtune.evaluate.files import thumbnail
from vlmtune.evaluate.run import Measured, block_size, journal_key
from vlmtune.evaluate.vqa_metrics import measure_vqa
from vlmtune.evaluate.vqa_predictions import VqaTable, write_vqa_evaluation
from vlmtune.inference.generation import Sampling
from vlmtune.inference.predictor import Predictor, Query
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.records import Example
from vlmtune.runs.environment import environment, now

_RECORD = pa.schema([("prediction", pa.string()), ("confidence", pa.float64()), ("error", pa.string())])


def evaluate_vqa(
    predictor: Predictor,
    examples: Sequence[Example],
    folder: Path,
    *,
    name: str,
    section: EvaluateSection | None = None,
    facts: dict[str, Any] | None = None,
    watch: Watch = unwatched,
    say: Callable[[str], None] = lambda text: None,
) -> Measured:
    """Answer every question and write the evaluation.

    Args:
        predictor: with a closed list of answers, which are scored, or without, and answers are generated greedily.
        examples: the split, all of it; questions without known answers give a submission file and no accuracy.
        folder, name, facts, watch, say: see `run.evaluate`.
        section: its mode is that of the closed list.

    Raises:
        DataError: nothing to evaluate. RunFolderError: the folder cannot be written.
    """
    if not examples:
        raise DataError("There is nothing to evaluate: the split is empty. Check data.source and evaluate.split.")
    section = section or EvaluateSection()
    keep_freed_memory()
    facts = {"data": {"num_examples": len(examples), "fingerprint": fingerprint(examples)}, **(facts or {})}
    key = journal_key(predictor, {"data": facts["data"]["fingerprint"], "mode": section.mode})
    journal = Journal(folder, key, say=say, block_size=block_size(predictor.batch_size))

    def work(block: Sequence[Example]) -> Iterator[dict[str, Any]]:
        return _answers(predictor, block, section)

    order = image_order(examples)
    done = journal.run(section.split, [examples[i] for i in order], work, _RECORD, watch, f"evaluate {name}")
    place = {position: row for row, position in enumerate(order)}
    records = done.take([place[position] for position in range(len(examples))])
    table = VqaTable.of(
        examples,
        records["prediction"].to_pylist(),
        records["error"].to_pylist(),
        records["seconds"].to_numpy(),
        records["confidence"].to_pylist(),
    )
    thumbnails: dict[str, bytes] = {}
    for row in table.thumbnail_rows():
        image_id = examples[row].image_id or examples[row].id
        if image_id not in thumbnails:
            thumbnails[image_id] = thumbnail(examples[row].image.open())
    all_facts = {
        "name": name,
        "task": "vqa",
        "labels": list(predictor.labels.stored) if predictor.labels else [],
        "mode": section.mode if predictor.labels else "generate",
        "seconds": float(table.seconds.sum()),
        "created": now(),
        **environment(),
        **facts,
        "metrics": measure_vqa(table),
        "unreadable": [
            {"id": id_, "error": error}
            for id_, error in zip(table.ids, table.texts("error"), strict=True)
            if error is not None
        ],
    }
    write_vqa_evaluation(folder, all_facts, table, thumbnails)
    journal.discard()
    return Measured(folder, all_facts)


def _answers(predictor: Predictor, block: Sequence[Example], section: EvaluateSection) -> Iterator[dict[str, Any]]:
    queries = map(Query.of, block)
    if predictor.labels is not None:
        for scores in predictor.classify(queries, section.mode):
            if isinstance(scores, UnreadableImageError):
                yield {"error": scores.reason}
            else:
                yield {
                    "prediction": scores.prediction,
                    "confidence": math.exp(scores.log_prob) if section.mode == "full" else None,
                }
        return
    sampling = Sampling(max_new_tokens=predictor.task.max_answer_tokens)
    for answer in predictor.answer(queries, sampling):
        yield {"error": answer.reason} if isinstance(answer, UnreadableImageError) else {"prediction": answer}
