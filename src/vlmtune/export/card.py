"""The model card of an export: what it is, its evaluation and gate results, how to run it. README.md, for the hub.

Evaluations are in the card's metadata too (`model-index`), which the hub shows as a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from vlmtune.export.gate import Verdict
from vlmtune.files import explain_write_errors
from vlmtune.models.source import BUILTIN_PREFIX
from vlmtune.runs.manifest import Manifest

CARD_FILE = "README.md"
PLACE = "path/to/this/folder"
"""Placeholder for the folder in a card's commands; `push` replaces it by the repository's name."""

_NUM_DIFFERENCES = 10
_NUM_LABELS = 50
_LIBRARIES = {"peft": "peft", "merged": "transformers", "gguf": "llama.cpp"}
_RELATIONS = {"peft": "adapter", "merged": "finetune", "gguf": "quantized"}
_METRICS = {"accuracy": "Accuracy", "macro_f1": "Macro F1"}


@dataclass(frozen=True)
class CardFacts:
    """Everything in a card.

    Attributes:
        prompt: as the model reads it, with `<image>` in place of the image.
        system, user: the prompt's two parts, for commands.
        evaluations: evaluation.json of each of the run's evaluations.
        sentences: notes for users of the export.
        load_options: what transformers' `from_pretrained` needs besides the folder.
    """

    manifest: Manifest
    verdict: Verdict
    prompt: str
    system: str
    user: str
    evaluations: Sequence[Mapping[str, Any]]
    sentences: Sequence[str]
    load_options: Mapping[str, str]


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md. Raises UserError if the folder cannot be written."""
    has_license = (folder / "LICENSE").exists()
    card = ModelCard(f"---\n{_metadata(facts, has_license).to_yaml()}\n---\n\n{_body(facts)}")
    with explain_write_errors(folder):
        card.save(folder / CARD_FILE)


def _metadata(facts: CardFacts, has_license: bool) -> ModelCardData:
    manifest, task, base = facts.manifest, facts.manifest.task, str(facts.manifest.origin["base"])
    is_hub_id = "/" in base  # the hub looks it up; a folder or a built-in model is named in the text only
    return ModelCardData(
        library_name=_LIBRARIES[manifest.format],
        pipeline_tag="image-text-to-text",
        base_model=base if is_hub_id else None,
        base_model_relation=_RELATIONS[manifest.format] if is_hub_id else None,
        tags=["vlmtune", "lora", _hub_task(is_classification=task.is_closed and not task.asks_from_data)],
        model_name=str(manifest.origin["run"]),
        eval_results=_results(facts) or None,
        license="other" if has_license else None,
        license_link="LICENSE" if has_license else None,
    )


def _results(facts: CardFacts) -> list[EvalResult]:
    """The figures of trained checkpoints; those of the base belong to another model."""
    results = []
    for evaluation in facts.evaluations:
        if evaluation.get("checkpoint") is None:
            continue
        data, task = evaluation["data"], evaluation["task"]
        hub_task = _hub_task(is_classification=task["type"] != "text" and task.get("question_from") != "data")
        source = Path(str(data.get("source"))).name  # a local folder's path is private
        for key, figure in _figures(evaluation).items():
            results.append(
                EvalResult(
                    task_type=hub_task,
                    dataset_type=source,
                    dataset_name=source,
                    dataset_split=data.get("split"),
                    metric_type=key,
                    metric_name=f"{_METRICS[key]} ({evaluation['name']}, {data['num_examples']} examples)",
                    metric_value=round(figure, 6),
                )
            )
    return results


def _hub_task(*, is_classification: bool) -> str:
    """The hub's name of a task."""
    return "image-classification" if is_classification else "visual-question-answering"


def _figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """metric -> value, for the metrics that a card shows and this evaluation has."""
    metrics = evaluation.get("metrics", {})
    return {key: float(metrics[key]) for key in _METRICS if isinstance(metrics.get(key), int | float)}


