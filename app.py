"""The CDK app: reads the settings once and makes the stacks."""

import sys

from aws_cdk import App, Tags, Validations
from cdk_nag import AwsSolutionsChecks

from infra.budget_stack import BudgetStack
from infra.config import Config, SettingError
from infra.data_stack import DataStack
from infra.endpoint_stack import EndpointStack
from infra.train_stack import TrainStack


def add_stacks(app: App) -> None:
    """Put the stacks into `app`, with the settings of its context, and cdk-nag's rules beside them.

    Raises:
        SettingError: a setting is unknown or wrong.
    """
    config = Config.from_context(app.node.get_all_context())
    data = DataStack(app, "DataStack")
    budget = BudgetStack(app, "BudgetStack", config=config)
    train = TrainStack(app, "TrainStack", config=config, bucket=data.bucket, alerts=budget.topic)
    endpoint = EndpointStack(app, "EndpointStack", config=config, bucket=data.bucket)
    # The alarms exist before anything can spend.
    train.add_stack_dependency(budget)
    # TrainStack makes the parameter that says which model to serve.
    endpoint.add_stack_dependency(train)
    # Parameters cost nothing, and moto, the rehearsal's stand-in for AWS, fails on their tags.
    Tags.of(app).add("project", "bin-counter", exclude_resource_types=["AWS::SSM::Parameter"])
    Validations.of(app).add_plugins(AwsSolutionsChecks(app))


if __name__ == "__main__":
    app = App()
    try:
        add_stacks(app)
    except SettingError as error:
        sys.exit(f"error: {error}")
    app.synth()
