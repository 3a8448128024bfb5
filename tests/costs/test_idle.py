"""A month without work: every resource of the stacks has its line, and the sum is small."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from common.files import ROOT
from costs.__main__ import main
from costs.idle import Stacks, free_resources, idle_rows, read_stacks, synthesize
from costs.prices import load_prices
from costs.resources import FREE, FREE_IF, PRICED, Contents, UnknownCostError
from infra.config import SettingError
from tests.support.synthesized import Template

PRICES = load_prices()
CONTENTS = Contents(photos=10_000, runs=10)


def folder(stacks: dict[str, Template]) -> Path:
    return stacks["DataStack"].path.parent


def bill(stacks: Stacks, contents: Contents = CONTENTS) -> dict[str, float]:
    """Name of each line to its dollars."""
    return {row.use.name: row.dollars for row in idle_rows(stacks, contents, PRICES)}


def some(type: str, *properties: dict[str, Any]) -> Stacks:
    return Stacks({type: properties}, builds_image=False)


def test_the_readme_says_what_idling_with_the_defaults_costs(stacks: dict[str, Template]) -> None:
    lines = bill(read_stacks(folder(stacks)))
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "costs.md").read_text()
    said = re.findall(r"about \$([\d.]+) a month", readme + page)
    assert (len(said), set(said)) == (2, {f"{sum(lines.values()):.2f}"})
    rows = dict(re.findall(r"^\| (.+) \| ([\d.]+) \|$", page, re.MULTILINE))
    for row, names in {
        "ECR: three images of the endpoint, 120 MB each": ["ECR, images of the endpoint"],
        "S3: ten models": ["S3, models of 10 runs"],
        "S3: old versions, for 30 days": ["S3, old versions"],
        "S3: wheels of a training machine": ["S3, wheels of a machine"],
        "S3: requests of somebody looking": ["S3, writing and listing", "S3, reading"],
        "S3: 10,000 photos": ["S3, data set, 10,000 photos"],
        "S3: checkpoints for 14 days, weights, access logs": [
            "S3, checkpoints of the newest run",
            "S3, weights of two backbones",
            "S3, access logs",
        ],
    }.items():
        assert rows[row] == f"{sum(lines.pop(name) for name in names):.3f}", row
    assert not any(lines.values())  # the rows that say 0


@pytest.mark.parametrize("settings", ["stacks", "other_stacks"])
def test_every_resource_of_every_stack_is_priced_or_free_for_a_reason(
    settings: str, request: pytest.FixtureRequest
) -> None:
    templates: dict[str, Template] = request.getfixturevalue(settings)
    known = read_stacks(folder(templates))
    idle_rows(known, CONTENTS, PRICES)
    free = free_resources(known)
    named = {type for types in free.values() for type in types} | set(PRICED)
    for template in templates.values():
        for resource in template.resources.values():
            assert resource["Type"] in named
    counted = sum(types.total() for types in free.values())
    counted += sum(len(known.resources.get(type, [])) for type in PRICED)
    assert counted == sum(len(template.resources) for template in templates.values())


def test_a_resource_that_nobody_priced_is_an_error() -> None:
    with pytest.raises(UnknownCostError, match="AWS::EC2::NatGateway costs while idle: add it to"):
        free_resources(some("AWS::EC2::NatGateway", {}))


def test_no_type_is_both_priced_and_free() -> None:
    assert not set(PRICED) & (set(FREE) | set(FREE_IF))


def test_the_other_settings_cost_what_they_are_known_to_cost(
    other_stacks: dict[str, Template],
) -> None:
    lines = bill(read_stacks(folder(other_stacks)))
    hour = PRICES.sagemaker_hosting["ml.m5.large"].dollars
    assert lines["SageMaker, real-time endpoint"] == pytest.approx(2 * 730 * hour)
    assert lines["KMS, customer key"] == PRICES.other["kms_key_month"].dollars
    assert lines["Budgets, action"] == 0  # the first two budgets with an action are free
    assert "ECR, images of the endpoint" not in lines  # serving_image says which to use


def test_a_serverless_endpoint_and_an_empty_group_cost_nothing(
    stacks: dict[str, Template],
) -> None:
    lines = bill(read_stacks(folder(stacks)))
    assert lines["SageMaker, serverless endpoint"] == 0
    assert lines["EC2, training machines"] == 0
    assert lines["ECR, images of the endpoint"] > 0


def test_more_photos_and_more_runs_cost_more(stacks: dict[str, Template]) -> None:
    known = read_stacks(folder(stacks))
    few, many = (sum(bill(known, Contents(n, n)).values()) for n in (1, 1000))
    assert many > few
    gib = 535_234 * 20_000 / 2**30
    lines = bill(known, Contents(535_234, 1))
    price = PRICES.other["s3_standard_gib_month"].dollars
    assert lines["S3, data set, 535,234 photos"] == pytest.approx(gib * price)


def test_what_is_free_each_month_is_shared_by_all_lines() -> None:
    alarm = {"Metrics": [{"MetricStat": {}}, {"MetricStat": {}}, {"Expression": "a + b"}]}
    policy = {"PolicyType": "TargetTrackingScaling"}
    resources = {
        "AWS::CloudWatch::Alarm": [alarm] * 4,
        "AWS::ApplicationAutoScaling::ScalingPolicy": [policy] * 2,
    }
    rows = idle_rows(Stacks(resources, builds_image=False), CONTENTS, PRICES)
    assert sum(row.use.quantity for row in rows) == 4 * 2 + 2 * 2
    price = PRICES.other["alarm_month"].dollars
    assert sum(row.dollars for row in rows) == pytest.approx((12 - 10) * price)
    assert sum(row.full_dollars for row in rows) == pytest.approx(12 * price)


def test_an_alarm_on_one_metric_counts_once() -> None:
    (row,) = idle_rows(some("AWS::CloudWatch::Alarm", {"Period": 300}), CONTENTS, PRICES)
    assert row.use.quantity == 1


@pytest.mark.parametrize(
    ("type", "properties"),
    [
        ("AWS::AutoScaling::AutoScalingGroup", {"MinSize": "1"}),
        ("AWS::AutoScaling::AutoScalingGroup", {"MinSize": "0", "DesiredCapacity": "1"}),
        ("AWS::CloudWatch::Alarm", {"Period": 10}),
        ("AWS::ApplicationAutoScaling::ScalingPolicy", {"PolicyType": "StepScaling"}),
        (
            "AWS::SageMaker::EndpointConfig",
            {"ProductionVariants": [{"ServerlessConfig": {"ProvisionedConcurrency": 1}}]},
        ),
        ("AWS::S3::Bucket", {}),
        ("AWS::EC2::VPCEndpoint", {"VpcEndpointType": "Interface"}),
        ("AWS::SSM::Parameter", {"Tier": "Advanced"}),
    ],
)
def test_a_form_that_costs_is_not_taken_for_a_free_one(
    type: str, properties: dict[str, Any]
) -> None:
    stacks = some(type, properties)
    with pytest.raises(UnknownCostError):
        idle_rows(stacks, CONTENTS, PRICES)
        free_resources(stacks)


def test_the_cdk_does_not_warn_of_node_20_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION"
    monkeypatch.setattr("os.environ", {})
    with pytest.raises(SettingError):
        synthesize({"endpoint": "both"})
    assert os.environ[name] == "20"
    os.environ[name] = "18"
    with pytest.raises(SettingError):
        synthesize({"endpoint": "both"})
    assert os.environ[name] == "18"


def test_the_command_shows_lines_sum_reasons_and_sources(
    stacks: dict[str, Template],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contexts = []

    def synthesize(context: dict[str, Any]) -> Stacks:
        contexts.append(context)
        return read_stacks(folder(stacks))

    monkeypatch.setattr("costs.idle.synthesize", synthesize)
    main(["idle", "--photos", "5000", "-c", "endpoint=realtime", "-c", "kms=customer"])
    printed = capsys.readouterr().out
    assert contexts[0]["endpoint"] == "realtime"
    assert contexts[0]["kms"] == "customer"
    assert contexts[0]["@aws-cdk/aws-iam:minimizePolicies"] is True  # cdk.json's own
    lines = bill(read_stacks(folder(stacks)), Contents(5000, 10))
    assert f"idle: ${sum(lines.values()):.2f} a month" in printed
    for line in lines:
        assert line in printed
    assert "SSM::Parameter: standard parameters are free" in printed
    assert f"source: ecr_gib_month 0.1: {PRICES.other['ecr_gib_month'].basis}" in printed
    assert "if the account's other projects use up what is free each month" in printed
