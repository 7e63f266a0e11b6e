"""Schemathesis makes requests out of the server's own OpenAPI document, right and wrong ones: none may fail inside,
every reply must be one that the document describes."""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.searcher_case import encoded, engine, examples, served

COUNT = 400 if os.environ.get("FULL_TESTS") else 40
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance, unsupported_method,
]  # fmt: skip
OPERATIONS = [
    ("/search", "POST"), ("/explain", "POST"), ("/upload", "POST"), ("/health", "GET"), ("/info", "GET"),
    ("/examples", "GET"), ("/examples/{number}/image", "GET"),
]  # fmt: skip
TOKEN = {"Authorization": "Bearer a long token"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    return engine(root), examples(root)


@pytest.fixture(scope="module")
def described(made):
    with served(made[0], examples=made[1]) as base:
        yield schemathesis.openapi.from_url(base + "openapi.json")


def fuzz(operation, mode, check, count: int = COUNT) -> int:
    """Run ``check`` on that many requests; how many there were."""
    seen = []

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case):
        seen.append(case)
        check(case)

    each()
    return len(seen)


def test_every_operation_is_here(described):
    found = {(one.ok().path, one.ok().method.upper()) for one in described.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_right_requests(described, path, method):
    operation = described[path][method]
    assert fuzz(operation, GenerationMode.POSITIVE, lambda case: case.call_and_validate(checks=CHECKS))


@pytest.mark.parametrize(("path", "method"), [o for o in OPERATIONS if "POST" in o or "{" in o[0]])
def test_wrong_requests(described, path, method):
    def check(case):
        # In a form everything is text: a number there is a question like any other.
        form = case.media_type == "multipart/form-data"
        case.call_and_validate(checks=CHECKS if form else [*CHECKS, negative_data_rejection])

    assert fuzz(described[path][method], GenerationMode.NEGATIVE, check)


@pytest.mark.parametrize("path", ["/search", "/upload"])
def test_fields_beside_a_real_picture(described, path):
    """Made-up bytes are hardly ever an image: what stands beside one gets its turn."""
    answered = []

    def check(case):
        if case.media_type == "multipart/form-data" and isinstance(case.body, dict):
            case.body["image" if path == "/search" else "file"] = encoded()
        reply = case.call()
        case.validate_response(reply, checks=CHECKS[:5])
        answered.append(reply.status_code)

    fuzz(described[path]["POST"], GenerationMode.POSITIVE, check)
    assert 200 in answered, set(answered)


@pytest.mark.parametrize(("path", "method"), [o for o in OPERATIONS if o[0] != "/health"])
def test_no_operation_forgets_the_token(made, path, method):
    with served(made[0], token="a long token", examples=made[1]) as base:
        schema = schemathesis.openapi.from_url(base + "openapi.json", headers=TOKEN)
        checks = [not_a_server_error, ignored_auth]
        assert fuzz(
            schema[path][method],
            GenerationMode.POSITIVE,
            lambda case: case.call_and_validate(checks=checks, headers=TOKEN),
            count=3,
        )
