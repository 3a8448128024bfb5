"""What the CloudWatch dashboard asks for, and whether somebody answers."""

import json
import logging
import re
import sys
from typing import Any

import boto3
import pytest

from infra.dashboard import LAST_LINES, PROGRESS
from tests.support.synthesized import Template
from training.machine.process import TrainingProcess

# As AWS documents them: namespace and metric, and the dimensions that it is kept under.
SAGEMAKER_DIMENSIONS = {"EndpointName", "VariantName"}
KNOWN = {
    ("AWS/AutoScaling", "GroupDesiredCapacity"): [{"AutoScalingGroupName"}],
    ("AWS/AutoScaling", "GroupInServiceInstances"): [{"AutoScalingGroupName"}],
    ("AWS/SageMaker", "Invocations"): [SAGEMAKER_DIMENSIONS],
    ("AWS/SageMaker", "Invocation4XXErrors"): [SAGEMAKER_DIMENSIONS],
    ("AWS/SageMaker", "Invocation5XXErrors"): [SAGEMAKER_DIMENSIONS],
    ("AWS/SageMaker", "ModelLatency"): [SAGEMAKER_DIMENSIONS],
    ("AWS/SageMaker", "OverheadLatency"): [SAGEMAKER_DIMENSIONS],
    ("AWS/SageMaker", "ModelSetupTime"): [SAGEMAKER_DIMENSIONS],  # serverless endpoints alone
    ("/aws/sagemaker/Endpoints", "CPUUtilization"): [SAGEMAKER_DIMENSIONS],  # machines alone
    ("/aws/sagemaker/Endpoints", "MemoryUtilization"): [SAGEMAKER_DIMENSIONS],
    ("AWS/Billing", "EstimatedCharges"): [{"Currency"}, {"Currency", "ServiceName"}],
}
# A training run's output: what is redrawn ends in a carriage return.
PRINTS_PROGRESS = """
import sys
from tqdm import tqdm

for side in ("train", "test"):
    with tqdm(total=8, desc=f"features {side}", unit="photo") as progress:
        progress.update(6)
print("resuming after epoch 1", file=sys.stderr)
with tqdm(total=20, initial=1, desc="head", unit="epoch") as progress:
    progress.set_postfix(refresh=False, loss="1.412", accuracy="33.3%")
    progress.update(6)
"""


def widgets_of(stacks: dict[str, Template]) -> list[dict[str, Any]]:
    dashboard = stacks["TrainStack"].only("AWS::CloudWatch::Dashboard")
    widgets: list[dict[str, Any]] = json.loads(dashboard["DashboardBody"])["widgets"]
    return widgets


def metrics(widgets: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, str], dict[str, Any]]]:
    """Namespace, name, dimensions and drawing of every metric."""
    return [
        (namespace, name, dict(zip(pairs[::2], pairs[1::2], strict=True)), drawing)
        for widget in widgets
        for namespace, name, *pairs, drawing in widget["properties"].get("metrics", [])
    ]


