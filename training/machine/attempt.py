"""What a training machine does once its wheels are installed: one attempt at the active run.

    python -m training.machine.attempt --work /opt/bin-counter

Started by infra/user_data.sh, which tells from the exit code what comes next: 0, the run is
over and the group goes to 0; 75, another machine goes on with it; any other, this program
itself broke, and the group goes to 0.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import boto3
from botocore.config import Config

from common.run_record import (
    MODEL,
    OUTPUTS,
    TRACED,
    TRACES,
    Attempt,
    Outcome,
    Purchase,
    Request,
    RunRecord,
    State,
    StatusChangedError,
    utc_now,
)
from common.signals import Signals
from common.storage import download_prefix, pack_files
from costs.bill import run_bill
from costs.estimate import run_cost, total
from costs.prices import PriceError, load_prices
from training.machine.log import LOG_FILE, LogCopy, log_to_cloudwatch
from training.machine.metadata_service import (
    InstanceMetadata,
    instance_metadata,
    interruption_notice,
    learn_identity,
    rebalance_recommended,
)
from training.machine.process import TrainingProcess
from training.machine.upkeep import AWS_ERRORS, Background, Every, best_effort, patiently
from training.runs.active_run import (
    CurrentRun,
    Lease,
    LeaseLostError,
    asked_to_stop,
    current_run,
    give_up_run,
)
from training.runs.checkpoint_store import CheckpointStore
from training.runs.fallback import FALLBACK_MINUTES, PUT_OFF_SECONDS, put_off
from training.settings import INTERRUPTED, seconds

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

OVER, TRY_AGAIN = 0, INTERRUPTED
FAILED_ATTEMPTS = 3  # the third ends the run
POLL_SECONDS = seconds("POLL", 5)  # between looks at metadata, clock and training process
ASK_SECONDS = seconds("ASK", 20)  # between looks for the user's wish to stop: two requests each
STORE_SECONDS = seconds("STORE", 10)  # between uploads of checkpoints, progress and log
CLOSING_SECONDS = seconds("CLOSING", 120)  # before the deadline, for a last snapshot and the record
# Training prints a line every few seconds; the longest it is silent is while it exports the model,
# a minute on two vCPUs. Ten times that is surely a hang, and costs half a cent.
QUIET_SECONDS = seconds("QUIET", 600)
# botocore's own limits, a minute and no end of tries, are longer than a notice leaves.
CALLS = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "max_attempts": 3})

Result = TypeVar("Result")
log = logging.getLogger("training.machine.attempt")


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What TrainStack tells its machines, in the environment."""

    bucket: str
    model_parameter: str
    topic_arn: str
    log_group: str
    volume_gib: int
    group_names: tuple[str, ...]  # the second, of on-demand machines, where there is one

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


@dataclass(frozen=True)
class Ending:
    """How an attempt ended, and why, in words for the user."""

    outcome: Outcome
    reason: str


