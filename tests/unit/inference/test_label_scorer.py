"""The closed-set scorer where it is awkward: ties, impossible labels, numbers that are none, large label sets."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tiny_model import random_model
from vlmtune.errors import WeightsError
from vlmtune.inference import label_scorer as scoring
from vlmtune.inference.batch import Request
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.models.tree import Level
from vlmtune.text.trie import LabelTrie

pytestmark = pytest.mark.unit

END = 3
MODEL = random_model()
QUESTIONS = [Request([8, 9], []), Request([8, 9, 10], []), Request([11], [])]


def two_token_labels(count: int) -> list[list[list[int]]]:
    return [[[6 + number // 40, 20 + number % 40, END]] for number in range(count)]


label_sets = st.lists(
    st.lists(st.integers(6, 9), min_size=1, max_size=4), min_size=1, max_size=12, unique_by=tuple
).map(lambda forms: [[[*form, END]] for form in forms])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(label_sets, st.sets(st.sampled_from([END, 6, 7, 8]), max_size=3), st.booleans())
def test_the_search_is_exact_under_ties_and_impossible_tokens(
    labels: list[list[list[int]]], impossible: set[int], two_forms: bool
) -> None:
    if two_forms and len(labels) > 1:
        labels = [labels[0] + labels[1], *labels[2:]]
    logits = type(MODEL).logits

    def rough(hidden: Tensor) -> Tensor:
        """Few distinct values, so that labels tie; some tokens cannot come."""
        found = (logits(MODEL, hidden) / 8).round() * 4
        return found.index_fill_(1, torch.tensor(sorted(impossible), dtype=torch.int64), float("-inf"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODEL, "logits", rough)
        scorer = LabelScorer(MODEL, [7], LabelTrie.build(labels))
        scores, best = scorer.score(QUESTIONS), scorer.best(QUESTIONS)
    for row, winner in zip(scores, best, strict=True):
        assert winner.score == pytest.approx(row.max().item(), rel=1e-5)
        assert row[winner.label].item() == pytest.approx(row.max().item(), rel=1e-5)


def test_scores_that_are_not_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = MODEL.logits
    monkeypatch.setattr(MODEL, "logits", lambda hidden: logits(hidden).index_fill_(1, torch.tensor([9]), float("nan")))
    scorer = LabelScorer(MODEL, [7], LabelTrie.build(two_token_labels(5)))
    for ask in (scorer.score, scorer.best):
        with pytest.raises(WeightsError, match="not numbers"):
            ask(QUESTIONS)


def test_a_split_trie_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = two_token_labels(1200)
    whole = LabelScorer(MODEL, [7], LabelTrie.build(labels))
    segments = whole.trie.inner_segments(512)
    assert [len(nodes) for nodes in segments] == [492, 492, 246]  # 12 first tokens, 40 behind each, …
    widths: list[int] = []
    decode = MODEL.decode

    def watched(embeddings: Tensor, levels: Sequence[Level], *rest: object, **options: object) -> object:
        widths.append(max(rows.width for rows in levels))
        return decode(embeddings, levels, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MODEL, "decode", watched)
    by_groups = whole.score(QUESTIONS[:2])
    assert max(widths) == 492
    monkeypatch.setattr(scoring, "_SEGMENT_TOKENS", 10**6)
    at_once = LabelScorer(MODEL, [7], LabelTrie.build(labels))
    torch.testing.assert_close(by_groups, at_once.score(QUESTIONS[:2]), rtol=1e-5, atol=1e-4)
    assert max(widths) == 1230
    num_calls = len(widths)
    best = whole.best(QUESTIONS[:2])
    assert [winner.label for winner in best] == by_groups.argmax(1).tolist()
    # A random model is sure of nothing, and most of 1,230 nodes must be looked at: in waves that double.
    assert len(widths) - num_calls < 10


def test_one_token_labels_need_no_trie_token() -> None:
    scorer = LabelScorer(MODEL, [], LabelTrie.build([[[END]]]))
    (winner, *_), scores = scorer.best(QUESTIONS), scorer.score(QUESTIONS)
    assert winner.label == 0 and winner.num_tokens == 0
    assert winner.score == pytest.approx(scores[0, 0].item())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.integers(6, 8), min_size=1, max_size=5), min_size=1, max_size=5))
def test_questions_without_images_share_their_beginning(prompts: list[list[int]]) -> None:
    scorer = LabelScorer(MODEL, [7], LabelTrie.build(two_token_labels(3)))
    questions = [Request(ids, []) for ids in prompts]
    alone = torch.cat([scorer.score([question]) for question in questions])
    torch.testing.assert_close(scorer.score(questions), alone, rtol=1e-5, atol=1e-4)
