import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message
from tiny_model import grey_photo, write_tiny_model

from serving import server
from serving.inference import Model, Prediction, RequestError, model_fn
from serving.server import MAX_BODY, create_app, main, parse_arguments, read_body


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return model_fn(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def client(model: Model) -> TestClient:
    return TestClient(create_app(model), raise_server_exceptions=False)


JPEG = {"content-type": "image/jpeg"}


def test_ping_answers_200(client: TestClient) -> None:
    assert client.get("/ping").status_code == 200


def test_a_photo_is_counted(client: TestClient) -> None:
    response = client.post("/invocations", content=grey_photo(3), headers=JPEG)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["count"] == 3
    assert set(response.json()) == {"count", "expected", "probabilities"}


def test_csv_is_answered_where_it_is_accepted(client: TestClient) -> None:
    response = client.post(
        "/invocations", content=grey_photo(2), headers=JPEG | {"accept": "text/csv"}
    )
    assert response.headers["content-type"].startswith("text/csv")
    assert response.text.split(",")[0] == "2"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status", "message"),
    [
        ("POST", "/invocations", JPEG, b"", 400, "the body is empty"),
        ("POST", "/invocations", JPEG, b"no photo", 400, "not a readable JPEG or PNG"),
        ("POST", "/invocations", {}, b"photo", 415, "content type ''"),
        ("POST", "/invocations", {"content-type": "text/html"}, b"photo", 415, "'text/html'"),
        ("POST", "/invocations", JPEG | {"accept": "video/mp4"}, grey_photo(1), 406, "video/mp4"),
        ("POST", "/invocations", JPEG, bytes(7_000_000), 413, "larger than 6291456 bytes"),
        ("GET", "/invocations", {}, b"", 405, "POST /invocations"),
        ("POST", "/ping", {}, b"", 405, "GET /ping"),
        ("GET", "/", {}, b"", 404, "POST /invocations"),
        ("GET", "/ping/", {}, b"", 404, "GET /ping"),
    ],
)
def test_a_wrong_request_gets_a_4xx_with_one_line_of_json(
    client: TestClient,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes,
    status: int,
    message: str,
) -> None:
    response = client.request(method, path, content=body, headers=headers, follow_redirects=False)
    assert response.status_code == status
    assert message in response.json()["error"]
    assert "\n" not in response.text
    assert ("allow" in response.headers) == (status == 405)


@settings(deadline=None)
@given(st.binary(max_size=300) | st.integers(0, 400).map(lambda kept: grey_photo(3)[:kept]))
def test_bytes_that_are_no_photo_never_cause_a_5xx(client: TestClient, body: bytes) -> None:
    response = client.post("/invocations", content=body, headers=JPEG)
    assert 400 <= response.status_code < 500
    assert list(response.json()) == ["error"]
    assert client.get("/ping").status_code == 200


def test_our_own_mistake_is_a_500_without_its_traceback(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(photo: bytes, model: Model) -> Prediction:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(server, "predict_fn", fail)
    response = client.post("/invocations", content=grey_photo(1), headers=JPEG)
    assert response.status_code == 500
    assert list(response.json()) == ["error"]
    assert "secret" not in response.text


def request_of(receive: Callable[[], Message]) -> Request:
    async def receiving() -> Message:
        return receive()

    return Request({"type": "http", "method": "POST", "headers": []}, receiving)


def test_an_endless_body_is_refused_as_soon_as_it_is_too_large() -> None:
    chunks = []

    def receive() -> Message:
        chunks.append(bytes(1024 * 1024))
        return {"type": "http.request", "body": chunks[-1], "more_body": True}

    with pytest.raises(RequestError, match="larger") as caught:
        anyio.run(read_body, request_of(receive))
    assert caught.value.status == 413
    assert len(chunks) == 7


def test_a_body_of_the_largest_size_is_read() -> None:
    body = bytes(MAX_BODY)
    request = request_of(lambda: {"type": "http.request", "body": body, "more_body": False})
    assert anyio.run(read_body, request) == body


def test_a_client_that_hangs_up_is_no_failure_of_the_server() -> None:
    with pytest.raises(RequestError, match="connection ended"):
        anyio.run(read_body, request_of(lambda: {"type": "http.disconnect"}))


def test_ping_answers_while_a_photo_is_counted(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, pinged = threading.Event(), threading.Event()

    def slow_count(photo: bytes, model: Model) -> Prediction:
        counting.set()
        assert pinged.wait(timeout=10)
        return Prediction(1, 1.0, {"1": 1.0})

    monkeypatch.setattr(server, "predict_fn", slow_count)
    statuses = []

    async def ask() -> None:
        transport = httpx2.ASGITransport(create_app(model))
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
            anyio.create_task_group() as tasks,
        ):

            async def count() -> None:
                response = await client.post("/invocations", content=b"photo", headers=JPEG)
                statuses.append(response.status_code)

            tasks.start_soon(count)
            assert await anyio.to_thread.run_sync(counting.wait, 10)
            statuses.append((await client.get("/ping")).status_code)
            assert statuses == [200]  # the photo is still being counted
            pinged.set()

    anyio.run(ask)
    assert statuses == [200, 200]


def test_each_request_prints_one_json_line(
    client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client.get("/ping")
    client.post("/invocations", content=b"", headers=JPEG)
    ping, empty = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (ping["method"], ping["path"], ping["status"]) == ("GET", "/ping", 200)
    assert ping["milliseconds"] >= 0
    assert "error" not in ping
    assert (empty["status"], empty["error"][:17]) == (400, "the body is empty")


@pytest.mark.parametrize(
    ("environment", "flags", "port"),
    [
        ({}, [], 8080),
        ({"SERVING_PORT": "9000"}, [], 9000),
        ({"SERVING_PORT": "9000", "SAGEMAKER_BIND_TO_PORT": "9001"}, [], 9001),
        ({"SERVING_PORT": "9000", "SAGEMAKER_BIND_TO_PORT": "9001"}, ["--port", "0"], 0),
    ],
)
def test_a_flag_wins_over_sagemaker_over_our_variable(
    environment: dict[str, str], flags: list[str], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVING_PORT", "SAGEMAKER_BIND_TO_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert parse_arguments(flags).port == port


def test_it_listens_on_this_machine_alone_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SERVING_HOST", raising=False)
    assert parse_arguments([]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "70000"], "70000 is not a port"),
        (["--port", "http"], "invalid"),
        (["--threads", "-1"], "-1 is below 0"),
    ],
)
def test_a_wrong_setting_is_named(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(flags)
    assert message in capsys.readouterr().err


@pytest.fixture
def _signals_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)


@pytest.mark.usefixtures("_signals_kept")
def test_a_missing_model_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .*none: no such model folder.*$"):
        main(["--model", str(tmp_path / "none")])


@pytest.mark.usefixtures("_signals_kept")
def test_an_address_that_is_not_ours_ends_the_start_with_one_line(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: cannot listen on 192\.0\.2\.1:0: .+$"):
        main(["--model", str(folder), "--host", "192.0.2.1", "--port", "0"])
