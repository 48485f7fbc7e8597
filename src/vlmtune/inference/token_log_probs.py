"""From hidden states to log-probabilities of chosen tokens, a bounded number of states at a time.

Training's loss, the label scorer and nothing else read logits through here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlmtune.errors import WeightsError
from vlmtune.models.vlm import VisionLanguageModel

# float32 logits held at once: 64 MiB, whatever the vocabulary's size.
_MAX_LOGITS = 2**24


def token_log_probs(model: VisionLanguageModel, hidden: Tensor, indices: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of given tokens after given hidden states.

    Args:
        hidden: float[N, D], final hidden states.
        indices: int64[M], the hidden state that each token follows; several tokens may follow one.
        tokens: int64[M].

    Returns:
        float32[M]. The softmax runs over the whole vocabulary. Where the logits of all states would not fit the budget
        (a loss on whole prompts) they are computed in blocks, and recomputed in the backward pass instead of kept.
    """
    block = max(1, _MAX_LOGITS // model.vocab_size)
    if len(hidden) <= block:
        return _block_log_probs(model, hidden, indices, tokens)
    out = hidden.new_zeros(len(tokens), dtype=torch.float32)
    for first in range(0, len(hidden), block):
        inside = ((indices >= first) & (indices < first + block)).nonzero().squeeze(1)
        if not len(inside):
            continue
        arguments = (model, hidden[first : first + block], indices[inside] - first, tokens[inside])
        if torch.is_grad_enabled() and hidden.requires_grad:
            part: Tensor = checkpoint(_block_log_probs, *arguments, use_reentrant=False)
        else:
            part = _block_log_probs(*arguments)
        out = out.index_copy(0, inside, part)
    return out


def _block_log_probs(model: VisionLanguageModel, hidden: Tensor, indices: Tensor, tokens: Tensor) -> Tensor:
    # One kernel that is as fast where most of the vocabulary underflows; `logsumexp` then takes eight times as long.
    return model.logits(hidden).log_softmax(-1)[indices, tokens]


def refuse_nan(values: Tensor) -> None:
    """Raise WeightsError where logits or log-probabilities are not numbers: no answer could be read from them."""
    if values.isnan().any():
        raise WeightsError(
            "The model's scores are not numbers (NaN). Its weights are damaged (a training that diverged?), or "
            "overflow in the number format: try model.dtype float32."
        )
