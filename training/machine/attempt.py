"""One machine's attempt at a run, from taking the lease to leaving."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import boto3

from common.choices import Purchase
from common.run_record import (
    MODEL,
    OUTPUTS,
    TRACE_FILES,
    TRACES_ARCHIVE,
    Attempt,
    Outcome,
    Request,
    RunRecord,
    State,
    utc_now,
)
from common.storage import download_prefix, pack_files
from training.machine.cost import dollars_per_hour, store_bill
from training.machine.log import LOG_FILE, LogCopy
from training.machine.metadata_service import (
    InstanceMetadata,
    interruption_notice,
    rebalance_recommended,
)
from training.machine.process import TrainingProcess
from training.machine.stack import CALLS, Stack
from training.machine.upkeep import AWS_ERRORS, Background, RateLimiter, best_effort, retry
from training.runs.active_run import (
    CurrentRun,
    Lease,
    current_run,
    deactivate_run,
    stop_requested,
)
from training.runs.checkpoint_store import CheckpointStore
from training.runs.fallback import FALLBACK_MINUTES, REBOOK_SECONDS, book_fallback
from training.settings import INTERRUPTED, seconds

OVER, TRY_AGAIN = 0, INTERRUPTED  # exit codes
FAILED_ATTEMPTS = 3  # after so many, the run fails
POLL_SECONDS = seconds("POLL", 5)  # between checks of metadata, clock and training process
ASK_SECONDS = seconds("ASK", 20)  # between checks for a stop by the user, two requests each
STORE_SECONDS = seconds("STORE", 10)  # between uploads of checkpoints, progress and log
CLOSING_SECONDS = seconds("CLOSING", 120)  # before the deadline, for a checkpoint and the record
# Training prints a line every few seconds. Its longest silence, the export of the model, takes a
# minute on two vCPUs. A hang of ten minutes costs half a cent.
QUIET_SECONDS = seconds("QUIET", 600)

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and why, in words for the user."""

    outcome: Outcome
    reason: str


