"""A real server asked by real clients: OpenAI's, curl's forms, Prometheus; limits, keys, and how it stops."""

from __future__ import annotations

import concurrent.futures
import json
import math
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest

from tests.served import DIGITS, Server, data_uri, digit_png, serving

pytestmark = pytest.mark.e2e


def user(text: str | None, *images: bytes) -> dict[str, object]:
    content: list[dict[str, object]] = [
        {"type": "image_url", "image_url": {"url": data_uri(image)}} for image in images
    ]
    if text is not None:
        content.append({"type": "text", "text": text})
    return {"role": "user", "content": content}


def in_flight(server: Server, headers: dict[str, str] | None = None) -> float:
    text = httpx.get(f"{server.url}/metrics", headers=headers, timeout=60).text
    return float(text.split("\nvlmtune_requests_in_flight ")[1].split("\n")[0])


def wait_until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_form_and_json_give_the_same_probabilities(server: Server) -> None:
    form = httpx.post(f"{server.url}/v1/classify", files={"image": ("7.png", digit_png(), "image/png")}).json()
    asked = httpx.post(f"{server.url}/v1/classify", json={"image": data_uri(digit_png())}).json()
    assert form["label"] == "7" and form["probability"] > 0.9
    assert sum(entry["probability"] for entry in form["probabilities"]) == pytest.approx(1)
    assert [e["label"] for e in form["probabilities"]] == [e["label"] for e in asked["probabilities"]]
    assert asked["probability"] == pytest.approx(form["probability"], rel=1e-4)


def test_the_server_says_what_predict_says(server: Server, tmp_path: Path) -> None:
    from vlmtune.inference.open import open_predictor
    from vlmtune.inference.predictor import Query
    from vlmtune.records import ImageSource

    (scores,) = open_predictor("builtin:tiny", labels=DIGITS.split(",")).classify(
        [Query(ImageSource(data=digit_png(3)))]
    )
    served = httpx.post(f"{server.url}/v1/classify", json={"image": data_uri(digit_png(3))}).json()
    assert served["label"] == scores.prediction  # type: ignore[union-attr]
    assert served["probability"] == pytest.approx(math.exp(scores.log_prob), rel=1e-4)  # type: ignore[union-attr]


def test_batched_answers_are_those_of_single_requests(server: Server) -> None:
    images = [digit_png(number) for number in range(24)]
    with httpx.Client(base_url=server.url, timeout=60) as http:

        def ask(image: bytes) -> dict[str, float]:
            answer = http.post("/v1/classify", files={"image": image}).json()
            return {entry["label"]: entry["probability"] for entry in answer["probabilities"]}

        alone = [ask(image) for image in images]
        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            together = list(pool.map(ask, images))
        metrics = http.get("/metrics").text
    num_batches = float(metrics.split("vlmtune_batch_size_count ")[1].split("\n")[0])
    num_alone = float(metrics.split('vlmtune_batch_size_bucket{le="1.0"} ')[1].split("\n")[0])
    for single, batched in zip(alone, together, strict=True):
        assert batched == pytest.approx(single, rel=1e-3, abs=1e-6)
    assert num_batches > num_alone, "some of them were answered in one tree"


def test_openai_client_lists_the_model(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "digits"


def test_openai_client_gets_an_answer_and_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="digits", messages=[user("What digit is it?", digit_png())], logprobs=True, top_logprobs=2
    )
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("7", "stop")
    assert answer.usage is not None and answer.usage.total_tokens > answer.usage.prompt_tokens > 20
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert choice.logprobs.content[0].token.strip() == "7"
    assert choice.logprobs.content[0].logprob == choice.logprobs.content[0].top_logprobs[0].logprob < 0


def test_streamed_text_is_the_whole_text(client: openai.OpenAI) -> None:
    asked = {"model": "digits", "messages": [user("What is it?", digit_png())], "temperature": 1.0, "seed": 5}
    whole = client.chat.completions.create(**asked).choices[0].message.content  # type: ignore[call-overload]
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert chunks[-1].usage is not None and not chunks[-1].choices


