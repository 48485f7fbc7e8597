"""PaliGemma (arXiv 2407.07726) and PaliGemma 2 (arXiv 2412.03555): SigLIP tower, linear connector, Gemma decoder.

A prefix-LM: image and prompt see each other in both directions, the answer follows causally. Parameter names are
those of `transformers`' `PaliGemmaForConditionalGeneration`; the head is tied to the embedding.
"""

from __future__ import annotations

from vlmtune.models.paligemma.config import PaliGemmaConfig
from vlmtune.models.paligemma.decoder import GemmaModel
from vlmtune.models.paligemma.vision import SiglipVisionModel
from vlmtune.models.vlm import VisionLanguageModel


class PaliGemma(VisionLanguageModel):
    """The whole model of either generation."""

    config: PaliGemmaConfig

    def __init__(self, config: PaliGemmaConfig) -> None:
        # Positions count from one. Attention reads differences alone, but bfloat16 rounds each position's angle.
        decoder = GemmaModel(config.text_config, first_position=1)
        super().__init__(config, SiglipVisionModel(config.vision_config), decoder)