class RunAttempt:
    """This machine's attempt at one run."""

    def __init__(
        self,
        *,
        stack: Stack,
        record: RunRecord,
        request: Request,
        work: Path,
        metadata: InstanceMetadata,
        shutting_down: Callable[[], bool],
    ) -> None:
        self.stack = stack
        self.record = record
        self.request = request
        self.output = work / "output"
        self.dataset = work / "dataset"
        self.weights = work / f"{request['arch']}.pth"
        self.metadata = metadata
        self.shutting_down = shutting_down
        self.deadline = datetime.fromisoformat(request["deadline"])
        self.lease = Lease(
            record.s3, stack.bucket, run_id=record.run_id, holder=metadata.instance_id
        )
        self.checkpoint_folder = work / "checkpoints"
        self.checkpoints = CheckpointStore(
            record.s3, stack.bucket, record.run_id, self.checkpoint_folder
        )
        self.log_copy = LogCopy(record, work / LOG_FILE, metadata.instance_id)
        self.stop_checks = RateLimiter(ASK_SECONDS)
        self.uploads = RateLimiter(STORE_SECONDS)
        self.rebookings = RateLimiter(REBOOK_SECONDS)
        self.autoscaling = boto3.client("autoscaling", config=CALLS)
        self.stop_requested = False
        self.current: CurrentRun
        self.attempts: list[Attempt] = []

    def run(self) -> int:
        """Work on the run until it ends or the machine has to leave; return the exit code.

        Raises LeaseLostError if another machine took over.
        """
        if not retry(lambda: self.lease.acquire(self.shutting_down), self._out_of_time):
            log.info("this machine is shut down while another machine works on the run")
            return TRY_AGAIN
        try:
            return self._run()
        except (*AWS_ERRORS, OSError) as error:
            if not self.attempts:
                raise  # the record could not be read: the boot script ends the machine
            log.exception("this attempt failed")
            return self._close(Ending("failed", f"{type(error).__name__}: {error}"))

    def _run(self) -> int:
        current = self._retry_as_holder(lambda: current_run(self.record.s3, self.stack.bucket))
        if current is None or current["run_id"] != self.record.run_id:
            log.info("another machine ended the run while this machine waited for the lease")
            self._release()
            return TRY_AGAIN
        self.current = current
        self.attempts = self._retry_as_holder(self.record.status)["attempts"]
        self._close_lost_attempts()
        if self._out_of_time():
            self._end_run("failed", f"the deadline {self.request['deadline']} has passed")
            return OVER
        if current.get("stop"):
            self._end_run("stopped", "stopped by the user before this machine began")
            return OVER
        if self.shutting_down():  # before it sets the other group, whose machine may work, to 0
            self._release()
            return TRY_AGAIN
        self._keep_other_group_idle()
        self._begin()
        self._retry_as_holder(self._fetch)
        ending = self._train()
        # Needs no lease: the prefix is this attempt's own.
        retry(lambda: self.checkpoints.store(len(self.attempts)), self._out_of_time)
        return self._close(ending)

    def _close(self, ending: Ending) -> int:
        """Store the results of a successful attempt, then record its ending."""
        if ending.outcome == "succeeded":
            self._retry_as_holder(self._publish)
        return self._retry_as_holder(lambda: self._leave(ending))

    def _retry_as_holder(self, action: Callable[[], Result]) -> Result:
        """Retry `action`, renewing the lease before each call."""

        def as_holder() -> Result:
            self.lease.renew()
            return action()

        return retry(as_holder, self._out_of_time)

    def _close_lost_attempts(self) -> None:
        """Mark attempts without an end as lost, at the latest when the next machine booted."""
        starts = [attempt["started"] for attempt in self.attempts[1:]] + [boot_time()]
        for attempt, end in zip(self.attempts, starts, strict=False):  # one more without attempts
            if "ended" not in attempt:
                log.warning("%s disappeared without reporting an end", attempt["instance_id"])
                attempt["ended"], attempt["outcome"] = max(end, attempt["started"]), "lost"

    @property
    def _purchase(self) -> Purchase:
        return "spot" if self.metadata.instance_life_cycle == "spot" else "on_demand"

    def _keep_other_group_idle(self) -> None:
        """Postpone the fallback, and set the other group to 0."""
        if len(self.stack.group_names) < 2 or self.shutting_down() or self.stop_requested:
            return
        spot, on_demand = self.stack.group_names
        with best_effort("a second machine may start, and will wait for the lease"):
            minutes = self.request.get("fallback_minutes", FALLBACK_MINUTES)
            book_fallback(self.autoscaling, on_demand, minutes=minutes, deadline=self.deadline)
            other = on_demand if self._purchase == "spot" else spot
            self.autoscaling.set_desired_capacity(AutoScalingGroupName=other, DesiredCapacity=0)

    def _begin(self) -> None:
        self.attempts.append(
            Attempt(
                instance_id=self.metadata.instance_id,
                instance_type=self.metadata.instance_type,
                zone=self.metadata.availability_zone,
                purchase=self._purchase,
                started=boot_time(),
            )
        )
        message = f"attempt {len(self.attempts)} on {self.metadata.instance_id}"
        log.info("run %s, %s", self.record.run_id, message)
        self.record.set_status("running", message, self.attempts)
        self.log_copy.store()

    def _fetch(self) -> None:
        """Download the data set, the weights and the checkpoints."""
        s3, bucket = self.record.s3, self.stack.bucket
        dataset = f"datasets/{self.request['dataset']}/"
        if not download_prefix(s3, bucket, dataset, self.dataset, before_each=self.lease.renew):
            raise FileNotFoundError(f"s3://{bucket}/{dataset} is empty: run data_prep again")
        s3.download_file(bucket, f"weights/{self.weights.name}", str(self.weights))
        restored = self.checkpoints.restore(before_each=self.lease.renew)
        log.info("restored %d files of earlier attempts", restored)

    def _train(self) -> Ending:
        """Run training.train until it ends or there is a reason to end it.

        Meanwhile, keep the lease and store the progress.
        """
        process = self._start_training()
        upkeep = Background(self._upkeep)
        recommended = False
        try:
            while process.running():
                time.sleep(POLL_SECONDS)
                ending = self._reason_to_end(process)
                if ending:
                    log.warning("%s: saving a last checkpoint", ending.reason)
                    return Ending("succeeded", "") if process.stop() == 0 else ending
                upkeep.begin()
                if not recommended and rebalance_recommended(self.metadata):
                    log.info("rebalance recommendation: an interruption is likely, checkpoint now")
                    process.ask_for_checkpoint()
                    recommended = True
        finally:
            code = process.end()
            upkeep.wait()
        if code == 0:
            return Ending("succeeded", "")
        if code in (INTERRUPTED, -signal.SIGTERM):  # the machine's shutdown sent the signal itself
            return self._loss_of_machine()
        return Ending("failed", process.failure())

    def _start_training(self) -> TrainingProcess:
        dollars = dollars_per_hour(
            self.metadata.instance_type, self._purchase, self.stack.volume_gib, self.request
        )
        return TrainingProcess(
            [
                *(sys.executable, "-m", "training.train"),
                *("--data", str(self.dataset)),
                *("--weights", str(self.weights)),
                *("--arch", self.request["arch"]),
                *("--output", str(self.output)),
                *("--checkpoint-dir", str(self.checkpoint_folder)),
                *("--run-id", self.record.run_id),
                *("--dollars-an-hour", f"{dollars:.5f}"),
                *self.request["train_arguments"],
            ],
            {"TQDM_MININTERVAL": "10", **os.environ},  # seconds between a progress bar's log lines
            self.output,
            self.checkpoint_folder,
        )

    def _reason_to_end(self, process: TrainingProcess) -> Ending | None:
        if self.shutting_down() or interruption_notice(self.metadata):
            return self._loss_of_machine()
        if self._out_of_time():
            return Ending("failed", "training did not finish in time")
        if process.quiet_seconds() > QUIET_SECONDS:
            quiet = f"nothing printed and no file changed for {QUIET_SECONDS / 60:.2g} minutes"
            return Ending("failed", f"training hung: {quiet}")
        if self.stop_requested:
            return Ending("stopped", "stopped by the user")
        return None

    def _loss_of_machine(self) -> Ending:
        """Distinguish an interruption by EC2, which gives notice, from any other shutdown."""
        if interruption_notice(self.metadata):
            return Ending("interrupted", "EC2 interrupted the machine")
        return Ending("shut down", "the machine was shut down")

    def _out_of_time(self) -> bool:
        """Whether the deadline is so close that only the record can still be written."""
        return (self.deadline - datetime.now(UTC)).total_seconds() < CLOSING_SECONDS

    def _upkeep(self) -> None:
        """Renew the lease, look for a stop by the user, and store the progress.

        Training continues after an error: results are published only with a renewed lease. Raises
        LeaseLostError.
        """
        try:
            self.lease.renew()
            if self.rebookings.due():
                self._keep_other_group_idle()
            if self.stop_checks.due():
                self.stop_requested = stop_requested(self.record.s3, self.stack.bucket)
            if self.uploads.due():
                self._store_progress()
        except (*AWS_ERRORS, OSError) as error:
            log.warning("training continues, but its progress could not be stored: %s", error)

    def _store_progress(self) -> None:
        self.checkpoints.store(len(self.attempts))
        self.log_copy.store()
        metrics = self.output / "metrics.jsonl"
        if metrics.exists():
            self.record.upload(metrics)

    def _publish(self) -> None:
        """Store the results, then point to the model."""
        log.info("storing the results")
        for name in OUTPUTS:
            self.record.upload(self.output / name)
        traces = [self.output / name for name in TRACE_FILES if (self.output / name).exists()]
        model = sorted((self.output / "model").iterdir())
        for name, files in ((TRACES_ARCHIVE, traces), (MODEL, model)):
            pack_files(self.output / name, files)
            self.record.upload(self.output / name)
        self.lease.renew()
        boto3.client("ssm").put_parameter(
            Name=self.stack.model_parameter, Value=self.record.uri(MODEL), Overwrite=True
        )

    def _leave(self, ending: Ending) -> int:
        """Record how this attempt ended, and end the run unless another machine continues it."""
        self.attempts[-1]["ended"], self.attempts[-1]["outcome"] = utc_now(), ending.outcome
        if ending.reason:
            log.warning("attempt %d %s: %s", len(self.attempts), ending.outcome, ending.reason)
        counted = self.attempts[self.request.get("earlier_attempts", 0) :]
        failures = sum(attempt.get("outcome") == "failed" for attempt in counted)
        if ending.outcome == "succeeded":
            self._end_run("succeeded", f"model at {self.record.uri(MODEL)}")
        elif ending.outcome == "stopped":
            self._end_run("stopped", ending.reason)
        elif self._out_of_time():
            self._end_run("failed", f"{ending.reason}; the deadline is {self.request['deadline']}")
        elif ending.outcome == "failed" and failures >= FAILED_ATTEMPTS:
            self._end_run("failed", f"{ending.reason}; attempt {failures} of {FAILED_ATTEMPTS}")
        else:
            self.record.set_status("interrupted", f"{ending.reason}; trying again", self.attempts)
            self._release()
            return TRY_AGAIN
        return OVER

    def _end_run(self, state: State, message: str) -> None:
        log.info("run %s %s: %s", self.record.run_id, state, message)
        store_bill(
            self.record,
            self.attempts,
            self.request,
            last_type=self.metadata.instance_type,
            volume_gib=self.stack.volume_gib,
        )
        self.record.set_status(state, message, self.attempts)
        # The run has ended: errors from here on are only logged.
        with best_effort("the pointer to the active run could not be removed"):
            deactivate_run(self.record.s3, self.stack.bucket, self.current)
        self._release()
        with best_effort("the end of the run could not be announced"):
            boto3.client("sns").publish(
                TopicArn=self.stack.topic_arn,
                Subject=f"Training run {self.record.run_id} {state}",
                Message=f"{message}\nIts record and logs: {self.record.uri('')}",
            )

    def _release(self) -> None:
        with best_effort("the lease could not be released, it will expire"):
            self.lease.release()


def boot_time() -> str:
    """Return when the billing of this machine began, as infra/user_data.sh noted it."""
    return os.environ.get("BOOT_STARTED", utc_now())


if __name__ == "__main__":
    # The boot script of an older TrainStack would take the end of an empty program for success.
    sys.exit("error: TrainStack is older than this code: deploy it again")
