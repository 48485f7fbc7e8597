"""The tiny model before training, its auxiliary heads, and one batch of lessons as a prefix tree."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tiny.config import ModelSize
from tiny.drawn.vocabulary import CLASSES
from tiny.lessons import Lesson
from vlmtune.data.drawn.ink import COLORS
from vlmtune.data.drawn.scenes import Facts
from vlmtune.files import new_folder, write_json
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.lfm2_vl.config import Lfm2Config, Lfm2VlConfig, Siglip2Config
from vlmtune.models.lfm2_vl.decoder import DepthwiseConv
from vlmtune.models.tree import Level
from vlmtune.text.tokenizer import Tokenizer

_FACTOR = 2  # patches per side that become one image token
_MOST_THINGS = 4


def build_model(size: ModelSize, tokenizer: Tokenizer) -> Lfm2Vl:
    """The network with fresh weights (drawn from torch's global generator)."""
    side = size.image_size // size.patch_size
    vision = Siglip2Config(
        hidden_size=size.tower.hidden_size,
        intermediate_size=size.tower.intermediate_size,
        num_hidden_layers=size.tower.num_layers,
        num_attention_heads=size.tower.num_heads,
        num_patches=side**2,
        patch_size=size.patch_size,
    )
    text = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=size.decoder.hidden_size,
        intermediate_size=size.decoder.intermediate_size,
        num_hidden_layers=len(size.decoder.layers),
        num_attention_heads=size.decoder.num_heads,
        num_key_value_heads=size.decoder.num_key_value_heads,
        layer_types=tuple("full_attention" if kind == "a" else "conv" for kind in size.decoder.layers),
        block_auto_adjust_ff_dim=False,
        rope_theta=10_000.0,  # positions are few: LFM2's own million would leave most of a head constant
        max_position_embeddings=4096,
        bos_token_id=tokenizer.token_id("<|startoftext|>"),
        eos_token_id=tokenizer.end_id,
        pad_token_id=tokenizer.pad_id,
    )
    model = Lfm2Vl(
        Lfm2VlConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.image_token_id,
            projector_hidden_size=size.projector_hidden_size,
            downsample_factor=_FACTOR,
        )
    )
    _initialize(model, side)
    return model


def _initialize(model: Lfm2Vl, side: int) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if "language_model" in name:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if name.endswith(("out_proj", "w2")):
                    # A layer's contribution starts small relative to the residual stream.
                    module.weight.data *= 0.4
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, DepthwiseConv):
            nn.init.normal_(module.weight, std=0.5)
    nn.init.normal_(model.model.language_model.embed_tokens.weight, std=model.config.text_config.hidden_size**-0.5)
    positions = model.get_parameter("model.vision_tower.embeddings.position_embedding.weight")
    positions.data = 0.5 * _sine_positions(side, model.config.vision_config.hidden_size)


