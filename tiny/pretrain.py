"""Pretrains a tiny LFM2-VL from scratch on drawn images, as `builtin:tiny` was: `python -m tiny.pretrain FILE`.

In: a `Pretraining` file. Out: `runs/NAME/` with metrics, checkpoints and `model/`, a folder in the hub's layout. Two
stages: the tower with naming heads, then the whole model on questions. Every step's images and questions follow from
the seed and the step's number, so a resumed run continues exactly.
"""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentParser
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny.config import Pretraining, TowerStage, WholeStage
from tiny.drawn.corpus import Corpus, draw_corpus
from tiny.drawn.fonts import font_files
from tiny.lessons import Lesson, lessons, texts
from tiny.model import LessonRunner, NamingHeads, build_model, export_model
from tiny.tokenizer import train_tokenizer
from vlmtune.config.load import dump, load_section
from vlmtune.data.drawn.scenes import Facts
from vlmtune.errors import RunFolderError, UserError
from vlmtune.files import new_folder, read_json, write_json, write_text
from vlmtune.runs.environment import environment, now
from vlmtune.runs.folder import RunFolder
from vlmtune.runs.resume import differing_keys
from vlmtune.train.device import autocast
from vlmtune.train.optimizer import learning_rate_factor

StageName = Literal["tower", "whole"]

_TOKENIZER_IMAGES = 20_000
_VALIDATION_SEED = 1_000_003
_MIN_RATE = 0.02  # the cosine ends at this share of the learning rate
_WARMUP_STEPS = 100


@dataclass(frozen=True)
class PretrainReport:
    """One step of progress.

    Attributes:
        stage: "drawing" (then `step` counts images), "tower", "whole" or "validation".
        step, num_steps: over both stages.
        note: losses, or the accuracy.
    """

    stage: str
    step: int
    num_steps: int
    note: str


def pretrain(
    config: Pretraining, *, resume: bool = False, on_report: Callable[[PretrainReport], None] = lambda report: None
) -> Path:
    """Train from scratch, or continue an interrupted run.

    Returns:
        The folder of the finished model. Raises RunFolderError if the run exists (or, resuming, does not).
    """
    return _Run(config, resume, on_report).train()


