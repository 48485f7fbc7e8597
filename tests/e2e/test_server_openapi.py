"""The server against its own OpenAPI page: schemathesis makes requests from it and checks every answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.served import Server, data_uri, digit_png, png

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install schemathesis)")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vlmtune.serve.schema import DATA_URI  # noqa: E402

pytestmark = pytest.mark.e2e

# A schema can say that text is a data URI of an image, but not how to draw one.
schemathesis.openapi.format(DATA_URI, st.sampled_from([data_uri(digit_png(3)), data_uri(png())]))
# Rules that a schema cannot write down (the model's name, one question with a closed set, special tokens in a text)
# make requests that fit the schema 400; test_server.py holds those.
EXCLUDED = [schemathesis.checks.positive_data_acceptance]
OPERATIONS = [
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("POST", "/v1/classify"),
    ("POST", "/v1/chat/completions"),
]


@pytest.fixture(scope="module")
def api(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_documented_path_is_tested_here(api: Any) -> None:
    found = {(method.upper(), path) for path, methods in api.raw_schema["paths"].items() for method in methods}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_the_openapi_page_says(api: Any, method: str, path: str, mode: Any) -> None:
    operation = api[path][method]
    if mode == schemathesis.GenerationMode.NEGATIVE and method == "GET":
        pytest.skip("there is nothing to get wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    def check(case: Any) -> None:
        response = case.call(timeout=120)
        case.validate_response(response, excluded_checks=EXCLUDED)

    check()
