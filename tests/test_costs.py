"""What a user reads in the cost tables: sums, sources, and errors of one line."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws

from costs.__main__ import main
from costs.estimate import compare_run, estimate_training, run_cost, total
from costs.prices import PRICES_FILE, PriceError, load_prices
from infra.config import MACHINE_DEFAULTS

PRICES = load_prices()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="bins")
        yield "bins"


def damaged(folder: Path, old: str, new: str) -> Path:
    file = folder / "prices.json"
    text = PRICES_FILE.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_every_figure_has_a_source_with_a_date() -> None:
    content = json.loads(PRICES_FILE.read_text())
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", content["date"])
    assert all(
        re.search(r"20\d\d", text)
        for name, text in content["sources"].items()
        if name != "original"
    )
    for purchases in PRICES.ec2.values():
        assert all(price.dollars > 0 and price.source for price in purchases.values())


def test_every_default_machine_can_be_estimated_and_compared() -> None:
    for machines in MACHINE_DEFAULTS.values():
        for instance_type in machines["instance_types"]:  # type: ignore[attr-defined]
            assert len(compare_run(900, instance_type, 30, PRICES)) == 6


def test_an_hour_of_a_spot_machine_costs_machine_disk_and_address() -> None:
    machine, disk, address = run_cost(3600, "c7i.large", "spot", 73, PRICES)
    assert machine.dollars == pytest.approx(0.0370)
    assert disk.dollars == pytest.approx(73 / 730 * 0.08)
    assert address.dollars == pytest.approx(0.005)


def test_a_machine_that_ran_a_second_is_billed_a_minute() -> None:
    second, minute = (run_cost(s, "c7i.large", "spot", 30, PRICES) for s in (1, 60))
    assert second == minute


def test_a_run_of_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 seconds"):
        run_cost(-1, "c7i.large", "spot", 30, PRICES)


@given(seconds=st.floats(60, 1e6), volume=st.integers(1, 1000))
def test_lines_add_up_and_spot_is_never_dearer(seconds: float, volume: int) -> None:
    lines = run_cost(seconds, "m7i.large", "spot", volume, PRICES)
    assert all(line.dollars == pytest.approx(line.quantity * line.unit_price) for line in lines)
    rows = {row.where: row.dollars for row in compare_run(seconds, "m7i.large", volume, PRICES)}
    assert rows["EC2 spot"] == pytest.approx(total(lines))
    assert rows["EC2 spot"] < rows["EC2 on demand"]
    assert rows["SageMaker managed spot"] < rows["SageMaker training"]


def test_managed_spot_gets_the_discount_of_ec2_spot() -> None:
    rows = {row.where: row.dollars for row in compare_run(3600, "c7i.large", 0, PRICES)}
    ratio = rows["SageMaker managed spot"] / rows["SageMaker training"]
    assert ratio == pytest.approx(0.0370 / 0.08925)


def test_the_original_project_stands_beside_the_run() -> None:
    spot, sagemaker = compare_run(900, "c7i.large", 30, PRICES)[-2:]
    assert (spot.instance_type, spot.hours, spot.dollars) == ("t2.medium", 7, 0.35)
    assert (sagemaker.hours, sagemaker.dollars) == (None, 9.83)


def test_an_estimate_grows_with_photos_and_states_its_basis() -> None:
    small = estimate_training(1000, "resnet50", 20, "c7i.large", PRICES)
    large = estimate_training(9000, "resnet50", 20, "c7i.large", PRICES)
    # 8,000 more photos, seen twice at 47/s, and 20 times by the head at 9,000/s.
    assert large.seconds - small.seconds == pytest.approx(2 * 8000 / 47 + 20 * 8000 / 9000)
    assert large.dollars == pytest.approx(
        total(run_cost(large.seconds, "c7i.large", "spot", 30, PRICES))
    )
    assert "9,000 photos" in large.basis
    assert "measured" in large.basis
    assert PRICES.date in large.basis


def test_an_architecture_without_a_measured_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="'vgg16'; known: resnet50, efficientnet_lite0"):
        estimate_training(1000, "vgg16", 20, "c7i.large", PRICES)


def test_a_machine_without_a_spot_price_is_refused_by_name() -> None:
    with pytest.raises(PriceError, match=r"no spot price for 't2.medium'.*known: c7i.large"):
        run_cost(60, "t2.medium", "spot", 30, PRICES)


def test_a_price_without_a_known_source_is_refused(tmp_path: Path) -> None:
    file = damaged(tmp_path, '[0.08925, "catalog"]', '[0.08925, "a friend"]')
    with pytest.raises(PriceError, match="a friend"):
        load_prices(file)


def test_a_damaged_price_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PriceError, match="is not a price file") as caught:
        load_prices(
            damaged(
                tmp_path,
                "{",
                "",
            )
        )
    assert "\n" not in str(caught.value)


def test_estimate_prints_the_bill_its_total_and_its_sources(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["estimate", "--photos", "8000", "--arch", "resnet50"])
    printed = capsys.readouterr().out
    assert re.search(r"^c7i.large, spot .* hour +0.03700 ", printed, re.MULTILINE)
    assert re.search(r"^about 9 minutes, \$0\.00\d\d$", printed, re.MULTILINE)
    assert "source: median of the zones of us-east-1" in printed


def test_compare_prints_aligned_rows(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "--seconds", "3600", "--instance-type", "m7i.large"])
    header, *rows = capsys.readouterr().out.split("\n\n")[0].splitlines()
    column = header.index("$") + 1
    assert [row[:column].split()[-1] for row in rows][-2:] == ["0.3500", "9.8300"]
    assert rows[0].startswith("EC2 spot")


def test_compare_reads_the_record_of_a_run(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"instance_type": "m6i.large", "purchase": "spot", "seconds": 1800, "volume_gib": 30}
    boto3.client("s3").put_object(
        Bucket=bucket, Key="runs/r1/cost.json", Body=json.dumps(record).encode()
    )
    main(["compare", "--run-id", "r1", "--bucket", bucket])
    assert "30.0 minutes on m6i.large" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["s3://bins/runs/r2/model.tar.gz", "none"])
def test_compare_takes_the_run_of_the_newest_model(
    model: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"instance_type": "m6i.large", "purchase": "spot", "seconds": 600, "volume_gib": 30}
    boto3.client("s3").put_object(
        Bucket=bucket, Key="runs/r2/cost.json", Body=json.dumps(record).encode()
    )
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
            main(["compare", "--bucket", bucket])
        assert "run `python -m training.launch`" in capsys.readouterr().err
    else:
        main(["compare", "--bucket", bucket])
        assert "10.0 minutes on m6i.large" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--run-id", "r1", "--seconds", "60"], "not both"),
        (["compare"], "DataStack is not deployed here"),
        (["compare", "--bucket", "bins"], "TrainStack is not deployed here"),
        (["compare", "--seconds", "60", "--instance-type", "x9.huge"], "no spot price"),
        (["compare", "--run-id", "r1", "--bucket", "bins"], "runs/r1/cost.json does not exist"),
        (["compare", "--run-id", "r1", "--bucket", "not-ours"], "cannot be read"),
    ],
)
def test_a_user_error_is_one_line(
    arguments: list[str], message: str, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    error = capsys.readouterr().err
    assert caught.value.code == 1
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"seconds": 5}', b'{"seconds": "long"}'])
def test_a_damaged_cost_record_is_one_line(
    body: bytes, bucket: str, capsys: pytest.CaptureFixture[str]
) -> None:
    boto3.client("s3").put_object(Bucket=bucket, Key="runs/r1/cost.json", Body=body)
    with pytest.raises(SystemExit):
        main(["compare", "--run-id", "r1", "--bucket", bucket])
    error = capsys.readouterr().err
    assert "is not a cost record" in error
    assert error.count("\n") == 1
