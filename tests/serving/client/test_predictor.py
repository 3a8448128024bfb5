import io
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import numpy as np
import pytest
from PIL import Image

from serving.client import predictor as predictor_module
from serving.client.predictor import LARGEST_SENT, ImagePredictor, NotReadyError, Photo
from serving.container.artifact import ModelError
from serving.container.questions import RequestError
from tests.support.fake_endpoint import FakeRuntime, put_before_boto3, refusal
from tests.support.tiny_model import grey_photo, write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three photos, in the current folder, whose names are not in the order of their counts."""
    monkeypatch.chdir(tmp_path)
    for name, count in (("c.jpg", 2), ("a.jpg", 5), ("b.jpg", 3)):
        Path(name).write_bytes(grey_photo(count))
    return ["c.jpg", "a.jpg", "b.jpg"]


@pytest.fixture
def runtime(folder: Path) -> FakeRuntime:
    return FakeRuntime(folder)


@pytest.fixture
def endpoint(runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> str:
    put_before_boto3(runtime, monkeypatch)
    return "bins"


def test_a_photo_counts_the_same_in_any_form(folder: Path, photos: list[str]) -> None:
    predictor = ImagePredictor(model=folder)
    forms: list[Photo] = [
        "a.jpg",
        Path("a.jpg"),
        Path("a.jpg").read_bytes(),
    ]
    assert [predictor.predict(form).count for form in forms] == [5] * 3


def test_an_endpoint_and_a_local_model_answer_alike(
    folder: Path, photos: list[str], endpoint: str
) -> None:
    remote, local = ImagePredictor(endpoint=endpoint), ImagePredictor(model=folder)
    assert [remote.predict(name) for name in photos] == [local.predict(name) for name in photos]


@pytest.mark.parametrize(
    ("photo", "status", "message"),
    [(b"junk", 400, "not a readable JPEG"), (b"", 400, "empty"), (bytes(7_000_000), 413, "larger")],
)
def test_a_photo_that_the_endpoint_refuses_is_named_as_the_server_named_it(
    endpoint: str, photo: bytes, status: int, message: str
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        ImagePredictor(endpoint=endpoint).predict(photo)
    assert caught.value.status == status
    assert "{" not in str(caught.value)


def test_a_source_that_is_not_there_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model"):
        ImagePredictor(model=tmp_path / "none")
    with pytest.raises(ValueError, match="not both"):
        ImagePredictor(model=tmp_path, endpoint="bins")


@pytest.fixture
def web(photos: list[str]) -> Iterator[str]:
    """The address of a server that has the photos."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_web_address_is_fetched(folder: Path, web: str) -> None:
    predictor = ImagePredictor(model=folder)
    assert predictor.predict(f"{web}/a.jpg").count == 5
    with pytest.raises(OSError, match="404"):
        predictor.predict(f"{web}/none.jpg")


def test_a_photo_in_s3_is_fetched(folder: Path, aws: None) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    s3.put_object(Bucket="bins", Key="new/a b.jpg", Body=grey_photo(4))
    assert ImagePredictor(model=folder).predict("s3://bins/new/a b.jpg").count == 4


def test_it_may_be_asked_from_several_threads(folder: Path) -> None:
    predictor = ImagePredictor(model=folder)
    counts: dict[int, Any] = {}

    def ask(count: int) -> None:
        counts[count] = [predictor.predict(grey_photo(count)).count for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(count,)) for count in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == {count: [count] * 20 for count in range(1, 6)}


