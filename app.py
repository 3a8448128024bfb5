"""The CDK app: reads the settings once and makes the stacks."""

import sys

from aws_cdk import App, Tags, Validations
from cdk_nag import AwsSolutionsChecks, NIST80053R5Checks

from common.names import PART_KEY, PROJECT_KEY
from common.outputs import RegionsDifferError, check_region
from infra.budget_stack import BudgetStack
from infra.config import Config, SettingError
from infra.data_stack import DataStack
from infra.endpoint_stack import EndpointStack
from infra.train_stack import TrainStack


def add_stacks(app: App) -> None:
    """Put the stacks into `app`, with the settings of its context, and cdk-nag's rules beside them.

    Raises:
        RegionsDifferError: the CDK and our commands would look in different regions.
        SettingError: a setting is unknown or wrong.
    """
    check_region()
    config = Config.from_context(app.node.get_all_context())
    data = DataStack(app, "DataStack", config=config)
    budget = BudgetStack(app, "BudgetStack", config=config, key=data.key)
    train = TrainStack(
        app,
        "TrainStack",
        config=config,
        bucket=data.bucket,
        alerts=budget.topic,
        key=data.key,
    )
    endpoint = EndpointStack(
        app,
        "EndpointStack",
        config=config,
        bucket=data.bucket,
        alerts=budget.topic,
        key=data.key,
    )
    # The alarms exist before anything can spend.
    train.add_stack_dependency(budget)
    # TrainStack makes the parameter that says which model to serve.
    endpoint.add_stack_dependency(train)
    # Parameters cost nothing, and moto, the rehearsal's stand-in for AWS, fails on their tags.
    untagged = ["AWS::SSM::Parameter"]
    Tags.of(app).add(PROJECT_KEY, config.name, exclude_resource_types=untagged)
    parts = {"data": data, "budget": budget, "training": train, "endpoint": endpoint}
    for part, stack in parts.items():
        Tags.of(stack).add(PART_KEY, part, exclude_resource_types=untagged)
    Validations.of(app).add_plugins(AwsSolutionsChecks(app), NIST80053R5Checks(app))


if __name__ == "__main__":
    app = App()
    try:
        add_stacks(app)
    except (RegionsDifferError, SettingError) as error:
        sys.exit(f"error: {error}")
    app.synth()
