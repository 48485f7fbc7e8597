"""The prefix tree against the plain way: every sample run whole, by our own model and by transformers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.parity.lfm2_peer import IMAGE_TOKEN, build_pair, peer_pixels, random_image
from tests.parity.random_trees import (
    END,
    RandomBatch,
    batches,
    peer_loss,
    prompt_lists,
    questions_of,
    relaxed,
    samples_of,
)
from tests.parity.tolerances import GRADIENT, LOSS, MODEL
from vlmtune.inference.batch import Request
from vlmtune.inference.generation import generate
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.text.trie import LabelTrie
from vlmtune.train.step import Answer, Sample, plan_step, run

pytestmark = pytest.mark.parity


@functools.cache
def pair() -> tuple[Any, Lfm2Vl]:
    return build_pair()


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("max_answers", [1, 3])
def test_loss_and_gradients_equal_running_every_sample_whole(max_answers: int) -> None:
    peer, ours = pair()

    @relaxed
    @given(batches(max_answers))
    def check(batch: RandomBatch) -> None:
        prefix, drawn = batch
        theirs = peer_loss(peer, prefix, drawn)
        theirs.backward()
        samples, features = samples_of(ours, drawn)
        plan = plan_step(ours, prefix, samples)
        loss = run(ours, plan, features)
        loss.backward()
        assert loss.item() == pytest.approx(theirs.item(), rel=LOSS)
        assert plan.weight == pytest.approx(sum(a.weight * len(a.ids) for _, _, answers in drawn for a in answers))
        expected = gradients(peer)
        floor = 1e-6 * max(grad.abs().max().item() for grad in expected.values())
        for name, grad in gradients(ours).items():
            error = (grad - expected[name]).abs().max().item()
            assert error <= max(GRADIENT * expected[name].abs().max().item(), floor), name

    check()


def test_checkpointed_activations_give_the_same_gradients() -> None:
    _, ours = pair()
    image = random_image([(4, 4)], 1)
    found = []
    for enabled in (False, True):
        ours.checkpoint_activations(enabled)
        plan = plan_step(ours, [7, 8, 9], [Sample([*[IMAGE_TOKEN] * 4, 10], 0, [Answer([20, 21, END])])])
        run(ours, plan, ours.encode_images([image])).backward()
        found.append(gradients(ours))
    ours.checkpoint_activations(False)
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


def test_loss_on_everything_equals_the_older_recipe() -> None:
    peer, ours = pair()
    prefix, image = [7, 8, 9], random_image([(4, 4)], 1)
    drawn = [
        ([*[IMAGE_TOKEN] * 4, 10, 11], image, [Answer([20, END])]),
        ([12, *[IMAGE_TOKEN] * 4], image, [Answer([21, END])]),
    ]
    theirs = torch.zeros(())
    for ids, own, answers in drawn:
        whole = prefix + ids + answers[0].ids
        logits = peer(input_ids=torch.tensor([whole]), **peer_pixels([own])).logits[0]
        theirs = theirs + F.cross_entropy(logits[:-1], torch.tensor(whole[1:]), reduction="sum")
    samples, features = samples_of(ours, drawn)
    plan = plan_step(ours, prefix, samples, "all")
    assert run(ours, plan, features).item() == pytest.approx(theirs.item(), rel=LOSS)
    assert plan.weight == sum(len(prefix) + len(ids) + 1 for ids, _, _ in drawn)


def test_loss_on_everything_sums_samples_despite_sharing() -> None:
    """Nothing of a learned prompt is shared but the prefix, whose tokens are every sample's targets."""
    _, ours = pair()

    @relaxed
    @given(batches(3))
    def check(batch: RandomBatch) -> None:
        prefix, drawn = batch
        with torch.no_grad():
            samples, features = samples_of(ours, drawn)
            together = plan_step(ours, prefix, samples, "all")
            alone = [plan_step(ours, [], [Sample(prefix + s.ids, s.image, s.answers)], "all") for s in samples]
            losses = [run(ours, plan, features).item() for plan in alone]
            loss = run(ours, together, features).item()
        assert loss == pytest.approx(sum(losses), rel=LOSS)
        assert together.weight == pytest.approx(sum(plan.weight for plan in alone))

    check()


