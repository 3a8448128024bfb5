"""What a training machine does once its wheels are installed: one attempt at the active run.

    python -m training.spot --work /opt/bin-counter

Started by infra/user_data.sh, which tells from the exit code what comes next: 0, the run is
over and the group goes to 0; 75, another machine goes on with it; any other, this program
itself broke, and the group goes to 0.
"""

import argparse
import dataclasses
import logging
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import watchtower
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from ec2_metadata import EC2Metadata

from costs.estimate import run_cost, total
from costs.prices import PriceError, Purchase, load_prices
from training.control import Lease, LeaseLostError, current_run, end_run
from training.imds import instance_metadata, interruption_notice
from training.run_record import Attempt, Request, RunRecord, billed_seconds, utc_now
from training.settings import INTERRUPTED
from training.transfer import CheckpointStore, download_prefix

OVER, TRY_AGAIN = 0, INTERRUPTED
FAILED_ATTEMPTS = 3  # the third ends the run
STORE_SECONDS = 10.0  # between uploads of checkpoints and progress
CLOSING_SECONDS = 120.0  # before the deadline, for a last snapshot and the record
STOP_SECONDS = 60.0  # for the training process to take its snapshot

log = logging.getLogger("training.spot")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What TrainStack tells its machines, in the environment."""

    bucket: str
    model_parameter: str
    topic_arn: str
    log_group: str
    volume_gib: int

    @classmethod
    def from_environment(cls) -> "Stack":
        return cls(
            bucket=os.environ["BUCKET"],
            model_parameter=os.environ["MODEL_PARAMETER"],
            topic_arn=os.environ["TOPIC_ARN"],
            log_group=os.environ["LOG_GROUP"],
            volume_gib=int(os.environ["VOLUME_GIB"]),
        )


class SpotAttempt:
    """This machine's attempt at one run, from taking the lease to leaving."""

    def __init__(
        self,
        *,
        stack: Stack,
        record: RunRecord,
        request: Request,
        work: Path,
        metadata: EC2Metadata,
    ) -> None:
        self.stack = stack
        self.record = record
        self.request = request
        self.output = work / "output"
        self.dataset = work / "dataset"
        self.weights = work / f"{request['arch']}.pth"
        self.metadata = metadata
        self.lease = Lease(
            record.s3, stack.bucket, run_id=record.run_id, holder=metadata.instance_id
        )
        self.checkpoint_folder = work / "checkpoints"
        self.checkpoints = CheckpointStore(
            record.s3, stack.bucket, record.run_id, self.checkpoint_folder
        )
        self.attempts: list[Attempt] = []

    def run(self, asked_to_leave: Callable[[], bool], poll_seconds: float) -> int:
        """Work on the run until it ends or the machine has to leave; returns the exit code.

        Raises LeaseLostError when another machine took over.
        """
        self.lease.acquire()
        try:
            return self._run(asked_to_leave, poll_seconds)
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            if not self.attempts:
                raise  # the record could not even be read: the boot script ends it
            log.exception("this attempt cannot go on")
            self.lease.renew()
            self._end_attempt("failed")
            return self._after_failure(f"{type(error).__name__}: {error}")

    def _run(self, asked_to_leave: Callable[[], bool], poll_seconds: float) -> int:
        current = current_run(self.record.s3, self.stack.bucket)
        if current is None or current["run_id"] != self.record.run_id:
            log.info("another machine ended the run while this one waited for the lease")
            self.lease.release()
            return TRY_AGAIN
        self.attempts = self.record.status()["attempts"]
        if self._out_of_time():
            self._end_run("failed", f"the deadline {self.request['deadline']} has passed")
            return OVER
        self._begin()
        self._fetch()
        code = self._train(asked_to_leave, poll_seconds)
        self.checkpoints.store(len(self.attempts))
        self.lease.renew()  # the last snapshot may have taken longer than the lease lasts
        if code == 0:
            self._succeed()
            return OVER
        if self._out_of_time():
            self._end_attempt("failed")
            self._end_run("failed", f"not done at the deadline, {self.request['deadline']}")
            return OVER
        if code == INTERRUPTED:
            self._end_attempt("interrupted")
            self.record.set_status("interrupted", "the machine was taken back", self.attempts)
            self.lease.release()
            return TRY_AGAIN
        self._end_attempt("failed")
        return self._after_failure(f"training ended with exit code {code}, see the log")

    def _begin(self) -> None:
        self.attempts.append(
            Attempt(
                instance_id=self.metadata.instance_id,
                instance_type=self.metadata.instance_type,
                zone=self.metadata.availability_zone,
                started=os.environ.get("BOOT_STARTED", utc_now()),
            )
        )
        message = f"attempt {len(self.attempts)} on {self.metadata.instance_id}"
        log.info("run %s, %s", self.record.run_id, message)
        self.record.set_status("running", message, self.attempts)

    def _fetch(self) -> None:
        s3, bucket = self.record.s3, self.stack.bucket
        download_prefix(s3, bucket, f"datasets/{self.request['dataset']}/", self.dataset)
        s3.download_file(bucket, f"weights/{self.weights.name}", str(self.weights))
        log.info("%d files of earlier attempts", self.checkpoints.restore())

    def _train(self, asked_to_leave: Callable[[], bool], poll_seconds: float) -> int:
        """Run training.train, keeping the lease and storing progress; returns its exit code."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "training.train"),
                *("--data", str(self.dataset)),
                *("--weights", str(self.weights)),
                *("--arch", self.request["arch"]),
                *("--output", str(self.output)),
                *("--checkpoint-dir", str(self.checkpoint_folder)),
                *("--run-id", self.record.run_id),
                *self.request["train_arguments"],
            ],
            env={"TQDM_MININTERVAL": "10", **os.environ},  # a progress bar's lines in the log
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        relay = threading.Thread(target=_relay, args=(process,))
        relay.start()
        stored = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(poll_seconds)
                if asked_to_leave() or interruption_notice(self.metadata):
                    log.warning("the machine is being taken back: snapshot and leave")
                    return _stop(process)
                if self._out_of_time():
                    log.warning("the deadline is near: snapshot and end the run")
                    return _stop(process)
                self.lease.renew()
                if time.monotonic() - stored >= STORE_SECONDS:
                    self.checkpoints.store(len(self.attempts))
                    self._store_progress()
                    stored = time.monotonic()
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
            relay.join()
        return process.returncode

    def _out_of_time(self) -> bool:
        """Whether what is left before the booked end of the group is only enough to say so."""
        left = datetime.fromisoformat(self.request["deadline"]) - datetime.now(UTC)
        return left.total_seconds() < CLOSING_SECONDS

    def _store_progress(self) -> None:
        metrics = self.output / "metrics.jsonl"
        if metrics.exists():
            self.record.upload(metrics)

    def _succeed(self) -> None:
        """Store the results, the pointer to the model last, then tell."""
        self._end_attempt("succeeded")
        for name in ("metrics.jsonl", "metrics.json", "loss.png"):
            self.record.upload(self.output / name)
        self._store_cost()
        archive = self.output / "model.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for file in sorted((self.output / "model").iterdir()):
                tar.add(file, arcname=file.name)
        self.record.upload(archive)
        self.lease.renew()
        boto3.client("ssm").put_parameter(
            Name=self.stack.model_parameter, Value=self.record.uri(archive.name), Overwrite=True
        )
        self._end_run("succeeded", f"model at {self.record.uri(archive.name)}")

    def _after_failure(self, reason: str) -> int:
        failures = sum(attempt.get("outcome") == "failed" for attempt in self.attempts)
        if failures >= FAILED_ATTEMPTS:
            self._end_run("failed", f"{reason}; attempt {failures} of {FAILED_ATTEMPTS}")
            return OVER
        self.record.set_status("interrupted", f"{reason}; trying again", self.attempts)
        self.lease.release()
        return TRY_AGAIN

    def _store_cost(self) -> None:
        prices = load_prices()
        seconds = billed_seconds(self.attempts)
        instance_type, gib = self.metadata.instance_type, self.stack.volume_gib
        purchase: Purchase = "spot" if self.metadata.instance_life_cycle == "spot" else "on_demand"
        cost: dict[str, Any] = {
            "instance_type": instance_type,
            "purchase": purchase,
            "seconds": seconds,
            "volume_gib": gib,
            "prices_date": prices.date,
        }
        try:
            lines = run_cost(seconds, instance_type, purchase, gib, prices)
            cost |= {"dollars": total(lines), "lines": [dataclasses.asdict(it) for it in lines]}
        except PriceError as error:  # no reason to lose a model that is finished
            cost |= {"dollars": None, "lines": [], "note": str(error)}
        self.record.write("cost.json", cost)

    def _end_attempt(self, outcome: str) -> None:
        self.attempts[-1]["ended"] = utc_now()
        self.attempts[-1]["outcome"] = outcome  # type: ignore[typeddict-item]

    def _end_run(self, state: str, message: str) -> None:
        self.record.set_status(state, message, self.attempts)  # type: ignore[arg-type]
        end_run(self.record.s3, self.stack.bucket)
        self.lease.release()
        try:
            boto3.client("sns").publish(
                TopicArn=self.stack.topic_arn,
                Subject=f"Training run {self.record.run_id} {state}",
                Message=message,
            )
        except (BotoCoreError, ClientError) as error:  # the run is over all the same
            log.warning("nobody could be told: %s", error)


def _stop(process: "subprocess.Popen[str]") -> int:
    """Ask the training process to leave; returns 0 if it had just finished, else INTERRUPTED.

    Its own exit code tells nothing else: before its imports are done, SIGTERM just kills it.
    """
    process.terminate()
    try:
        return 0 if process.wait(STOP_SECONDS) == 0 else INTERRUPTED
    except subprocess.TimeoutExpired:
        return INTERRUPTED


def _relay(process: "subprocess.Popen[str]") -> None:
    """Log what the training process prints, line by line, until it ends."""
    assert process.stdout
    with process.stdout as lines:
        for line in lines:
            if line.strip():
                log.info("train: %s", line.rstrip())


def work_on_active_run(work: Path, poll_seconds: float) -> int:
    """Find the active run and attempt it; returns the exit code of this program."""
    stack = Stack.from_environment()
    s3 = boto3.client("s3")
    current = current_run(s3, stack.bucket)
    if current is None:
        log.info("no run is active")
        return OVER
    metadata = instance_metadata()
    _log_to_cloudwatch(stack, f"{current['run_id']}/{metadata.instance_id}")
    record = RunRecord(s3, stack.bucket, current["run_id"])
    request = record.request()
    leave = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: leave.set())
    attempt = SpotAttempt(stack=stack, record=record, request=request, work=work, metadata=metadata)
    try:
        return attempt.run(leave.is_set, poll_seconds)
    except LeaseLostError as error:
        log.warning("%s: leaving without another word", error)
        return TRY_AGAIN


def _log_to_cloudwatch(stack: Stack, stream: str) -> None:
    handler = watchtower.CloudWatchLogHandler(
        log_group_name=stack.log_group,
        log_stream_name=stream,
        boto3_client=boto3.client("logs"),
        create_log_group=False,
    )
    logging.getLogger("training").addHandler(handler)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.spot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for everything on disk")
    parser.add_argument(
        "--poll-seconds",
        type=float,
        default=float(os.environ.get("SPOT_POLL_SECONDS", "5")),
        help="between looks for an interruption notice (default: SPOT_POLL_SECONDS, or 5)",
    )
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("training").setLevel(logging.INFO)
    sys.exit(work_on_active_run(args.work, args.poll_seconds))


if __name__ == "__main__":
    main()