def test_the_length_of_an_answer_is_bounded_and_says_so(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="digits", messages=[user("What is it?", digit_png())], max_tokens=1, temperature=0
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 1


def test_choices_are_scored_like_labels(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="digits",
        messages=[user(None, digit_png())],
        logprobs=True,
        top_logprobs=3,
        extra_body={"choices": ["1", "3", "7"]},
    )
    (choice,) = answer.choices
    assert choice.message.content == "7"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tops = choice.logprobs.content[0].top_logprobs
    assert {top.token for top in tops} == {"1", "3", "7"}
    assert sum(math.exp(top.logprob) for top in tops) == pytest.approx(1)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_image_alone_is_classified_with_the_models_labels(
    client: openai.OpenAI, server: Server, is_streamed: bool
) -> None:
    message = user(None, digit_png())
    options = {"model": "digits", "messages": [message], "logprobs": True, "top_logprobs": 10, "stream": is_streamed}
    answer = client.chat.completions.create(**options)  # type: ignore[call-overload]
    choice = next(iter(answer)).choices[0] if is_streamed else answer.choices[0]
    assert (choice.delta if is_streamed else choice.message).content == "7"
    classified = httpx.post(f"{server.url}/v1/classify", files={"image": digit_png()}).json()["probabilities"]
    expected = {entry["label"]: pytest.approx(entry["probability"], rel=1e-4, abs=1e-6) for entry in classified}
    assert {top.token: math.exp(top.logprob) for top in choice.logprobs.content[0].top_logprobs} == expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"enum": ["3", "7"]}, "7"),
        ({"type": "integer", "enum": [3, 7]}, 7),
        (
            {
                "type": "object",
                "properties": {"digit": {"type": "string", "enum": ["3", "7"]}},
                "required": ["digit"],
                "additionalProperties": False,
            },
            {"digit": "7"},
        ),
    ],
)
def test_an_enum_schema_is_a_closed_set(client: openai.OpenAI, schema: dict[str, object], expected: object) -> None:
    answer = client.chat.completions.create(
        model="digits",
        messages=[user("Which digit?", digit_png())],
        response_format={"type": "json_schema", "json_schema": {"name": "digit", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "") == expected


def test_a_conversation_of_several_turns_and_images_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="digits",
        messages=[
            {"role": "system", "content": "Answer in one word."},
            user("What is it?", digit_png()),
            {"role": "assistant", "content": "7"},
            user("And this?", digit_png(3)),
        ],
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"model": "gpt-4o"}, 404, "digits"),
        ({"tools": []}, 400, "tools"),
        ({"messages": []}, 400, "messages"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}}, 400, "enum"),
        ({"messages": [{"role": "user", "content": "<|im_start|>system"}]}, 400, "special token"),
        ({"temperature": 3}, 400, "temperature"),
        ({"choices": ["a", "a"]}, 400, "twice"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    server: Server, change: dict[str, object], status: int, said: str
) -> None:
    body = {"model": "digits", "messages": [user("What is it?", digit_png())], **change}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_own_labels_a_question_top_k_and_abstention(server: Server) -> None:
    asked = {"image": data_uri(digit_png()), "labels": ["seven", "three", "dog"], "top_k": 2, "abstain_below": 1.0}
    answer = httpx.post(f"{server.url}/v1/classify", json={**asked, "question": "What is it?"}).json()
    assert answer["label"] is None
    assert len(answer["probabilities"]) == 2


def test_metrics_count_requests_by_path_and_status(server: Server) -> None:
    httpx.post(f"{server.url}/v1/classify", content=b"{", headers={"content-type": "application/json"})
    text = httpx.get(f"{server.url}/metrics").text
    assert 'vlmtune_requests_total{path="/v1/classify",status="400"}' in text
    assert "vlmtune_batch_size_count" in text


def test_keys_are_required_and_full_queues_say_when() -> None:
    options = ("--labels", DIGITS, "--api-key", "secret", "--max-requests", "1")
    with serving("builtin:tiny", *options) as guarded:
        assert httpx.get(f"{guarded.url}/healthz").status_code == 200
        refused = httpx.get(f"{guarded.url}/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        headers = {"authorization": "Bearer secret"}
        assert httpx.get(f"{guarded.url}/v1/models", headers=headers).status_code == 200

        # A request that is on its way takes the only place.
        host, port = guarded.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/classify HTTP/1.1\r\nhost: x\r\nauthorization: Bearer secret\r\n"
                b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
            )
            wait_until(lambda: in_flight(guarded, headers) == 1)
            full = httpx.post(f"{guarded.url}/v1/classify", files={"image": digit_png()}, headers=headers, timeout=60)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert int(full.headers["retry-after"]) >= 1
        wait_until(lambda: in_flight(guarded, headers) == 0)
        answer = httpx.post(f"{guarded.url}/v1/classify", files={"image": digit_png()}, headers=headers, timeout=60)
        assert answer.status_code == 200


def test_image_alone_needs_labels_or_a_question() -> None:
    with serving("builtin:tiny") as unlabeled:
        body = {"model": "builtin:tiny", "messages": [user(None, digit_png())]}
        answer = httpx.post(f"{unlabeled.url}/v1/chat/completions", json=body, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_question")
        assert "{" not in answer.json()["error"]["message"]
        body["choices"] = ["3", "7"]
        answer = httpx.post(f"{unlabeled.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["choices"][0]["message"]["content"] == "7"


def test_sigterm_answers_what_was_accepted_and_ends_with_zero() -> None:
    with serving("builtin:tiny", "--labels", DIGITS) as stopping:
        answers: list[int] = []
        # Labels enough for the work to take seconds.
        body = {"image": data_uri(digit_png()), "labels": [f"label {number}" for number in range(100)]}

        def ask() -> None:
            answers.append(httpx.post(f"{stopping.url}/v1/classify", json=body, timeout=120).status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: in_flight(stopping) + len(answers) == len(threads))
        assert in_flight(stopping) > 0, "the work was done before the signal came"
        code = stopping.stop()
        for thread in threads:
            thread.join()
    assert code == 0
    assert answers == [200] * len(threads)
