"""PaliGemma's prefix tree against the plain way: every answer run with its whole prompt, by transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.parity.paligemma_peer import (
    BOS,
    END,
    IMAGE_TOKEN,
    NEWLINE,
    VOCABULARY,
    Generation,
    build_pair,
    peer_logits,
    prompt_ids,
    random_image,
)
from tests.parity.tolerances import GRADIENT, LOSS, MODEL
from vlmtune.adapters.peft_files import load_adapter, save_adapter
from vlmtune.adapters.plan import apply_adapter
from vlmtune.config.schema import AdapterSection
from vlmtune.inference.batch import Request
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.models.paligemma import PaliGemma
from vlmtune.text.trie import LabelTrie
from vlmtune.train.step import Answer, Sample, plan_step, run

pytestmark = pytest.mark.parity

both = pytest.mark.parametrize("generation", [1, 2])
relaxed = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def pair(generation: Generation) -> tuple[Any, PaliGemma]:
    return build_pair(generation)


words = st.lists(st.integers(8, VOCABULARY - 2), max_size=9)
Drawn = tuple[list[int], int, list[Answer]]
"""A prompt, its image's seed, its answers."""


@st.composite
def samples(draw: st.DrawFn, max_answers: int) -> list[Drawn]:
    drawn = []
    for _ in range(draw(st.integers(1, 3))):
        prompt = [IMAGE_TOKEN] * 9 + [BOS, *draw(words), NEWLINE]
        answers = [
            Answer([*draw(words), END], draw(st.sampled_from([1.0, 0.3])))
            for _ in range(draw(st.integers(1, max_answers)))
        ]
        drawn.append((prompt, draw(st.integers(0, 2)), answers))  # few images: some are asked about twice
    return drawn


def peer_loss(peer: Any, drawn: list[Drawn]) -> Tensor:
    total = torch.zeros(())
    for prompt, seed, answers in drawn:
        for answer in answers:
            logits = peer_logits(peer, prompt, answer.ids, random_image(seed)[1]).logits[0]
            predicted = logits[len(prompt) - 1 : -1]
            total = total + answer.weight * F.cross_entropy(predicted, torch.tensor(answer.ids), reduction="sum")
    return total


def our_loss(ours: PaliGemma, drawn: list[Drawn]) -> Tensor:
    seeds = sorted({seed for _, seed, _ in drawn})
    features = dict(zip(seeds, ours.encode_images([random_image(seed)[0] for seed in seeds]), strict=True))
    # Questions about one image name it, as they do in training; their prompts share nothing all the same.
    plan = plan_step(ours, [], [Sample(prompt, seed, answers) for prompt, seed, answers in drawn])
    assert plan.weight == pytest.approx(sum(a.weight * len(a.ids) for _, _, answers in drawn for a in answers))
    return run(ours, plan, features)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    # As for LFM2-VL: a key bias's true gradient is zero, and both sides hold only rounding.
    floor = 1e-6 * max(grad.abs().max().item() for grad in expected.values())
    for name, grad in found.items():
        error = (grad - expected[name]).abs().max().item()
        assert error <= max(GRADIENT * expected[name].abs().max().item(), floor), name


@both
@pytest.mark.parametrize("max_answers", [1, 3])
def test_loss_and_every_gradient_equal_running_every_answer_whole(generation: Generation, max_answers: int) -> None:
    peer, ours = pair(generation)

    @relaxed
    @given(samples(max_answers))
    def check(drawn: list[Drawn]) -> None:
        theirs, total = peer_loss(peer, drawn), our_loss(ours, drawn)
        theirs.backward()
        total.backward()
        assert total.item() == pytest.approx(theirs.item(), rel=LOSS)
        expected = gradients(peer)
        assert len(expected) == len(list(ours.parameters())), "a parameter gets no gradient"
        assert_same(gradients(ours), expected)

    check()


def test_the_loss_of_one_answer_equals_transformers_own() -> None:
    for generation in (1, 2):
        peer, ours = pair(generation)
        prompt, answer = prompt_ids(4, 1), [20, 21, END]
        labels = torch.tensor([[-100] * len(prompt) + answer])
        theirs = peer_logits(peer, prompt, answer, random_image(2)[1], labels=labels).loss.item()
        assert our_loss(ours, [(prompt, 2, [Answer(answer)])]).item() / 3 == pytest.approx(theirs, rel=LOSS)


