"""PaliGemma's real shapes: every name and count on the meta device, and values on two layers of each tower."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parity.tolerances import LOSS, MODEL
from vlmtune.models.images import ProcessedImage
from vlmtune.models.paligemma import PaliGemma
from vlmtune.models.registry import build_on_meta
from vlmtune.models.tree import Level
from vlmtune.train.step import Answer, Sample, plan_step, run

pytestmark = pytest.mark.parity

VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
# As the hub's config.json has them: what they leave out is the family's default.
GEMMA_2B = {
    "model_type": "gemma",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "vocab_size": 257216,
}
GEMMA_2_2B = {
    "model_type": "gemma2",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "vocab_size": 257216,
}
GEMMA_2_9B = {
    "model_type": "gemma2",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "vocab_size": 257216,
}
GEMMA_2_27B = {
    "model_type": "gemma2",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 144,
    "vocab_size": 257216,
}
SIZES = {
    "paligemma-3b-224": (GEMMA_2B, 224, 2_923_466_480),
    "paligemma-3b-448": (GEMMA_2B, 448, 2_924_351_216),
    "paligemma-3b-896": (GEMMA_2B, 896, 2_927_890_160),
    "paligemma2-3b-224": (GEMMA_2_2B, 224, 3_032_242_416),
    "paligemma2-10b-224": (GEMMA_2_9B, 224, 9_662_638_832),
    "paligemma2-28b-224": (GEMMA_2_27B, 224, 27_650_487_024),
}


def config(text: dict[str, Any], image_size: int) -> dict[str, Any]:
    vision = VISION if image_size == 224 else VISION | {"image_size": image_size}
    width = text["hidden_size"]
    return {
        "model_type": "paligemma",
        "text_config": text,
        "vision_config": vision,
        "projection_dim": width,
        "hidden_size": width,
        "image_token_index": 257152,
    }


@pytest.mark.parametrize("name", SIZES)
def test_real_shapes_have_transformers_names_shapes_and_count(name: str) -> None:
    from transformers import PaliGemmaConfig as PeerConfig
    from transformers import PaliGemmaForConditionalGeneration

    text, image_size, count = SIZES[name]
    ours = build_on_meta(config(text, image_size))
    with torch.device("meta"):
        peer = PaliGemmaForConditionalGeneration(PeerConfig(**config(dict(text), image_size)))
    theirs = {name: tuple(parameter.shape) for name, parameter in peer.named_parameters()}
    assert {name: tuple(parameter.shape) for name, parameter in ours.named_parameters()} == theirs
    assert sum(parameter.numel() for parameter in ours.parameters()) == count
    assert sum(parameter.numel() for parameter in peer.parameters()) == count


@pytest.mark.parametrize("name", ["paligemma-3b-224", "paligemma2-3b-224"])
def test_one_forward_at_real_shapes(name: str) -> None:
    text, image_size, _ = SIZES[name]
    ours = build_on_meta(config(text, image_size))
    assert isinstance(ours, PaliGemma)
    image = ProcessedImage([(torch.empty(256, 588, device="meta"), (16, 16))], "", 256)
    with torch.no_grad():
        (features,) = ours.encode_images([image])
        assert features.shape == (256, text["hidden_size"])
        prompt = torch.cat([features, ours.embed_tokens(torch.zeros(10, dtype=torch.int64, device="meta"))])
        decoded = ours.decode(prompt, [Level.chains([266], bidirectional=[266])], want_cache=True)
        assert ours.logits(decoded.hidden).shape == (1, 257216)
    assert decoded.cache is not None
    keys = decoded.cache.layers[0].keys  # type: ignore[union-attr]
    assert keys.shape == (1, text["num_key_value_heads"], 266, 256)


@pytest.mark.parametrize("text", [GEMMA_2B, GEMMA_2_2B], ids=["gemma", "gemma2"])
def test_real_widths_compute_what_transformers_does(text: dict[str, Any]) -> None:
    """Two layers of each tower at their real widths, random weights, a short vocabulary, fp32: logits and loss."""
    from transformers import PaliGemmaConfig as PeerConfig
    from transformers import PaliGemmaForConditionalGeneration

    values = config(text | {"vocab_size": 1000, "num_hidden_layers": 2}, 224) | {"image_token_index": 999}
    values["vision_config"] = VISION | {"num_hidden_layers": 2}
    ours = build_on_meta(values)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.empty(parameter.shape).normal_(0, 0.02 if parameter.dim() > 1 else 0.3, generator=generator)
        for name, parameter in ours.named_parameters()
    }
    ours.load_state_dict(weights, strict=True, assign=True)
    peer = PaliGemmaForConditionalGeneration._from_config(PeerConfig(**values), attn_implementation="eager").eval()
    peer.load_state_dict(weights | {"lm_head.weight": weights["model.language_model.embed_tokens.weight"]}, assign=True)
    pixels = torch.randn(1, 3, 224, 224, generator=generator)
    patches = torch.nn.functional.unfold(pixels, 14, stride=14)[0].T
    image = ProcessedImage([(patches, (16, 16))], "", 256)
    prompt, answer = [999] * 256 + [2, *range(20, 30), 108], [50, 51, 1]
    with torch.no_grad():
        types = torch.tensor([[0] * len(prompt) + [1] * len(answer)])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        ids = torch.tensor([prompt + answer])
        theirs = peer(ids, pixel_values=pixels, token_type_ids=types, attention_mask=types * 0 + 1, labels=labels)
        features = ours.encode_images([image])
        loss = run(ours, plan_step(ours, [], [Sample(prompt, 0, [Answer(answer)])]), features)
        rows = Level.chains([len(ids[0])], read_last=len(ids[0]), bidirectional=[len(prompt)])
        found = ours.logits(ours.decode(ours.embed(ids[0], features), [rows]).hidden)
    assert (found - theirs.logits[0]).abs().max() < MODEL * theirs.logits.abs().max()
    assert loss.item() / 3 == pytest.approx(theirs.loss.item(), rel=LOSS)
