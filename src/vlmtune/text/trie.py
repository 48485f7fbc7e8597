"""A trie over the token sequences of a closed set of labels, as flat arrays.

In: each label's surface forms as tokens, end token included. Out: the nodes that the label scorer puts under every
image's prompt, so that tokens shared by several labels are run once. No torch.

For the labels bee = [5, END] and beetle = [5, 7, END]:

    node          0    1    2    3
    token         5    END  7    END
    parent        -1   0    0    2      (-1 is the root)
    leaf of            bee       beetle

Nodes 0 and 2 are inner: the decoder runs them to predict their children. A leaf's token is END, after which nothing is
predicted, so leaves are never run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LabelTrie:
    """A trie of N nodes; a node's parent always has a smaller number. The root, -1, is not a node.

    Attributes:
        token: the token of each node.
        parent: the node before it, -1 at the root.
        depth: 0 for a first token.
        leaf: node -> (label, form) for the nodes that end a sequence; exactly the nodes without children.
    """

    token: tuple[int, ...]
    parent: tuple[int, ...]
    depth: tuple[int, ...]
    leaf: dict[int, tuple[int, int]]

    @classmethod
    def build(cls, sequences: Sequence[Sequence[Sequence[int]]]) -> LabelTrie:
        """Build the trie of ``sequences[label][form]``, each a non-empty list of tokens.

        Two forms of one label with the same tokens count once: their probability must not be added twice.

        Raises:
            ValueError: for a label without forms, an empty form, two labels with the same tokens, or a form that is
                a proper prefix of another (which cannot be when every form ends with the end token).
        """
        token: list[int] = []
        parent: list[int] = []
        depth: list[int] = []
        leaf: dict[int, tuple[int, int]] = {}
        child: dict[tuple[int, int], int] = {}
        inner: set[int] = set()
        for label, forms in enumerate(sequences):
            if not forms:
                raise ValueError(f"label {label} has no surface form")
            for form, tokens in enumerate(forms):
                if not tokens:
                    raise ValueError(f"form {form} of label {label} has no tokens")
                node = -1
                for step, value in enumerate(tokens):
                    inner.add(node)
                    before, node = node, child.get((node, value), len(token))
                    if node == len(token):
                        child[before, value] = node
                        token.append(value)
                        parent.append(before)
                        depth.append(step)
                other = leaf.setdefault(node, (label, form))[0]
                if other != label:
                    raise ValueError(f"labels {other} and {label} have the same tokens")
        for node in leaf.keys() & inner:
            label, form = leaf[node]
            raise ValueError(f"form {form} of label {label} is the beginning of another form: the end token is missing")
        return cls(tuple(token), tuple(parent), tuple(depth), leaf)

    def __len__(self) -> int:
        """Number of nodes."""
        return len(self.token)

    @cached_property
    def children(self) -> dict[int, tuple[int, ...]]:
        """Node -> its children in rising order; -1 holds the first tokens. Leaves have none and are left out."""
        lists: dict[int, list[int]] = {}
        for node, before in enumerate(self.parent):
            lists.setdefault(before, []).append(node)
        return {node: tuple(nodes) for node, nodes in lists.items()}

    @property
    def num_inner(self) -> int:
        """Nodes that have children."""
        return len(self.children) - 1

    @cached_property
    def forms(self) -> tuple[tuple[int, int], ...]:
        """(label, number of tokens) of each distinct surface form, in the order in which the scorer gives scores."""
        return tuple((label, self.depth[node] + 1) for node, (label, _) in sorted(self.leaf.items()))

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each distinct surface form, in the order of `forms`."""
        return tuple(tuple(self.token[node] for node in self.path(leaf)) for leaf in sorted(self.leaf))

    @property
    def num_labels(self) -> int:
        """L: labels are numbered 0 … L-1."""
        return 1 + max((label for label, _ in self.leaf.values()), default=-1)

    def path(self, node: int) -> list[int]:
        """The nodes from a first token down to ``node``, which is the last."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    @cached_property
    def form_path(self) -> Ints:
        """int64[F, longest form]: the nodes of each form, padded with -1."""
        paths = [self.path(leaf) for leaf in sorted(self.leaf)]
        longest = max(map(len, paths))
        return np.array([path + [-1] * (longest - len(path)) for path in paths], dtype=np.int64)

    @cached_property
    def forms_through(self) -> list[Ints]:
        """For each node, the forms that begin with its path."""
        return [np.flatnonzero((self.form_path == node).any(axis=1)) for node in range(len(self))]

    def with_ancestors(self, nodes: Sequence[int]) -> list[int]:
        """The nodes of the paths to ``nodes``, parents before children."""
        return sorted({step for node in nodes for step in self.path(node)})

    def parent_index(self, nodes: Sequence[int]) -> list[int]:
        """For each of ``nodes``, which include their ancestors: the index of its parent among them; -1 at the root."""
        index = {node: position for position, node in enumerate(nodes)} | {-1: -1}
        return [index[self.parent[node]] for node in nodes]

    def inner_segments(self, most: int) -> list[list[int]]:
        """The inner nodes, parents before children, in segments of about ``most`` that share no first token."""
        first: list[int] = []
        subtrees: dict[int, list[int]] = {}
        for node, parent in enumerate(self.parent):
            first.append(node if parent < 0 else first[parent])
            if node in self.children:
                subtrees.setdefault(first[node], []).append(node)
        segments: list[list[int]] = []
        for subtree in subtrees.values():
            if segments and len(segments[-1]) + len(subtree) <= most:
                segments[-1] += subtree
            else:
                segments.append(subtree)
        return segments