@st.composite
def label_sets(draw: st.DrawFn) -> list[list[list[int]]]:
    """Labels that share first tokens, that prefix one another, of one token, and some with two surface forms."""
    sequence = st.lists(st.integers(6, 9), min_size=1, max_size=3)
    forms = draw(st.lists(sequence, min_size=2, max_size=10, unique_by=tuple))
    labels = [[[*form, END]] for form in forms]
    if draw(st.booleans()) and len(labels) > 2:
        labels[0] += labels.pop()
    return labels


@torch.no_grad()
def peer_scores(peer: Any, prompt: list[int], image: ProcessedImage, labels: list[list[list[int]]]) -> Tensor:
    scores = []
    for forms in labels:
        by_form = []
        for form in forms:
            whole = torch.tensor([prompt + form])
            log_probs = peer(input_ids=whole, **peer_pixels([image])).logits[0].log_softmax(-1)
            by_form.append(log_probs[len(prompt) - 1 : -1].gather(1, torch.tensor(form)[:, None]).sum())
        scores.append(torch.stack(by_form).logsumexp(0))
    return torch.stack(scores)


@relaxed
@given(label_sets(), prompt_lists(3), st.lists(st.integers(6, 96), max_size=4))
def test_label_scores_and_best_equal_scoring_each_alone(
    labels: list[list[list[int]]], drawn: list[tuple[list[int], ProcessedImage]], prefix: list[int]
) -> None:
    peer, ours = pair()
    scorer = LabelScorer(ours, prefix, LabelTrie.build(labels))
    questions = questions_of(ours, drawn)
    scores, best = scorer.score(questions), scorer.best(questions)
    for row, (ids, image) in enumerate(drawn):
        theirs = peer_scores(peer, prefix + ids, image, labels)
        assert (scores[row] - theirs).abs().max().item() <= MODEL * theirs.abs().max().item()
        assert best[row].label == int(scores[row].argmax())
        assert best[row].score == pytest.approx(scores[row].max().item(), rel=MODEL)


def test_end_token_separates_a_label_from_its_prefix() -> None:
    _, ours = pair()
    bee, beetle = [10, END], [10, 11, END]
    scorer = LabelScorer(ours, [7], LabelTrie.build([[bee], [beetle]]))
    question = Request([8, 9], [])
    scores = scorer.score([question])[0]
    with torch.no_grad():
        from vlmtune.models.tree import Level

        hidden = ours.decode(ours.embed_tokens(torch.tensor([7, 8, 9, 10])), [Level.chains([4])]).hidden
        after_bee = ours.logits(hidden).log_softmax(-1)[0]
    assert (scores[0] - scores[1]).item() < (after_bee[END] - after_bee[11]).item() + 50  # both are finite
    assert scores[0].isfinite() and scores[1].isfinite() and scores[0] != scores[1]


def test_batched_generation_equals_one_at_a_time_and_transformers() -> None:
    peer, ours = pair()
    prefix = [7, 8, 9]
    drawn = [
        ([*[IMAGE_TOKEN] * 4, 10], random_image([(4, 4)], 5)),
        ([11, *[IMAGE_TOKEN] * 6, 12, 13], random_image([(4, 6)], 6)),
    ]
    drawn.append(([*drawn[0][0][:4], 14, 15], drawn[0][1]))  # another question about the first image
    scorer = LabelScorer(ours, prefix, LabelTrie.build([[[6, END]]]))
    questions = questions_of(ours, drawn)
    together = generate(ours, scorer.prefix_cache(), questions, stop=[])
    for (ids, image), answer in zip(drawn, together, strict=True):
        whole = torch.tensor([prefix + ids])
        theirs = peer.generate(whole, max_new_tokens=32, do_sample=False, eos_token_id=None, **peer_pixels([image]))
        assert answer == theirs[0, whole.shape[1] :].tolist()


def test_questions_about_one_image_share_its_tokens() -> None:
    _, ours = pair()
    samples = [Sample([*[IMAGE_TOKEN] * 4, 10 + n, 20], 0, [Answer([30, END])]) for n in range(3)]
    assert plan_step(ours, [7, 8], samples).num_tokens == 2 + 4 + 3 * 3
    apart = [Sample(sample.ids, image, sample.answers) for image, sample in enumerate(samples)]
    assert plan_step(ours, [7, 8], apart).num_tokens == 2 + 3 * (4 + 3)
