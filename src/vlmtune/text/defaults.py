"""The default prompts, how a class list is put into one, and the chat template of the tiny model.

Used by `prompt.py` for every task whose file names no prompt, and by the tiny model's pretraining, so that the
built-in model sees the wording it has learned. Kept short: the tiny model has few tokens to spare.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LABELS_PLACEHOLDER = "{labels}"
QUESTION_PLACEHOLDER = "{question}"

# One label a line: then a label's tokens in the list are those of the answer (both follow a newline, neither has
# a leading space), and copying the answer from the list is one induction step. Commas inside labels do no harm.
CLASSIFY_SYSTEM_PROMPT = "Name what the picture shows. Choose from:\n{labels}"
CLASSIFY_USER_PROMPT = "What does the picture show?"

VQA_SYSTEM_PROMPT = "Answer the question about the picture in a few words."
VQA_USER_PROMPT = "{question}"

# ChatML as LFM2-VL writes it: a message's content is text, or a list of {"type": "image"} and {"type": "text"} items.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- if message["content"] is string -%}
        {{- message["content"] -}}
    {%- else -%}
        {%- for item in message["content"] -%}
            {%- if item["type"] == "image" -%}
                {{- "<image>" -}}
            {%- elif item["type"] == "text" -%}
                {{- item["text"] -}}
            {%- else -%}
                {{- raise_exception("Unknown content type: " + item["type"]) -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" -}}
{%- endif -%}
"""

_SENTENCE_BREAK = re.compile(r"(?<=[.!?])\s+")
_LIST_LINE = re.compile(r"(?P<bullet>[ \t]*(?:[-*•][ \t]*)?)\{labels\}[ \t]*")


def fill_labels(prompt: str, labels: Sequence[str] | None) -> str:
    """Replace `{labels}` in a prompt by the class list, or remove the sentence that holds it.

    A placeholder alone on its line becomes one label a line (a bullet before it is repeated); one inside a sentence
    becomes a comma-separated list.

    Args:
        prompt: a system or user prompt, with or without `{labels}`.
        labels: the shown names in order; None removes the list, together with the sentence that introduces it.
    """
    if LABELS_PLACEHOLDER not in prompt:
        return prompt
    lines: list[str] = []
    for line in prompt.split("\n"):
        alone = _LIST_LINE.fullmatch(line)
        if labels is None:
            if alone and lines and lines[-1].rstrip().endswith(":"):
                lines[-1] = " ".join(_SENTENCE_BREAK.split(lines[-1].strip())[:-1])
                if not lines[-1]:
                    lines.pop()
            sentences = [s for s in _SENTENCE_BREAK.split(line) if LABELS_PLACEHOLDER not in s]
            if sentences:
                lines.append(" ".join(sentences))
        elif alone:
            lines.extend(alone["bullet"] + label for label in labels)
        else:
            lines.append(line.replace(LABELS_PLACEHOLDER, ", ".join(labels)))
    return "\n".join(lines) if labels is not None else "\n".join(lines).strip()
