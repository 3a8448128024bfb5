import csv
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from serving.client import predictor as predictor_module
from serving.client.predictor import ImagePredictor, NotReadyError
from serving.container.inference import Prediction
from serving.predict import main
from tests.support.fake_endpoint import FakeRuntime, put_before_boto3
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
def endpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    put_before_boto3(FakeRuntime(folder), monkeypatch)
    return "bins"


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
        StackName="bin-counter-EndpointStack", TemplateBody=json.dumps(template)
    )


@pytest.mark.usefixtures("_aws")
def test_without_a_deployed_endpoint_the_command_says_what_to_do(
    photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(photos)
    error = str(caught.value.code)
    assert error.startswith("error: bin-counter-EndpointStack is not deployed")
    assert "\n" not in error


def test_an_unknown_endpoint_is_one_line(
    photos: list[str], endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["c.jpg", "--endpoint", "other"])
    assert str(caught.value.code).startswith("error: ")
    assert "\n" not in str(caught.value.code)


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
    assert list(answers[0]) == ["file", "count", "mean", "probabilities"]


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
    assert header.split() == ["file", "count", "mean", *(f"P({k})" for k in range(1, 6))]
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


def test_a_folder_gives_all_photos_below_it(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("more").mkdir()
    Path("a.jpg").rename("more/A.JPEG")
    Path("notes.txt").write_text("no photo")
    main([".", "--model", str(folder), "--format", "json"])
    answers = json.loads(capsys.readouterr().out)
    assert [(each["file"], each["count"]) for each in answers] == [
        ("b.jpg", 3),
        ("c.jpg", 2),
        ("more/A.JPEG", 5),
    ]


def test_a_folder_without_photos_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--model", str(folder)])
    assert str(caught.value.code).startswith(f"error: {tmp_path}: there is no photo")


@pytest.mark.usefixtures("_aws")
def test_an_s3_prefix_gives_its_photos_and_one_that_is_gone_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bins")
    for name, count in (("new/b.png", 2), ("new/a.jpg", 4), ("old/c.jpg", 1), ("new/x.txt", 3)):
        s3.put_object(Bucket="bins", Key=name, Body=grey_photo(count))
    with pytest.raises(SystemExit) as caught:
        main(["s3://bins/new/", "s3://bins/none.jpg", "--model", str(folder), "--format", "csv"])
    assert caught.value.code == 1
    output, error = capsys.readouterr()
    rows = [(row["file"], row["count"]) for row in csv.DictReader(io.StringIO(output))]
    assert rows == [("s3://bins/new/a.jpg", "4"), ("s3://bins/new/b.png", "2")]
    assert "s3://bins/none.jpg: " in error


def test_a_stopped_command_goes_on_where_it_was(
    folder: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    stopping = [True]
    ask = ImagePredictor.predict

    def counting(self: ImagePredictor, photo: Any) -> Prediction:
        asked.append(photo)
        if stopping[0] and photo != photos[0]:
            raise KeyboardInterrupt
        return ask(self, photo)

    monkeypatch.setattr(predictor_module, "os", SimpleNamespace(cpu_count=lambda: 1))
    monkeypatch.setattr(ImagePredictor, "predict", counting)
    arguments = [*photos, "--model", str(folder), "--output", "counts.csv"]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 130
    stopping.clear()
    stopping.append(False)
    asked.clear()
    main(arguments)
    assert asked == ["a.jpg", "b.jpg"]
    with Path("counts.csv").open() as stream:
        rows = [(row["file"], row["count"]) for row in csv.DictReader(stream)]
    assert rows == [("c.jpg", "2"), ("a.jpg", "5"), ("b.jpg", "3")]


def test_with_an_output_nothing_is_printed(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*photos, "--model", str(folder), "--output", "counts.csv"])
    assert capsys.readouterr().out == ""


RECORDS = "photo,count\nc.jpg,2\na,1\n/elsewhere/b.jpg,4\nb.jpg,3\n"


@pytest.mark.parametrize("output", [[], ["--output", "counts.csv"]])
def test_records_are_ranked_by_how_likely_they_are_wrong(
    folder: Path, photos: list[str], output: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("records.csv").write_text(RECORDS)
    flags = ["--model", str(folder), "--records", "records.csv", "--format", "json", *output]
    main([*photos, *flags])
    answers = json.loads(capsys.readouterr().out)
    assert (answers[0]["file"], answers[0]["record"]) == ("a.jpg", 1)
    agreements = [each["agreement"] for each in answers]
    assert agreements == sorted(agreements)
    assert agreements[0] < 0.01 < 0.9 < agreements[1]


def test_photos_without_a_record_are_left_out_and_said_to_be(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("records.csv").write_text("photo,count\nc.jpg,2\n")
    main([*photos, "--model", str(folder), "--records", "records.csv", "--format", "csv"])
    output, error = capsys.readouterr()
    assert [row["file"] for row in csv.DictReader(io.StringIO(output))] == ["c.jpg"]
    assert "2 photos have no record: not ranked" in error


@pytest.mark.parametrize("flag", ["--records", "--output"])
def test_a_file_that_cannot_be_used_is_one_line(folder: Path, photos: list[str], flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*photos, "--model", str(folder), flag, "nowhere/file.csv"])
    said = str(caught.value.code)
    assert re.fullmatch(r"error: nowhere(/file\.csv)?: [Nn]o such (file or directory|folder)", said)


def test_a_record_without_a_photo_is_named(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("records.csv").write_text("photo,count\nc.jpg,2\nd.jpg,1\n")
    main([*photos, "--model", str(folder), "--records", "records.csv"])
    assert "records without a photo here: 1 (d.jpg)" in capsys.readouterr().err


def test_another_model_at_the_same_place_does_not_go_on(photos: list[str], tmp_path: Path) -> None:
    command = [*photos, "--model", str(tmp_path / "m"), "--output", "counts.csv"]
    write_tiny_model(tmp_path / "m")
    main(command)
    main([*photos, "--model", f"{tmp_path}/./m/", "--output", "counts.csv"])
    write_tiny_model(tmp_path / "m", size=32)
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert "was counted by model" in str(caught.value.code)


def test_a_format_that_nothing_is_printed_in_is_refused(
    photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*photos, "--model", "m", "--output", "counts.json", "--format", "json"])
    assert caught.value.code == 2
    assert "--output is a CSV file, so --format has no effect" in capsys.readouterr().err


def test_an_endpoint_and_a_model_exclude_each_other(
    photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*photos, "--model", "m", "--endpoint", "bins"])
    assert caught.value.code == 2
    assert "{--endpoint, --model}" in capsys.readouterr().err


def test_an_address_of_another_kind_is_named(
    folder: Path, photos: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["ftp://host/a.jpg", "--model", str(folder)])
    assert "ftp://host/a.jpg: an address begins with http://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,number\na.jpg,1\n", "the first line must name"),
        ("", "the first line must name"),
        ("photo,count\na.jpg,many\n", "line 2: 'many' is no count"),
        ("photo,count\na.jpg\n", "line 2: '' is no count"),
        ("photo,count\na.jpg,\N{LATIN SMALL LETTER E WITH ACUTE}\n", "is no count"),
    ],
)
def test_wrong_records_are_one_line(
    folder: Path, photos: list[str], text: str, message: str
) -> None:
    Path("records.csv").write_text(text)
    with pytest.raises(SystemExit) as caught:
        main([*photos, "--model", str(folder), "--records", "records.csv"])
    assert message in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


def test_an_endpoint_that_does_not_start_ends_the_command_in_one_line(
    photos: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The photos after it would each wait for as long."""

    def give_up(*_: object, **__: object) -> Prediction:
        raise NotReadyError("endpoint bins did not start")

    monkeypatch.setattr(predictor_module, "ask_endpoint", give_up)
    monkeypatch.setattr(predictor_module, "boto3", SimpleNamespace(client=lambda *_, **__: None))
    with pytest.raises(SystemExit) as caught:
        main([*photos, "--endpoint", "bins"])
    assert caught.value.code == "error: endpoint bins did not start"
    assert capsys.readouterr() == ("", "")
