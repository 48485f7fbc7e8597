"""Frozen configuration records with the checkpoint's own field names, read from and written to `config.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_type_hints

from vlmtune.errors import WeightsError
from vlmtune.models.connectors import ConnectorShape


@dataclass(frozen=True)
class ModelConfig:
    """Base of all network configurations.

    Keys of `config.json` without a field here are ignored, not errors: checkpoints carry many that only
    generation or training scripts read.
    """

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Read the fields this network knows. Raises WeightsError for a value of the wrong type."""
        hints = get_type_hints(cls)
        known = {}
        for field in dataclasses.fields(cls):
            if field.name not in values:
                continue
            value = values[field.name]
            kind = hints[field.name]
            if isinstance(kind, type) and issubclass(kind, ModelConfig) and isinstance(value, dict):
                value = kind.from_dict(value)
            elif kind in (int, float, bool, str) and not isinstance(value, (int, float) if kind is float else kind):
                raise WeightsError(
                    f"config.json: {field.name} is {value!r}; expected {kind.__name__}. Is the checkpoint damaged?"
                )
            known[field.name] = tuple(value) if isinstance(value, list) else value
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class VlmConfig(ModelConfig):
    """A whole vision-language model: its two towers' configurations, and what the wrapper needs to know."""

    vision_config: ModelConfig
    text_config: ModelConfig

    architecture: ClassVar[str]
    """The class of `transformers` that reads the file."""
    bidirectional_prompt: ClassVar[bool] = False
    """Whether all tokens of a prompt see each other (a prefix-LM). Two such prompts share nothing, for each token of
    the first part sees the second: the tree begins at the end of each prompt."""

    @property
    def image_placeholder(self) -> int:
        """The placeholder token that an image's features replace."""
        raise NotImplementedError

    @property
    def connector(self) -> ConnectorShape:
        """The shape of the family's own connector."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """See `ModelConfig.from_dict`; a tower missing from the file has its defaults."""
        return super().from_dict({"vision_config": {}, "text_config": {}, **values})

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["text_config"] = self.text_config.to_dict()
        # The pooling head is neither built nor saved.
        values["vision_config"]["vision_use_head"] = False
        return values | {"architectures": [self.architecture], "tie_word_embeddings": True}
