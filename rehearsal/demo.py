"""The whole path on this machine: what a user of an AWS account does, against a stand-in for AWS.

It deploys the stacks, prepares photos, trains on a spot machine that is interrupted and replaced,
deploys the endpoint, asks it, and compares costs. It uses as many photos as this machine can
handle in a few minutes.

    make demo
"""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from cyclopts import Parameter

from common.command import in_one_line
from common.dataset import open_dataset
from common.files import ROOT
from common.flags import PositiveInt, Switch, command_line
from common.outputs import NotDeployedError, stack_output
from common.run_record import RunRecord
from costs.compare import compare_run, past_run
from costs.prices import load_prices
from rehearsal.answers import Sample, ask_endpoint
from rehearsal.aws.endpoint import hosted_endpoint
from rehearsal.aws.group import RehearsedGroups, StillRunningError
from rehearsal.aws.processes import CommandError, Processes
from rehearsal.aws.stand_in import StandIn
from rehearsal.aws.waiting import NotReadyError
from rehearsal.aws.wheels import pack_installed
from rehearsal.bins import lay_out
from rehearsal.outcome import DemoError, Outcome, check_requests, check_run
from rehearsal.page import write_page
from rehearsal.screen import Screen
from rehearsal.speed import MOST_REAL, MOST_SYNTHETIC, Plan, make_plan, measure_speed
from training.runs.active_run import current_run

REAL_BINS = ROOT.parent / "shared" / "abid" / "abid-224.tar"
GOAL_SECONDS = {"real": 240.0, "synthetic": 90.0}
# Of a run on the reference machine of rehearsal/speed.py, without the photos' features.
STACKS_SECONDS, LAUNCH_SECONDS, MACHINE_SECONDS, ENDPOINT_SECONDS = 22.0, 6.0, 52.0, 8.0
DATASET = "bins"
ARCH = "efficientnet_lite0"  # its weights come with an installed package
SAMPLES_PER_COUNT = 2
FOLDER = ROOT / ".demo"
Events = Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)]
Kind = Literal["real", "synthetic"]  # of the photos

ERRORS = (
    CommandError,
    DemoError,
    NotReadyError,
    StillRunningError,
    NotDeployedError,
    BotoCoreError,  # the stand-in is gone
    ClientError,
    OSError,
    ValueError,  # a damaged record, a photo that the endpoint refuses
)


