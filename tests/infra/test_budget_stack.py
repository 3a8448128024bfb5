import json
from collections.abc import Iterator
from typing import Any

import boto3
import botocore.session
import pytest
from aws_cdk import App
from botocore.validate import ParamValidator

from common.outputs import NO_BUDGETS
from infra.budget_stack import BudgetStack, machines
from infra.config import Config
from tests.support.synthesized import Template, plain

EC2 = "Amazon Elastic Compute Cloud - Compute"


@pytest.fixture
def template(stacks: dict[str, Template]) -> Template:
    return stacks["BudgetStack"]


@pytest.fixture
def other(other_stacks: dict[str, Template]) -> Template:
    return other_stacks["BudgetStack"]


def alerts(budget: dict[str, Any]) -> list[tuple[str, int]]:
    return [
        (n["Notification"]["NotificationType"], n["Notification"]["Threshold"])
        for n in budget["NotificationsWithSubscribers"]
    ]


def test_budgets_guard_the_account_machines_and_sagemaker(template: Template) -> None:
    budgets = [budget["Budget"] for budget in template.of_type("AWS::Budgets::Budget")]
    assert [(b.get("CostFilters"), b["BudgetLimit"]["Amount"]) for b in budgets] == [
        (None, 20),
        ({"Service": [EC2]}, 10),
        ({"Service": ["Amazon SageMaker"]}, 10),
    ]
    assert {b["TimeUnit"] for b in budgets} == {"MONTHLY"}


@pytest.mark.parametrize(
    ("purchase", "filters"),
    [
        ("spot_first", {"Service": [EC2]}),
        ("spot", {"Service": [EC2], "PurchaseType": ["Spot Instances"]}),
        ("on_demand", {"Service": [EC2]}),
    ],
)
def test_the_budget_is_of_the_machines_that_may_come(
    purchase: str, filters: dict[str, list[str]]
) -> None:
    assert machines(Config.from_context({"purchase": purchase})) == filters


def test_no_filter_waits_for_tags(template: Template) -> None:
    assert "TagKeyValue" not in json.dumps(template.of_type("AWS::Budgets::Budget"))


def test_a_budget_has_no_name_so_that_it_can_be_replaced(template: Template) -> None:
    for budget in template.of_type("AWS::Budgets::Budget"):
        assert "BudgetName" not in budget["Budget"]


def test_credits_do_not_hide_spending(template: Template) -> None:
    for budget in template.of_type("AWS::Budgets::Budget"):
        assert budget["Budget"]["CostTypes"]["IncludeCredit"] is False


def test_every_share_is_alerted_when_spent_and_when_forecast(template: Template) -> None:
    for budget in template.of_type("AWS::Budgets::Budget"):
        assert alerts(budget) == [
            (kind, share) for kind in ("ACTUAL", "FORECASTED") for share in (50, 80, 100)
        ]


def test_alerts_go_to_the_topic(template: Template) -> None:
    (topic,) = (n for n, r in template.resources.items() if r["Type"] == "AWS::SNS::Topic")
    for budget in template.of_type("AWS::Budgets::Budget"):
        for notification in budget["NotificationsWithSubscribers"]:
            assert notification["Subscribers"] == [
                {"SubscriptionType": "SNS", "Address": f"<{topic}>"}
            ]


def test_without_an_address_no_mail_is_sent(template: Template) -> None:
    assert template.of_type("AWS::SNS::Subscription") == []


def test_alerts_go_to_the_address_too(other: Template) -> None:
    assert other.only("AWS::SNS::Subscription")["Endpoint"] == "you@example.com"
    for budget in other.of_type("AWS::Budgets::Budget"):
        assert alerts(budget) == [("ACTUAL", 90), ("FORECASTED", 90)]
        for notification in budget["NotificationsWithSubscribers"]:
            assert {"SubscriptionType": "EMAIL", "Address": "you@example.com"} in notification[
                "Subscribers"
            ]


def test_only_this_accounts_budgets_and_alarms_may_publish_and_only_with_tls(
    template: Template,
) -> None:
    statements = template.only("AWS::SNS::TopicPolicy")["PolicyDocument"]["Statement"]
    allowed = [s for s in statements if s["Effect"] == "Allow"]
    denied = [s for s in statements if s["Effect"] == "Deny"]
    regional = "<AWS::Region>:<AWS::AccountId>"
    assert [(s["Principal"]["Service"], s["Action"], s["Condition"]) for s in allowed] == [
        (
            f"{service}.amazonaws.com",
            "sns:Publish",
            {
                "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"},
                "ArnLike": {"aws:SourceArn": f"arn:<AWS::Partition>:{sources}"},
            },
        )
        for service, sources in (
            ("budgets", "budgets::<AWS::AccountId>:*"),
            ("cloudwatch", f"cloudwatch:{regional}:alarm:*"),
        )
    ]
    assert [(s["Principal"], s["Action"], s["Condition"]) for s in denied] == [
        ("*", "sns:Publish", {"Bool": {"aws:SecureTransport": "false"}})
    ]


def test_budgets_are_made_after_the_topic_lets_them_publish(template: Template) -> None:
    for resource in template.resources.values():
        if resource["Type"] == "AWS::Budgets::Budget":
            (policy,) = resource["DependsOn"]
            assert template.resources[policy]["Type"] == "AWS::SNS::TopicPolicy"


