"""The labels' token sequences as a trie in flat arrays: shared beginnings are stored, and later computed, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LabelTrie:
    """Nodes in an order in which parents come before children; the root, before any token, is -1.

    Attributes:
        token: the token that leads to each node.
        parent: the node before each node, or -1.
        depth: tokens from the root to each node, itself included; at least 1.
        leaf: node -> (label, surface form) of the sequence that ends there.
    """

    token: tuple[int, ...]
    parent: tuple[int, ...]
    depth: tuple[int, ...]
    leaf: dict[int, tuple[int, int]]

    @classmethod
    def build(cls, labels: Sequence[Sequence[Sequence[int]]]) -> LabelTrie:
        """A trie of ``labels[i][j]``, the tokens of surface form j of label i, end token included.

        Raises:
            ValueError: for an empty sequence, for a sequence that two forms share, and for one that another
                continues (every sequence must end in a token that nothing follows: the end token).
        """
        token: list[int] = []
        parent: list[int] = []
        depth: list[int] = []
        leaf: dict[int, tuple[int, int]] = {}
        found: dict[tuple[int, int], int] = {}
        for label, forms in enumerate(labels):
            for form, sequence in enumerate(forms):
                if not sequence:
                    raise ValueError(f"label {label}, form {form} has no tokens")
                node = -1
                for step in sequence:
                    if node in leaf:
                        raise ValueError(f"label {label}, form {form} continues another label's end")
                    key = (node, step)
                    if key not in found:
                        found[key] = len(token)
                        depth.append(1 if node < 0 else depth[node] + 1)
                        token.append(step)
                        parent.append(node)
                    node = found[key]
                if node in leaf or node in parent:
                    raise ValueError(f"label {label}, form {form} has the same tokens as, or begins, another label")
                leaf[node] = (label, form)
        return cls(tuple(token), tuple(parent), tuple(depth), leaf)

    def __len__(self) -> int:
        return len(self.token)