@pytest.fixture(params=["default", "other"])
def widgets(
    request: pytest.FixtureRequest,
    stacks: dict[str, Template],
    other_stacks: dict[str, Template],
) -> list[dict[str, Any]]:
    return widgets_of(stacks if request.param == "default" else other_stacks)


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a machine writes to the log group while it trains."""
    with caplog.at_level(logging.INFO, logger="training"):
        process = TrainingProcess([sys.executable, "-c", PRINTS_PROGRESS], {})
        while process.running():
            pass
        assert process.end() == 0
    return caplog.messages


def test_every_metric_is_one_that_aws_keeps(widgets: list[dict[str, Any]]) -> None:
    for namespace, name, dimensions, _ in metrics(widgets):
        assert dimensions.keys() in KNOWN[namespace, name]


def test_no_metric_has_to_be_paid_for(widgets: list[dict[str, Any]]) -> None:
    for namespace, *_ in metrics(widgets):
        assert namespace.lower().startswith(("aws/", "/aws/"))


def test_groups_say_how_many_machines_it_has(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    for kind in (stacks, other_stacks):
        groups = kind["TrainStack"].of_type("AWS::AutoScaling::AutoScalingGroup")
        shown = [
            (name, dimensions["AutoScalingGroupName"])
            for namespace, name, dimensions, _ in metrics(widgets_of(kind))
            if namespace == "AWS/AutoScaling"
        ]
        collected = [(group, *group["MetricsCollection"]) for group in groups]
        assert shown == [
            (name, group["AutoScalingGroupName"])
            for group, of in collected
            for name in of["Metrics"]
        ]
        assert {of["Granularity"] for _, of in collected} == {"1Minute"}


def test_the_endpoint_shown_is_the_one_that_is_deployed(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    for kind in (stacks, other_stacks):
        endpoint = kind["EndpointStack"].only("AWS::SageMaker::Endpoint")
        configuration = kind["EndpointStack"].only("AWS::SageMaker::EndpointConfig")
        (variant,) = configuration["ProductionVariants"]
        shown = [
            (dimensions["EndpointName"], dimensions["VariantName"])
            for _, _, dimensions, _ in metrics(widgets_of(kind))
            if "EndpointName" in dimensions
        ]
        assert set(shown) == {(endpoint["EndpointName"], variant["VariantName"])}


def test_an_endpoint_shows_what_its_kind_has(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    serverless, realtime = (
        {name for _, name, *_ in metrics(widgets_of(kind))} for kind in (stacks, other_stacks)
    )
    assert serverless - realtime == {"ModelSetupTime"}
    assert realtime - serverless == {"CPUUtilization", "MemoryUtilization"}


def test_charges_come_from_the_one_region_that_has_them(widgets: list[dict[str, Any]]) -> None:
    charges = [
        (dimensions, drawing["region"])
        for namespace, _, dimensions, drawing in metrics(widgets)
        if namespace == "AWS/Billing"
    ]
    assert charges == [
        ({"Currency": "USD", "ServiceName": "AmazonEC2"}, "us-east-1"),
        ({"Currency": "USD", "ServiceName": "AmazonSageMaker"}, "us-east-1"),
        ({"Currency": "USD"}, "us-east-1"),
    ]


def test_the_page_says_how_to_get_charges(widgets: list[dict[str, Any]]) -> None:
    (text,) = [widget for widget in widgets if widget["type"] == "text"]
    assert "Receive CloudWatch billing alerts" in text["properties"]["markdown"]


def test_the_log_shown_is_that_of_the_machines(
    stacks: dict[str, Template], widgets: list[dict[str, Any]]
) -> None:
    resources = stacks["TrainStack"].resources
    (group,) = (name for name, r in resources.items() if r["Type"] == "AWS::Logs::LogGroup")
    queries = [w["properties"]["query"] for w in widgets if w["type"] == "log"]
    assert len(queries) == 2
    for query in queries:
        assert query.startswith(f"SOURCE '<{group}>' | ")


def python(pattern: str) -> re.Pattern[str]:
    """A regular expression of Logs Insights, where it stands between slashes."""
    return re.compile(pattern.strip("/").replace("(?<", "(?P<"))


def test_progress_is_read_from_the_log_of_a_run(log_lines: list[str]) -> None:
    wanted = python(PROGRESS[0].removeprefix("filter @message like "))
    parsers = [
        python(line.removeprefix("parse @message "))
        for line in PROGRESS
        if line.startswith("parse")
    ]
    highest: dict[str, float] = {}
    for line in filter(wanted.search, log_lines):
        for found in filter(None, (parser.search(line) for parser in parsers)):
            for name, value in found.groupdict().items():
                highest[name] = max(highest.get(name, 0), float(value))
    assert highest == {"train": 75, "test": 75, "head": 35, "correct": 33.3}


def test_every_value_that_is_read_is_drawn_by_time() -> None:
    read = {name for line in PROGRESS for name in re.findall(r"\(\?<(\w+)>", line)}
    assert set(re.findall(r"max\((\w+)\) as", PROGRESS[-1])) == read
    assert PROGRESS[-1].endswith(" by bin(1m)")


def test_the_last_lines_of_the_log_are_no_progress_bars(log_lines: list[str]) -> None:
    bar = python(LAST_LINES[1].removeprefix("filter @message not like "))
    assert [line for line in log_lines if not bar.search(line)] == ["train: resuming after epoch 1"]


def test_widgets_neither_overlap_nor_leave_the_page(widgets: list[dict[str, Any]]) -> None:
    taken: set[tuple[int, int]] = set()
    for widget in widgets:
        cells = {
            (x, y)
            for x in range(widget["x"], widget["x"] + widget["width"])
            for y in range(widget["y"], widget["y"] + widget["height"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24  # columns of a CloudWatch dashboard
        taken |= cells


def test_the_stand_in_takes_the_dashboard(aws: None, stacks: dict[str, Template]) -> None:
    dashboard = stacks["TrainStack"].only("AWS::CloudWatch::Dashboard")
    client = boto3.client("cloudwatch")
    client.put_dashboard(**dashboard)
    assert client.get_dashboard(DashboardName="bin-counter")["DashboardBody"]
