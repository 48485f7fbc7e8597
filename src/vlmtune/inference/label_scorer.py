"""The closed-set scorer: the exact log-probability of every label, or the exact best label with less work.

A label's score is the sum of its tokens' log-probabilities, end token included, given image and prompt. The labels
form a trie; its inner nodes continue each image's prompt as one small tree. Validation inside training, evaluation,
prediction, serving and the export gate all come here; `posterior.py` makes probabilities of the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vlmtune.inference.batch import Request, prompt_levels, run_prefix
from vlmtune.inference.posterior import Floats, SurfaceForms, label_log_probs, label_scores
from vlmtune.inference.token_log_probs import refuse_nan, token_log_probs
from vlmtune.models.cache import Cache
from vlmtune.models.tree import Level
from vlmtune.models.vlm import VisionLanguageModel
from vlmtune.text.trie import Ints, LabelTrie

# Nodes that the first wave of the best-first search expands: below this a decoder call costs little more than reading
# the weights once, so expanding several likely nodes an image is nearly free. Every later wave expands twice as many:
# where the model is unsure, a few calls that share their work rule out what many small ones would.
_FIRST_WAVE = 64
_LARGEST_WAVE = 4096
# Approximate tokens in one segment of trie nodes. Its mask and attention grow with the square of its tokens, and each
# segment takes the image's keys and values once more: a trie of a thousand labels is cheaper as several segments.
_SEGMENT_TOKENS = 512


@dataclass(frozen=True)
class BestLabel:
    """The winner of the search.

    Attributes:
        label: its number.
        score: as `LabelScorer.score` would give it.
        num_tokens: trie tokens that the decoder ran for this image to prove it.
    """

    label: int
    score: float
    num_tokens: int


@dataclass(frozen=True)
class _Expansion:
    """What one wave of the search runs for one image.

    Attributes:
        nodes: the trie nodes to expand, rising.
        run: these nodes with all their ancestors, parents before children; each is a token of the segment.
        parent: for each token, the index of its parent among them; -1 at the end of the prompt.
        read: the indices of ``nodes`` in ``run``.
    """

    nodes: list[int]
    run: list[int]
    parent: list[int]
    read: list[int]

    @classmethod
    def of(cls, trie: LabelTrie, nodes: Sequence[int]) -> _Expansion:
        run = trie.with_ancestors(nodes)
        index = {node: position for position, node in enumerate(run)}
        return cls(sorted(nodes), run, trie.parent_index(run), [index[node] for node in sorted(nodes)])


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
        self.forms = SurfaceForms.of(trie.forms)
        self._prefix_cache: Cache | None = None
        segments = trie.inner_segments(_SEGMENT_TOKENS)
        self._inner = [node for nodes in segments for node in nodes]
        self._segments = [trie.parent_index(nodes) for nodes in segments]
        # A node's log-probability is read from its parent among the inner nodes, a first token's (-1) from the prompt.
        index = {node: position for position, node in enumerate(self._inner)} | {-1: -1}
        self._parents = torch.tensor([index[parent] for parent in trie.parent])
        self._form_path = torch.from_numpy(trie.form_path)

    def prefix_cache(self) -> Cache | None:
        """The decoder's cache after the shared prefix; None if there is none."""
        if self._prefix_cache is None:
            self._prefix_cache = run_prefix(self.model, self.prefix)
        return self._prefix_cache

    def score(self, requests: Sequence[Request]) -> Tensor:
        """Every label's score: float64[B, L], the surface forms of a label summed in probability."""
        return torch.from_numpy(label_scores(self.score_forms(requests).numpy(), self.forms))

    def log_probs(self, requests: Sequence[Request]) -> Floats:
        """The posterior: float64[B, L], normalized over the labels."""
        return label_log_probs(self.score_forms(requests).numpy(), self.forms)

    @torch.inference_mode()
    def score_forms(self, requests: Sequence[Request]) -> Tensor:
        """Every surface form's score: float64[B, F], in the order of `LabelTrie.forms`."""
        trie, B = self.trie, len(requests)
        levels, prompts = prompt_levels(self.model, requests)
        if self._segments:
            parent = np.repeat(np.arange(B), len(self._segments)).tolist()
            levels.append(Level.tree(self._segments * B, parent=parent))
        tokens = torch.tensor(
            [trie.token[node] for node in self._inner] * B, dtype=torch.int64, device=self.model.device
        )
        embeddings = torch.cat([prompts, self.model.embed(tokens, [])])
        hidden = self.model.decode(embeddings, levels, self.prefix_cache()).hidden

        # Packed order: the last prompt token of every image, then the inner nodes of every image.
        image, parents = torch.arange(B)[:, None], self._parents[None, :]
        indices = torch.where(parents < 0, image, B + image * len(self._inner) + parents)
        by_node = self._log_probs(hidden, indices.flatten(), torch.tensor(trie.token).repeat(B)).view(B, -1)
        padded = torch.cat([by_node.double(), torch.zeros(B, 1, dtype=torch.float64)], dim=1)
        return padded[:, self._form_path].sum(-1)  # the padding -1 picks the zero

    @torch.inference_mode()
    def best(self, requests: Sequence[Request]) -> list[BestLabel]:
        """The exact arg-max of `score`, by best-first branch and bound.

        A label's score only falls as tokens are added, so that of its path so far is a bound. A finished label that
        beats the bound of every open one has won. Each wave, twice as large as the last, expands the most promising
        open nodes of all images that are not decided.
        """
        trie, B = self.trie, len(requests)
        levels, prompts = prompt_levels(self.model, requests)
        decoded = self.model.decode(prompts, levels, self.prefix_cache(), want_cache=True)
        assert decoded.cache is not None
        search = _Search(trie, self.forms, B)
        images = np.arange(B)
        search.expand(images, [-1] * B, self._children(decoded.hidden, [-1] * B))
        cache, in_cache = decoded.cache, images
        num_tokens = np.zeros(B, dtype=np.int64)
        wave = _FIRST_WAVE
        while len(active := search.undecided()):
            if len(active) <= len(in_cache) // 2:
                cache = cache.select(torch.from_numpy(np.searchsorted(in_cache, active)))
                in_cache = active
            each = max(1, wave // len(active))
            expansions = [_Expansion.of(trie, search.most_promising(image, each)) for image in active]
            wave = min(2 * wave, _LARGEST_WAVE)
            read = torch.zeros(len(active), max(len(e.run) for e in expansions), dtype=torch.bool)
            for segment, expansion in enumerate(expansions):
                read[segment, expansion.read] = True
            parent = np.searchsorted(in_cache, active).tolist()
            tokens = torch.tensor([trie.token[node] for e in expansions for node in e.run])
            hidden = self.model.decode(
                self.model.embed(tokens.to(self.model.device), []),
                [Level.tree([e.parent for e in expansions], parent=parent, read=read)],
                cache,
            ).hidden
            num_tokens[active] += [len(e.run) for e in expansions]
            nodes = [node for e in expansions for node in e.nodes]
            owners = np.repeat(active, [len(e.nodes) for e in expansions])
            search.expand(owners, nodes, self._children(hidden, nodes))
        return [
            BestLabel(label, score, int(num)) for (label, score), num in zip(search.winners(), num_tokens, strict=True)
        ]

    def _children(self, hidden: Tensor, nodes: Sequence[int]) -> list[np.ndarray]:
        """For hidden state i, after trie node ``nodes[i]``: the float32 log-probabilities of the node's children."""
        children = [self.trie.children[node] for node in nodes]
        indices = torch.tensor([i for i, siblings in enumerate(children) for _ in siblings])
        tokens = torch.tensor([self.trie.token[node] for siblings in children for node in siblings])
        log_probs = self._log_probs(hidden, indices, tokens)
        return np.split(log_probs.numpy(), np.cumsum([len(siblings) for siblings in children])[:-1])

    def _log_probs(self, hidden: Tensor, indices: Tensor, tokens: Tensor) -> Tensor:
        """`token_log_probs`, on the CPU. Raises WeightsError where they are not numbers."""
        log_probs = token_log_probs(self.model, hidden, indices.to(hidden.device), tokens.to(hidden.device)).cpu()
        refuse_nan(log_probs)
        return log_probs


class _Search:
    """Best-first branch and bound over the trie, for B images at once.

    A form's bound is the score of the deepest node on its path that has been reached: an upper bound on its score,
    exact once the form is finished. A label's bound combines those of its forms.
    """

    def __init__(self, trie: LabelTrie, forms: SurfaceForms, num_images: int) -> None:
        self.trie, self.forms = trie, forms
        num_forms = len(forms.label)
        self.bound = np.zeros((num_images, num_forms))
        self.reached = np.zeros((num_images, num_forms), dtype=np.int64)

    def expand(self, images: Ints, nodes: Sequence[int], log_probs: Sequence[np.ndarray]) -> None:
        """Record the log-probabilities of the children of ``nodes[i]`` for image ``images[i]``."""
        for image, node, children in zip(images, nodes, log_probs, strict=True):
            for child, log_prob in zip(self.trie.children[node], children, strict=True):
                forms = self.trie.forms_through[child]
                self.bound[image, forms] += float(log_prob)
                self.reached[image, forms] += 1

    def _is_open(self, images: slice | int = slice(None)) -> np.ndarray:
        """bool[B, L], or bool[L] of one image: labels with an unfinished form."""
        is_open = self.reached[images] < self.forms.num_tokens
        padded = np.concatenate([is_open, np.zeros((*is_open.shape[:-1], 1), dtype=bool)], axis=-1)
        return np.asarray(padded[..., self.forms.by_label].any(-1))

    def undecided(self) -> Ints:
        """int64[A]: images whose best label is not finished yet."""
        best = label_scores(self.bound, self.forms).argmax(1)
        return np.flatnonzero(self._is_open()[np.arange(len(best)), best])

    def most_promising(self, image: int, count: int) -> list[int]:
        """About ``count`` open nodes of the labels that could still win, best first."""
        label_bound = label_scores(self.bound[image], self.forms)
        is_open = self._is_open(image)
        finished = label_bound[~is_open].max(initial=-np.inf)
        nodes: list[int] = []
        is_likeliest = True
        for label in np.argsort(-label_bound, kind="stable"):
            if label_bound[label] < finished or len(nodes) >= count:
                break
            for form in self.forms.by_label[label]:
                if form == len(self.forms.label):
                    continue
                first = self.reached[image, form] - 1
                # The likeliest label's whole remainder at once: where the model is sure, one wave finishes it. For the
                # others one node, which will mostly rule them out.
                last = self.forms.num_tokens[form] - 1  # the end token's node has no children: it is never run
                last = last if is_likeliest else min(last, first + 1)
                nodes += [int(node) for node in self.trie.form_path[form, first:last] if node not in nodes]
            is_likeliest = False
        return nodes

    def winners(self) -> list[tuple[int, float]]:
        """(label, score) for each image."""
        scores = label_scores(self.bound, self.forms)
        best = scores.argmax(1)
        return [(int(label), float(scores[image, label])) for image, label in enumerate(best)]
