"""The whole path on this machine: what a user of an AWS account does, against a stand-in for AWS.

    make demo

Stacks, data, a spot machine that is interrupted and replaced, the endpoint, a prediction, the
costs. It takes as many photos as this machine can do in a few minutes.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line
from common.dataset import open_dataset
from common.files import ROOT
from common.outputs import NotDeployedError, stack_output
from common.run_record import RunRecord
from costs.compare import compare_run, past_run
from costs.prices import load_prices
from rehearsal.answers import Sample, ask_endpoint, draw_samples
from rehearsal.aws.endpoint import EndpointFailedError, HostedEndpoint
from rehearsal.aws.group import RehearsedGroups, StillRunningError
from rehearsal.aws.processes import CommandError, Processes
from rehearsal.aws.stand_in import StandIn, StandInError
from rehearsal.aws.wheels import pack_installed
from rehearsal.bins import lay_out
from rehearsal.outcome import DemoError, Outcome, check_requests, check_run
from rehearsal.page import write_page
from rehearsal.screen import Screen
from rehearsal.speed import MOST_REAL, MOST_SYNTHETIC, Plan, make_plan, measure_speed
from training.runs.active_run import current_run
from training.settings import whole_number

REAL_BINS = ROOT.parent / "shared" / "abid" / "abid-224.tar"
GOAL_SECONDS = {"real": 240.0, "synthetic": 90.0}
# Of a run on the reference machine of rehearsal/speed.py, without the photos' features.
STACKS_SECONDS, LAUNCH_SECONDS, MACHINE_SECONDS, ENDPOINT_SECONDS = 22.0, 6.0, 52.0, 8.0
DATASET = "bins"
ARCH = "efficientnet_lite0"  # its weights come with an installed package
SAMPLES_PER_COUNT = 2

ERRORS = (
    CommandError,
    DemoError,
    EndpointFailedError,
    StandInError,
    StillRunningError,
    NotDeployedError,
    BotoCoreError,  # the stand-in is gone
    ClientError,
    OSError,
    ValueError,  # a damaged record, a photo that the endpoint refuses
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What every step needs."""

    folder: Path
    processes: Processes
    stand_in: StandIn
    screen: Screen
    pool: ThreadPoolExecutor
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


def rehearse(args: argparse.Namespace) -> Outcome:
    """Run all steps in `args.folder`; returns what came out."""
    folder: Path = args.folder.resolve()
    # The processes end before the threads that wait for them.
    with ThreadPoolExecutor() as pool, Processes(folder / "state") as processes:
        work = folder / "run"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stand_in = StandIn(processes, work)
        os.environ.clear()  # none of the user's own AWS settings is left
        os.environ.update(stand_in.environment)
        kind = "real" if REAL_BINS.exists() and not args.synthetic else "synthetic"
        plan = _plan(kind, args.photos)
        with Screen(work / "demo.log") as screen:
            demo = Demo(
                folder=work,
                processes=processes,
                stand_in=stand_in,
                screen=screen,
                pool=pool,
                plan=plan,
            )
            _promise(demo, kind)
            _make_stacks_and_data(demo, kind)
            bucket = stack_output("DataStack", "BucketName")
            run_id = _launch(demo, args.epochs)
            group = _train(demo, args.interrupt_at)
            record = RunRecord(boto3.client("s3"), bucket, run_id)
            proven = check_run(record, group, machines=1 + len(args.interrupt_at))
            samples = _serve(demo, record)
            proven.append(check_requests(demo.stand_in.violations))
        prices = load_prices()
        costs = compare_run(past_run(record, prices), prices)
        return Outcome(
            page=write_page(
                work / "report.html",
                record=record,
                samples=samples,
                costs=costs,
                prices=prices,
                real=kind == "real",
                seconds=screen.seconds,
            ),
            picture=draw_samples(samples, work / "counted.png"),
            log=screen.log,
            proven=proven,
            test=record.read("metrics.json")["test"],
            costs=costs,
            seconds=screen.seconds,
        )


def _plan(kind: str, asked: int | None) -> Plan:
    return make_plan(
        goal=GOAL_SECONDS[kind],
        others=STACKS_SECONDS + LAUNCH_SECONDS + MACHINE_SECONDS + ENDPOINT_SECONDS,
        most=MOST_REAL if kind == "real" else MOST_SYNTHETIC,
        asked=asked,
        speed=measure_speed(),
        speed_of_one=measure_speed(cores=1),
    )


