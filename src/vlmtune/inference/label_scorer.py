"""The closed-set scorer: the exact log-probability of every label, or the exact best label with less work.

A label's score is the sum of its tokens' log-probabilities, end token included, given image and prompt. The labels
form a trie; its inner nodes hang on each image's cache as one small tree. Validation inside training, evaluation,
prediction and serving all come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmtune.inference.batch import Question, prompt_levels, run_prefix
from vlmtune.inference.token_log_probs import refuse_nan, token_log_probs
from vlmtune.models.cache import Cache
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.text.trie import LabelTrie

# Nodes that the first wave of the best-first search expands: below this a decoder call costs little more than reading
# the weights once, so expanding several likely nodes an image is nearly free. Every later wave expands twice as many:
# where the model is unsure, a few calls that share their rows rule out what many small ones would.
_FIRST_WAVE = 64
_LARGEST_WAVE = 4096
# Tokens of one segment of trie nodes, about. Its mask and attention grow with the square of its tokens, and each
# segment takes the image's keys and values once more: a trie of a thousand labels is cheaper as several segments.
_FOREST_ROWS = 512


@dataclass
class BestLabel:
    """The winner of the search, its score, and how many trie rows the decoder ran to prove it."""

    label: int
    score: float
    num_rows: int


class LabelScorer:
    """Scores a closed set of labels for images that share a prompt.

    The prompt's shared prefix is run once, when the first image comes, and kept. Make a new scorer after the
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
        self._prefix_cache: Cache | None = None
        self._edges = _Edges(trie)

    def prefix_cache(self) -> Cache | None:
        """The decoder's cache after the shared prefix; None if there is none."""
        if self._prefix_cache is None:
            self._prefix_cache = run_prefix(self.model, self.prefix)
        return self._prefix_cache

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
        B = len(questions)
        levels, prompts = prompt_levels(self.model, questions)
        if num_inner:
            parent = np.repeat(np.arange(B), len(edges.forests)).tolist()
            levels.append(Level.tree(edges.forests * B, parent=parent))
        tokens = torch.tensor(edges.inner_tokens * B, dtype=torch.int64, device=self.model.device)
        embeddings = torch.cat([prompts, self.model.embed(tokens, [])])
        hidden = self.model.decode(embeddings, levels, self.prefix_cache()).hidden

        # Packed order: every image's last prompt row, then every image's inner nodes. Node -1 is the root.
        image = torch.arange(B)[:, None]
        parent_row = torch.tensor(edges.parent_row)[None, :]
        rows = torch.where(parent_row < 0, image, B + image * num_inner + parent_row)
        log_probs = self._log_probs(hidden, rows.flatten(), torch.tensor(edges.tokens).repeat(B))
        return edges.form_scores(log_probs.view(B, -1))

    @torch.inference_mode()
    def best(self, questions: Sequence[Question]) -> list[BestLabel]:
        """The exact arg-max of `score`, by best-first search.

        A label's score only falls as tokens are added, so a finished label that beats every open one's score so far
        has won. Each wave, twice as large as the last, expands the most promising open nodes of all images that are
        not decided.
        """
        levels, prompts = prompt_levels(self.model, questions)
        decoded = self.model.decode(prompts, levels, self.prefix_cache(), want_cache=True)
        assert decoded.cache is not None
        search = _Search(self._edges, len(questions))
        images = np.arange(len(questions))
        search.expand(images, np.full(len(questions), -1), self._children(decoded.hidden, [-1] * len(questions)))
        cache, in_cache = decoded.cache, images
        num_rows = np.zeros(len(questions), dtype=np.int64)
        wave = _FIRST_WAVE
        while len(active := search.undecided()):
            if len(active) <= len(in_cache) // 2:
                cache = cache.select(torch.from_numpy(np.searchsorted(in_cache, active)))
                in_cache = active
            # In node order, which is the order of the rows.
            wanted = [sorted(search.most_promising(b, max(1, wave // len(active)))) for b in active]
            wave = min(2 * wave, _LARGEST_WAVE)
            paths = [self._edges.paths(nodes) for nodes in wanted]
            parent = np.searchsorted(in_cache, active).tolist()
            before = [path_before for _, path_before, _ in paths]
            width = max(len(rows) for rows in before)
            read = torch.zeros(len(active), width, dtype=torch.bool)
            for segment, (_, _, ends) in enumerate(paths):
                read[segment, ends] = True
            tokens = torch.tensor([self._edges.tokens[n] for nodes, _, _ in paths for n in nodes])
            hidden = self.model.decode(
                self.model.embed(tokens.to(self.model.device), []),
                [Level.tree(before, parent=parent, read=read)],
                cache,
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
        log_probs = self._log_probs(hidden, rows, tokens)
        return np.split(log_probs.numpy(), np.cumsum([len(edges) for edges in children])[:-1])

    def _log_probs(self, hidden: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        """`token_log_probs`, on the CPU. Raises WeightsError where they are not numbers."""
        log_probs = token_log_probs(self.model, hidden, rows.to(hidden.device), tokens.to(hidden.device)).cpu()
        refuse_nan(log_probs)
        return log_probs


class _Edges:
    """The trie as flat arrays. Node i is also the edge that leads to it; -1 is the root.

    Inner nodes, which have children, are the only ones the decoder runs: an end token predicts nothing.

    Attributes:
        inner: the inner nodes in the order of their rows: forest by forest.
        forests: segments as `Level.tree` takes them: for each token of a forest, the token before it in that forest.
        parent_row: for each node, its parent's row; -1 for the root.
    """

    def __init__(self, trie: LabelTrie) -> None:
        self.trie = trie
        self.tokens = trie.token
        forests = _forests(trie)
        self.inner = [node for forest in forests for node in forest]
        self.forests = [_rows_before(trie, forest) for forest in forests]
        place = {node: row for row, node in enumerate(self.inner)} | {-1: -1}
        self.inner_tokens = [self.tokens[node] for node in self.inner]
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
        place = {node: row for row, node in enumerate(rows)}
        return rows, _rows_before(self.trie, rows), [place[node] for node in nodes]

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


def _forests(trie: LabelTrie) -> list[list[int]]:
    """The inner nodes, parents before children, in forests of about `_FOREST_ROWS` that share no first token."""
    first: list[int] = []
    trees: dict[int, list[int]] = {}
    for node, parent in enumerate(trie.parent):
        first.append(node if parent < 0 else first[parent])
        if node in trie.children:
            trees.setdefault(first[node], []).append(node)
    forests: list[list[int]] = []
    for tree in trees.values():
        if forests and len(forests[-1]) + len(tree) <= _FOREST_ROWS:
            forests[-1] += tree
        else:
            forests.append(tree)
    return forests


def _rows_before(trie: LabelTrie, nodes: Sequence[int]) -> list[int]:
    """For each of ``nodes``, which hold their own ancestors: where among them its parent is; -1 for the root."""
    place = {node: row for row, node in enumerate(nodes)} | {-1: -1}
    return [place[trie.parent[node]] for node in nodes]


class _Search:
    """Best-first search over the trie, for B images at once.

    A form's bound is the score of the deepest node on its path that has been reached: an upper bound on its score,
    exact once the form is finished. A label's bound sums those of its forms.
    """

    def __init__(self, edges: _Edges, num_images: int) -> None:
        self.edges = edges
        self.bound = np.zeros((num_images, len(edges.form_label)))
        self.reached = np.zeros((num_images, len(edges.form_label)), dtype=np.int64)

    def expand(self, images: np.ndarray, nodes: np.ndarray, log_probs: Sequence[np.ndarray]) -> None:
        """Record the log-probabilities of the children of ``nodes[i]`` for image ``images[i]``."""
        for image, node, children in zip(images, nodes, log_probs, strict=True):
            for child, log_prob in zip(self.edges.trie.children[int(node)], children, strict=True):
                forms = self.edges.forms_through[child]
                self.bound[image, forms] += float(log_prob)
                self.reached[image, forms] += 1

    def _is_open(self, images: slice | int = slice(None)) -> np.ndarray:
        """bool[B, L], or bool[L] of one image: labels with an unfinished form."""
        is_open = self.reached[images] < self.edges.form_length
        padded = np.concatenate([is_open, np.zeros((*is_open.shape[:-1], 1), dtype=bool)], axis=-1)
        return np.asarray(padded[..., self.edges.label_forms].any(-1))

    def undecided(self) -> np.ndarray:
        """int64[A]: images whose best label is not finished yet."""
        best = self.edges.combine_forms(self.bound).argmax(1)
        return np.flatnonzero(self._is_open()[np.arange(len(best)), best])

    def most_promising(self, image: int, count: int) -> list[int]:
        """About ``count`` open nodes of the labels that could still win, best first."""
        label_bound = self.edges.combine_forms(self.bound[image])
        is_open = self._is_open(image)
        finished = label_bound[~is_open].max(initial=-np.inf)
        nodes: list[int] = []
        is_likeliest = True
        for label in np.argsort(-label_bound, kind="stable"):
            if label_bound[label] < finished or len(nodes) >= count:
                break
            for form in self.edges.label_forms[label]:
                if form == len(self.edges.form_label):
                    continue
                first = self.reached[image, form] - 1
                # Of the likeliest label the whole rest at once: where the model is sure, one wave finishes it. Of the
                # others one node, for they will mostly be ruled out by it.
                last = self.edges.form_length[form] - 1  # the end token's node has no children: it is never run
                last = last if is_likeliest else min(last, first + 1)
                nodes += [int(node) for node in self.edges.form_path[form, first:last] if node not in nodes]
            is_likeliest = False
        return nodes

    def winners(self) -> list[tuple[int, float]]:
        """(label, score) for each image."""
        bound = self.edges.combine_forms(self.bound)
        best = bound.argmax(1)
        return [(int(label), float(bound[b, label])) for b, label in enumerate(best)]