def test_a_photo_too_large_for_the_endpoint_is_sent_smaller_and_upright(
    runtime: FakeRuntime, endpoint: str
) -> None:
    noise = np.random.default_rng(0).integers(100, 104, (3000, 2000, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", exif=exif, compress_level=0)
    assert len(buffer.getvalue()) > LARGEST_SENT
    answer = ImagePredictor(endpoint=endpoint).predict(buffer.getvalue())
    assert answer.count == 2
    (sent,) = runtime.bodies
    assert len(sent) < LARGEST_SENT
    with Image.open(io.BytesIO(sent)) as image:
        assert max(image.size) == 2048
        assert image.getexif()[0x0112] == 6


def test_a_busy_endpoint_is_asked_again(
    runtime: FakeRuntime, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(predictor_module.time, "sleep", waits.append)
    busy = refusal("ModelError", 424, OriginalStatusCode=503, OriginalMessage='{"error": "full"}')
    runtime.failures = [busy, busy]
    assert ImagePredictor(endpoint=endpoint).predict(grey_photo(4)).count == 4
    assert len(waits) == 2
    runtime.failures = [busy] * 100
    with pytest.raises(RequestError, match="full"):
        ImagePredictor(endpoint=endpoint).predict(grey_photo(4))
    assert len(waits) == 2 + predictor_module.BUSY_TRIES - 1


STARTING = {
    "it is still being provisioned": refusal("ModelNotReadyException", 429),
    "its container did not answer in time": refusal("ModelError", 424, OriginalStatusCode=0),
    "SageMaker answered 530": refusal("InternalDependencyException", 530),
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Time that passes only while the predictor sleeps."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    clock.sleep = sleep
    monkeypatch.setattr(predictor_module, "time", clock)
    predictor_module._say_once.cache_clear()
    yield clock
    predictor_module._say_once.cache_clear()


@pytest.mark.parametrize("why", STARTING)
def test_an_endpoint_that_is_starting_is_waited_for(
    runtime: FakeRuntime,
    endpoint: str,
    clock: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    why: str,
) -> None:
    runtime.failures = [STARTING[why]] * 10
    assert ImagePredictor(endpoint=endpoint).predict(grey_photo(4)).count == 4
    assert len(runtime.bodies) == 11
    assert capsys.readouterr().err == (
        f"endpoint bins is starting ({why}): waiting for up to 120 seconds\n"
    )


@pytest.mark.parametrize("why", STARTING)
def test_an_endpoint_that_does_not_start_is_given_up(
    runtime: FakeRuntime, endpoint: str, clock: SimpleNamespace, why: str
) -> None:
    runtime.failures = [STARTING[why]] * 1000
    with pytest.raises(NotReadyError, match="did not start within 120 seconds") as caught:
        ImagePredictor(endpoint=endpoint).predict(grey_photo(4))
    assert 120 <= clock.now < 130
    assert why in str(caught.value)
    assert "aws logs tail /aws/sagemaker/Endpoints/bins" in str(caught.value)


def test_an_endpoint_that_has_answered_is_not_starting_when_a_photo_gets_no_answer(
    runtime: FakeRuntime, endpoint: str, clock: SimpleNamespace
) -> None:
    predictor = ImagePredictor(endpoint=endpoint)
    predictor.predict(grey_photo(4))
    runtime.failures = [refusal("ModelError", 424, OriginalStatusCode=0)]
    with pytest.raises(RequestError, match="its container did not answer"):
        predictor.predict(grey_photo(4))
    assert clock.now == 0
    assert predictor.predict(grey_photo(4)).count == 4


def test_a_container_that_fails_on_a_photo_fails_that_photo_alone(
    runtime: FakeRuntime, endpoint: str
) -> None:
    runtime.failures = [
        refusal("ModelError", 424, OriginalStatusCode=500, OriginalMessage="<html>\nno</html>")
    ]
    predictor = ImagePredictor(endpoint=endpoint)
    with pytest.raises(RequestError, match="<html> no</html>") as caught:
        predictor.predict(grey_photo(4))
    assert caught.value.status == 500
    assert predictor.predict(grey_photo(4)).count == 4


def test_the_limit_of_a_serverless_endpoint_is_named(runtime: FakeRuntime, endpoint: str) -> None:
    runtime.failures = [refusal("413", 413)]
    with pytest.raises(RequestError, match=r"the endpoint accepts \(4 MB\), send a smaller"):
        ImagePredictor(endpoint="bin-counter-serverless").predict(bytes(5_000_000))


def test_an_endpoint_that_answers_something_else_is_named(
    runtime: FakeRuntime, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"Body": io.BytesIO(b'{"predictions": []}')}
    monkeypatch.setattr(runtime, "invoke_endpoint", lambda **_: answer)
    with pytest.raises(RequestError, match="endpoint bins does not answer with a count"):
        ImagePredictor(endpoint=endpoint).predict(grey_photo(4))
