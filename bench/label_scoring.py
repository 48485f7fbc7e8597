"""Choosing one of a closed set of labels with LFM2-VL-450M: Outlines and batched generation against label scoring.

    python bench/label_scoring.py [--quick] [--device cpu|cuda] [--json FILE]

Contenders, all in bfloat16 on the same weights, each image encoded in the timed part:

- outlines: the older repos' way: a JSON schema whose value is an enumeration of the labels, greedy, one image at a
  time. Random weights would wander through odd spellings, so a last logits processor prefers the tokens that a trained
  model would write: the constraint is computed and applied, and the answer is as short as it can be.
- generate: transformers' batched greedy generation of at most as many tokens as the longest label has, not constrained
  to the labels; 16 images at once, without `--quick` also 48, and the faster of the two counts.
- ours: `LabelScorer.best` (exact arg-max) and `.score` (every label's log-probability), prompt cache kept; as many
  images at once as `Predictor` would take: 48 for the arg-max, whose search runs few tokens, 16 for all labels.

"Peaked": labels are the model's own likely continuations, images are alike, and the final norm is scaled, so that it
is as sure as a fine-tuned model (the winner's mean probability is recorded). "Flat": random labels under an untrained
head, all about equally likely at every token: the worst case of a best-first search, which must then look at nearly
every node.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from measure import (
    add_options,
    apply_options,
    interleave,
    progress,
    ratio,
    ratio_table,
    record,
    seconds_of,
    table,
    write_json,
)
from peers import END_TOKEN, VOCABULARY, Batch, build_ours, build_peer, make_batch
from torch import Tensor

from vlmtune.inference.batch import Request
from vlmtune.inference.label_scorer import LabelScorer
from vlmtune.models.images import ProcessedImage
from vlmtune.models.lfm2_vl import Lfm2Vl
from vlmtune.models.malloc import keep_freed_memory
from vlmtune.models.tree import Level
from vlmtune.text.trie import LabelTrie

DTYPE = torch.bfloat16
NUM_IMAGES = 16
MANY_IMAGES = 48
NUM_LABELS = (2, 49, 100)
PEAKED_SCALE = 96.0
_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
NAMES = _NAMES.split()


def train_tokenizer() -> Any:
    """A byte-level BPE tokenizer for the constraint, trained on the standard library's sources.

    Its entries come first among the model's 65,536, the rest of which spell nothing: the mask that Outlines
    makes and applies at each token has the full width.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<|pad|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts() -> Iterable[str]:
        for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:80]:
            yield path.read_text(encoding="utf-8", errors="replace")
        # Labels are common words, and JSON common text, to the tokenizer of a real model.
        yield "\n".join(json.dumps({"class": name}) for name in NAMES * 20)

    backend.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|pad|>")


class Prefers:
    """A logits processor that makes the tokens of one text the most likely, among those a constraint has left."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.step = tokens, 0

    def __call__(self, input_ids: Tensor, logits: Tensor) -> Tensor:
        token = self.tokens[min(self.step, len(self.tokens) - 1)]
        assert logits[:, token].isfinite().all(), "the constraint forbids the canonical answer"
        logits[:, token] += 1e4
        self.step += 1
        return logits


def outlines_contender(peer: Any, batch: Batch, device: torch.device) -> dict[int, Callable[[], None]]:
    """For each number of labels: one image through Outlines' JSON constraint and transformers' generate."""
    import outlines
    from outlines.backends import get_json_schema_logits_processor
    from transformers import LogitsProcessorList

    tokenizer = train_tokenizer()
    steered = outlines.from_transformers(peer, tokenizer)
    inputs = batch.first(1).peer_inputs(device, with_answers=False)
    contenders = {}
    for count in NUM_LABELS:
        schema = {
            "type": "object",
            "properties": {"class": {"type": "string", "enum": NAMES[:count]}},
            "required": ["class"],
        }
        constraint = get_json_schema_logits_processor(None, steered, json.dumps(schema))
        answers = [[*tokenizer.encode(json.dumps({"class": n})), tokenizer.eos_token_id] for n in NAMES[:count]]
        middle = sorted(answers, key=len)[count // 2]

        def run(constraint: Any = constraint, middle: list[int] = middle) -> None:
            constraint.reset()
            out = peer.generate(
                **inputs,
                logits_processor=LogitsProcessorList([constraint, Prefers(middle)]),
                do_sample=False,
                max_new_tokens=64,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            assert out[0, inputs["input_ids"].shape[1] :].tolist() == middle

        contenders[count] = run
    return contenders


def generate_contender(peer: Any, batch: Batch, device: torch.device, max_new_tokens: int) -> Callable[[], None]:
    inputs = batch.peer_inputs(device, with_answers=False)

    def run() -> None:
        peer.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=None, pad_token_id=0)

    return run


def alike(batch: Batch) -> Batch:
    """Images that differ a little, so that the model's answer about the first holds for all."""
    (patches, grid), first = batch.images[0].tiles[0], batch.images[0]
    images = [
        ProcessedImage([(patches + 0.02 * one.tiles[0][0], grid)], first.text, first.num_tokens) for one in batch.images
    ]
    return Batch(batch.shared, [batch.own[0]] * len(batch), batch.answers, images)


