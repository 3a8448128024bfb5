from typing import TYPE_CHECKING, Any

import pytest

from common.run_record import RunRecord
from serving import models
from serving.models import main
from tests.support.deployed import choose, chosen, deploy_stacks, finish_run, serve

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def two_models(client: "S3Client") -> list[str]:
    """URIs of two models; the second run ended first, and its model is the chosen one."""
    deploy_stacks()
    uris = [
        finish_run(client, "b-later", accuracy=0.333, finished="2026-11-23T11:30:00+00:00"),
        finish_run(client, "c-earlier", accuracy=0.25, finished="2026-11-22T10:00:00+00:00"),
    ]
    choose(uris[1])
    return uris


def error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_each_model_is_listed_with_its_metrics_the_oldest_first(
    two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([])
    captured = capsys.readouterr()
    header, earlier, later = captured.out.splitlines()
    assert header.split()[:2] == ["run", "finished"]
    assert earlier.startswith("c-earlier  2026-11-22 10:00  resnet50  bins ")
    assert later.startswith("b-later    2026-11-23 11:30  resnet50  bins ")
    assert later.endswith("  33.3% (31.3 to 35.3)  1.23  0.0")
    assert captured.err == "no endpoint is deployed\n"


def test_the_model_of_a_job_is_where_sagemaker_left_it_and_trials_have_none_to_serve(
    client: "S3Client", two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "s3://ours/runs/b-later/a-job/output/model.tar.gz"
    client.delete_object(Bucket="ours", Key="runs/b-later/model.tar.gz")
    record = RunRecord(client, "ours", "b-later")
    attempts: list[Any] = [{"instance_id": name} for name in ("stopped-job", "a-job")]
    record.set_status("succeeded", "", attempts)
    client.put_object(Bucket="ours", Key="runs/b-later/stopped-job/output/model.tar.gz", Body=b"")
    for key in (uri.removeprefix("s3://ours/"), "runs/a-search/a-trial/output/model.tar.gz"):
        client.put_object(Bucket="ours", Key=key, Body=b"")
    main([])
    assert len(capsys.readouterr().out.splitlines()) == 3
    main(["use", "b-later"])
    assert chosen() == uri


def test_what_is_deployed_next_and_what_is_served_are_marked(
    two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(two_models[0])
    main(["list"])
    _, earlier, later = capsys.readouterr().out.splitlines()
    assert earlier.endswith("0.0  deployed next")
    assert later.endswith("0.0  served")


def test_one_model_can_be_both(two_models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    serve(two_models[1])
    main([])
    _, earlier, later = capsys.readouterr().out.splitlines()
    assert earlier.endswith("0.0  deployed next, served")
    assert later.endswith("0.0")


def test_a_model_that_was_not_tested_has_its_figures_on_validation(
    client: "S3Client", two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(client, "e-last", accuracy=0.41, side="validation")
    main([])
    assert "41.0% (39.0 to 43.0)" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_a_run_that_has_not_succeeded_is_not_listed(
    client: "S3Client", two_models: list[str], capsys: pytest.CaptureFixture[str], state: str
) -> None:
    finish_run(client, "d-other", state=state)
    main([])
    assert "d-other" not in capsys.readouterr().out
    assert "d-other has no model" in error(capsys, "use", "d-other")


def test_a_run_that_left_no_model_is_not_listed(
    client: "S3Client", two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    finish_run(client, "d-without")
    client.delete_object(Bucket="ours", Key="runs/d-without/model.tar.gz")
    main([])
    assert "d-without" not in capsys.readouterr().out


def test_an_earlier_model_can_be_chosen(
    two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["use", "b-later"])
    assert chosen() == two_models[0]
    assert capsys.readouterr().out.splitlines() == [
        f"next: {two_models[0]}",
        "run `npx cdk deploy EndpointStack` to serve it",
    ]


def test_a_run_that_is_not_there_changes_nothing(
    two_models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert error(capsys, "use", "typo") == (
        "error: run typo has no model: `python -m serving.models` lists them"
    )
    assert chosen() == two_models[1]


def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press_ctrl_c(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "stack_output", press_ctrl_c)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nstopped\n"


@pytest.mark.usefixtures("client")
def test_before_the_first_model_the_list_says_to_train(capsys: pytest.CaptureFixture[str]) -> None:
    deploy_stacks()
    assert (
        error(capsys)
        == "error: no run has succeeded yet: start one with `python -m training.launch`"
    )


@pytest.mark.usefixtures("client")
def test_without_stacks_the_list_says_what_to_deploy(capsys: pytest.CaptureFixture[str]) -> None:
    assert "run `npx cdk deploy DataStack`" in error(capsys)
