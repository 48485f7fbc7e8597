"""Requests and answers as JSON, for checking and for the OpenAPI page. Chat is OpenAI's format; `classify` is ours.

A field that would change an answer and is not supported is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"\S")]
Labels = Annotated[list[Label], Field(min_length=1, json_schema_extra={"uniqueItems": True})]
DATA_URI = "data-uri-of-a-image"
"""The OpenAPI format of images in JSON."""
ImageText = Annotated[
    str,
    Field(
        min_length=1,
        description="`data:image/…;base64,…`, or an http(s) address if the server was started with --allow-urls.",
        json_schema_extra={"format": DATA_URI},
    ),
]


class Strict(BaseModel):
    """An unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


# ── /v1/classify ────────────────────────────────────────────────────────────────────────────────────────────────────


class ClassifyOptions(Strict):
    """What may accompany an image."""

    labels: Labels | None = Field(None, description="The closed set of answers. Default: those the model learned.")
    question: str | None = Field(
        None, min_length=1, pattern=r"\S", description="Asked instead of the prompt the model was trained with."
    )
    top_k: int | None = Field(None, ge=1, description="At most this many labels in `probabilities`. Default: all.")
    abstain_below: float | None = Field(
        None, ge=0, le=1, description="No label (null) if the likeliest one has less probability than this."
    )
    model: str | None = Field(None, description="Checked if given; see /v1/models.")


class ClassifyRequest(ClassifyOptions):
    """An image to be labeled."""

    image: ImageText


class ClassifyForm(ClassifyOptions):
    """The same as a form: the image as a file, `labels` as a repeated field or as one with commas."""

    image: bytes


class LabelProbability(BaseModel):
    label: str
    probability: float


class ClassifyAnswer(BaseModel):
    """Probabilities are over the label set and sum to 1; likeliest first."""

    model: str
    label: str | None = Field(description="Null if the server was asked to abstain and did.")
    probability: float = Field(description="Of the likeliest label.")
    probabilities: list[LabelProbability]


# ── /v1/chat/completions ────────────────────────────────────────────────────────────────────────────────────────────


class ImageUrl(Strict):
    url: ImageText
    detail: Literal["auto", "low", "high"] | None = Field(
        None, description="Accepted for compatibility; the model's own processor decides."
    )


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    type: Literal["text"]
    text: str


Part = Annotated[ImagePart | TextPart, Field(discriminator="type")]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: str | Annotated[list[Part], Field(min_length=1)]
    name: str | None = None


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class JsonSchema(Strict):
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(
        alias="schema",
        description="`{'enum': [...]}`, or an object with one required property that is such an enum.",
    )
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    """A conversation about images. Without `choices` or a schema the answer is free text."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    choices: Labels | None = Field(
        None,
        description="An extension: the answer is the likeliest of these, by exact probability. In the OpenAI client: "
        "`extra_body={'choices': [...]}`.",
    )
    response_format: ResponseFormat | None = Field(
        None, description="A JSON schema whose only freedom is an enum is answered like `choices`."
    )
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(
        None, ge=0, le=2, description="Default 0: the likeliest tokens. Of no effect on a closed set of answers."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # Accepted at the value that changes nothing, and what only describes the caller.
    n: Literal[1] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """With a closed set, one entry for the whole label, and the other labels as `top_logprobs`."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatAnswer(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


# ── the rest ────────────────────────────────────────────────────────────────────────────────────────────────────────


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    labels: list[str] | None = Field(description="What it learned to tell apart; null where nothing says so.")
    task: Literal["choice", "bool", "score", "text"]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok"]
    model: str


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorDetail
