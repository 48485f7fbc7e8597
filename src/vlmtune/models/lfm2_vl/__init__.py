"""LFM2-VL: SigLIP2 NaFlex tower, pixel-unshuffle connector, LFM2 decoder.

Parameter names are those of `transformers`' `Lfm2VlForConditionalGeneration`; the head is tied to the embedding.
"""

from __future__ import annotations

from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.lfm2_vl.decoder import Lfm2Model
from vlmtune.models.lfm2_vl.vision import Siglip2VisionModel
from vlmtune.models.vlm import VisionLanguageModel


class Lfm2Vl(VisionLanguageModel):
    """The whole model."""

    config: Lfm2VlConfig

    def __init__(self, config: Lfm2VlConfig) -> None:
        super().__init__(config, Siglip2VisionModel(config.vision_config), Lfm2Model(config.text_config))