class SpotAttempt:
    """This machine's attempt at one run, from taking the lease to leaving."""

    def __init__(
        self,
        *,
        stack: Stack,
        record: RunRecord,
        request: Request,
        work: Path,
        metadata: InstanceMetadata,
        asked_to_leave: Callable[[], bool],
    ) -> None:
        self.stack = stack
        self.record = record
        self.request = request
        self.output = work / "output"
        self.dataset = work / "dataset"
        self.weights = work / f"{request['arch']}.pth"
        self.metadata = metadata
        self.asked_to_leave = asked_to_leave
        self.lease = Lease(
            record.s3, stack.bucket, run_id=record.run_id, holder=metadata.instance_id
        )
        self.checkpoint_folder = work / "checkpoints"
        self.checkpoints = CheckpointStore(
            record.s3, stack.bucket, record.run_id, self.checkpoint_folder
        )
        self.log_copy = LogCopy(record, work / LOG_FILE, metadata.instance_id)
        self.ask, self.store = Every(ASK_SECONDS), Every(STORE_SECONDS)
        self.alone = Every(PUT_OFF_SECONDS)
        self.autoscaling = boto3.client("autoscaling", config=CALLS)
        self.asked_to_stop = False
        self.current: CurrentRun
        self.attempts: list[Attempt] = []

    def run(self) -> int:
        """Work on the run until it ends or the machine has to leave; returns the exit code.

        Raises LeaseLostError when another machine took over.
        """
        if not patiently(lambda: self.lease.acquire(self.asked_to_leave), self._out_of_time):
            log.info("this machine is shut down while another one works on the run")
            return TRY_AGAIN
        try:
            return self._run()
        except (*AWS_ERRORS, OSError) as error:
            if not self.attempts:
                raise  # the record could not even be read: the boot script ends it
            log.exception("this attempt cannot go on")
            return self._close(Ending("failed", f"{type(error).__name__}: {error}"))

    def _run(self) -> int:
        current = self._patiently(lambda: current_run(self.record.s3, self.stack.bucket))
        if current is None or current["run_id"] != self.record.run_id:
            log.info("another machine ended the run while this one waited for the lease")
            self._release()
            return TRY_AGAIN
        self.current = current
        self.attempts = self._patiently(self.record.status)["attempts"]
        self._close_lost_attempts()
        if self._out_of_time():
            self._end_run("failed", f"the deadline {self.request['deadline']} has passed")
            return OVER
        if current.get("stop"):
            self._end_run("stopped", "stopped as asked, before this machine began")
            return OVER
        if self.asked_to_leave():  # it would send the other group's machine away, and leave itself
            self._release()
            return TRY_AGAIN
        self._stay_alone()
        self._begin()
        self._patiently(self._fetch)
        ending = self._train()
        # Under this attempt's own prefix: it does no harm if the lease was lost over it.
        patiently(lambda: self.checkpoints.store(len(self.attempts)), self._out_of_time)
        return self._close(ending)

    def _close(self, ending: Ending) -> int:
        """Store the results of an attempt that has some, and leave."""
        if ending.outcome == "succeeded":
            self._patiently(self._publish)
        return self._patiently(lambda: self._leave(ending))

    def _patiently(self, action: Callable[[], Result]) -> Result:
        """`action`, if need be once S3 answers again and the lease is still this machine's."""

        def as_holder() -> Result:
            self.lease.renew()
            return action()

        return patiently(as_holder, self._out_of_time)

    def _close_lost_attempts(self) -> None:
        """A machine that vanished wrote no end: at the latest when the next one started."""
        starts = [attempt["started"] for attempt in self.attempts[1:]] + [boot_time()]
        for attempt, end in zip(self.attempts, starts, strict=False):
            if "ended" not in attempt:
                log.warning("%s vanished without a word", attempt["instance_id"])
                attempt["ended"], attempt["outcome"] = max(end, attempt["started"]), "lost"

    @property
    def _purchase(self) -> Purchase:
        return "spot" if self.metadata.instance_life_cycle == "spot" else "on_demand"

    def _stay_alone(self) -> None:
        """No machine of the other group is started, or goes on, as long as this one works."""
        if len(self.stack.group_names) < 2 or self.asked_to_leave() or self.asked_to_stop:
            return
        spot, on_demand = self.stack.group_names
        with best_effort("another machine may come, and wait for the lease"):
            deadline = datetime.fromisoformat(self.request["deadline"])
            minutes = self.request.get("fallback_minutes", FALLBACK_MINUTES)
            put_off(self.autoscaling, on_demand, minutes=minutes, deadline=deadline)
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
        s3, bucket = self.record.s3, self.stack.bucket
        dataset = f"datasets/{self.request['dataset']}/"
        if not download_prefix(s3, bucket, dataset, self.dataset, before_each=self.lease.renew):
            raise FileNotFoundError(f"s3://{bucket}/{dataset} is empty: run data_prep again")
        s3.download_file(bucket, f"weights/{self.weights.name}", str(self.weights))
        restored = self.checkpoints.restore(before_each=self.lease.renew)
        log.info("%d files of earlier attempts", restored)

    def _train(self) -> Ending:
        """Run training.train, keeping the lease and storing progress, until one of them ends."""
        process = TrainingProcess(
            [
                *(sys.executable, "-m", "training.train"),
                *("--data", str(self.dataset)),
                *("--weights", str(self.weights)),
                *("--arch", self.request["arch"]),
                *("--output", str(self.output)),
                *("--checkpoint-dir", str(self.checkpoint_folder)),
                *("--run-id", self.record.run_id),
                *("--dollars-an-hour", f"{self._dollars_an_hour():.5f}"),
                *self.request["train_arguments"],
            ],
            {"TQDM_MININTERVAL": "10", **os.environ},  # a progress bar's lines in the log
            self.output,
            self.checkpoint_folder,
        )
        upkeep = Background(self._upkeep)
        advised = False
        try:
            while process.running():
                time.sleep(POLL_SECONDS)
                ending = self._reason_to_end(process)
                if ending:
                    log.warning("%s: a last snapshot", ending.reason)
                    return Ending("succeeded", "") if process.stop() == 0 else ending
                upkeep.begin()
                if not advised and rebalance_recommended(self.metadata):
                    log.info("EC2 expects an interruption (rebalance recommendation): snapshot now")
                    process.ask_for_snapshot()
                    advised = True
        finally:
            code = process.end()
            upkeep.wait()
        if code == 0:
            return Ending("succeeded", "")
        if code in (INTERRUPTED, -signal.SIGTERM):  # the machine's shutdown told it directly
            return self._who_ends_the_machine()
        return Ending("failed", process.failure())

    def _reason_to_end(self, process: TrainingProcess) -> Ending | None:
        if self.asked_to_leave() or interruption_notice(self.metadata):
            return self._who_ends_the_machine()
        if self._out_of_time():
            return Ending("failed", "not done in time")
        if process.quiet_seconds() > QUIET_SECONDS:
            quiet = f"nothing printed and no file changed for {QUIET_SECONDS / 60:.2g} minutes"
            return Ending("failed", f"training hung: {quiet}")
        if self.asked_to_stop:
            return Ending("stopped", "stopped as asked")
        return None

    def _who_ends_the_machine(self) -> Ending:
        """EC2, which says so and may then ask nothing for the machine, or anybody else."""
        if interruption_notice(self.metadata):
            return Ending("interrupted", "the machine was taken back")
        return Ending("shut down", "the machine was shut down")

    def _dollars_an_hour(self) -> float:
        """What the machine costs with its disk, or else what was expected."""
        try:
            return total(
                run_cost(
                    3600,
                    self.metadata.instance_type,
                    self._purchase,
                    self.stack.volume_gib,
                    load_prices(),
                )
            )
        except PriceError:
            estimate = self.request["estimate"]
            return float(estimate["dollars"]) / max(float(estimate["seconds"]), 1.0) * 3600

    def _out_of_time(self) -> bool:
        """Whether what is left before the booked end of the group is only enough to say so."""
        left = datetime.fromisoformat(self.request["deadline"]) - datetime.now(UTC)
        return left.total_seconds() < CLOSING_SECONDS

    def _upkeep(self) -> None:
        """Keep the lease, look for the user's wish, store progress, as far as S3 lets it.

        Training goes on without: nothing is published before the lease was renewed. Raises
        LeaseLostError.
        """
        try:
            self.lease.renew()
            if self.alone.due():
                self._stay_alone()
            if self.ask.due():
                self.asked_to_stop = asked_to_stop(self.record.s3, self.stack.bucket)
            if self.store.due():
                self._store_progress()
        except (*AWS_ERRORS, OSError) as error:
            log.warning("training goes on, though nothing could be stored: %s", error)

    def _store_progress(self) -> None:
        self.checkpoints.store(len(self.attempts))
        self.log_copy.store()
        metrics = self.output / "metrics.jsonl"
        if metrics.exists():
            self.record.upload(metrics)

    def _publish(self) -> None:
        """Store the results, the pointer to the model last."""
        log.info("storing the results")
        for name in OUTPUTS:
            self.record.upload(self.output / name)
        traced = [self.output / name for name in TRACED if (self.output / name).exists()]
        for name, files in ((TRACES, traced), (MODEL, sorted((self.output / "model").iterdir()))):
            pack_files(self.output / name, files)
            self.record.upload(self.output / name)
        self.lease.renew()
        boto3.client("ssm").put_parameter(
            Name=self.stack.model_parameter, Value=self.record.uri(MODEL), Overwrite=True
        )

    def _leave(self, ending: Ending) -> int:
        """Write down how this attempt ended, and the run with it where nobody goes on."""
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
        self._store_cost()
        self.record.set_status(state, message, self.attempts)
        # The run is over, whatever happens from here on.
        with best_effort("the run is still said to be active"):
            give_up_run(self.record.s3, self.stack.bucket, self.current)
        self._release()
        with best_effort("nobody could be told"):
            boto3.client("sns").publish(
                TopicArn=self.stack.topic_arn,
                Subject=f"Training run {self.record.run_id} {state}",
                Message=f"{message}\nIts record and logs: {self.record.uri('')}",
            )

    def _release(self) -> None:
        with best_effort("the lease runs until its own end"):
            self.lease.release()

    def _store_cost(self) -> None:
        try:
            bill = run_bill(
                self.attempts,
                self.request,
                instance_type=self.metadata.instance_type,
                volume_gib=self.stack.volume_gib,
                prices=load_prices(),
            )
            self.record.write("cost.json", bill)
        except Exception:  # whatever it is, no bill is worth a finished model
            log.exception("the bill could not be stored")


