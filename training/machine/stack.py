"""TrainStack's settings for its machines, and the limits of their calls to AWS."""

import os
from dataclasses import dataclass

from botocore.config import Config

# botocore's default of 60 seconds for each attempt exceeds what an interruption notice leaves.
CALLS = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Environment variables that TrainStack sets in the user data."""

    bucket: str
    model_parameter: str
    topic_arn: str
    log_group: str
    volume_gib: int
    group_names: tuple[str, ...]  # the second, if there is one, starts on-demand machines

    @classmethod
    def from_environment(cls) -> "Stack":
        return cls(
            bucket=os.environ["BUCKET"],
            model_parameter=os.environ["MODEL_PARAMETER"],
            topic_arn=os.environ["TOPIC_ARN"],
            log_group=os.environ["LOG_GROUP"],
            volume_gib=int(os.environ["VOLUME_GIB"]),
            group_names=tuple(os.environ["GROUP_NAMES"].split()),
        )