@torch.inference_mode()
def likely_labels(model: Lfm2Vl, batch: Batch, count: int) -> list[list[list[int]]]:
    """Labels of 2 to 4 tokens from the model's own continuations for the first image, likeliest first token first."""
    scorer = LabelScorer(model, batch.shared, LabelTrie.build([[[END_TOKEN]]]))
    question = Request(batch.own[0], model.encode_images(batch.images[:1]))
    embeddings = model.embed(torch.tensor(question.ids, device=model.device), question.features)
    decoded = model.decode(embeddings, [Level.chains([len(question.ids)])], scorer.prefix_cache(), want_cache=True)
    tokens = model.logits(decoded.hidden)[0].topk(count).indices
    said, cache = [tokens], decoded.cache
    for step in range(3):
        assert cache is not None
        rows = Level.chains([1] * count, parent=[0] * count if step == 0 else range(count))
        decoded = model.decode(model.embed(tokens, []), [rows], cache, want_cache=True)
        tokens, cache = model.logits(decoded.hidden).argmax(-1), decoded.cache
        said.append(tokens)
    by_label = torch.stack(said, dim=1).tolist()
    return [[row[: 2 + i % 3]] for i, row in enumerate(by_label)]


def random_labels(count: int) -> list[list[list[int]]]:
    draw = torch.Generator().manual_seed(1)
    labels: dict[tuple[int, ...], None] = {}
    while len(labels) < count:
        label = torch.randint(500, VOCABULARY, (1 + len(labels) % 3,), generator=draw).tolist()
        labels[(*label, END_TOKEN)] = None
    return [[list(label)] for label in labels]