def boot_time() -> str:
    """From when on this machine is paid for; infra/user_data.sh notes it."""
    return os.environ.get("BOOT_STARTED", utc_now())


def work_on_active_run(work: Path) -> int:
    """Find the active run and attempt it; returns the exit code of this program."""
    stack = Stack.from_environment()

    def find() -> tuple["S3Client", CurrentRun | None]:
        s3 = boto3.client("s3", config=CALLS)  # one made without credentials stays without
        return s3, current_run(s3, stack.bucket)

    # Without an end: the booked one of the group comes in any case.
    s3, current = patiently(find, lambda: False)
    if current is None:
        log.info("no run is active")
        return OVER
    metadata = instance_metadata()
    patiently(lambda: learn_identity(metadata), lambda: False)
    stream = f"{current['run_id']}/{metadata.instance_id}"
    log_to_cloudwatch(stack.log_group, stream, work / LOG_FILE)
    record = RunRecord(s3, stack.bucket, current["run_id"])
    signals = Signals(signal.SIGTERM)
    attempt = SpotAttempt(
        stack=stack,
        record=record,
        request=patiently(record.request, lambda: False),
        work=work,
        metadata=metadata,
        asked_to_leave=lambda: signals.seen(signal.SIGTERM),
    )
    try:
        return attempt.run()
    except (LeaseLostError, StatusChangedError) as error:
        log.warning("%s: leaving without another word", error)
        return TRY_AGAIN


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.machine.attempt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for everything on disk")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("training").setLevel(logging.INFO)
    sys.exit(work_on_active_run(args.work))


if __name__ == "__main__":
    main()