class _Run:
    """Everything a pretraining run holds: folder, images, tokenizer, model, heads, running average."""

    def __init__(self, config: Pretraining, resume: bool, on_report: Callable[[PretrainReport], None]) -> None:
        self.config = config
        self.on_report = on_report
        self.num_steps = config.tower.steps + config.whole.steps
        self.folder = _open_folder(config, resume)
        self.corpus, self.validation = self._draw("train"), self._draw("validation")
        self.tokenizer = train_tokenizer(texts(self.corpus.facts[:_TOKENIZER_IMAGES]), config.model.vocabulary)
        torch.manual_seed(config.seed)
        self.model = build_model(config.model, self.tokenizer)
        num_tokens = self.model.config.vision_config.num_patches // self.model.config.downsample_factor**2
        self.heads = NamingHeads(num_tokens, config.model.decoder.hidden_size)
        self.runner = LessonRunner(self.model, self.tokenizer)
        self.both = nn.ModuleDict({"model": self.model, "heads": self.heads})
        self.average = {name: value.detach().clone() for name, value in self.both.named_parameters()}
        self.step = 0
        self.seconds = 0.0

    def _draw(self, part: str) -> Corpus:
        images = self.config.images
        num = images.num if part == "train" else images.num_validation
        seed = self.config.seed if part == "train" else self.config.seed + _VALIDATION_SEED
        folder = self.folder.path / "images" / part

        def report(done: int) -> None:
            self.on_report(PretrainReport("drawing", done, num, part))

        return draw_corpus(folder, images.mixture, num, seed, self.config.model.image_size, on_progress=report)

    def train(self) -> Path:
        checkpoint = next(reversed(self.folder.list_checkpoints()), None)
        stages: tuple[tuple[StageName, int], ...] = (
            ("tower", self.config.tower.steps),
            ("whole", self.config.whole.steps),
        )
        first = 0
        for stage, steps in stages:
            optimizer = self._optimizer(stage)
            if checkpoint is not None and first < _step_of(checkpoint) <= first + steps:
                self._load(checkpoint, optimizer)
            elif self.step < first + steps and self.step == first > 0:
                # A stage starts from the average of the previous stage.
                self._swap_average()
                self.average = {name: value.detach().clone() for name, value in self.both.named_parameters()}
            if checkpoint is None or _step_of(checkpoint) < first + steps:
                self._stage(stage, first, steps, optimizer)
            first += steps
        folder = self.folder.path / "model"
        self._export(folder)
        write_json(self.folder.record, read_json(self.folder.record) | {"finished": now(), "seconds": self.seconds})
        return folder

    def _optimizer(self, stage: StageName) -> torch.optim.AdamW:
        """AdamW; no decay for norms, biases and positions. Group 0 holds what was trained in the first stage."""
        tower = [*self.model.model.vision_tower.parameters(), *self.model.model.multi_modal_projector.parameters()]
        tower += list(self.heads.parameters())
        decoder = list(self.model.model.language_model.parameters()) if stage == "whole" else []
        groups = []
        for part, parameters in (("tower", tower), ("decoder", decoder)):
            for is_matrix in (True, False):
                members = [p for p in parameters if (p.ndim > 1) == is_matrix]
                decay = self.config.weight_decay if is_matrix else 0.0
                if members:
                    groups.append({"params": members, "weight_decay": decay, "part": part})
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98))

    def _stage(self, stage: StageName, first: int, steps: int, optimizer: torch.optim.AdamW) -> None:
        settings: TowerStage | WholeStage = self.config.tower if stage == "tower" else self.config.whole
        losses: dict[str, list[float]] = defaultdict(list)
        started, counted = time.monotonic(), self.seconds
        while self.step < first + steps:
            index = self.step - first
            rate = settings.learning_rate * max(
                _MIN_RATE, learning_rate_factor(index, steps, min(0.5, _WARMUP_STEPS / steps), "cosine")
            )
            for group in optimizer.param_groups:
                is_slow = isinstance(settings, WholeStage) and group["part"] == "tower"
                group["lr"] = rate * (self.config.whole.tower_learning_rate_factor if is_slow else 1.0)
            for name, value in self._step(stage, index, settings.batch_size, optimizer).items():
                losses[name].append(value)
            self.step += 1
            self._update_average(index)
            self.seconds = counted + time.monotonic() - started
            note = " ".join(f"{name} {np.mean(values[-50:]):.3f}" for name, values in losses.items())
            self.on_report(PretrainReport(stage, self.step, self.num_steps, note))
            if self.step % 50 == 0:
                means = {name: float(np.mean(values)) for name, values in losses.items()}
                samples = len(next(iter(losses.values()))) * settings.batch_size
                self.folder.append_metrics(
                    kind="train",
                    stage=stage,
                    step=self.step,
                    lr=rate,
                    seconds=round(self.seconds, 1),
                    samples=samples,
                    **means,
                )
                losses.clear()
            is_last = self.step == first + steps
            if stage == "whole" and (self.step % self.config.evaluate_every == 0 or is_last):
                self._evaluate()
            if self.step % self.config.save_every == 0 or is_last:
                self._save(optimizer)
                if stage == "whole":
                    self._export(self.folder.path / "model")

    def _step(self, stage: StageName, index: int, batch_size: int, optimizer: torch.optim.AdamW) -> dict[str, float]:
        """One optimizer step; returns its losses."""
        rng = Random(f"{self.config.seed} {stage} {index}")
        members = [rng.randrange(len(self.corpus)) for _ in range(batch_size)]
        facts = [self.corpus.facts[i] for i in members]
        pixels = torch.from_numpy(self.corpus.pixels[members])
        with autocast(self.model.device, "auto"):
            tokens = self.runner.encode_images(pixels)
            naming = self.heads(tokens, facts)
            losses = {"naming": naming.detach()}
            loss = naming
            if stage == "whole":
                numbered = _lessons(facts, [rng.getrandbits(40) for _ in facts], self.config.whole.num_questions)
                logits, targets, weights, _ = self.runner.run(tokens, numbered)
                each = F.cross_entropy(logits.float(), targets, reduction="none")
                answer = (each * weights).sum() / weights.sum()
                losses["answer"] = answer.detach()
                loss = answer + self.config.whole.naming_weight * naming
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.both.parameters(), self.config.max_grad_norm)
        optimizer.step()
        return {name: float(value) for name, value in losses.items()}

    @torch.no_grad()
    def _update_average(self, index: int) -> None:
        # Early on the average follows quickly: the first weights are noise.
        decay = min(self.config.average, 1 - 10 / (10 + index + 1))
        for name, value in self.both.named_parameters():
            self.average[name].lerp_(value, 1 - decay)

    @torch.no_grad()
    def _swap_average(self) -> None:
        for name, value in self.both.named_parameters():
            current = value.clone()
            value.copy_(self.average[name])
            self.average[name] = current

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Share of answers that match exactly, on held-out images, by image kind and question type."""
        self._swap_average()
        right: dict[str, list[bool]] = defaultdict(list)
        for first in range(0, len(self.validation), 250):
            facts = self.validation.facts[first : first + 250]
            numbered = _lessons(facts, [_VALIDATION_SEED + first + i for i in range(len(facts))], num_questions=4)
            with autocast(self.model.device, "auto"):
                tokens = self.runner.encode_images(torch.from_numpy(self.validation.pixels[first : first + 250].copy()))
                logits, targets, _, num_tokens = self.runner.run(tokens, numbered)
            answers = torch.split(logits.argmax(-1) == targets, num_tokens)
            types = [
                _answer_type(facts[image], lesson, i) for image, lesson in numbered for i in range(len(lesson.branches))
            ]
            for kind, answer in zip(types, answers, strict=True):
                right[kind].append(bool(answer.all()))
        self._swap_average()
        accuracy = {kind: round(float(np.mean(values)), 4) for kind, values in sorted(right.items())}
        mean = float(np.mean([value for values in right.values() for value in values]))
        self.folder.append_metrics(kind="validation", step=self.step, accuracy=round(mean, 4), **accuracy)
        self.on_report(PretrainReport("validation", self.step, self.num_steps, f"{mean:.3f} of answers right"))

    def _save(self, optimizer: torch.optim.AdamW) -> None:
        tensors = {f"weights.{name}": value.detach() for name, value in self.both.named_parameters()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
        with new_folder(self.folder.checkpoint(self.step), replace=True) as temporary:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / "state.safetensors")
            write_json(temporary / "state.json", {"step": self.step, "seconds": self.seconds})
        for old in self.folder.list_checkpoints()[:-2]:
            shutil.rmtree(old)

    @torch.no_grad()
    def _load(self, checkpoint: Path, optimizer: torch.optim.AdamW) -> None:
        tensors = load_file(checkpoint / "state.safetensors")
        for name, value in self.both.named_parameters():
            value.copy_(tensors[f"weights.{name}"])
            self.average[name] = tensors[f"average.{name}"]
        states: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".")
                states[int(number)][key] = tensor
        optimizer.load_state_dict({"state": dict(states), "param_groups": optimizer.state_dict()["param_groups"]})
        saved = read_json(checkpoint / "state.json")
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.folder.truncate_metrics(self.step)

    def _export(self, folder: Path) -> None:
        tensors = {
            name.removeprefix("model."): self.average[name] for name in self.average if name.startswith("model.")
        }
        export_model(folder, self.model.config, tensors, self.tokenizer, torch.bfloat16)


def _lessons(facts: list[Facts], seeds: list[int], num_questions: int) -> list[tuple[int, Lesson]]:
    return [
        (image, lesson)
        for image, (fact, seed) in enumerate(zip(facts, seeds, strict=True))
        for lesson in lessons(fact, seed, num_questions)
    ]


def _answer_type(facts: Facts, lesson: Lesson, branch: int) -> str:
    """`classify/digit`, `question/thing`…: the category of a validation accuracy."""
    task = "classify" if "Choose from" in lesson.head or "Name what" in lesson.head else "question"
    answer = lesson.branches[branch][1]
    if task == "question" and "Describe" in lesson.branches[branch][0]:
        task = "caption"
    elif answer in ("yes", "no"):
        task = "yes-no"
    return f"{task}/{facts.kind}"


def _open_folder(config: Pretraining, resume: bool) -> RunFolder:
    folder = RunFolder(Path(config.output_dir) / config.name)
    path = folder.path
    has_run = folder.record.exists()
    if resume and not has_run:
        raise RunFolderError(f"{path}: there is no run to resume. Omit --resume to start one.")
    if not resume and path.exists() and any(path.iterdir()):
        raise RunFolderError(
            f"{path}: this run exists. Continue it with --resume, or choose another name (--set name=NAME)."
        )
    if resume and (differing := differing_keys(load_section(folder.config, Pretraining), config)):
        raise RunFolderError(
            f"{path}: --resume continues the same pretraining, but this differs:\n  "
            + "\n  ".join(differing)
            + "\nUndo the changes, or start another run (--set name=NAME)."
        )
    path.mkdir(parents=True, exist_ok=True)
    if not resume:
        write_text(folder.config, dump(config))
        write_json(folder.record, {"started": now(), "num_fonts": len(font_files()), **environment()})
    return folder


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(prog="python -m tiny.pretrain", description="Pretrain a tiny model on drawn images.")
    parser.add_argument("config", help="such as tiny/tiny.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the file")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    options = parser.parse_args(arguments)
    try:
        config = load_section(options.config, Pretraining, options.set)
        print(pretrain(config, resume=options.resume, on_report=_print))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _print(report: PretrainReport) -> None:
    if report.stage in ("drawing", "validation") or report.step % 50 == 0:
        print(f"{report.stage} {report.step}/{report.num_steps} {report.note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
