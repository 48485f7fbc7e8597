"""What a model computes, as one hash: weights, preprocessing, number format.

In: an opened model. Out: a key under which its results may be cached. Called by the feature cache of training
and by the block cache of evaluation.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import torch

from vlmtune.models.registry import OpenedModel


def features_key(opened: OpenedModel, frozen: tuple[str, ...], precision: str) -> str:
    """Hash everything that the features of an image depend on besides the image.

    Args:
        opened: the model, with its preprocessing.
        frozen: prefixes of the names of the weights that count; ("",) for all.
        precision: the number format in which features are computed.

    Returns:
        A SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256(f"{opened.family.name} {precision}".encode())
    for name, tensor in sorted(opened.model.state_dict().items()):
        if name.startswith(frozen):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy().data)
    # The processor's own file says every setting, whatever the family.
    with tempfile.TemporaryDirectory() as folder:
        opened.processor.save(Path(folder))
        for path in sorted(Path(folder).iterdir()):
            digest.update(path.read_bytes())
    digest.update(json.dumps(opened.model.config_dict(), sort_keys=True, default=str).encode())
    digest.update(repr(opened.model.connector.shape).encode())  # which layers of the tower it reads
    return digest.hexdigest()
