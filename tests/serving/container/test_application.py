import base64
import json
import threading
from collections.abc import Callable

import anyio
import anyio.to_thread
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.types import Message

from serving.container import application
from serving.container.application import MAX_BODY, create_app, read_body
from serving.container.artifact import Model, load_model
from serving.container.inference import Answers
from serving.container.questions import Questions, RequestError
from tests.support.tiny_model import grey_photo, write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def client(model: Model) -> TestClient:
    return TestClient(create_app(model), raise_server_exceptions=False)


JPEG = {"content-type": "image/jpeg"}
JSON = {"content-type": "application/json"}


def test_ping_answers_200(client: TestClient) -> None:
    assert client.get("/ping").status_code == 200


def test_a_photo_is_counted(client: TestClient) -> None:
    response = client.post("/invocations", content=grey_photo(3), headers=JPEG)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["count"] == 3
    assert set(response.json()) == {"count", "mean", "probabilities"}


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
        ("POST", "/invocations?expected=3", JPEG, grey_photo(1), 400, "send `record` or nothing"),
        ("POST", "/invocations?record=x", JPEG, grey_photo(1), 400, "record='x' is no count"),
        ("POST", "/invocations", JSON, b"{", 400, "as JSON"),
        ("POST", "/invocations", {"content-type": "text/html"}, b"photo", 415, "'text/html'"),
        ("POST", "/invocations", JPEG | {"accept": "video/mp4"}, grey_photo(1), 406, "video/mp4"),
        ("POST", "/invocations", JPEG, bytes(7_000_000), 413, "6291456 bytes, send a smaller"),
        ("POST", "/invocations", JSON, b"[" * 7_000_000, 413, "6291456 bytes, send the JPEG"),
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
    def fail(*_: object) -> Answers:
        raise RuntimeError("the secret reason")

    monkeypatch.setattr(application, "predict_fn", fail)
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
    count = application.predict_fn

    def slow_count(questions: Questions, model: Model, review_below: float) -> Answers:
        counting.set()
        assert pinged.wait(timeout=600)
        return count(questions, model, review_below)

    monkeypatch.setattr(application, "predict_fn", slow_count)
    statuses = []

    async def ask() -> None:
        transport = httpx2.ASGITransport(create_app(model))
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
            anyio.create_task_group() as tasks,
        ):

            async def invoke() -> None:
                response = await client.post("/invocations", content=grey_photo(1), headers=JPEG)
                statuses.append(response.status_code)

            tasks.start_soon(invoke)
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


JSON = {"content-type": "application/json"}


def base64_of(count: int) -> str:
    return base64.b64encode(grey_photo(count)).decode()


def test_a_list_in_json_is_answered_by_a_list(client: TestClient) -> None:
    photos = [{"photo": base64_of(2), "record": {"count": 2}}, base64_of(5)]
    answers = client.post("/invocations", json=photos).json()
    assert [answer["count"] for answer in answers] == [2, 5]
    assert answers[0]["agreement"] > 0.9
    assert "agreement" not in answers[1]


@pytest.mark.parametrize("way", ["query", "header", "json"])
def test_a_record_comes_by_query_by_sagemaker_s_header_or_in_json(
    client: TestClient, way: str
) -> None:
    path, headers = "/invocations", dict(JPEG)
    if way == "query":
        path += "?record=5"
    if way == "header":
        headers["x-amzn-sagemaker-custom-attributes"] = "record=5"
    if way == "json":
        body = json.dumps({"photo": base64_of(2), "record": {"count": 5}}).encode()
        answer = client.post(path, content=body, headers=JSON).json()
    else:
        answer = client.post(path, content=grey_photo(2), headers=headers).json()
    assert answer["count"] == 2
    assert answer["agreement"] < 0.1
    assert answer["review"] is True


def test_an_unsure_count_is_marked_below_the_confidence_that_was_set(model: Model) -> None:
    sure = TestClient(create_app(model, review_below=0.5))
    assert "review" not in sure.post("/invocations", content=grey_photo(3), headers=JPEG).json()
    strict = TestClient(create_app(model, review_below=1.0))
    assert strict.post("/invocations", content=grey_photo(3), headers=JPEG).json()["review"] is True


def test_above_the_queue_requests_are_told_to_come_back_and_later_ones_are_answered(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, go_on = threading.Semaphore(0), threading.Event()
    count = application.predict_fn

    def slow_count(questions: Questions, model: Model, review_below: float) -> Answers:
        counting.release()
        assert go_on.wait(timeout=600)
        return count(questions, model, review_below)

    monkeypatch.setattr(application, "predict_fn", slow_count)
    app = create_app(model, at_once=2, queue=2)
    statuses = []

    async def ask() -> None:
        transport = httpx2.ASGITransport(app)
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
            anyio.create_task_group() as tasks,
        ):

            async def invoke() -> httpx2.Response:
                response = await client.post("/invocations", content=grey_photo(1), headers=JPEG)
                statuses.append(response.status_code)
                return response

            for _ in range(2):
                tasks.start_soon(invoke)
                assert await anyio.to_thread.run_sync(lambda: counting.acquire(timeout=600))
            refused = await invoke()
            assert refused.headers["retry-after"] == "1"
            assert "2 requests are waiting" in refused.json()["error"]
            assert (await client.get("/ping")).status_code == 200
            go_on.set()
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            response = await client.post("/invocations", content=grey_photo(1), headers=JPEG)
            statuses.append(response.status_code)

    anyio.run(ask)
    assert statuses == [503, 200, 200, 200]


def test_who_has_waited_too_long_is_told_to_come_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(application, "PATIENCE_SECONDS", -1)
    response = client.post("/invocations", content=grey_photo(1), headers=JPEG)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert "the request waited over" in response.json()["error"]


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "BODY_SECONDS", 0.01)

    async def never() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    request = Request({"type": "http", "method": "POST", "headers": []}, never)
    with pytest.raises(RequestError, match="took more than") as caught:
        anyio.run(read_body, request)
    assert caught.value.status == 408


def test_the_page_is_there_only_if_asked_for(model: Model) -> None:
    assert TestClient(create_app(model)).get("/").status_code == 404
    page = TestClient(create_app(model, page=True)).get("/")
    assert page.status_code == 200
    assert "How many items" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_document_names_every_route_and_status(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/ping", "/invocations", "/openapi.json"}
    statuses = set(document["paths"]["/invocations"]["post"]["responses"])
    assert statuses == {"200", "400", "406", "408", "413", "415", "503"}
