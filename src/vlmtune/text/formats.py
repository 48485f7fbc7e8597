"""The prompt format of a model family: the shape around a prompt, and the default prompts.

`prompt.py` and `tokenizer.py` read it; `models.registry` maps families to formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmtune.text.defaults import (
    CLASSIFY_SYSTEM_PROMPT,
    CLASSIFY_USER_PROMPT,
    VQA_SYSTEM_PROMPT,
    VQA_USER_PROMPT,
)


@dataclass(frozen=True)
class PromptFormat:
    """How prompts of a model family are built.

    Attributes:
        classify, vqa: the default (system prompt, user prompt) of each task.
        template: jinja2, in the words of chat templates; None uses the checkpoint's own.
        has_system: whether a system prompt has a turn of its own. Otherwise it precedes the user prompt's lines.
        is_image_first: whether the image can only come first (`task.image_position: last` is refused).
        has_turns: whether a conversation may continue after an answer.
        is_answer_apart: whether the answer is tokenized independently of the prompt.
        whole_tokens: texts that are always one token, if the vocabulary has them.
    """

    classify: tuple[str, str]
    vqa: tuple[str, str]
    template: str | None = None
    has_system: bool = True
    is_image_first: bool = False
    has_turns: bool = True
    is_answer_apart: bool = False
    whole_tokens: tuple[str, ...] = ()


CHAT = PromptFormat(
    classify=(CLASSIFY_SYSTEM_PROMPT, CLASSIFY_USER_PROMPT),
    vqa=(VQA_SYSTEM_PROMPT, VQA_USER_PROMPT),
)
"""A conversation by the checkpoint's chat template."""

# Image, <bos>, prompt, newline; then the answer and <eos>.
_PALIGEMMA_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {%- for item in message["content"] if item["type"] == "image" -%}{{- "<image>" -}}{%- endfor -%}
        {{- bos_token -}}
        {%- for item in message["content"] if item["type"] == "text" -%}{{- item["text"] -}}{%- endfor -%}
        {{- "\\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- message["content"] + eos_token -}}
    {%- else -%}
        {{- raise_exception("PaliGemma has no role " + message["role"]) -}}
    {%- endif -%}
{%- endfor -%}
"""

PALIGEMMA = PromptFormat(
    # "answer en" is the task prefix that PaliGemma was pretrained on (arXiv 2407.07726, section 3.2.5). No class list:
    # it has never seen one, and does not need one after fine-tuning.
    classify=("", "answer en what does the picture show?"),
    vqa=("", "answer en {question}"),
    template=_PALIGEMMA_TEMPLATE,
    has_system=False,
    is_image_first=True,
    has_turns=False,
    is_answer_apart=True,
    # Coordinates and mask codes of `detect` and `segment`; transformers' processor adds them likewise.
    whole_tokens=(*(f"<loc{i:04}>" for i in range(1024)), *(f"<seg{i:03}>" for i in range(128))),
)
"""One prompt and one answer, with full attention within image and prompt (a prefix-LM)."""
