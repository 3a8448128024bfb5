"""Make one attempt at the active run, on a training machine whose wheels are installed.

infra/user_data.sh starts this command and acts on its exit code: 0, the run is over and the group
goes to 0; 75, another machine continues the run; any other, this program failed and the group goes
to 0.
"""

import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import boto3
from cyclopts import Parameter

from common.flags import command_line
from common.run_record import RunRecord, StatusChangedError
from common.signals import Signals
from training.machine.attempt import OVER, TRY_AGAIN, RunAttempt
from training.machine.log import LOG_FILE, log_to_cloudwatch
from training.machine.metadata_service import fetch_identity, instance_metadata
from training.machine.stack import CALLS, Stack
from training.machine.upkeep import retry
from training.runs.active_run import CurrentRun, LeaseLostError, current_run

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

log = logging.getLogger("training.machine")
app = command_line("python -m training.machine", __doc__)


@app.default
def attempt(*, work: Annotated[Path, Parameter(help="Folder for all files of the run.")]) -> int:
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("training").setLevel(logging.INFO)
    return work_on_active_run(work)


def work_on_active_run(work: Path) -> int:
    """Find the active run and attempt it; return the exit code of this program."""
    stack = Stack.from_environment()

    def never() -> bool:
        """Retry without a limit: the booked end of the group ends this machine in any case."""
        return False

    def find() -> tuple["S3Client", CurrentRun | None]:
        s3 = boto3.client("s3", config=CALLS)  # a client made without credentials never gets any
        return s3, current_run(s3, stack.bucket)

    s3, current = retry(find, never)
    if current is None:
        log.info("no run is active")
        return OVER
    metadata = instance_metadata()
    retry(lambda: fetch_identity(metadata), never)
    stream = f"{current['run_id']}/{metadata.instance_id}"
    log_to_cloudwatch(stack.log_group, stream, work / LOG_FILE)
    record = RunRecord(s3, stack.bucket, current["run_id"])
    signals = Signals(signal.SIGTERM)
    attempt = RunAttempt(
        stack=stack,
        record=record,
        request=retry(record.request, never),
        work=work,
        metadata=metadata,
        shutting_down=lambda: signals.seen(signal.SIGTERM),
    )
    try:
        return attempt.run()
    except (LeaseLostError, StatusChangedError) as error:
        log.warning("%s: leaving without writing anything", error)
        return TRY_AGAIN


def main() -> None:
    sys.exit(app(sys.argv[1:]))


if __name__ == "__main__":
    main()
