"""Templates and tokens against transformers' own rendering and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tiny.tokenizer import train_tokenizer
from vlmtune.config.schema import TaskSection
from vlmtune.records import LabelSet
from vlmtune.text.defaults import CHAT_TEMPLATE
from vlmtune.text.prompt import PromptBuilder
from vlmtune.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TOKENIZER = train_tokenizer(["What is in the picture? A bird, a cat, 12 dogs."] * 20, vocab_size=400)

# Written in the manner of LFM2-VL's published template: a system message by itself, tools, past thinking cut out.
LFM2_STYLE = """\
{{- bos_token -}}
{%- set ns = namespace(system_prompt="", last=-1) -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system_prompt = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system_prompt = ns.system_prompt + "\\nTools: " + (tools | tojson) -%}
{%- endif -%}
{%- if ns.system_prompt -%}
    {{- "<|im_start|>system\\n" + ns.system_prompt + "<|im_end|>\\n" -}}
{%- endif -%}
{% for message in messages %}
    {%- set content = message["content"] -%}
    {{- "<|im_start|>" + message["role"] + "\\n" -}}
    {%- if content is string -%}
        {%- if message["role"] == "assistant" and "</think>" in content -%}
            {%- set content = content.split("</think>")[-1] | trim -%}
        {%- endif -%}
        {% generation %}{{- content -}}{% endgeneration %}
    {%- else -%}
        {%- for item in content -%}
            {%- if item.type == "image" -%}{{- "<image>" -}}{%- else -%}{{- item.text -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""
# Blocks on lines of their own: shows whether trim_blocks and lstrip_blocks are set.
LOOSE = """\
{{ bos_token }}{% for message in messages %}
  {% if message.content is string %}
{{ message.role }}: {{ message.content }}{{ eos_token }}
    {% else %}
  {{ message.role }}: {% for item in message.content %}
      {{ "<image>" if item.type == "image" else item.text }}{% endfor %}

  {% endif %}
{% endfor %}
{{ strftime_now("%Y") }}{{ {"b": [1, "é<"], "a": none} | tojson(indent=1, sort_keys=true) }}
{% if add_generation_prompt %}
assistant:
{%- endif %}
"""
USER = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is in the picture?\n"}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [{"role": "system", "content": "You are <b>kind</b> é 漢 \n"}, USER],
    "turns": [USER, {"role": "assistant", "content": "<think>hm</think> a cat"}, {"role": "user", "content": "Sure?"}],
}


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, LFM2_STYLE, LOOSE], ids=["ours", "lfm2", "loose"])
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_a_saved_tokenizer_renders_and_encodes_as_transformers_does(
    template: str, name: str, add_generation_prompt: bool, tmp_path: Path
) -> None:
    Tokenizer(TOKENIZER.backend, TOKENIZER.config, template).save(tmp_path)
    ours, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    rendered = ours.render(CONVERSATIONS[name], add_generation_prompt)
    assert rendered == theirs.apply_chat_template(
        CONVERSATIONS[name], tokenize=False, add_generation_prompt=add_generation_prompt
    )
    assert ours.encode(rendered) == theirs(rendered, add_special_tokens=False)["input_ids"]


def test_transformers_knows_the_special_tokens_of_a_trained_tokenizer(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(TOKENIZER)
    assert (theirs.pad_token_id, theirs.eos_token_id) == (TOKENIZER.pad_id, TOKENIZER.end_id)
    assert theirs.image_token_id == TOKENIZER.image_token_id
    assert theirs.image_start_token == "<|image_start|>"
    assert theirs("a cat")["input_ids"] == [TOKENIZER.token_id("<|startoftext|>"), *TOKENIZER.encode("a cat")]
    ids = TOKENIZER.encode("12 dogs é!<|im_end|>")
    assert theirs.decode(ids) == TOKENIZER.decode(ids)
    assert theirs.decode(ids, skip_special_tokens=True) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_prompt_and_answer_are_the_tokens_of_the_whole_conversation(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    task = TaskSection(system_prompt="Choose:\n{labels}", user_prompt="What is it?")
    builder = PromptBuilder(TOKENIZER, task, LabelSet(("0", "1"), (("cat",), ("dog",))))
    conversation = [
        {"role": "system", "content": "Choose:\ncat\ndog"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "dog"},
    ]
    whole = theirs.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"]
    ours = builder.build(None, "<image>").ids + builder.answer_tokens("dog")
    assert ours == whole[: len(ours)]
    assert theirs.decode(whole[len(ours) :]) == "\n"
