"""The server does what its OpenAPI document says, as schemathesis reads it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from serving.container.application import create_app
from serving.container.artifact import load_model
from tests.support.tiny_model import grey_photo, write_tiny_model

# Not that every text of the right type is accepted: not each is a photo.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
RIGHT, WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
for content_type in ("image/jpeg", "image/png", "application/x-image"):
    photos = st.integers(1, 5).map(grey_photo) | st.binary(max_size=100)
    schemathesis.openapi.media_type(content_type, photos)


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> schemathesis.BaseSchema:
    model = load_model(write_tiny_model(tmp_path_factory.mktemp("model")))
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(model))


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        ("GET", "/ping", RIGHT),
        ("GET", "/openapi.json", RIGHT),
        ("POST", "/invocations", RIGHT),
        ("POST", "/invocations", WRONG),
    ],
)
def test_the_server_does_what_its_document_says(
    schema: schemathesis.BaseSchema, method: str, path: str, mode: schemathesis.GenerationMode
) -> None:
    operation = schema[path][method]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def every_call_conforms(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS)

    every_call_conforms()