def _promise(demo: Demo, kind: str) -> None:
    """What is going to happen, and how long it takes here."""
    plan, say = demo.plan, demo.screen.say
    minutes, seconds = divmod(round(plan.seconds, -1), 60)
    pace = f"{plan.photos_a_second:.0f} photos a second"
    say(
        f"The whole path against a stand-in for AWS: {plan.photos:,} {kind} photos, about "
        f"{minutes:.0f} min {seconds:.0f} s on this machine, which computes {pace}."
    )
    if kind == "real" and plan.photos < MOST_REAL:
        say(f"All {MOST_REAL:,} photos would take longer: python -m rehearsal.demo --photos 6749")
    say(f"What its commands print: {demo.screen.log}\n")


def _make_stacks_and_data(demo: Demo, kind: str) -> None:
    """Templates and data side by side; then the stacks, and the data into their bucket."""
    plan, stand_in = demo.plan, demo.stand_in
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
                    future.result()  # what failed is said before the next step
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
    # A few more than asked for: some have no item, or more than five.
    number = ("--photos", str(round(demo.plan.photos * 1.25)), "--side", "224-320")
    demo.command("python", "-m", "data_prep", "synthesize", "--out", drawn, *number)
    return drawn


def _launch(demo: Demo, epochs: int) -> str:
    """Returns the id of the run, which waits for a machine."""
    launch = ("python", "-m", "training.launch")
    # Each epoch is kept, as this machine's epochs take a fraction of a second.
    settings = ("--", "--epochs", str(epochs), "--snapshot-seconds", "0")
    seconds = LAUNCH_SECONDS * demo.plan.slowness
    with demo.screen.step("training.launch: start, stop, resume", seconds):
        demo.command(*launch, "--dataset", DATASET, "--arch", ARCH, "--yes", *settings)
        active = current_run(boto3.client("s3"), stack_output("DataStack", "BucketName"))
        if active is None:
            raise DemoError("the launcher started no run")
        # Before a machine boots, so that it costs the demo no time.
        demo.side_by_side((*launch, "status"), (*launch, "stop"))
        demo.command(*launch, "resume", active["run_id"], "--yes")
    return active["run_id"]


def _train(demo: Demo, interrupt_at: list[str]) -> RehearsedGroups:
    """Machines, until the run is over; each but the last is taken back at an event."""
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
        taken_back = f", taken back at {', '.join(interrupt_at)}, resumed" if interrupt_at else ""
        demo.screen.describe(task, f"a spot machine trains{taken_back}")
    return group


def _serve(demo: Demo, record: RunRecord) -> list[Sample]:
    """Deploy the endpoint and ask it for some test photos through sagemaker-runtime."""
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
        disk = demo.folder / "sagemaker"
        with HostedEndpoint(processes=demo.processes, name=name, disk=disk) as host:
            for environment in (os.environ, demo.stand_in.environment):
                environment["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] = host.url
            smoke = demo.pool.submit(demo.command, "python", "-m", "serving.smoke_test")
            dataset = open_dataset(demo.data / "datasets" / DATASET)
            samples = ask_endpoint(name, dataset, per_count=SAMPLES_PER_COUNT)
            smoke.result()
        others.result()
    return samples


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--folder", type=Path, default=ROOT / ".demo", help="all it writes (default: .demo)")
    flag("--synthetic", action="store_true", help="drawn bins even where real photos are")
    flag(
        "--photos",
        type=whole_number,
        help="so many (default: as many as this machine does in 4 minutes, at most all 6,749; "
        "synthetic ones in 90 seconds, at most 800)",
    )
    flag("--epochs", type=int, default=20, help="of the head (default: %(default)s)")
    flag(
        "--interrupt-at",
        nargs="*",
        default=["epoch:8"],
        metavar="EVENT",
        help="take the spot machine back there: features:N (chunks) or epoch:N (default: epoch:8)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    try:
        outcome = rehearse(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped, nothing is left running")
    except ERRORS as error:
        sys.exit(f"error: {in_one_line(error)}")
    print(outcome.summary)


if __name__ == "__main__":
    main()
