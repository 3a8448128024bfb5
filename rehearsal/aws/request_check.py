"""Finds requests that moto accepts but AWS would refuse because of their form.

botocore's models have a pattern, an enum, a length or a range for many parameters. Neither boto3,
the AWS command line nor moto checks them. moto handles S3 separately, so only the headers of S3's
requests are checked; for objects, S3's model has no other such limits.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import regex  # type: ignore[import-untyped]
from botocore.model import ListShape, MapShape, Shape, StringShape, StructureShape
from moto.core.parse import PROTOCOL_PARSERS
from moto.core.request import determine_request_protocol
from moto.core.responses import BaseResponse
from moto.core.utils import get_service_model
from moto.s3.responses import S3Response

NUMBERS = {"integer", "long", "float", "double"}
SIZES = {"string", "blob", "list", "map"}
# How Java writes characters outside the basic plane: as surrogates.
SURROGATES, OUTSIDE = r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF"


def check_requests(note: Callable[[str], None]) -> None:
    """From now on, call `note` for each request to moto that AWS would refuse."""
    call_action = BaseResponse.call_action

    def checked(response: BaseResponse) -> Any:
        for violation in _violations(response):
            note(violation)
        return call_action(response)

    BaseResponse.call_action = checked  # type: ignore[assignment,method-assign]
    setup = S3Response.setup_class

    def looked_at(response: S3Response, request: Any, full_url: Any = None, *more: Any) -> None:
        for violation in header_violations(request.headers):
            note(violation)
        setup(response, request, full_url, *more)

    S3Response.setup_class = looked_at  # type: ignore[assignment,method-assign]


class ViolationList:
    """A file of the violations so far, without duplicates."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen: set[str] = set()
        self._lock = threading.Lock()  # the server answers in threads
        file.write_text("")

    def note(self, violation: str) -> None:
        with self._lock:
            if violation not in self._seen:
                self._seen.add(violation)
                with self._file.open("a") as output:
                    output.write(f"{violation}\n")


def _violations(response: BaseResponse) -> Iterator[str]:
    service = get_service_model(response.boto3_service_name)
    operation = service.operation_model(response._get_action())
    if operation.input_shape is None:
        return
    request = response.normalized_request
    protocol = determine_request_protocol(service, request.content_type)
    parsed = PROTOCOL_PARSERS[protocol](operation, map_type=dict).parse(
        {
            "method": request.method,
            "values": request.values,
            "headers": request.headers,
            "body": request.data,
            "url_path": request.path,
            "url_params": response.uri_match,
        }
    )
    yield from violations(parsed, operation.input_shape, f"{service.service_name}:{operation.name}")


def violations(value: Any, shape: Shape, place: str) -> Iterator[str]:
    """Describe where `value`, parameters in botocore's form, violates `shape`."""
    if isinstance(shape, StructureShape):
        for name, member in shape.members.items():
            if value.get(name) is not None:
                yield from violations(value[name], member, f"{place}.{name}")
        missing = set(shape.required_members) - value.keys()
        yield from (f"{place}.{name} is missing" for name in sorted(missing))
    elif isinstance(shape, ListShape):
        for each in value:
            yield from violations(each, shape.member, f"{place}[]")
    elif isinstance(shape, MapShape):
        for key, each in value.items():
            yield from violations(key, shape.key, f"{place}, a key")
            yield from violations(each, shape.value, f"{place}[{key}]")
    yield from _outside(value, shape, place)


def header_violations(headers: Mapping[str, str]) -> Iterator[str]:
    """Describe the headers of a request to S3 whose value none of its operations knows."""
    for name, known in _header_enums().items():
        if name in headers and headers[name] not in known:
            yield f"s3: {name}={headers[name]!r} is none of {', '.join(sorted(known))}"


@cache
def _header_enums() -> dict[str, set[str]]:
    """The values that S3's operations accept for each header with an enum."""
    s3, enums = get_service_model("s3"), dict[str, set[str]]()
    for operation in map(s3.operation_model, s3.operation_names):
        members = operation.input_shape.members.values() if operation.input_shape else ()
        for member in members:
            if member.serialization.get("location") == "header" and getattr(member, "enum", []):
                enums.setdefault(member.serialization["name"], set()).update(member.enum)
    return enums


def _outside(value: Any, shape: Shape, place: str) -> Iterator[str]:
    """Describe the limits that this value itself violates."""
    limits: Mapping[str, Any] = shape.metadata
    if isinstance(shape, StringShape) and shape.enum and value not in shape.enum:
        yield f"{place}={value!r} is none of {', '.join(shape.enum)}"
    # As in AWS's own errors, the whole value "must satisfy regular expression pattern".
    pattern = limits.get("pattern", "").replace(SURROGATES, OUTSIDE)
    if pattern and not regex.fullmatch(pattern, str(value)):
        yield f"{place}={value!r} does not match {pattern}"
    size = value if shape.type_name in NUMBERS else None
    if shape.type_name in SIZES:
        size = len(value)
    if size is None:
        return
    if "min" in limits and size < limits["min"]:
        yield f"{place}={value!r:.80} is less than {limits['min']}"
    if "max" in limits and size > limits["max"]:
        yield f"{place}={value!r:.80} is more than {limits['max']}"
