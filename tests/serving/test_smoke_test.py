import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from common.dataset import Photo
from serving import smoke_test
from serving.client import predictor
from serving.client.predictor import NotReadyError
from serving.container.artifact import load_model
from serving.container.inference import Prediction, count_photo
from serving.container.questions import RequestError
from serving.smoke_test import main
from tests.support.deployed import choose, deploy_stacks, finish_run, serve
from tests.support.packed import write_packed
from tests.support.tiny_model import grey_photo, write_tiny_model

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = Callable[[bytes], Prediction]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that names its data set."""
    folder = write_tiny_model(tmp_path / "model")
    description = json.loads((folder / "model.json").read_text())
    description["dataset"] = {"name": "bins"}
    (folder / "model.json").write_text(json.dumps(description))
    return folder


@pytest.fixture
def uri(client: "S3Client", tmp_path: Path, model: Path) -> str:
    """A data set, a run with its model, and an endpoint that serves it; returns the model's URI."""
    deploy_stacks()
    test = [Photo(f"{100 + n}", grey_photo(n), n + 1, "group") for n in (4, 2)]
    packed = write_packed(tmp_path / "bins", train=test, test=test)
    for file in packed.iterdir():
        client.upload_file(str(file), "ours", f"datasets/bins/{file.name}")
    uri = finish_run(client, "first", model=model)
    choose(uri)
    serve(uri)
    return uri


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[bytes]]:
    """Have the endpoint answer with a function; returns the photos that it was sent."""

    def answer_with(answer: Answer) -> list[bytes]:
        asked: list[bytes] = []

        def ask(_: Any, name: str, photo: bytes, *, started: bool) -> Prediction:
            assert name == "bins"
            asked.append(photo)
            return answer(photo)

        monkeypatch.setattr(predictor, "ask_endpoint", ask)
        return asked

    return answer_with


@pytest.fixture
def run() -> Callable[[], str | None]:
    """Run the command; returns the error with which it ends, if it does."""

    def run() -> str | None:
        try:
            main([])
        except SystemExit as error:
            return str(error.code)
        return None

    return run


def as_model(folder: Path, shift: float = 0) -> Answer:
    """Answers of a model folder, `shift` of probability moved from one count to another."""
    loaded = load_model(folder)

    def answer(photo: bytes) -> Prediction:
        said = count_photo(photo, loaded)
        moved = {"4": -shift, "5": shift}
        shares = {label: p + moved.get(label, 0) for label, p in said.probabilities.items()}
        return Prediction(said.count, said.mean, shares)

    return answer


def test_the_first_test_photo_is_sent_and_its_answer_shown(
    uri: str, model: Path, answer_with: Any, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = answer_with(as_model(model, shift=0.0005))
    assert run() is None
    assert asked == [grey_photo(4)]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("104.jpg: counted 4, true 5, in 0.")
    assert line.endswith(" s; run first answers the same on this machine")


def test_another_answer_than_the_model_s_fails(
    uri: str, model: Path, answer_with: Any, run: Any
) -> None:
    answer_with(as_model(model, shift=0.002))
    assert run() == (
        "error: 104.jpg: the endpoint counts 4, the same model 4 on this machine "
        "(probabilities differ by 0.002): look at its log"
    )


def test_an_answer_that_is_no_number_fails(
    uri: str, model: Path, answer_with: Any, run: Any
) -> None:
    answer_with(as_model(model, shift=float("nan")))
    assert "differ by nan" in run()


def test_an_answer_about_other_counts_fails(uri: str, answer_with: Any, run: Any) -> None:
    answer_with(lambda _: Prediction(1, 1.0, {"1": 1.0}))
    assert "the endpoint counts 1, the same model 4" in run()


def test_an_endpoint_that_serves_an_older_model_fails_before_it_is_asked(
    client: "S3Client", uri: str, model: Path, answer_with: Any, run: Any
) -> None:
    asked = answer_with(as_model(model))
    choose(finish_run(client, "second", model=model))
    assert run() == (
        "error: the endpoint serves run first, not second: run `npx cdk deploy EndpointStack`"
    )
    assert asked == []


def test_a_refusal_of_the_endpoint_is_one_line(uri: str, answer_with: Any, run: Any) -> None:
    def refuse(_: bytes) -> Prediction:
        raise RequestError(400, "no photo")

    answer_with(refuse)
    assert run() == "error: no photo"


def test_an_endpoint_that_does_not_start_is_one_line(uri: str, answer_with: Any, run: Any) -> None:
    def give_up(_: bytes) -> Prediction:
        raise NotReadyError("endpoint bins did not start")

    answer_with(give_up)
    assert run() == "error: endpoint bins did not start"


def test_ctrl_c_is_one_line(
    uri: str, answer_with: Any, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_ctrl_c(_: bytes) -> Prediction:
        raise KeyboardInterrupt

    answer_with(press_ctrl_c)
    assert run() == "130"
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_data_set_that_is_gone_is_named(
    client: "S3Client", uri: str, answer_with: Any, run: Any
) -> None:
    client.delete_object(Bucket="ours", Key="datasets/bins/manifest.json")
    assert run() == (
        "error: s3://ours/datasets/bins/manifest.json is gone: prepare the data set again"
    )


def test_without_an_endpoint_it_says_what_to_deploy(
    client: "S3Client", model: Path, run: Any
) -> None:
    deploy_stacks()
    choose(finish_run(client, "first", model=model))
    assert run().startswith("error: bin-counter-EndpointStack is not deployed here: run `npx cdk ")


@pytest.mark.usefixtures("client")
def test_before_the_first_model_it_says_to_train(run: Any) -> None:
    deploy_stacks()
    assert run() == "error: no run has succeeded yet: start one with `python -m training.launch`"


def test_only_the_beginning_of_a_shard_is_fetched(
    client: "S3Client", uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [Photo(f"{n}", grey_photo(3) + bytes(50_000), 3, "g") for n in range(40)]
    packed = write_packed(tmp_path / "large", train=photos, test=photos, photos_a_shard=40)
    for file in packed.iterdir():
        client.upload_file(str(file), "ours", f"datasets/large/{file.name}")
    s3 = boto3.client("s3")
    bodies = []
    get = smoke_test._get

    def noting_get(*arguments: Any) -> Any:
        bodies.append(get(*arguments))
        return bodies[-1]

    monkeypatch.setattr(smoke_test, "_get", noting_get)
    assert smoke_test.first_test_photo(s3, "ours", "large").id == "0"
    assert bodies[1].tell() < 100_000
