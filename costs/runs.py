"""Which run a command is about, and its record in the bucket."""

from typing import Any

import boto3
from botocore.exceptions import ClientError

from common.chosen_model import chosen_model, run_of
from common.outputs import chosen_bucket
from common.run_record import RunRecord


def find_run(bucket: str | None, run_id: str | None) -> RunRecord:
    """The record of a run, by default the newest model's, in DataStack's bucket.

    Raises NoModelError before the first model, NotDeployedError without the stacks.
    """
    bucket = chosen_bucket(bucket)
    return RunRecord(boto3.client("s3"), bucket, run_id or run_of(chosen_model()))


def read(record: RunRecord, name: str) -> dict[str, Any]:
    """The JSON object under `name`. Raises ValueError when it cannot be read."""
    uri = record.uri(name)
    try:
        content = record.read(name)
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchKey":
            raise ValueError(
                f"{uri} does not exist: is the run's id correct, and has the run ended?"
            ) from error
        raise ValueError(f"{uri} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{uri} is damaged: {error!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{uri} is damaged: {content!r}")
    return content
