"""PaliGemma 1 and 2 against transformers: tower, connector, decoder layers, logits, continuation, greedy tokens.

All tiny models slide (PaliGemma 2: a window of 6 rows, prompts of 11 and more), cap scores and logits, and are random
in every parameter.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.parity.paligemma_peer import (
    Generation,
    build_pair,
    peer_logits,
    prompt_ids,
    random_ids,
    random_image,
    tiny_config,
)
from tests.parity.tolerances import LAYER, MODEL
from vlmtune.inference.batch import Request
from vlmtune.inference.generation import Sampling, generate
from vlmtune.models.paligemma import PaliGemma
from vlmtune.models.paligemma.config import PaliGemmaConfig
from vlmtune.models.tree import Level

pytestmark = pytest.mark.parity

both = pytest.mark.parametrize("generation", [1, 2])


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def our_logits(ours: PaliGemma, prompt: list[int], answer: list[int], features: list[Tensor]) -> Tensor:
    """float32[S, V] of the whole, run as one group."""
    rows = Level.chains([len(prompt) + len(answer)], read_last=len(prompt) + len(answer), bidirectional=[len(prompt)])
    return ours.logits(ours.decode(ours.embed(torch.tensor(prompt + answer), features), [rows]).hidden)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_tower_layers_and_connector_match_at_several_sizes(side: int) -> None:
    peer, ours = build_pair(1, side=side)
    images = [random_image(seed, side) for seed in range(3)]
    captured: list[Tensor] = []
    for layer in peer.model.vision_tower.encoder.layers:
        layer.register_forward_hook(lambda _m, _i, out: captured.append(out))
    with torch.no_grad():
        theirs = peer.get_image_features(torch.cat([pixels for _, pixels in images]))
        steps: list[Tensor] = []
        patches = torch.stack([image.tiles[0][0] for image, _ in images])
        towered = ours.model.vision_tower(patches, images[0][0].tiles[0][1], steps)
        features = ours.encode_images([image for image, _ in images])
    for step, expected in zip(steps[1:], captured, strict=True):
        assert relative_error(step, expected) < LAYER
    assert relative_error(towered, theirs.last_hidden_state) < MODEL
    assert relative_error(torch.stack(features), theirs.pooler_output) < MODEL
    assert [len(f) for f in features] == [image.num_tokens for image, _ in images]


@both
def test_decoder_layers_and_logits_match_on_ragged_prompts(generation: Generation) -> None:
    peer, ours = build_pair(generation)
    prompts = [prompt_ids(6, 1), prompt_ids(0, 2), prompt_ids(13, 3)]
    answers = [random_ids(4, 4), random_ids(12, 5), []]
    images = [random_image(seed) for seed in range(3)]
    captured: list[Tensor] = []
    for layer in ours.model.language_model.layers:
        layer.register_forward_hook(lambda _m, _i, out: captured.append(out[0]))
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    ids = torch.tensor([token for p, a in zip(prompts, answers, strict=True) for token in p + a])
    with torch.no_grad():
        rows = Level.chains(lengths, read_last=lengths, bidirectional=[len(p) for p in prompts])
        embeddings = ours.embed(ids, ours.encode_images([image for image, _ in images]))
        logits = ours.logits(ours.decode(embeddings, [rows]).hidden)
        first = 0
        for prompt, answer, (_, pixels) in zip(prompts, answers, images, strict=True):
            out = peer_logits(peer, prompt, answer, pixels, output_hidden_states=True)
            own = slice(first, first + len(prompt) + len(answer))
            assert relative_error(embeddings[own], out.hidden_states[0][0]) < LAYER
            for index, theirs in enumerate(out.hidden_states[1:-1]):
                assert relative_error(captured[index][own], theirs[0]) < LAYER
            assert relative_error(logits[own], out.logits[0]) < MODEL
            first = own.stop


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"sliding_window": 2},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"]},
        {"num_key_value_heads": 4, "head_dim": 6, "query_pre_attn_scalar": 6},
        {"attention_bias": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_of_gemma_2s_settings_means_what_it_means_there(changes: dict[str, object]) -> None:
    peer, ours = build_pair(2, **changes)
    prompt, answer, (image, pixels) = prompt_ids(4, 1), random_ids(9, 2), random_image(3)
    with torch.no_grad():
        theirs = peer_logits(peer, prompt, answer, pixels).logits[0]
        assert relative_error(our_logits(ours, prompt, answer, ours.encode_images([image])), theirs) < MODEL
        _, usual = build_pair(2)
        if not changes.keys() & {"num_key_value_heads", "attention_bias"}:
            other = our_logits(usual, prompt, answer, usual.encode_images([image]))
            assert relative_error(other, theirs) > 0.01, "the setting changes nothing: this test could not fail"


@both
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_continuing_a_prompts_state_equals_running_the_whole(generation: Generation, cut: int) -> None:
    peer, ours = build_pair(generation)
    prompt, answer, (image, pixels) = prompt_ids(4, 1), random_ids(9, 2), random_image(3)
    with torch.no_grad():
        theirs = peer_logits(peer, prompt, answer, pixels).logits[0, len(prompt) + cut :]
        embeddings = ours.embed(torch.tensor(prompt + answer), ours.encode_images([image]))
        before = Level.chains([len(prompt) + cut], bidirectional=[len(prompt)])
        cache = ours.decode(embeddings[: len(prompt) + cut], [before], want_cache=True).cache
        rest = Level.chains([len(answer) - cut], read_last=len(answer) - cut)
        found = ours.logits(ours.decode(embeddings[len(prompt) + cut :], [rest], cache).hidden)
    assert relative_error(found, theirs) < MODEL


@both
def test_greedy_tokens_match_generate_on_ragged_prompts(generation: Generation) -> None:
    peer, ours = build_pair(generation)
    prompts = [prompt_ids(3, 1), prompt_ids(9, 2), prompt_ids(0, 3)]
    images = [random_image(seed) for seed in range(3)]
    with torch.no_grad():
        features = ours.encode_images([image for image, _ in images])
    questions = [Request(prompt, [own]) for prompt, own in zip(prompts, features, strict=True)]
    answers = generate(ours, None, questions, stop=[], sampling=Sampling(max_new_tokens=10))
    for prompt, (_, pixels), answer in zip(prompts, images, answers, strict=True):
        theirs = peer.generate(
            input_ids=torch.tensor([prompt]),
            token_type_ids=torch.zeros(1, len(prompt), dtype=torch.int64),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            pixel_values=pixels,
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=None,
        )
        assert answer == theirs[0, len(prompt) :].tolist()


def test_the_hubs_spelling_of_the_configuration_is_the_same_model() -> None:
    """The hub's files name few fields, call the first activation "gelu", and give several end tokens."""
    from transformers import PaliGemmaConfig as PeerConfig

    for generation in (1, 2):
        sparse = tiny_config(generation)
        for key in ("head_dim", "query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "layer_types"):
            sparse["text_config"].pop(key, None)
        peer = PeerConfig(**sparse).to_dict()
        peer["text_config"]["eos_token_id"] = [1, 107]
        sparse["text_config"]["hidden_act"] = "gelu"
        sparse["text_config"]["eos_token_id"] = [1, 107]
        assert PaliGemmaConfig.from_dict(sparse) == PaliGemmaConfig.from_dict(peer)
        again = PaliGemmaConfig.from_dict(PaliGemmaConfig.from_dict(sparse).to_dict())
        assert again == PaliGemmaConfig.from_dict(sparse)
