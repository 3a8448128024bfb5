"""One run at four places, and where its record comes from."""

import json
from typing import TYPE_CHECKING

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.__main__ import main
from costs.compare import compare_run
from costs.estimate import run_cost, total
from costs.prices import PriceError, load_prices

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PRICES = load_prices()
RECORD = {"instance_type": "m6i.large", "purchase": "spot", "seconds": 1800, "volume_gib": 30}


def put(client: "S3Client", body: object, run: str = "r1") -> None:
    client.put_object(Bucket="ours", Key=f"runs/{run}/cost.json", Body=json.dumps(body).encode())


@given(seconds=st.floats(60, 1e6), volume=st.integers(1, 1000))
def test_spot_is_never_dearer_than_on_demand(seconds: float, volume: int) -> None:
    rows = {row.where: row.dollars for row in compare_run(seconds, "m7i.large", volume, PRICES)}
    bill = run_cost(seconds, "m7i.large", "spot", volume, PRICES)
    assert rows["EC2 spot"] == pytest.approx(total(bill))
    assert rows["EC2 spot"] < rows["EC2 on demand"]
    assert rows["SageMaker managed spot"] < rows["SageMaker training"]


def test_managed_spot_gets_the_discount_of_ec2_spot() -> None:
    rows = {row.where: row.dollars for row in compare_run(3600, "c7i.large", 0, PRICES)}
    spot, on_demand = (PRICES.machine_hour("c7i.large", p).dollars for p in ("spot", "on_demand"))
    ratio = rows["SageMaker managed spot"] / rows["SageMaker training"]
    assert ratio == pytest.approx(spot / on_demand)


def test_the_original_project_stands_beside_the_run() -> None:
    spot, sagemaker = compare_run(900, "c7i.large", 30, PRICES)[-2:]
    assert (spot.instance_type, spot.hours, spot.dollars) == ("t2.medium", 7, 0.35)
    assert (sagemaker.hours, sagemaker.dollars) == (None, 9.83)


def test_a_machine_that_sagemaker_does_not_have_is_refused() -> None:
    prices = load_prices()
    prices.ec2["x9.huge"] = prices.ec2["c7i.large"]  # type: ignore[index]
    with pytest.raises(PriceError, match=r"close to 'x9.huge'"):
        compare_run(900, "x9.huge", 30, prices)


def test_the_record_of_a_run_is_read(
    client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, RECORD)
    main(["compare", "--run-id", "r1", "--bucket", "ours"])
    printed = capsys.readouterr().out
    assert "30.0 minutes on m6i.large" in printed
    assert f"source: m6i.large spot {PRICES.machine_hour('m6i.large', 'spot').dollars:g}" in printed


@pytest.mark.parametrize("model", ["s3://ours/runs/r2/model.tar.gz", "none"])
def test_without_a_name_the_run_is_the_newest_models(
    model: str, client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, RECORD, "r2")
    boto3.client("ssm").put_parameter(Name="/model", Value=model, Type="String")
    template = {
        "Resources": {"Any": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {"ModelParameterName": {"Value": "/model"}},
    }
    boto3.client("cloudformation").create_stack(
        StackName="TrainStack", TemplateBody=json.dumps(template)
    )
    if model == "none":
        with pytest.raises(SystemExit):
            main(["compare", "--bucket", "ours"])
        assert "run `python -m training.launch`" in capsys.readouterr().err
    else:
        main(["compare", "--bucket", "ours"])
        assert "30.0 minutes on m6i.large" in capsys.readouterr().out


@pytest.mark.parametrize("body", [[], {"seconds": 5}, RECORD | {"seconds": "long"}])
def test_a_damaged_cost_record_is_one_line(
    body: object, client: "S3Client", capsys: pytest.CaptureFixture[str]
) -> None:
    put(client, body)
    with pytest.raises(SystemExit):
        main(["compare", "--run-id", "r1", "--bucket", "ours"])
    error = capsys.readouterr().err
    assert "runs/r1/cost.json is damaged" in error
    assert error.count("\n") == 1
