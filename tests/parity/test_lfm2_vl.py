"""LFM2-VL against transformers: tower, connector, every decoder layer, logits, loss, gradients, continuation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.parity.lfm2_peer import (
    IMAGE_TOKEN,
    VOCABULARY,
    build_pair,
    peer_pixels,
    random_image,
    tiny_config,
)
from tests.parity.tolerances import GRADIENT, LAYER, LOSS, MODEL
from vlmtune.models.lfm2_vl.config import Lfm2VlConfig
from vlmtune.models.tree import Level

pytestmark = pytest.mark.parity


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)).item()


def random_ids(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(6, VOCABULARY, (length,), generator=generator).tolist()


def test_tower_and_connector_match_on_ragged_and_tiled_images() -> None:
    peer, ours = build_pair()
    images = [
        random_image([(4, 4)], 1),
        random_image([(2, 6)], 2),
        random_image([(4, 4), (6, 4), (2, 2)], 3),
    ]
    with torch.no_grad():
        theirs = peer.get_image_features(**peer_pixels(images)).pooler_output
        features = ours.encode_images(images)
    assert [len(f) for f in features] == [image.num_tokens for image in images]
    assert relative_error(torch.cat(features), torch.cat(list(theirs))) < MODEL


def test_every_vision_layer_matches() -> None:
    peer, ours = build_pair()
    image = random_image([(6, 4)], 4)
    captured: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: captured.append(out))
        for layer in peer.model.vision_tower.encoder.layers
    ]
    with torch.no_grad():
        peer.get_image_features(**peer_pixels([image]))
        steps: list[Tensor] = []
        ours.model.vision_tower(image.tiles[0][0][None], (6, 4), steps)
    for hook in hooks:
        hook.remove()
    for step, theirs in zip(steps[1:], captured, strict=True):
        assert relative_error(step, theirs) < LAYER


@pytest.mark.parametrize("kinds", [None, ["full_attention", "conv"], ["conv", "full_attention"], ["full_attention"]])
def test_decoder_layers_and_logits_match_on_ragged_batches(kinds: list[str] | None) -> None:
    peer, ours = build_pair(layer_types=kinds)
    sequences = [random_ids(7, 1), random_ids(1, 2), random_ids(12, 3)]
    captured: list[Tensor] = []
    for layer in ours.model.language_model.layers:
        layer.register_forward_hook(lambda _m, _i, out: captured.append(out[0]))
    with torch.no_grad():
        rows = Level.chains([len(s) for s in sequences], read_last=[len(s) for s in sequences])
        ids = torch.tensor([token for s in sequences for token in s])
        logits = ours.logits(ours.decode(ours.embed(ids, []), [rows]).hidden)
        first = 0
        for s in sequences:
            out = peer(input_ids=torch.tensor([s]), output_hidden_states=True)
            own = slice(first, first + len(s))
            assert relative_error(logits[own], out.logits[0]) < MODEL
            for index, theirs in enumerate(out.hidden_states[1:-1]):
                assert relative_error(captured[index][own], theirs[0]) < LAYER
            first += len(s)


def sequence_with_images(seed: int) -> tuple[list[int], list]:
    images = [random_image([(4, 4)], seed), random_image([(2, 4), (4, 2)], seed + 1)]
    ids = (
        random_ids(4, seed) + [IMAGE_TOKEN] * 4 + random_ids(2, seed + 1) + [IMAGE_TOKEN] * 4 + random_ids(6, seed + 2)
    )
    return ids, images


def test_loss_and_every_gradient_match_with_images_in_the_prompt() -> None:
    peer, ours = build_pair()
    ids, images = sequence_with_images(10)
    num_answer = 3
    labels = torch.tensor([[-100] * (len(ids) - num_answer) + ids[-num_answer:]])
    theirs = peer(input_ids=torch.tensor([ids]), labels=labels, **peer_pixels(images)).loss
    theirs.backward()

    rows = Level.chains([len(ids) - 1], read_last=num_answer)
    embeddings = ours.embed(torch.tensor(ids[:-1]), ours.encode_images(images))
    logits = ours.logits(ours.decode(embeddings, [rows]).hidden)
    loss = F.cross_entropy(logits, torch.tensor(ids[-num_answer:]))
    loss.backward()

    assert abs(loss.item() - theirs.item()) / theirs.item() < LOSS
    expected = {name: parameter.grad for name, parameter in peer.named_parameters() if parameter.grad is not None}
    # A key bias shifts all scores of a query alike, so its true gradient is zero and both sides hold only rounding:
    # no gradient is held to more than a millionth of the largest one.
    floor = 1e-6 * max(grad.abs().max().item() for grad in expected.values())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        error = (parameter.grad - expected[name]).abs().max().item()
        assert error < max(GRADIENT * expected[name].abs().max().item(), floor), name


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_continuing_a_state_equals_running_the_whole(cut: int) -> None:
    peer, ours = build_pair()
    ids = random_ids(9, 4)
    with torch.no_grad():
        theirs = peer(input_ids=torch.tensor([ids])).logits[0, cut:]
        embeddings = ours.embed(torch.tensor(ids), [])
        cache = ours.decode(embeddings[:cut], [Level.chains([cut])], want_cache=True).cache
        rest = Level.chains([len(ids) - cut], read_last=len(ids) - cut)
        ours_logits = ours.logits(ours.decode(embeddings[cut:], [rest], cache).hidden)
    assert relative_error(ours_logits, theirs) < MODEL


def test_greedy_tokens_match_generate() -> None:
    peer, ours = build_pair()
    ids, images = sequence_with_images(20)
    with torch.no_grad():
        theirs = peer.generate(
            input_ids=torch.tensor([ids]),
            max_new_tokens=8,
            do_sample=False,
            eos_token_id=None,
            **peer_pixels(images),
        )[0, len(ids) :].tolist()
        decoded = ours.decode(
            ours.embed(torch.tensor(ids), ours.encode_images(images)),
            [Level.chains([len(ids)])],
            want_cache=True,
        )
        tokens: list[int] = []
        for _ in range(8):
            tokens.append(int(ours.logits(decoded.hidden).argmax()))
            embedded = ours.embed_tokens(torch.tensor(tokens[-1:]))
            decoded = ours.decode(embedded, [Level.chains([1])], decoded.cache, want_cache=True)
    assert tokens == theirs


def test_the_older_spelling_of_the_configuration_is_the_same_model() -> None:
    values = tiny_config()
    older = {**values, "model_type": "lfm2-vl", "image_token_index": values["image_token_id"]}
    del older["image_token_id"]
    text = dict(values["text_config"])
    text["full_attn_idxs"] = [i for i, kind in enumerate(text.pop("layer_types")) if kind == "full_attention"]
    assert Lfm2VlConfig.from_dict({**older, "text_config": text}) == Lfm2VlConfig.from_dict(values)
