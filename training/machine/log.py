"""Copies of a machine's log in CloudWatch and in the run's folder."""

import logging
from pathlib import Path

import boto3
import watchtower

from common.run_record import RunRecord
from training.machine.upkeep import best_effort

LOG_FILE = "machine.log"  # written by infra/user_data.sh: all output of the boot and the training
SEND_SECONDS = 10  # to CloudWatch; a machine that disappears loses what it has not sent


def log_to_cloudwatch(log_group: str, stream: str, log_file: Path) -> None:
    """Send the boot's output in `log_file`, and from now on the log of training.*."""
    handler = watchtower.CloudWatchLogHandler(
        log_group_name=log_group,
        log_stream_name=stream,
        send_interval=SEND_SECONDS,
        boto3_client=boto3.client("logs"),
        create_log_group=False,
    )
    if log_file.exists():
        for line in log_file.read_text(errors="replace").splitlines():
            if line.strip():
                handler.handle(logging.makeLogRecord({"name": "boot", "msg": line}))
    logging.getLogger("training").addHandler(handler)


class LogCopy:
    """A copy of the log in runs/<id>/logs/; the boot script uploads it a last time."""

    def __init__(self, record: RunRecord, log_file: Path, instance_id: str) -> None:
        self._record = record
        self._file = log_file
        self._name = f"logs/{instance_id}.log"
        self._size = 0

    def store(self) -> None:
        """Upload the log if it has grown since the last upload; log an error of AWS."""
        size = self._file.stat().st_size if self._file.exists() else 0
        if size <= self._size:
            return
        with best_effort("the log could not be stored"):
            self._record.upload(self._file, self._name)
            self._size = size
