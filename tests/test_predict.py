import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from PIL import Image
from starlette.testclient import TestClient
from tiny_model import grey_photo, write_tiny_model

from serving import predict
from serving.inference import ModelError, RequestError, model_fn
from serving.predict import ImagePredictor, main
from serving.server import create_app


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


def refusal(code: str, status: int, message: str = "", **details: object) -> ClientError:
    reply: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
        **details,
    }
    return ClientError(reply, "InvokeEndpoint")


class FakeRuntime:
    """boto3's sagemaker-runtime in front of our own server, wrapping refusals as SageMaker does."""

    def __init__(self, folder: Path) -> None:
        self.server = TestClient(create_app(model_fn(folder)))

    def invoke_endpoint(self, **request: Any) -> dict[str, Any]:
        name = request["EndpointName"]
        if name != "bins":
            raise refusal("ValidationError", 400, f"Endpoint {name} not found")
        if len(request["Body"]) > 6_291_456:
            raise refusal("413", 413)
        response = self.server.post(
            "/invocations",
            content=request["Body"],
            headers={"content-type": request["ContentType"], "accept": request["Accept"]},
        )
        if response.status_code != 200:
            raise refusal(
                "ModelError",
                424,
                OriginalStatusCode=response.status_code,
                OriginalMessage=response.text,
            )
        return {"Body": io.BytesIO(response.content)}


@pytest.fixture
def endpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    runtime = FakeRuntime(folder)
    fake = SimpleNamespace(client={"sagemaker-runtime": runtime}.__getitem__)
    monkeypatch.setattr(predict, "boto3", fake)
    return "bins"


def test_a_path_bytes_and_a_pillow_image_give_the_same_count(
    folder: Path, photos: list[str]
) -> None:
    predictor = ImagePredictor(model=folder)
    forms: list[predict.Photo] = [
        "a.jpg",
        Path("a.jpg"),
        Path("a.jpg").read_bytes(),
        Image.open("a.jpg"),
    ]
    assert [predictor.predict(form).count for form in forms] == [5, 5, 5, 5]


def test_the_orientation_of_a_pillow_image_is_honoured(folder: Path, tmp_path: Path) -> None:
    image = Image.new("L", (8, 4))
    image.paste(255, (4, 0, 8, 4))
    sent: list[bytes] = []
    predictor = ImagePredictor(model=folder)
    predictor._count = sent.append  # type: ignore[assignment]
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "side.png", exif=exif)
    predictor.predict(Image.open(tmp_path / "side.png"))
    upright = Image.open(io.BytesIO(sent[0]))
    assert upright.size == (4, 8)
    assert upright.getpixel((0, 0)) == (0, 0, 0)
    assert upright.getpixel((0, 7)) == (255, 255, 255)


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
def _aws(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield


def deploy(outputs: dict[str, Any]) -> None:
    template = {"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}, "Outputs": outputs}
    boto3.client("cloudformation").create_stack(
        StackName="EndpointStack", TemplateBody=json.dumps(template)
    )


@pytest.mark.usefixtures("_aws")
def test_without_a_deployed_endpoint_the_command_says_what_to_do(
    photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(photos)
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: EndpointStack is not deployed")
    assert error.count("\n") == 1


def test_an_unknown_endpoint_is_one_line(
    photos: list[str], endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["c.jpg", "--endpoint", "other"])
    assert caught.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_json_is_one_list_in_the_order_of_the_arguments(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*photos, "--model", str(folder), "--format", "json"])
    answers = json.loads(capsys.readouterr().out)
    assert [(answer["file"], answer["count"]) for answer in answers] == [
        ("c.jpg", 2),
        ("a.jpg", 5),
        ("b.jpg", 3),
    ]
    assert list(answers[0]) == ["file", "count", "expected", "probabilities"]


def test_csv_has_a_header_and_a_row_for_each_photo(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*photos, "--model", str(folder), "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["file"], row["count"]) for row in rows] == [
        ("c.jpg", "2"),
        ("a.jpg", "5"),
        ("b.jpg", "3"),
    ]
    assert float(rows[0]["probability_2"]) > 0.5


def test_the_table_has_a_line_for_each_photo(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*photos, "--model", str(folder)])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "count", "expected", *(f"P({k})" for k in range(1, 6))]
    assert [line.split()[:2] for line in lines] == [["c.jpg", "2"], ["a.jpg", "5"], ["b.jpg", "3"]]
    assert len({len(line) for line in [header, *lines]}) == 1


def test_ctrl_c_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ImagePredictor, "predict", press_ctrl_c)
    with pytest.raises(SystemExit) as caught:
        main(["bin.jpg", "--model", str(folder)])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nstopped\n"


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_a_broken_file_is_one_line_on_stderr_and_the_others_go_on(
    folder: Path, photos: list[str], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.jpg").write_bytes(b"junk")
    with pytest.raises(SystemExit) as caught:
        main(["broken.jpg", "gone.jpg", *photos, "--model", str(folder), "--format", form])
    assert caught.value.code == 1
    output, error = capsys.readouterr()
    assert [name for name in photos if name in output] == photos
    assert "broken.jpg" not in output
    assert "broken.jpg: not a readable JPEG or PNG photo" in error
    assert "gone.jpg: No such file" in error
    assert "Traceback" not in error
