"""Once at LFM2-VL-450M's real size, random weights, fp32: features, logits, loss, every gradient, greedy tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.parity.tolerances import FULL_SIZE_GRADIENT, LOSS, MODEL
from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.tree import Level

pytestmark = pytest.mark.parity

IMAGE_TOKEN = 396
ATTENTION = (2, 5, 8, 10, 12, 14)
CONFIG: dict[str, Any] = {
    "model_type": "lfm2_vl",
    "image_token_id": IMAGE_TOKEN,
    "projector_hidden_size": 2560,
    "projector_use_layernorm": False,
    "text_config": {
        "model_type": "lfm2",
        "vocab_size": 65536,
        "hidden_size": 1024,
        "intermediate_size": 6656,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "full_attn_idxs": list(ATTENTION),
    },
    "vision_config": {"model_type": "siglip2_vision_model", "vision_use_head": False},
}


@pytest.fixture(scope="module")
def models() -> tuple[Any, Lfm2Vl]:
    """transformers' model and ours, sharing one copy of the weights."""
    from transformers import Lfm2VlConfig as PeerConfig
    from transformers import Lfm2VlForConditionalGeneration

    with torch.device("meta"):
        peer = Lfm2VlForConditionalGeneration(PeerConfig(**CONFIG))
        ours = Lfm2Vl(Lfm2VlConfig.from_dict(CONFIG))
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, parameter in ours.named_parameters():
        spread = 0.02 if parameter.dim() > 1 else 0.1
        center = 1.0 if parameter.dim() == 1 and name.endswith("weight") else 0.0
        weights[name] = torch.empty(parameter.shape).normal_(center, spread, generator=generator)
    ours.load_state_dict(weights, strict=True, assign=True)
    weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    peer.load_state_dict(weights, strict=True, assign=True)
    peer.tie_weights()
    # Buffers are not in the state: make what the meta device left empty.
    rotary = peer.model.language_model.rotary_emb
    inverse, _ = rotary.compute_default_rope_parameters(rotary.config)
    rotary.inv_freq, rotary.original_inv_freq = inverse, inverse.clone()
    return peer.eval(), ours.eval()


def make_image(grid: tuple[int, int], seed: int) -> ProcessedImage:
    patches = torch.randn(grid[0] * grid[1], 768, generator=torch.Generator().manual_seed(seed))
    return ProcessedImage([(patches, grid)], "", grid[0] * grid[1] // 4)


def test_the_real_size_equals_transformers(models: tuple[Any, Lfm2Vl]) -> None:
    peer, ours = models
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    images = [make_image((8, 8), 1), make_image((4, 12), 2)]
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(400, 65536, (14,), generator=generator).tolist()
    ids = text[:4] + [IMAGE_TOKEN] * 16 + text[4:6] + [IMAGE_TOKEN] * 12 + text[6:]
    longest = max(len(p.tiles[0][0]) for p in images)
    pixels = torch.stack([F.pad(p.tiles[0][0], (0, 0, 0, longest - len(p.tiles[0][0]))) for p in images])
    mask = torch.stack([(torch.arange(longest) < len(p.tiles[0][0])).int() for p in images])
    inputs = {
        "pixel_values": pixels,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([p.tiles[0][1] for p in images]),
    }
    labels = torch.tensor([[-100] * (len(ids) - 3) + ids[-3:]])
    out = peer(input_ids=torch.tensor([ids]), labels=labels, **inputs)
    out.loss.backward()
    expected = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
    for parameter in peer.parameters():
        parameter.grad = None

    rows = Level.chains([len(ids) - 1], read_last=3)
    hidden = ours.decode(ours.embed(torch.tensor(ids[:-1]), ours.encode_images(images)), [rows]).hidden
    logits = ours.logits(hidden)
    loss = F.cross_entropy(logits, torch.tensor(ids[-3:]))
    loss.backward()
    theirs = out.logits[0, -4:-1].detach()
    assert (logits.detach() - theirs).abs().max() < MODEL * theirs.abs().max()
    assert loss.item() == pytest.approx(out.loss.item(), rel=LOSS)
    floor = 1e-6 * max(grad.abs().max().item() for grad in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        error = (parameter.grad - expected[name]).abs().max().item()
        assert error < max(FULL_SIZE_GRADIENT * expected[name].abs().max().item(), floor), name
        parameter.grad = None

    with torch.no_grad():
        generated = peer.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=4, do_sample=False, eos_token_id=None, **inputs
        )[0, len(ids) :].tolist()
        embeddings = ours.embed(torch.tensor(ids), ours.encode_images(images))
        decoded = ours.decode(embeddings, [Level.chains([len(ids)])], want_cache=True)
        tokens: list[int] = []
        for _ in range(4):
            tokens.append(int(ours.logits(decoded.hidden).argmax()))
            step = ours.embed_tokens(torch.tensor(tokens[-1:]))
            decoded = ours.decode(step, [Level.chains([1])], decoded.cache, want_cache=True)
    assert tokens == generated
