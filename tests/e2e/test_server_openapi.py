"""The server against its own OpenAPI page: schemathesis makes requests from it and checks every answer."""

from __future__ import annotations

import pytest

from tests.served import Server, data_uri, digit_png, png

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (pip install schemathesis)")

from hypothesis import HealthCheck, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from vlmtune.serve.schema import DATA_URI  # noqa: E402

pytestmark = pytest.mark.e2e

# A schema can say that text is a data URI of a picture, but not how to draw one.
schemathesis.openapi.format(DATA_URI, st.sampled_from([data_uri(digit_png(3)), data_uri(png())]))


@pytest.fixture
def api(server: Server) -> object:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_answer_is_as_the_openapi_page_says(case: object) -> None:
    checks = schemathesis.checks
    response = case.call(timeout=60)  # type: ignore[attr-defined]
    case.validate_response(  # type: ignore[attr-defined]
        response,
        # Rules that a schema cannot write down (the model's name, one user message with choices, special tokens in a
        # text) make valid-looking requests 400; the other tests hold those.
        excluded_checks=[checks.positive_data_acceptance] if hasattr(checks, "positive_data_acceptance") else [],
    )
