"""Fixtures that more than one test file needs."""

import pytest
from synthesized import Template, synthesize


@pytest.fixture(scope="session")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """Stack id to template, with the default settings. Made once: it takes seconds."""
    return synthesize(tmp_path_factory.mktemp("cdk.out"))


@pytest.fixture(scope="session")
def other_stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """Stack id to template, with every choice of the settings made the other way."""
    return synthesize(
        tmp_path_factory.mktemp("cdk.out"),
        alert_email="you@example.com",
        alert_percentages="90",
        machine="gpu",
        purchase="on_demand",
        endpoint="realtime",
        serving_image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/bins:1.0",
    )
