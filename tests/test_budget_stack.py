from typing import Any

import pytest
from synthesized import Template


@pytest.fixture
def template(stacks: dict[str, Template]) -> Template:
    return stacks["BudgetStack"]


def alerts(budget: dict[str, Any]) -> list[tuple[str, int]]:
    return [
        (n["Notification"]["NotificationType"], n["Notification"]["Threshold"])
        for n in budget["NotificationsWithSubscribers"]
    ]


def test_budgets_guard_the_account_ec2_and_sagemaker(template: Template) -> None:
    budgets = [budget["Budget"] for budget in template.of_type("AWS::Budgets::Budget")]
    assert [(b.get("CostFilters"), b["BudgetLimit"]["Amount"]) for b in budgets] == [
        (None, 20),
        ({"Service": ["Amazon Elastic Compute Cloud - Compute"]}, 10),
        ({"Service": ["Amazon SageMaker"]}, 10),
    ]
    assert {b["TimeUnit"] for b in budgets} == {"MONTHLY"}


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


def test_alerts_go_to_the_address_too(other_stacks: dict[str, Template]) -> None:
    template = other_stacks["BudgetStack"]
    assert template.only("AWS::SNS::Subscription")["Endpoint"] == "you@example.com"
    for budget in template.of_type("AWS::Budgets::Budget"):
        assert alerts(budget) == [("ACTUAL", 90), ("FORECASTED", 90)]
        for notification in budget["NotificationsWithSubscribers"]:
            assert {"SubscriptionType": "EMAIL", "Address": "you@example.com"} in notification[
                "Subscribers"
            ]


def test_only_budgets_of_this_account_may_publish_and_only_with_tls(template: Template) -> None:
    statements = template.only("AWS::SNS::TopicPolicy")["PolicyDocument"]["Statement"]
    allowed = [s for s in statements if s["Effect"] == "Allow"]
    denied = [s for s in statements if s["Effect"] == "Deny"]
    assert [(s["Principal"], s["Action"], s["Condition"]) for s in allowed] == [
        (
            {"Service": "budgets.amazonaws.com"},
            "sns:Publish",
            {
                "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"},
                "ArnLike": {"aws:SourceArn": "arn:<AWS::Partition>:budgets::<AWS::AccountId>:*"},
            },
        )
    ]
    assert [(s["Action"], s["Condition"]) for s in denied] == [
        ("sns:Publish", {"Bool": {"aws:SecureTransport": "false"}})
    ]


def test_budgets_are_made_after_the_topic_lets_them_publish(template: Template) -> None:
    for resource in template.resources.values():
        if resource["Type"] == "AWS::Budgets::Budget":
            (policy,) = resource["DependsOn"]
            assert template.resources[policy]["Type"] == "AWS::SNS::TopicPolicy"