def _body(facts: CardFacts) -> str:
    origin = facts.manifest.origin
    dtype = {"peft": "a LoRA adapter in PEFT's layout", "merged": "the adapter merged", "gguf": "for llama.cpp"}
    parts = [
        f"# {origin['run']}",
        f"Fine-tuned from `{origin['base']}` with vlmtune: {dtype[facts.manifest.format]}, {origin['dtype']}, from "
        f"checkpoint `{origin['checkpoint']}`.",
        _task(facts),
        _evaluations(facts),
        _gate(facts),
        "## How to run it\n\n" + (_llama_usage(facts) if facts.manifest.format == "gguf" else _python_usage(facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _task(facts: CardFacts) -> str:
    labels = facts.manifest.labels
    lines = ["## What it was trained to do", ""]
    if labels is None:
        lines.append("Answer a question about an image.")
    else:
        more = f" and {len(labels) - _NUM_LABELS} more" if len(labels) > _NUM_LABELS else ""
        lines.append(
            f"One of {len(labels)} answers: {', '.join(f'`{label}`' for label in labels[:_NUM_LABELS])}{more}."
        )
    fence = "`" * 4
    lines += ["", "The prompt, as the model reads it:", "", f"{fence}text\n{facts.prompt}\n{fence}"]
    return "\n".join(lines)


def _evaluations(facts: CardFacts) -> str:
    rows = []
    for evaluation in facts.evaluations:
        figures = [f"{_METRICS[key]} {figure:.4f}" for key, figure in _figures(evaluation).items()]
        if interval := evaluation.get("metrics", {}).get("accuracy_interval"):
            figures.append(f"95 % interval of the accuracy {interval[0]:.4f} to {interval[1]:.4f}")
        data = evaluation["data"]
        rows.append(
            f"| {evaluation['name']} | {data.get('split', '')} | {data['num_examples']} | {'; '.join(figures)} |"
        )
    if not rows:
        return ""
    table = ["| evaluation | split | examples | figures |", "|---|---|---|---|", *rows]
    return "## Evaluation\n\n" + "\n".join(table) + "\n\nMeasured on the run by `vlmtune evaluate`, before the export."


def _gate(facts: CardFacts) -> str:
    verdict = facts.verdict
    rows = {
        f"same {verdict.judged}": f"{verdict.num_agree} of {verdict.num_images} ({100 * verdict.agreement:.2f} %)",
        "largest probability difference": f"{verdict.max_probability_difference:.3g}",
        "accepted from": f"{100 * verdict.bounds.agreement:g} %, differences up to {verdict.bounds.difference:g}",
        "verdict": "accepted" if verdict.is_accepted else "REJECTED",
    }
    if verdict.num_unreadable:
        rows["images that could not be opened"] = str(verdict.num_unreadable)
    differences = verdict.differences[:_NUM_DIFFERENCES]
    notes = [*verdict.notes, *(f"`{d.id}`: trained `{d.trained}`, exported `{d.exported}`" for d in differences)]
    if len(verdict.differences) > len(differences):
        notes.append(f"and {len(verdict.differences) - len(differences)} more, in `vlmtune.json`")
    text = (
        "## Export gate\n\n"
        f"The exported files were opened in {verdict.runtime} and asked about held-out images "
        f"({facts.manifest.origin['held_out']}), and so was the trained model:\n\n| | |\n|---|---|\n"
    )
    return text + "\n".join([*(f"| {name} | {value} |" for name, value in rows.items()), "", *_listed(notes)]).rstrip()


def _python_usage(facts: CardFacts) -> str:
    base = str(facts.manifest.origin["base"])
    is_builtin = base.startswith(BUILTIN_PREFIX)
    options = "".join(f", {name}={value!r}" for name, value in facts.load_options.items())
    lines = ["from transformers import AutoModelForImageTextToText"]
    if facts.manifest.format == "peft":
        lines.append("from peft import PeftModel")
        lines += ["from vlmtune.models.source import locate"] if is_builtin else []
        location = f"locate({base!r})" if is_builtin else repr(base)
        lines += ["", f"base = AutoModelForImageTextToText.from_pretrained({location}{options})"]
        lines.append(f"model = PeftModel.from_pretrained(base, {PLACE!r})")
    else:
        lines += ["", f"model = AutoModelForImageTextToText.from_pretrained({PLACE!r}{options})"]
    question = " --question '…'" if facts.manifest.task.asks_from_data else ""
    ours = f"```bash\nvlmtune predict {PLACE} image.jpg{question}\nvlmtune serve {PLACE}\n```"
    theirs = "```python\n" + "\n".join(lines) + "\n```"
    parts = [f"With its prompt and labels:\n\n{ours}", f"With transformers:\n\n{theirs}"]
    return "\n\n".join([*parts, *_listed(facts.sentences)])


def _llama_usage(facts: CardFacts) -> str:
    # That the projector's name sorts after the model's is a coincidence.
    model, projector = sorted((n for n in facts.manifest.files if n.endswith(".gguf")), key=lambda n: "mmproj-" in n)
    options = [f"-m {model}", f"--mmproj {projector}"]
    options += [f"--system-prompt {_quoted(facts.system)}"] if facts.system else []
    # Without a marker llama.cpp puts the image first.
    user = facts.user + ("<__media__>" if facts.manifest.task.image_position == "last" else "")
    command = " ".join(["llama-mtmd-cli", *options, "--image image.jpg", "--temp 0", "-p", _quoted(user)])
    return "\n".join([f"```bash\n{command}\n```", "", *_listed(facts.sentences)]).rstrip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _listed(sentences: Sequence[str]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]
