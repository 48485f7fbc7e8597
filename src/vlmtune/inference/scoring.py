"""The closed-set scorer: the exact log-probability of every label, or the exact best label with less work.

A label's score is the sum of its tokens' log-probabilities, end token included, given picture and prompt. The labels
form a trie; its inner nodes hang on each picture's state as one small tree. Validation inside training, evaluation,
prediction and serving all come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmtune.inference.prompts import Question, prompt_levels, run_prefix
from vlmtune.inference.readout import token_log_probs
from vlmtune.models.interface import VisionLanguageModel
from vlmtune.models.tree import Rows, State
from vlmtune.text.trie import LabelTrie

# Rows that one wave of the best-first search may hold: below this a decoder call costs little more than reading the
# weights once, so expanding several likely nodes a picture is nearly free.
_WAVE_ROWS = 64


@dataclass
class BestLabel:
    """The winner of the search, its score, and how many trie rows the decoder ran to prove it."""

    label: int
    score: float
    num_rows: int


class LabelScorer:
    """Scores a closed set of labels for pictures that share a prompt.

    The prompt's shared prefix is run once, when the first picture comes, and kept. Make a new scorer after the
    model's weights have changed.

    Args:
        model: in evaluation mode.
        prefix: tokens that every prompt begins with; may be empty.
        trie: the labels' token sequences, end token included.
    """

    def __init__(self, model: VisionLanguageModel, prefix: Sequence[int], trie: LabelTrie) -> None:
        self.model = model
        self.prefix = list(prefix)
        self.trie = trie
        self._prefix_state: State | None = None
        self._edges = _Edges(trie)

    def prefix_state(self) -> State | None:
        """The decoder's state after the shared prefix; None if there is none."""
        if self._prefix_state is None:
            self._prefix_state = run_prefix(self.model, self.prefix)
        return self._prefix_state

    def score(self, questions: Sequence[Question]) -> Tensor:
        """Every label's score: float32[B, L], the surface forms of a label summed in probability."""
        return self.label_scores(self.score_forms(questions))

    def label_scores(self, form_scores: Tensor) -> Tensor:
        """float64[B, F] of `score_forms` -> float32[B, L]."""
        return torch.from_numpy(self._edges.combine_forms(form_scores.numpy())).float()

    @torch.inference_mode()
    def score_forms(self, questions: Sequence[Question]) -> Tensor:
        """Every surface form's score: float64[B, F], in the order of `LabelTrie.forms`."""
        edges, num_inner = self._edges, len(self._edges.inner)
        levels, prompts = prompt_levels(self.model, questions)
        before = [edges.before] * len(questions)
        if num_inner:
            levels.append(Rows.tree(before, parent=range(len(questions))))
        tokens = torch.tensor(edges.inner_tokens * len(questions), dtype=torch.int64, device=self.model.device)
        embeddings = torch.cat([prompts, self.model.embed(tokens, [])])
        hidden = self.model.decode(embeddings, levels, self.prefix_state()).hidden

        # Packed order: every picture's last prompt row, then every picture's inner nodes. Node -1 is the root.
        B = len(questions)
        picture = torch.arange(B)[:, None]
        parent_row = torch.tensor(edges.parent_row)[None, :]
        rows = torch.where(parent_row < 0, picture, B + picture * num_inner + parent_row)
        order = rows.flatten().argsort(stable=True)
        edge_tokens = torch.tensor(edges.tokens)[None, :].expand(B, -1)
        log_probs = token_log_probs(
            self.model,
            hidden,
            rows.flatten()[order].to(hidden.device),
            edge_tokens.flatten()[order].to(hidden.device),
        )
        by_edge = torch.empty(B * len(edges.tokens))
        by_edge[order] = log_probs.cpu()
        return edges.form_scores(by_edge.view(B, -1))

    @torch.inference_mode()
    def best(self, questions: Sequence[Question]) -> list[BestLabel]:
        """The exact arg-max of `score`, by best-first search.

        A label's score only falls as tokens are added, so a finished label that beats every open one's score so far
        has won. Each wave expands the most promising open nodes of all pictures that are not decided.
        """
        levels, prompts = prompt_levels(self.model, questions)
        decoded = self.model.decode(prompts, levels, self.prefix_state(), want_state=True)
        assert decoded.state is not None
        search = _Search(self._edges, len(questions))
        pictures = np.arange(len(questions))
        search.expand(pictures, np.full(len(questions), -1), self._children(decoded.hidden, [-1] * len(questions)))
        state, in_state = decoded.state, pictures
        num_rows = np.zeros(len(questions), dtype=np.int64)
        while len(active := search.undecided()):
            if len(active) <= len(in_state) // 2:
                state = state.select(torch.from_numpy(np.searchsorted(in_state, active)))
                in_state = active
            # In node order, which is the order of the rows.
            wanted = [sorted(search.most_promising(b, max(1, _WAVE_ROWS // len(active)))) for b in active]
            paths = [self._edges.paths(nodes) for nodes in wanted]
            parent = np.searchsorted(in_state, active).tolist()
            before = [path_before for _, path_before, _ in paths]
            width = max(len(rows) for rows in before)
            read = torch.zeros(len(active), width, dtype=torch.bool)
            for group, (_, _, ends) in enumerate(paths):
                read[group, ends] = True
            tokens = torch.tensor([self._edges.tokens[n] for nodes, _, _ in paths for n in nodes])
            hidden = self.model.decode(
                self.model.embed(tokens.to(self.model.device), []), [Rows.tree(before, parent=parent, read=read)], state
            ).hidden
            num_rows[active] += [len(rows) for rows in before]
            flat = [node for nodes in wanted for node in nodes]
            owners = np.repeat(active, [len(nodes) for nodes in wanted])
            search.expand(owners, np.array(flat), self._children(hidden, flat))
        return [
            BestLabel(label, score, int(rows)) for (label, score), rows in zip(search.winners(), num_rows, strict=True)
        ]

    def _children(self, hidden: Tensor, nodes: Sequence[int]) -> list[np.ndarray]:
        """For row i, expanded as trie node ``nodes[i]``: the float32 log-probabilities of the node's children."""
        children = [self.trie.children[node] for node in nodes]
        rows = torch.tensor([i for i, edges in enumerate(children) for _ in edges])
        tokens = torch.tensor([self._edges.tokens[edge] for edges in children for edge in edges])
        log_probs = token_log_probs(self.model, hidden, rows.to(hidden.device), tokens.to(hidden.device))
        return np.split(log_probs.cpu().numpy(), np.cumsum([len(edges) for edges in children])[:-1])


class _Edges:
    """The trie as flat arrays. Node i is also the edge that leads to it; -1 is the root.

    Inner nodes, which have children, are the only ones the decoder runs: an end token predicts nothing.
    """

    def __init__(self, trie: LabelTrie) -> None:
        self.trie = trie
        self.tokens = trie.token
        self.inner = sorted(node for node in trie.children if node >= 0)
        place = {node: row for row, node in enumerate(self.inner)} | {-1: -1}
        self.inner_tokens = [self.tokens[node] for node in self.inner]
        self.before = [place[trie.parent[node]] for node in self.inner]
        self.parent_row = [place[parent] for parent in trie.parent]

        leaves = sorted(trie.leaf.items())
        self.form_label, self.form_length = np.array(trie.forms).T
        form_paths = [trie.path(node) for node, _ in leaves]
        depth = int(self.form_length.max())
        self.form_path = np.array([path + [-1] * (depth - len(path)) for path in form_paths])
        self.forms_through = [np.flatnonzero((self.form_path == node).any(axis=1)) for node in range(len(self.tokens))]
        # Labels by their forms, padded with a form that does not exist (index F), whose score is -inf.
        by_label = [np.flatnonzero(self.form_label == label) for label in range(trie.num_labels)]
        most = max(len(forms) for forms in by_label)
        self.label_forms = np.array(
            [list(forms) + [len(leaves)] * (most - len(forms)) for forms in by_label], dtype=np.int64
        )

    def paths(self, nodes: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """The rows that reach all of ``nodes``: (trie node of each row, row before each row or -1, rows of nodes)."""
        rows = sorted({step for node in nodes for step in self.trie.path(node)})  # parents have smaller numbers
        place = {node: row for row, node in enumerate(rows)} | {-1: -1}
        return rows, [place[self.trie.parent[node]] for node in rows], [place[node] for node in nodes]

    def combine_forms(self, form_scores: np.ndarray) -> np.ndarray:
        """float64[..., F] -> float64[..., L]: the log of the summed probabilities of each label's forms."""
        padded = np.concatenate([form_scores, np.full((*form_scores.shape[:-1], 1), -np.inf)], axis=-1)
        by_label = padded[..., self.label_forms]
        if by_label.shape[-1] == 1:
            return by_label[..., 0]
        combined: np.ndarray = np.logaddexp.reduce(by_label, axis=-1)
        return combined

    def form_scores(self, by_edge: Tensor) -> Tensor:
        """float32[B, N] log-probabilities of the edges -> float64[B, F] scores of the surface forms."""
        padded = torch.cat([by_edge.double(), torch.zeros(len(by_edge), 1, dtype=torch.float64)], dim=1)
        return padded[:, torch.from_numpy(self.form_path)].sum(-1)  # -1 picks the zero


class _Search:
    """Best-first search over the trie, for B pictures at once.

    A form's bound is the score of the deepest node on its path that has been reached: an upper bound on its score,
    exact once the form is finished. A label's bound sums those of its forms.
    """

    def __init__(self, edges: _Edges, num_pictures: int) -> None:
        self.edges = edges
        self.bound = np.zeros((num_pictures, len(edges.form_label)))
        self.reached = np.zeros((num_pictures, len(edges.form_label)), dtype=np.int64)

    def expand(self, pictures: np.ndarray, nodes: np.ndarray, log_probs: Sequence[np.ndarray]) -> None:
        """Record the log-probabilities of the children of ``nodes[i]`` for picture ``pictures[i]``."""
        for picture, node, children in zip(pictures, nodes, log_probs, strict=True):
            for child, log_prob in zip(self.edges.trie.children[int(node)], children, strict=True):
                forms = self.edges.forms_through[child]
                self.bound[picture, forms] += float(log_prob)
                self.reached[picture, forms] += 1

    def _is_open(self) -> np.ndarray:
        """bool[B, L]: labels with an unfinished form."""
        is_open = np.concatenate(
            [self.reached < self.edges.form_length, np.zeros((len(self.reached), 1), dtype=bool)], axis=1
        )
        return np.asarray(is_open[:, self.edges.label_forms].any(-1))

    def undecided(self) -> np.ndarray:
        """int64[A]: pictures whose best label is not finished yet."""
        best = self.edges.combine_forms(self.bound).argmax(1)
        return np.flatnonzero(self._is_open()[np.arange(len(best)), best])

    def most_promising(self, picture: int, count: int) -> list[int]:
        """About ``count`` open nodes of the labels that could still win, best first."""
        label_bound = self.edges.combine_forms(self.bound[picture])
        is_open = self._is_open()[picture]
        finished = label_bound[~is_open].max(initial=-np.inf)
        nodes: list[int] = []
        is_likeliest = True
        for label in np.argsort(-label_bound, kind="stable"):
            if label_bound[label] < finished or len(nodes) >= count:
                break
            for form in self.edges.label_forms[label]:
                if form == len(self.edges.form_label):
                    continue
                first = self.reached[picture, form] - 1
                # Of the likeliest label the whole rest at once: where the model is sure, one wave finishes it. Of the
                # others one node, for they will mostly be ruled out by it.
                last = self.edges.form_length[form] - 1  # the end token's node has no children: it is never run
                last = last if is_likeliest else min(last, first + 1)
                nodes += [int(node) for node in self.edges.form_path[form, first:last] if node not in nodes]
            is_likeliest = False
        return nodes

    def winners(self) -> list[tuple[int, float]]:
        """(label, score) for each picture."""
        bound = self.edges.combine_forms(self.bound)
        best = bound.argmax(1)
        return [(int(label), float(bound[b, label])) for b, label in enumerate(best)]
