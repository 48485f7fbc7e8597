"""The label trie holds every form exactly once and shares what can be shared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmtune.text.trie import LabelTrie

pytestmark = pytest.mark.unit

END = 99
bodies = st.lists(st.integers(0, 3), max_size=5).map(lambda tokens: (*tokens, END))
label_sets = st.lists(bodies, min_size=1, max_size=12, unique=True).flatmap(
    lambda forms: st.lists(st.integers(0, 3), min_size=len(forms), max_size=len(forms)).map(
        lambda owners: [
            [list(form) for form, owner in zip(forms, owners, strict=True) if owner == label]
            for label in sorted(set(owners))
        ]
    )
)


@given(label_sets)
def test_the_leaves_spell_exactly_the_forms(sequences: list[list[list[int]]]) -> None:
    trie = LabelTrie.build(sequences)
    spelled = {place: [trie.token[n] for n in trie.path(node)] for node, place in trie.leaf.items()}
    expected = {(i, j): form for i, forms in enumerate(sequences) for j, form in enumerate(forms)}
    assert spelled == expected
    assert trie.num_labels == len(sequences)


@given(label_sets)
def test_one_node_for_every_distinct_prefix(sequences: list[list[list[int]]]) -> None:
    trie = LabelTrie.build(sequences)
    prefixes = {tuple(form[: i + 1]) for forms in sequences for form in forms for i in range(len(form))}
    assert len(trie) == len(prefixes)
    assert {tuple(trie.token[n] for n in trie.path(node)) for node in range(len(trie))} == prefixes


@given(label_sets)
def test_parents_come_first_and_children_agree_with_them(sequences: list[list[list[int]]]) -> None:
    trie = LabelTrie.build(sequences)
    for node, before in enumerate(trie.parent):
        assert before < node
        assert node in trie.children[before]
        assert trie.depth[node] == (0 if before < 0 else trie.depth[before] + 1)
    assert sum(map(len, trie.children.values())) == len(trie)
    assert set(trie.leaf) == set(range(len(trie))) - set(trie.children)


def test_a_label_that_begins_another_ends_in_its_own_leaf() -> None:
    trie = LabelTrie.build([[[5, END]], [[5, 7, END]]])  # bee, beetle
    assert trie.token == (5, END, 7, END)
    assert trie.parent == (-1, 0, 0, 2)
    assert trie.leaf == {1: (0, 0), 3: (1, 0)}


def test_equal_forms_of_one_label_count_once() -> None:
    assert LabelTrie.build([[[1, END], [1, END], [2, END]]]).leaf == {1: (0, 0), 3: (0, 2)}


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([[[1, END]], [[2, END], [1, END]]], "labels 0 and 1 have the same tokens"),
        ([[[1]], [[1, 2]]], "form 0 of label 0 is the beginning of another form"),
        ([[[1, 2]], [[1]]], "form 0 of label 1 is the beginning of another form"),
        ([[[1]], []], "label 1 has no surface form"),
        ([[[]]], "form 0 of label 0 has no tokens"),
    ],
)
def test_sequences_that_cannot_be_told_apart_are_refused(sequences: list[list[list[int]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelTrie.build(sequences)
