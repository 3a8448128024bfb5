"""Prints the logs of a run's machines, from their copies in runs/<id>/logs/.

CloudWatch has the same lines, but deletes them earlier and needs another permission.
"""

import sys
import time
from pathlib import PurePosixPath

from common.storage import list_objects
from training.launcher.deployment import Deployment, LaunchError
from training.launcher.follow import POLL_SECONDS
from training.launcher.status import Run, load_run


def print_logs(deployment: Deployment, run_id: str, *, follow: bool) -> None:
    """Print the log of each machine in turn; with `follow`, until the run ends.

    Raises LaunchError for a run without a log or on SageMaker.
    """
    _refuse_jobs(load_run(deployment, run_id))
    printed: dict[str, int] = {}  # bytes, by machine
    while True:
        run = load_run(deployment, run_id)  # before the logs, which end later than the run
        _print_new(deployment, run, printed)
        if not (follow and run.live.in_progress):
            break
        time.sleep(POLL_SECONDS)
    if not printed:
        raise LaunchError(f"no machine of run {run_id} has stored a log yet")


def _refuse_jobs(run: Run) -> None:
    if run.request.get("service") == "sagemaker" and run.attempts:
        raise LaunchError(
            f"run {run.run_id} is on SageMaker: `aws logs tail /aws/sagemaker/TrainingJobs "
            f"--since 7d --log-stream-name-prefix {run.attempts[-1]['instance_id']}/` prints it"
        )


def _print_new(deployment: Deployment, run: Run, printed: dict[str, int]) -> None:
    prefix = deployment.record(run.run_id).key("logs/")
    sizes = {
        PurePosixPath(item["Key"]).stem: item["Size"]
        for item in list_objects(deployment.s3, deployment.bucket, prefix)
    }
    attempts = [attempt["instance_id"] for attempt in run.attempts]
    others = sorted(sizes.keys() - set(attempts))  # machines without an attempt
    for machine in [*attempts, *others]:
        seen = printed.get(machine, 0)
        if sizes.get(machine, 0) <= seen:
            continue
        if not seen:
            print(f"== {machine}")
        answer = deployment.s3.get_object(
            Bucket=deployment.bucket, Key=f"{prefix}{machine}.log", Range=f"bytes={seen}-"
        )
        content = answer["Body"].read()
        sys.stdout.write(content.decode(errors="replace"))
        sys.stdout.flush()
        printed[machine] = seen + len(content)
