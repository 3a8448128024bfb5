import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.files import ROOT
from common.names import NAME_VARIABLE
from infra.config import Config, SettingError
from tests.support.synthesized import CDK_CONTEXT


def test_defaults_need_no_setting() -> None:
    config = Config.from_context({})
    assert config.machine == "cpu"
    assert config.purchase == "spot_first"
    assert config.endpoint == "serverless"
    assert not any(name.startswith("t") for name in config.instance_types), "burstable"


def test_cdk_json_holds_only_what_the_settings_know() -> None:
    assert Config.from_context(CDK_CONTEXT) == Config.from_context({})


def test_keys_of_the_cdk_command_line_are_no_settings() -> None:
    Config.from_context(
        {"aws:cdk:bundling-stacks": ["**"], "@aws-cdk/core:x": True, "cli-telemetry": False}
    )


def test_text_from_the_command_line_becomes_numbers_and_lists() -> None:
    config = Config.from_context(
        {"monthly_budget_usd": "7.5", "alert_percentages": "40, 90", "instance_types": "c7i.large"}
    )
    assert config.monthly_budget_usd == 7.5
    assert config.alert_percentages == (40, 90)
    assert config.instance_types == ("c7i.large",)


def test_lists_of_cdk_json_are_taken_as_they_are() -> None:
    assert Config.from_context({"alert_percentages": [60]}).alert_percentages == (60,)


def test_machine_picks_types_image_and_disk_unless_they_are_set() -> None:
    config = Config.from_context({"machine": "gpu", "volume_gib": "200"})
    assert config.instance_types == ("g4dn.xlarge", "g5.xlarge", "g6.xlarge")
    assert "deeplearning" in config.ami_parameter
    assert config.volume_gib == 200


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("machine", "tpu", "'cpu' or 'gpu'"),
        ("purchase", "borrow", "'spot_first', 'spot' or 'on_demand'"),
        ("endpoint", "batch", "'serverless' or 'realtime'"),
        ("over_budget", "stop", "'alert' or 'deny'"),
        ("budgets", "none", "'yes' or 'no'"),
        ("cost_dashboard", "true", "'no' or 'yes'"),
        ("kms", "mine", "'aws' or 'customer'"),
        ("on_destroy", "ask", "'keep' or 'delete'"),
        ("endpoint_instance_type", "m5.large", "ml.m5.large"),
        ("endpoint_instances", "0", "greater than or equal to 1"),
        ("endpoint_max_instances", "9", "less than or equal to 8"),
        ("endpoint_traffic", "shadow", "'all_at_once', 'canary' or 'linear'"),
        ("endpoint_capture_percentage", "101", "less than or equal to 100"),
        ("endpoint_memory_mb", "1500", "multiple of 1024"),
        ("endpoint_max_concurrency", "6", "less than or equal to 5"),
        ("monthly_budget_usd", "-1", "greater than 0"),
        ("monthly_budget_usd", "inf", "finite"),
        ("alert_percentages", "50,0", "greater than or equal to 1"),
        ("alert_percentages", "1,2,3,4,5,6", "at most 5"),
        ("alert_email", "nobody", "you@example.com"),
        ("instance_types", "c7i.large,big one", "c7i.large,m7i.large"),
        ("volume_gib", "much", "integer"),
        ("ami_parameter", "ami-123", "/aws/service/"),
        ("serving_image", "python:3.11", "dkr.ecr"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingError) as caught:
        Config.from_context({name: value})
    message = str(caught.value)
    assert message.startswith(f"setting {name}=")
    assert value.split(",")[-1] in message
    assert allowed in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"endpoint_instances": "3"},
            "settings: endpoint_max_instances is less than endpoint_instances",
        ),
        (
            {"endpoint_traffic": "linear"},
            "settings: endpoint_traffic=linear needs endpoint_instances=2",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        Config.from_context(settings)
    assert str(caught.value) == message


def test_settings_that_go_together_are_taken() -> None:
    config = Config.from_context(
        {"endpoint_instances": "2", "endpoint_max_instances": "2", "endpoint_traffic": "canary"}
    )
    assert (config.endpoint_instances, config.endpoint_traffic) == (2, "canary")


@pytest.mark.parametrize("name", ["alert_mail", "alertEmail", "alert-email"])
def test_an_unknown_setting_is_named_with_those_that_exist(name: str) -> None:
    with pytest.raises(SettingError, match=f"setting {name}=.*no such setting.*alert_email"):
        Config.from_context({name: "you@example.com"})


@given(st.text(), st.text() | st.integers() | st.none() | st.lists(st.text()))
def test_no_setting_fails_in_another_way(name: str, value: object) -> None:
    try:
        Config.from_context({name: value})
    except SettingError as error:
        assert name in str(error)


@given(st.sampled_from(list(Config.model_fields)), st.text() | st.integers() | st.booleans())
def test_no_value_fails_in_another_way(name: str, value: object) -> None:
    try:
        Config.from_context({name: value})
    except SettingError as error:
        assert str(error).startswith((f"setting {name}=", "settings: "))


def test_the_documentation_has_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    section = text.split("## Settings")[1].split("\n#")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))
    said = {"ami_parameter": "newest Amazon Linux 2023", "serving_image": "built by Docker"}
    assert {name: default.replace(", ", ",") for name, default in rows.items()} == {
        name: said.get(name, in_words(value)) for name, value in Config.from_context({})
    }


def in_words(value: object) -> str:
    """A default as a table shows it."""
    match value:
        case None:
            return "none"
        case tuple():
            return ",".join(str(item) for item in value)
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def test_a_deny_over_budget_needs_a_budget() -> None:
    with pytest.raises(SettingError) as raised:
        Config.from_context({"budgets": "no", "over_budget": "deny"})
    assert str(raised.value) == ("settings: over_budget=deny needs a budget: remove budgets=no")


def test_the_environment_names_the_copy_unless_a_setting_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAME_VARIABLE, "bins-dev")
    assert Config.from_context({}).name == "bins-dev"
    with pytest.raises(SettingError, match="name is bins, but BIN_COUNTER_NAME is bins-dev"):
        Config.from_context({"name": "bins"})
    monkeypatch.setenv(NAME_VARIABLE, "bins_dev")
    with pytest.raises(SettingError, match="should look like bins-dev"):
        Config.from_context({})


def test_a_name_that_parameter_store_keeps_for_aws_is_refused() -> None:
    with pytest.raises(SettingError, match="must not begin with aws or ssm"):
        Config.from_context({"name": "aws-bins"})


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Config.from_context({}), "machine", "gpu")  # noqa: B010, mypy knows better