@both
def test_checkpointed_activations_give_the_same_gradients(generation: Generation) -> None:
    _, ours = pair(generation)
    found = []
    for enabled in (False, True):
        ours.checkpoint_activations(enabled)
        our_loss(ours, [(prompt_ids(4, 1), 1, [Answer([20, 21, END]), Answer([END])])]).backward()
        found.append(gradients(ours))
    ours.checkpoint_activations(False)
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


@both
def test_lora_loads_into_peft_with_the_same_loss_and_gradients(generation: Generation, tmp_path: Path) -> None:
    from peft import PeftModel

    peer, ours = build_pair(generation)
    targets = ["attention", "mlp", "conv", "connector", "vision_attention", "vision_mlp"]
    plan = apply_adapter(ours, AdapterSection(targets=targets, rank=3, alpha=7))
    num_linear = 7 * len(ours.model.language_model.layers) + 1 + 6 * 3
    assert len(plan.lora) == num_linear and plan.matches[2].layers == ()  # conv is other families'
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in plan.parameters.values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_adapter(tmp_path, ours, plan, "")
    loaded = PeftModel.from_pretrained(peer, tmp_path, is_trainable=True)
    drawn: list[Drawn] = [
        (prompt_ids(4, 1), 1, [Answer([20, 21, END]), Answer([22, END])]),
        (prompt_ids(9, 2), 2, [Answer([END])]),
    ]
    theirs, total = peer_loss(loaded, drawn), our_loss(ours, drawn)
    theirs.backward()
    total.backward()
    assert total.item() == pytest.approx(theirs.item(), rel=LOSS)
    expected = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter.grad
        for name, parameter in loaded.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }
    assert_same({name: p.grad for name, p in plan.parameters.items() if p.grad is not None}, expected)

    _, again = build_pair(generation)
    load_adapter(tmp_path, again)
    assert our_loss(again, drawn).item() == total.item()


@st.composite
def label_sets(draw: st.DrawFn) -> list[list[list[int]]]:
    """Labels that share first tokens, that prefix one another, of one token, and some with two surface forms."""
    forms = draw(
        st.lists(st.lists(st.integers(8, 11), min_size=1, max_size=3), min_size=2, max_size=9, unique_by=tuple)
    )
    labels = [[[*form, END]] for form in forms]
    if draw(st.booleans()) and len(labels) > 2:
        labels[0] += labels.pop()
    return labels


@torch.no_grad()
def peer_scores(peer: Any, prompt: list[int], pixels: Tensor, labels: list[list[list[int]]]) -> Tensor:
    scores = []
    for forms in labels:
        by_form = []
        for form in forms:
            log_probs = peer_logits(peer, prompt, form, pixels).logits[0].log_softmax(-1)
            by_form.append(log_probs[len(prompt) - 1 : -1].gather(1, torch.tensor(form)[:, None]).sum())
        scores.append(torch.stack(by_form).logsumexp(0))
    return torch.stack(scores)


@both
def test_label_scores_and_best_equal_scoring_each_alone(generation: Generation) -> None:
    peer, ours = pair(generation)

    @relaxed
    @given(label_sets(), samples(1))
    def check(labels: list[list[list[int]]], drawn: list[Drawn]) -> None:
        scorer = LabelScorer(ours, [], LabelTrie.build(labels))
        with torch.no_grad():
            features = ours.encode_images([random_image(seed)[0] for _, seed, _ in drawn])
        questions = [Request(prompt, [f]) for (prompt, _, _), f in zip(drawn, features, strict=True)]
        scores, best = scorer.score(questions), scorer.best(questions)
        for row, (prompt, seed, _) in enumerate(drawn):
            theirs = peer_scores(peer, prompt, random_image(seed)[1], labels)
            assert (scores[row] - theirs).abs().max().item() <= MODEL * theirs.abs().max().item()
            assert best[row].label == int(scores[row].argmax())
            assert best[row].score == pytest.approx(scores[row].max().item(), rel=MODEL)

    check()
