"""A checkpoint's tokenizer and chat template.

In: a folder in the hub's layout (`tokenizer.json`, `tokenizer_config.json`, a chat template unless the family has a
format of its own), or the parts themselves. Out: text to tokens and back, and messages to text. Templates are untrusted
code, so they run in a sandbox with the globals of `transformers.utils.chat_template_utils` and nothing else.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import tokenizers

from vlmtune.errors import TokenizerError
from vlmtune.text.formats import CHAT, PromptFormat

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"

Message = Mapping[str, Any]
"""{"role": …, "content": text, or a list of {"type": "image"} and {"type": "text", "text": …}}."""

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")
_IMAGE_TOKEN = "<image>"
_CHATML_END = "<|im_end|>"


class Tokenizer:
    """Tokens, special tokens and the chat template of one checkpoint. Safe to use from several threads.

    Args:
        backend: the tokenizer proper; its own truncation and padding are switched off.
        config: the content of `tokenizer_config.json`: names of special tokens, kept as it is for `save`.
        chat_template: jinja2 source.
        origin: name of this tokenizer in messages, normally its folder.
        prompt_format: the family's prompt format.

    Raises:
        TokenizerError: if there is no padding, end or image token, or the template is not valid jinja2.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: Mapping[str, Any],
        chat_template: str,
        origin: str = "tokenizer",
        prompt_format: PromptFormat = CHAT,
    ) -> None:
        self.backend = backend
        self.config = dict(config)
        self.chat_template = chat_template
        self.origin = origin
        self.prompt_format = prompt_format
        backend.add_tokens([text for text in prompt_format.whole_tokens if backend.token_to_id(text) is not None])
        backend.no_truncation()
        backend.no_padding()
        self._template = _compile(chat_template, origin)
        self.image_token = self._special_tokens.get("image_token", _IMAGE_TOKEN)
        self.image_token_id = self.token_id(self.image_token)
        self.pad_id = self.token_id(self._named("pad_token"))
        # A turn ends with <|im_end|> in ChatML whatever the config calls the end of a text.
        self.end_token = _CHATML_END if _CHATML_END in self.control_tokens else self._named("eos_token")
        self.end_id = self.token_id(self.end_token)

    @classmethod
    def from_folder(cls, folder: Path | str, prompt_format: PromptFormat = CHAT) -> Tokenizer:
        """Read a checkpoint folder. Raises TokenizerError naming the missing or damaged file.

        A format's template takes precedence over the folder's.
        """
        folder = Path(folder)
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise TokenizerError(f"{path}: no such file. A checkpoint folder must hold {TOKENIZER_FILE}.")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        # tokenizers raises bare Exception on damaged input.
        except Exception as error:
            raise TokenizerError(f"{path}: not a readable tokenizer ({error}). Download the file again.") from error
        config = _read_json(folder / CONFIG_FILE)
        template = prompt_format.template or _find_template(folder, config)
        return cls(backend, config, template, str(folder), prompt_format)

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text in which special tokens are recognized; none are added."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of tokens, special tokens spelled out unless skipped."""
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_id(self, token: str) -> int:
        """The number of a token. Raises TokenizerError if it is not in the vocabulary."""
        number = self.backend.token_to_id(token)
        if number is None:
            raise TokenizerError(
                f"{self.origin}: the vocabulary ({len(self)} tokens) has no token '{token}'. "
                "This tokenizer does not belong to a vision-language model of a known family."
            )
        return int(number)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """Messages as one text, in which one image token stands for each image.

        Raises:
            TokenizerError: if the template raises, or does what the sandbox forbids.
        """
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        # A template can fail in any way that an expression can: TemplateError, TypeError, KeyError…
        except Exception as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TokenizerError(
                f"{self.origin}: the chat template failed on messages of the roles {roles} "
                f"({type(error).__name__}: {error})."
            ) from error

    def save(self, folder: Path | str) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and the checkpoint's `chat_template.jinja`, if it has one of
        its own: files that transformers loads too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {key: value for key, value in self.config.items() if key != "chat_template"}
        self.backend.save(str(folder / TOKENIZER_FILE))
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.prompt_format.template is None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")

    @cached_property
    def control_tokens(self) -> frozenset[str]:
        """Special tokens, which in user text would act instead of being read."""
        added = self.backend.get_added_tokens_decoder().values()
        return frozenset(token.content for token in added if token.special) | {self.image_token}

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        """What the template sees by name: bos_token, eos_token… and a checkpoint's own extra names."""
        extra = self.config.get("extra_special_tokens") or self.config.get("model_specific_special_tokens") or {}
        named = {**(extra if isinstance(extra, dict) else {})}
        named |= {key: self.config[key] for key in _NAMED_TOKENS if self.config.get(key) is not None}
        return {key: _content(token) for key, token in named.items()}

    def _named(self, key: str) -> str:
        if key not in self._special_tokens:
            raise TokenizerError(f"{self.origin}/{CONFIG_FILE}: '{key}' is missing. Name one of the special tokens.")
        return self._special_tokens[key]


def _content(token: Any) -> str:
    """A token is written as text, or as {"content": text, …}."""
    return str(token["content"] if isinstance(token, dict) else token)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TokenizerError(f"{path}: no such file. A checkpoint folder must hold {path.name}.") from error
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: not readable as JSON ({error}). Download the file again.") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(content).__name__}.")
    return content


def _find_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The chat template, in transformers' order: its own file, the processor's older file, the tokenizer's config."""
    if (path := folder / TEMPLATE_FILE).is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if (path := folder / "chat_template.json").is_file():
        template = _read_json(path).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise TokenizerError(
            f"{folder}: no chat template. Looked for {TEMPLATE_FILE}, chat_template.json and the key 'chat_template' "
            f"of {CONFIG_FILE}."
        )
    return template


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what an assistant wrote. The mark is not needed here; its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(template: str, origin: str) -> jinja2.Template:
    """The template in a sandbox with the globals and filters that the hub's templates expect."""

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own filter escapes HTML, which would change the prompt.
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"{origin}: the chat template is not valid jinja2 (line {error.lineno}: {error})."
        ) from error