def _sine_positions(side: int, width: int) -> Tensor:
    """2-D sine and cosine positions: float32[side * side, width]. An initialization that already encodes proximity."""
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    rate = 1.0 / 10_000 ** (torch.arange(width // 4).float() / (width // 4))
    waves = [wave(axis.reshape(-1, 1) * rate) for axis in (columns, rows) for wave in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=1)


def to_patches(pixels: Tensor, patch: int) -> Tensor:
    """uint8[B, S, S, 3] -> float32[B, P, patch * patch * 3], as the model's image processor makes them."""
    B, S = pixels.shape[:2]
    n = S // patch
    scaled = pixels.float() / 127.5 - 1.0
    return scaled.view(B, n, patch, n, patch, 3).permute(0, 1, 3, 2, 4, 5).reshape(B, n * n, patch * patch * 3)


class NamingHeads(nn.Module):
    """Predict an image's name, color and number of things from all image tokens side by side.

    Flattened rather than averaged tokens: the tower learned several times faster so. Dropped after pretraining.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.name = nn.Linear(num_tokens * width, len(CLASSES))
        self.color = nn.Linear(num_tokens * width, len(COLORS))
        self.count = nn.Linear(num_tokens * width, _MOST_THINGS + 1)

    def forward(self, tokens: Tensor, facts: Sequence[Facts]) -> Tensor:
        """float[B, T, D] -> the scalar loss. Images without a name (or color, or things) do not count."""
        flat = tokens.flatten(1)
        names = [_CLASS_INDEX[f.label] if f.label is not None else -1 for f in facts]
        colors = [_COLOR_INDEX.get(f.color, -1) for f in facts]
        counts = [min(len(f.things), _MOST_THINGS) or -1 for f in facts]
        loss = flat.new_zeros((), dtype=torch.float32)
        for head, targets, weight in ((self.name, names, 1.0), (self.color, colors, 0.3), (self.count, counts, 0.3)):
            target = torch.tensor(targets, device=flat.device)
            if (target >= 0).any():
                loss = loss + weight * F.cross_entropy(head(flat).float(), target, ignore_index=-1)
        return loss


_CLASS_INDEX = {name: i for i, name in enumerate(CLASSES)}
_COLOR_INDEX = {name: i for i, name in enumerate(COLORS)}


class LessonRunner:
    """Lessons about encoded images, packed as one prefix tree: prompts' heads, images, questions with answers.

    A head that several lessons share (the questions' system prompt, the list of all digits) is run once.
    """

    def __init__(self, model: Lfm2Vl, tokenizer: Tokenizer) -> None:
        self.model = model
        self.end_id = tokenizer.end_id
        self._encode = lru_cache(200_000)(lambda text: tuple(tokenizer.encode(text)))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """uint8[B, S, S, 3] -> float[B, T, D]."""
        config = self.model.config.vision_config
        side = pixels.shape[1] // config.patch_size
        patches = to_patches(pixels, config.patch_size).to(self.model.device)
        parts = self.model.model
        tokens: Tensor = parts.multi_modal_projector(parts.vision_tower(patches, (side, side)), (side, side))
        return tokens

    def run(self, tokens: Tensor, lessons: Sequence[tuple[int, Lesson]]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Logits of every answer's tokens.

        Args:
            tokens: float[B, T, D] image tokens.
            lessons: (image, lesson about it).

        Returns:
            float32[N, V] logits, int64[N] targets, float32[N] weights, and the number of tokens of each answer
            (end token included), lesson by lesson, branch by branch.
        """
        T = tokens.shape[1]
        heads: dict[str, int] = {}
        head_of = [heads.setdefault(lesson.head, len(heads)) for _, lesson in lessons]
        head_ids = [list(self._encode(text)) for text in heads]
        branch_ids: list[list[int]] = []
        parents, num_read, targets, weights = [], [], [], []
        for group, (_, lesson) in enumerate(lessons):
            for prompt, answer, weight in lesson.branches:
                answer_ids = [*self._encode(answer), self.end_id]
                branch_ids.append([*self._encode(prompt), *answer_ids[:-1]])
                parents.append(group)
                num_read.append(len(answer_ids))
                targets += answer_ids
                weights += [weight] * len(answer_ids)
        levels = [
            Level.chains([len(ids) for ids in head_ids], read_last=0),
            Level.chains([T] * len(lessons), parent=head_of, read_last=0),
            Level.chains([len(ids) for ids in branch_ids], parent=parents, read_last=num_read),
        ]
        images = tokens[[image for image, _ in lessons]].flatten(0, 1)
        embed, device = self.model.embed_tokens, self.model.device
        before = embed(torch.tensor([i for ids in head_ids for i in ids], device=device))
        after = embed(torch.tensor([i for ids in branch_ids for i in ids], device=device))
        hidden = self.model.decode(torch.cat([before, images.to(before.dtype), after]), levels).hidden
        return (
            self.model.logits(hidden),
            torch.tensor(targets, device=device),
            torch.tensor(weights, device=device),
            num_read,
        )


def export_model(
    folder: Path, config: Lfm2VlConfig, tensors: dict[str, Tensor], tokenizer: Tokenizer, dtype: torch.dtype
) -> None:
    """Write a folder in the hub's layout, which `open_model` and transformers load. An existing one is replaced."""
    cast = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in tensors.items()}
    num_tokens = config.vision_config.num_patches // config.downsample_factor**2
    image_settings = {
        "image_processor_type": "Lfm2VlImageProcessor",
        "processor_class": "Lfm2VlProcessor",
        "downsample_factor": config.downsample_factor,
        "encoder_patch_size": config.vision_config.patch_size,
        "do_image_splitting": False,
        "use_thumbnail": False,
        "min_image_tokens": num_tokens,
        "max_image_tokens": num_tokens,
        "max_num_patches": config.vision_config.num_patches,
        "max_pixels_tolerance": 2.0,
        "min_tiles": 1,
        "max_tiles": 1,
        "tile_size": 512,
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
        "do_pad": True,
    }
    text = config.text_config
    generation = {
        "bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id,
    }  # fmt: skip
    with new_folder(folder, replace=True) as temporary:
        save_file(cast, temporary / "model.safetensors", {"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)
        tokenizer.save(temporary)
        # Stored in half the bytes, computed in full precision.
        settings = config.to_dict() | {"dtype": "float32", "tie_word_embeddings": True}
        write_json(temporary / "config.json", settings, indent=2)
        write_json(temporary / "preprocessor_config.json", image_settings, indent=2)
        write_json(temporary / "generation_config.json", generation, indent=2)
        for name in ("README.md", "training_log.jsonl"):
            if (folder / name).exists():
                shutil.copyfile(folder / name, temporary / name)