def test_the_names_of_the_budgets_are_an_output_in_their_order(template: Template) -> None:
    names = plain(template.raw["Outputs"]["BudgetNames"]["Value"]).split(",")
    assert names == [
        f"<{name}>" for name, r in template.resources.items() if r["Type"] == "AWS::Budgets::Budget"
    ]
    assert [name[1 : name.index("Budget")] for name in names] == ["Total", "Training", "SageMaker"]


@pytest.mark.filterwarnings("ignore:Tried to parse:UserWarning")
def test_the_output_does_not_break_a_stand_in_that_knows_no_budgets(
    aws: None, template: Template
) -> None:
    client = boto3.client("cloudformation")
    body = json.dumps(without_parameters(template))
    client.create_stack(StackName="bin-counter-BudgetStack", TemplateBody=body)
    (stack,) = client.describe_stacks(StackName="bin-counter-BudgetStack")["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    assert len(outputs["BudgetNames"].split(",")) == 3


def without_parameters(template: Template) -> dict[str, Any]:
    """What the template makes; the CDK command line alone knows its bootstrap parameter."""
    return {key: template.raw[key] for key in ("Resources", "Outputs")}


def test_budgets_can_be_left_out_and_the_topic_stays() -> None:
    app = App()
    stack = BudgetStack(app, "BudgetStack", config=Config.from_context({"budgets": "no"}), key=None)
    made = app.synth().get_stack_artifact(stack.artifact_id).template
    types = {resource["Type"] for resource in made["Resources"].values()}
    assert types >= {"AWS::SNS::Topic", "AWS::SNS::TopicPolicy"}
    assert not any(name.startswith("AWS::Budgets::") for name in types)
    assert made["Outputs"]["BudgetNames"]["Value"] == NO_BUDGETS


def test_the_cost_dashboard_is_there_when_asked_for(template: Template, other: Template) -> None:
    assert template.of_type("AWS::BCM::Dashboard") == []
    assert len(other.of_type("AWS::BCM::Dashboard")) == 1


def test_the_service_itself_would_take_the_cost_dashboard(other: Template) -> None:
    dashboard = other.only("AWS::BCM::Dashboard")
    tags = dashboard.pop("Tags")
    model = botocore.session.get_session().get_service_model("bcm-dashboards")
    request = as_api(dashboard) | {"resourceTags": as_api(tags)}
    shape = model.operation_model("CreateDashboard").input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()


def as_api(value: Any) -> Any:
    """Properties of CloudFormation as the service's own API writes them: each name in lower case.

    The names in a graph's display are those of metrics, and stay.
    """
    if isinstance(value, dict):
        return {
            name if name == "UnblendedCost" else name[0].lower() + name[1:]: as_api(item)
            for name, item in value.items()
        }
    return [as_api(item) for item in value] if isinstance(value, list) else value


def widgets(other: Template) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each widget with its query."""
    for widget in other.only("AWS::BCM::Dashboard")["Widgets"]:
        (configuration,) = widget["Configs"]
        yield widget, configuration["QueryParameters"]["CostAndUsage"]


def test_spot_machines_and_sagemaker_are_side_by_side(other: Template) -> None:
    beside = [
        (widget["HorizontalOffset"], query["GroupBy"], services(query))
        for widget, query in widgets(other)
        if query["GroupBy"][0]["Key"] in {"PURCHASE_TYPE", "USAGE_TYPE"}
    ]
    assert beside == [
        (0, [{"Type": "DIMENSION", "Key": "PURCHASE_TYPE"}], [EC2]),
        (3, [{"Type": "DIMENSION", "Key": "USAGE_TYPE"}], ["Amazon SageMaker"]),
    ]


def services(query: dict[str, Any]) -> list[str]:
    """The services that a query is limited to."""
    (names,) = [
        part["Dimensions"]["Values"]
        for part in query["Filter"]["And"]
        if part.get("Dimensions", {}).get("Key") == "SERVICE"
    ]
    return names


def test_no_widget_is_wider_than_its_row(other: Template) -> None:
    for widget, _ in widgets(other):
        assert widget["HorizontalOffset"] + widget["Width"] <= 6


def test_the_widget_by_part_looks_at_this_projects_tags(other: Template) -> None:
    (query,) = [q for _, q in widgets(other) if q["GroupBy"][0]["Type"] == "TAG"]
    assert query["GroupBy"] == [{"Type": "TAG", "Key": "part"}]
    assert {"Tags": {"Key": "project", "Values": ["bins-dev"]}} in query["Filter"]["And"]


def test_the_parts_of_the_project_are_told_apart(other_stacks: dict[str, Template]) -> None:
    parts = {}
    for name, template in other_stacks.items():
        tags = [
            tag["Value"]
            for resource in template.resources.values()
            for tag in resource["Properties"].get("Tags", [])
            if isinstance(tag, dict) and tag["Key"] == "part"
        ]
        parts[name] = set(tags)
    assert parts == {
        "DataStack": {"data"},
        "BudgetStack": {"budget"},
        "TrainStack": {"training"},
        "EndpointStack": {"endpoint"},
    }


def test_machines_and_their_disks_carry_the_tags(stacks: dict[str, Template]) -> None:
    data = stacks["TrainStack"].only("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
    tagged = {
        specification["ResourceType"]: {tag["Key"]: tag["Value"] for tag in specification["Tags"]}
        for specification in data["TagSpecifications"]
    }
    for resource in ("instance", "volume"):
        assert tagged[resource]["project"] == "bin-counter"
        assert tagged[resource]["part"] == "training"
