"""A two-stage file (`vlmtune pretrain`) as typed values: a connector, first alone on captions, then with LoRA.

Either stage is an ordinary experiment, which `Stages.experiments` writes out.
"""

from __future__ import annotations

import os

from pydantic import Field

from vlmtune.config.schema import (
    AdapterSection,
    ConnectorSection,
    DataSection,
    EvaluateSection,
    Experiment,
    ModelSection,
    Section,
    TaskSection,
    TrainSection,
)

ALIGN_LEARNING_RATE = 1e-3
"""Of the connector alone (LLaVA, arXiv 2304.08485; Dense Connector, arXiv 2405.13800)."""
INSTRUCT_TARGETS = ("attention", "mlp", "conv")
"""Every linear layer of the decoder. The connector is trained in full beside them."""


class Stage(Section):
    """Data and settings of one stage. Keys left out are decided as for `vlmtune train`."""

    data: DataSection = Field(default_factory=DataSection)
    task: TaskSection = Field(default_factory=lambda: TaskSection(type="text"))
    adapter: AdapterSection = Field(default_factory=AdapterSection)
    train: TrainSection = Field(default_factory=TrainSection)


class Stages(Section):
    """A connector in two stages: the whole YAML file. One of them may be left out."""

    name: str | None = None
    """The second stage's run folder; the first one's is NAME-align. Default: the file's name."""
    seed: int = Field(default=0, ge=0)
    output_dir: str = "runs"
    model: ModelSection = Field(default_factory=ModelSection)
    align: Stage | None = None
    """First, by default: the connector alone (`adapter.parts: [connector]`) at 1e-3, without augmentation."""
    instruct: Stage | None = None
    """Then, by default: LoRA on the decoder, and the first stage's connector in full (`defaults` decides its rate)."""
    evaluate: EvaluateSection = Field(default_factory=EvaluateSection)

    def experiments(self) -> dict[str, Experiment]:
        """Stage -> its experiment, in order. `name` must be set."""
        experiments = {}
        if self.align is not None:
            experiments["align"] = self._experiment(self._aligning(self.align), self.model, f"{self.name}-align")
        if self.instruct is not None:
            model = self.model.model_copy(deep=True)
            if self.align is not None:
                model.connector = model.connector or ConnectorSection()
                # Absolute: the run's file is read again from elsewhere.
                model.connector.start = os.path.join(os.path.abspath(self.output_dir), f"{self.name}-align")  # noqa: PTH100, PTH118
            experiments["instruct"] = self._experiment(self._instructing(self.instruct), model, str(self.name))
        return experiments

    @staticmethod
    def _aligning(stage: Stage) -> Stage:
        stage = stage.model_copy(deep=True)
        if stage.adapter.parts is None and stage.adapter.targets is None:
            stage.adapter.parts, stage.adapter.targets = ["connector"], []
        if stage.train.learning_rate is None:
            stage.train.learning_rate = ALIGN_LEARNING_RATE
        if stage.train.augment is None:
            stage.train.augment = []  # captions name positions, and unchanged images keep features cacheable
        return stage

    @staticmethod
    def _instructing(stage: Stage) -> Stage:
        stage = stage.model_copy(deep=True)
        adapter = stage.adapter
        if adapter.parts is None and adapter.targets is None:
            adapter.parts, adapter.targets = ["connector"], list(INSTRUCT_TARGETS)
        return stage

    def _experiment(self, stage: Stage, model: ModelSection, name: str) -> Experiment:
        task = stage.task
        if "type" not in task.model_fields_set:
            task = task.model_copy(update={"type": "text"})
        return Experiment(
            name=name,
            seed=self.seed,
            output_dir=self.output_dir,
            model=model,
            data=stage.data,
            task=task,
            adapter=stage.adapter,
            train=stage.train,
            evaluate=self.evaluate,
        )
