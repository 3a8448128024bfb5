"""Where the log of a machine goes besides its console: CloudWatch and the run's folder."""

import logging
from pathlib import Path

import boto3
import watchtower
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from common.run_record import RunRecord

LOG_FILE = "machine.log"  # infra/user_data.sh writes it: all that boot and training print
SEND_SECONDS = 10  # to CloudWatch; what a machine that vanishes has not sent yet is lost

log = logging.getLogger(__name__)


def log_to_cloudwatch(log_group: str, stream: str, log_file: Path) -> None:
    """Send what the boot left in `log_file`, and all that training.* logs from now on."""
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
    """The log's copy in runs/<id>/logs/, for a machine that vanishes; the boot script makes the
    last one."""

    def __init__(self, record: RunRecord, log_file: Path, instance_id: str) -> None:
        self._record = record
        self._file = log_file
        self._name = f"logs/{instance_id}.log"
        self._size = 0

    def store(self) -> None:
        """Upload the log if it has grown since the last call, and if S3 lets it."""
        size = self._file.stat().st_size if self._file.exists() else 0
        if size <= self._size:
            return
        try:
            self._record.upload(self._file, self._name)
        except (Boto3Error, BotoCoreError, ClientError) as error:  # no reason to end an attempt
            log.warning("the log was not stored: %s", error)
        else:
            self._size = size
