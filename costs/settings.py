"""The settings of a deploy, from cdk.json and -c name=value. Imports no CDK."""

import json
from collections.abc import Sequence
from typing import Any

from common.names import CDK_JSON
from infra.config import Config


def context(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The CDK's context: cdk.json's, then `overrides`. Raises ValueError for one without `=`."""
    values: dict[str, Any] = json.loads(CDK_JSON.read_text())["context"]
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"-c {override}: should look like -c name=value")
        values[name] = value
    return values


def read_settings() -> Config:
    """The settings in cdk.json. Raises SettingError for a wrong one."""
    return Config.from_context(context())