class Ours:
    """Our scorer on a model whose final norm is scaled while it runs."""

    def __init__(self, model: Lfm2Vl, batch: Batch, labels: list[list[list[int]]], scale: float) -> None:
        self.model, self.batch = model, batch
        self.norm = model.model.language_model.embedding_norm.weight
        self.scale = scale
        self.scorer = LabelScorer(model, batch.shared, LabelTrie.build(labels))
        self.scorer.prefix_cache()  # once per evaluation
        self.num_rows = 0.0

    @torch.inference_mode()
    def _questions(self) -> list[Request]:
        features = self.model.encode_images(self.batch.images)
        return [Request(ids, [f]) for ids, f in zip(self.batch.own, features, strict=True)]

    def _scaled(self, work: Callable[[], Any]) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            self.norm.mul_(self.scale)
        try:
            return work()
        finally:
            with torch.inference_mode(False), torch.no_grad():
                self.norm.div_(self.scale)

    def argmax(self) -> list[int]:
        winners = self._scaled(lambda: self.scorer.best(self._questions()))
        self.num_rows = statistics.mean(best.num_tokens for best in winners)
        return [best.label for best in winners]

    def full(self) -> Tensor:
        return self._scaled(lambda: self.scorer.score(self._questions()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    device = apply_options(options)
    keep_freed_memory()
    repetitions = options.repetitions or (2 if options.quick else 5)

    progress("building")
    peer = build_peer(DTYPE, device)
    ours = build_ours(dict(peer.state_dict()))
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    many = alike(make_batch(MANY_IMAGES))
    batch = many.first(NUM_IMAGES)
    labels = {"peaked": likely_labels(ours, batch, max(NUM_LABELS)), "flat": random_labels(max(NUM_LABELS))}
    counts = NUM_LABELS[-1:] if options.quick else NUM_LABELS
    scorers = {
        f"{kind}:{count}": Ours(ours, batch, labels[kind][:count], PEAKED_SCALE if kind == "peaked" else 1.0)
        for kind in labels
        for count in counts
    }
    progress("building Outlines' index")
    constrained = outlines_contender(peer, batch, device)

    contenders: dict[str, Callable[[], Any]] = {}
    images: dict[str, int] = {}
    for count in counts:
        contenders[f"outlines:{count}"] = constrained[count]
        images[f"outlines:{count}"] = 1
    longest = max(len(forms[0]) for forms in labels["peaked"])
    for part in (batch,) if options.quick else (batch, many):
        contenders[f"generate, {len(part)} at once"] = generate_contender(peer, part, device, longest)
        images[f"generate, {len(part)} at once"] = len(part)
    for name, scorer in scorers.items():
        kind, count = name.split(":")
        is_peaked = kind == "peaked"
        contenders[f"argmax_{name}"] = (
            Ours(ours, many, labels[kind][: int(count)], PEAKED_SCALE).argmax if is_peaked else scorer.argmax
        )
        images[f"argmax_{name}"] = MANY_IMAGES if is_peaked else NUM_IMAGES
        if is_peaked:
            contenders[f"full:{count}"] = scorer.full
            images[f"full:{count}"] = NUM_IMAGES

    progress("warming up, and checking that the arg-max is that of the full scores")
    sureness: dict[str, float] = {}
    for name, scorer in scorers.items():
        best, scores = scorer.argmax(), scorer.full()
        sureness[name] = scores.softmax(-1).max(1).values.mean().item()
        chosen = scores[torch.arange(len(best)), torch.tensor(best)]
        # bfloat16: the two ways may round a tie apart, by less than the scores differ otherwise.
        assert (scores.max(1).values - chosen).max() < 0.2 * PEAKED_SCALE, name
    seconds_of(contenders[f"outlines:{counts[-1]}"], device)

    progress(f"timing, {repetitions} repetitions in turns")
    seconds = interleave(contenders, repetitions, device)
    per_image = {name: [s / images[name] for s in all_s] for name, all_s in seconds.items()}
    most = counts[-1]
    by_batch = [values for name, values in per_image.items() if name.startswith("generate")]
    generate = min(by_batch, key=statistics.median)
    ratios = {
        "argmax_vs_outlines": ratio(per_image[f"outlines:{most}"], per_image[f"argmax_peaked:{most}"]),
        "argmax_vs_generate": ratio(generate, per_image[f"argmax_peaked:{most}"]),
        "full_vs_outlines": ratio(per_image[f"outlines:{most}"], per_image[f"full:{most}"]),
        "argmax_flat_vs_generate": ratio(generate, per_image[f"argmax_flat:{most}"]),
    }
    rows_run = {name: scorer.num_rows for name, scorer in scorers.items()}
    result = record(
        "label_scoring",
        device,
        options.quick,
        setting={
            "model": "LFM2-VL-450M, random weights, bfloat16",
            "shared_tokens": len(batch.shared),
            "image_tokens": 64,
            "label_tokens": "2 to 4, end token included",
            "images_at_once": images,
            "ratios_at_labels": most,
        },
        seconds_per_image=per_image,
        trie_rows_searched_per_image=rows_run,
        mean_winner_probability=sureness,
        ratios=ratios,
    )
    rows = []
    slowest = statistics.median(per_image[f"outlines:{most}"])
    for name, values in per_image.items():
        middle = statistics.median(values)
        searched = rows_run.get(name.removeprefix("argmax_"))
        rows.append(
            [
                name,
                f"{middle:.3f}",
                f"{min(values):.3f} to {max(values):.3f}",
                f"{slowest / middle:.1f}",
                f"{searched:.1f}" if name.startswith("argmax") and searched is not None else "",
            ]
        )
    print(table(["contender:labels", "s/image", "range", "× outlines", "trie rows"], rows))
    print()
    print(ratio_table(ratios))
    write_json(options.json, result)


if __name__ == "__main__":
    main()