APP = command_line("python -m rehearsal.demo", __doc__)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What every step needs."""

    folder: Path
    processes: Processes
    stand_in: StandIn
    screen: Screen
    pool: ThreadPoolExecutor
    kind: Kind
    plan: Plan

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def command(self, *words: str | Path) -> None:
        """Run a command of the project as the user would; its output is in the log."""
        line = shlex.join(str(word) for word in words)
        self.screen.note(f"$ {line}")
        begun = self.screen.seconds
        environment = self.stand_in.environment
        self.processes.run(words, environment=environment, folder=ROOT, log=self.screen.log)
        self.screen.note(f"{self.screen.seconds - begun:.1f} s: {line}")

    def data_prep(self, command: str, *words: str | Path) -> None:
        self.command("python", "-m", "data_prep", command, "--data", self.data, *words)

    def side_by_side(self, *commands: tuple[str | Path, ...]) -> None:
        for future in [self.pool.submit(self.command, *words) for words in commands]:
            future.result()


@APP.default
def rehearse(
    *,
    folder: Annotated[Path, Parameter(show_default=False)] = FOLDER,
    synthetic: Switch = False,
    photos: PositiveInt | None = None,
    epochs: PositiveInt = 20,
    interrupt_at: Events = ("epoch:8",),
) -> None:
    """Run all steps, and print what came out.

    Parameters
    ----------
    folder
        Folder for everything that is written [default: .demo].
    synthetic
        Use synthetic photos even where real ones are at hand.
    photos
        Number of photos [default: as many as this machine handles in 4 minutes, at most all
        6,749; of synthetic ones in 90 seconds, at most 800].
    epochs
        Epochs of the head's training.
    interrupt_at
        When the spot machine is interrupted: after N chunks of features (features:N) or after N
        epochs (epoch:N). Each event interrupts one machine [default: epoch:8].
    """
    kind: Kind = "real" if REAL_BINS.exists() and not synthetic else "synthetic"
    folder = folder.resolve()
    # The processes end before the threads that wait for them.
    with ThreadPoolExecutor() as pool, Processes(folder / "state") as processes:
        work = folder / "run"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stand_in = StandIn(processes, work)
        os.environ.clear()  # none of the user's own AWS settings is left
        os.environ.update(stand_in.environment)
        plan = _plan(kind, photos)
        with Screen(work / "demo.log") as screen:
            demo = Demo(
                folder=work,
                processes=processes,
                stand_in=stand_in,
                screen=screen,
                pool=pool,
                kind=kind,
                plan=plan,
            )
            outcome = _run_steps(demo, epochs, interrupt_at)
    print(outcome.summary)


def _run_steps(demo: Demo, epochs: int, interrupt_at: Sequence[str]) -> Outcome:
    _announce(demo)
    _make_stacks_and_data(demo)
    bucket = stack_output("DataStack", "BucketName")
    run_id = _launch(demo, epochs)
    group = _train(demo, interrupt_at)
    record = RunRecord(boto3.client("s3"), bucket, run_id)
    proven = check_run(record, group, machines=1 + len(interrupt_at))
    samples = _serve(demo, record)
    proven.append(check_requests(demo.stand_in.violations))
    prices = load_prices()
    costs = compare_run(past_run(record, prices), prices)
    seconds = demo.screen.seconds
    return Outcome(
        page=write_page(
            demo.folder / "report.html",
            record=record,
            samples=samples,
            costs=costs,
            prices=prices,
            real=demo.kind == "real",
            seconds=seconds,
        ),
        log=demo.screen.log,
        proven=proven,
        test=record.read("metrics.json")["test"],
        costs=costs,
        seconds=seconds,
    )


def _plan(kind: Kind, asked: int | None) -> Plan:
    return make_plan(
        goal=GOAL_SECONDS[kind],
        others=STACKS_SECONDS + LAUNCH_SECONDS + MACHINE_SECONDS + ENDPOINT_SECONDS,
        most=MOST_REAL if kind == "real" else MOST_SYNTHETIC,
        asked=asked,
        speed=measure_speed(),
        speed_of_one=measure_speed(cores=1),
    )


def _announce(demo: Demo) -> None:
    """Say what is going to happen, and how long it takes on this machine."""
    plan, kind, say = demo.plan, demo.kind, demo.screen.say
    minutes, seconds = divmod(round(plan.seconds, -1), 60)
    pace = f"{plan.photos_a_second:.0f} photos a second"
    say(
        f"The whole path against a stand-in for AWS: {plan.photos:,} {kind} photos, about "
        f"{minutes:.0f} min {seconds:.0f} s on this machine, which handles {pace}."
    )
    if kind == "real" and plan.photos < MOST_REAL:
        say(f"All {MOST_REAL:,} photos would take longer: python -m rehearsal.demo --photos 6749")
    say(f"The output of its commands is in {demo.screen.log}\n")


def _make_stacks_and_data(demo: Demo) -> None:
    """Make templates and data side by side; then deploy, and upload the data."""
    plan, kind, stand_in = demo.plan, demo.kind, demo.stand_in
    with demo.screen.step("stacks and data", STACKS_SECONDS * plan.slowness) as task:
        synthesized = demo.pool.submit(stand_in.synthesize)
        weights = ("--arch", ARCH)
        bins = REAL_BINS if kind == "real" else _draw(demo)
        public = demo.folder / "public"
        demo.screen.describe(task, f"{kind} photos into the public bucket")
        photos = len(lay_out(bins, plan.photos, public=public, data=demo.data))
        stand_in.start(public)
        bootstrapped = demo.pool.submit(stand_in.bootstrap)
        saved = demo.pool.submit(demo.data_prep, "weights", "--local", *weights)
        demo.screen.describe(task, "cdk synth; data_prep download, split, pack")
        for command, *words in (
            ("download", "--list", public / "ids.txt", "--counts", "1-5"),
            ("split", "--counts", "1-5"),
            ("pack", "--name", DATASET),
        ):
            demo.data_prep(str(command), *words)
            for future in (synthesized, bootstrapped, saved):
                if future.done():
                    future.result()  # a failure is reported before the next step
        for future in (synthesized, bootstrapped, saved):
            future.result()
        demo.screen.describe(task, "cdk deploy DataStack TrainStack")
        stand_in.deploy("DataStack", "TrainStack")  # BudgetStack comes along
        demo.screen.describe(task, "data, weights and wheels into DataStack's bucket")
        wheels = pack_installed("tqdm", demo.folder / "wheels").parent
        data_prep = ("python", "-m", "data_prep")
        demo.side_by_side(
            (*data_prep, "upload", "--data", demo.data, "--name", DATASET),
            (*data_prep, "weights", "--data", demo.data, *weights),
            ("python", "-m", "training.runtime", "--wheels", wheels),
        )
        demo.screen.describe(task, f"stacks deployed, {photos:,} photos prepared")


def _draw(demo: Demo) -> Path:
    drawn = demo.folder / "drawn"
    # More than needed, as some have no item or more than five.
    number = ("--photos", str(round(demo.plan.photos * 1.25)), "--side", "224-320")
    demo.command("python", "-m", "data_prep", "synthesize", "--out", drawn, *number)
    return drawn


def _launch(demo: Demo, epochs: int) -> str:
    """Launch a run, which then waits for a machine; returns its id."""
    launch = ("python", "-m", "training.launch")
    # A checkpoint after each epoch, as an epoch takes a fraction of a second here.
    settings = ("--", "--epochs", str(epochs), "--checkpoint-seconds", "0")
    seconds = LAUNCH_SECONDS * demo.plan.slowness
    with demo.screen.step("training.launch: start, stop, resume", seconds):
        demo.command(*launch, "--dataset", DATASET, "--arch", ARCH, "--yes", *settings)
        active = current_run(boto3.client("s3"), stack_output("DataStack", "BucketName"))
        if active is None:
            raise DemoError("the launcher started no run")
        # Before a machine boots, so that it takes the demo no time.
        demo.side_by_side((*launch, "status"), (*launch, "stop"))
        demo.command(*launch, "resume", active["run_id"], "--yes")
    return active["run_id"]


def _train(demo: Demo, interrupt_at: Sequence[str]) -> RehearsedGroups:
    """Run machines until the run has ended; all but the last are interrupted at an event."""
    plan = demo.plan
    seconds = MACHINE_SECONDS * plan.slowness + plan.photos / plan.photos_a_second
    with demo.screen.step("a spot machine trains", seconds) as task:

        def say(text: str) -> None:
            demo.screen.note(text)
            if "│" not in text:  # not a machine's console
                demo.screen.describe(task, text)

        group = RehearsedGroups(
            processes=demo.processes,
            endpoint=demo.stand_in.endpoint,
            groups=stack_output("TrainStack", "GroupNames").split(","),
            folder=demo.folder / "machines",
            say=say,
        )
        group.run(interruptions=interrupt_at)
        events = f", interrupted at {', '.join(interrupt_at)}, resumed" if interrupt_at else ""
        demo.screen.describe(task, f"a spot machine trains{events}")
    return group


def _serve(demo: Demo, record: RunRecord) -> list[Sample]:
    """Deploy the endpoint, and ask it about some test photos through sagemaker-runtime."""
    launch = ("python", "-m", "training.launch")
    seconds = ENDPOINT_SECONDS * demo.plan.slowness
    with demo.screen.step("cdk deploy EndpointStack, and its container answers", seconds):
        of_the_run = ("--run-id", record.run_id, "--bucket", record.bucket)
        others: Future[None] = demo.pool.submit(
            demo.side_by_side,
            (*launch, "list"),
            (*launch, "logs"),
            ("python", "-m", "costs", "compare", *of_the_run),
        )
        demo.stand_in.deploy("EndpointStack")
        name = stack_output("EndpointStack", "EndpointName")
        with hosted_endpoint(demo.processes, name, demo.folder / "sagemaker") as url:
            for environment in (os.environ, demo.stand_in.environment):
                environment["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] = url
            smoke = demo.pool.submit(demo.command, "python", "-m", "serving.smoke_test")
            dataset = open_dataset(demo.data / "datasets" / DATASET)
            samples = ask_endpoint(name, dataset, per_count=SAMPLES_PER_COUNT)
            smoke.result()
        others.result()
    return samples


def main(arguments: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        APP(arguments)
    except KeyboardInterrupt:
        sys.exit("\nstopped, nothing is left running")
    except ERRORS as error:
        sys.exit(f"error: {in_one_line(error)}")


if __name__ == "__main__":
    main()
