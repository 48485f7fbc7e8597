"""The tokenizer keeps text as it is, finds its template, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny.tokenizer import SPECIAL_TOKENS, train_tokenizer
from vlmtune.errors import TokenizerError
from vlmtune.text.defaults import CHAT_TEMPLATE
from vlmtune.text.tokenizer import Tokenizer

pytestmark = pytest.mark.unit

TEXTS = ["Name what the picture shows. Choose from:\nairplane\nbird", "zero one two three"] * 30
TOKENIZER = train_tokenizer(TEXTS, vocab_size=400)
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
]


def with_template(template: str) -> Tokenizer:
    return Tokenizer(TOKENIZER.backend, TOKENIZER.config, template, "here")


@given(st.text())
def test_decoding_what_was_encoded_gives_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    if not any(token in text for token in SPECIAL_TOKENS):
        assert all(token >= len(SPECIAL_TOKENS) for token in ids)


def test_special_tokens_have_their_fixed_numbers() -> None:
    assert [TOKENIZER.token_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert (TOKENIZER.pad_id, TOKENIZER.end_id, TOKENIZER.image_token_id) == (0, 4, 5)
    assert TOKENIZER.decode([1, 4], skip_special_tokens=True) == ""


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXTS, vocab_size=400).backend.to_str() == TOKENIZER.backend.to_str()


def test_the_vocabulary_is_as_large_as_asked() -> None:
    words = ["".join(chr(97 + i * 7919 // 26**k % 26) for k in range(6)) for i in range(1, 300)]
    assert len(train_tokenizer(words, vocab_size=600)) == 600
    with pytest.raises(ValueError, match="vocab_size 200 is less than 9 special tokens and 256 bytes"):
        train_tokenizer(words, vocab_size=200)


def test_tile_names_are_single_tokens_where_asked_for() -> None:
    tiling = train_tokenizer(TEXTS, vocab_size=400, max_tile_grid=2)
    assert len(tiling.encode("<|img_row_2_col_1|>")) == 1
    assert len(TOKENIZER.encode("<|img_row_2_col_1|>")) > 1


def test_a_word_keeps_its_tokens_after_a_newline() -> None:
    assert TOKENIZER.encode("\nairplane")[1:] == TOKENIZER.encode("airplane")


def test_a_saved_tokenizer_reads_back_equal(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    read = Tokenizer.from_folder(tmp_path)
    assert read.backend.to_str() == TOKENIZER.backend.to_str()
    assert read.config == TOKENIZER.config
    assert read.render(MESSAGES, True) == TOKENIZER.render(MESSAGES, True)


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_folder(tmp_path).encode("zero one two three")) > 3


@pytest.mark.parametrize(
    ("files", "config", "expected"),
    [
        ({"chat_template.jinja": "A{{ bos_token }}"}, "B", "A<|startoftext|>"),
        ({"chat_template.json": json.dumps({"chat_template": "C"})}, None, "C"),
        ({}, "D", "D"),
        ({}, [{"name": "tool_use", "template": "E"}, {"name": "default", "template": "F"}], "F"),
    ],
)
def test_the_template_is_found_where_checkpoints_keep_it(
    files: dict[str, str], config: Any, expected: str, tmp_path: Path
) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER.config | {"chat_template": config}))
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert Tokenizer.from_folder(tmp_path).render([], False) == expected


def test_special_tokens_written_as_objects_are_read() -> None:
    config = TOKENIZER.config | {"bos_token": {"content": "<|startoftext|>", "lstrip": False}, "pad_token": "<|pad|>"}
    assert Tokenizer(TOKENIZER.backend, config, "{{ bos_token }}").render([], False) == "<|startoftext|>"


def test_templates_have_what_the_hubs_templates_expect() -> None:
    rendered = with_template(
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
        "{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}{% generation %}{{ m.content | tojson }}{% endgeneration %}{%- endfor -%}"
        "{{ ns.n }}{{ strftime_now('%Y') | length }}{{ tools is none }}"
    ).render([{"role": "system", "content": ""}, {"role": "user", "content": "<é>"}], False)
    assert rendered == '"<é>"14True'


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles user .TemplateError: roles must alternate"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages[5].role.x }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_template_that_fails_or_reaches_out_is_an_error(template: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        with_template(template).render(MESSAGES, True)


def test_a_template_that_is_not_jinja_names_the_line() -> None:
    with pytest.raises(TokenizerError, match=r"here: the chat template is not valid jinja2 \(line 2:"):
        with_template("fine\n{% if %}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pad_token": None}, "'pad_token' is missing"),
        ({"pad_token": "<nothing>"}, "has no token '<nothing>'"),
        ({"image_token": "<photo>"}, "has no token '<photo>'"),
    ],
)
def test_a_missing_special_token_is_an_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(TOKENIZER.backend, TOKENIZER.config | change, CHAT_TEMPLATE)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: no such file"):
        Tokenizer.from_folder(tmp_path)
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(TokenizerError, match=r"no chat template\. Looked for chat_template\.jinja"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: expected a JSON object, found list"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version"')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer.from_folder(tmp_path)
