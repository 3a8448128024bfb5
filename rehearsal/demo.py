"""The whole path on this machine: what a user of an AWS account does, against a stand-in for AWS.

    make demo

Stacks, data, a spot machine that is interrupted and replaced, the endpoint, a prediction, the
costs. The last line is the path of a page with everything that came out.
"""

import argparse
import os
import re
import shlex
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from infra.outputs import stack_output
from rehearsal.endpoint import EndpointFailedError, HostedEndpoint
from rehearsal.group import RehearsedGroup, StillRunningError
from rehearsal.page import Sample, write_page
from rehearsal.processes import CommandError, Processes
from rehearsal.stand_in import ROOT, StandIn, StandInError
from serving.predictor import ImagePredictor
from training.control import current_run
from training.data import open_dataset
from training.run_record import RunRecord
from training.transfer import list_keys

REAL_BINS = ROOT.parent / "shared" / "abid" / "abid-224.tar"
REAL_PHOTOS, SYNTHETIC_PHOTOS = 6749, 1200  # with 1 to 5 items; drawn
DATASET = "bins"
ARCH = "efficientnet_lite0"  # its weights come with an installed package
SAMPLES_PER_COUNT = 2
RUN_LIMIT_SECONDS = 900.0


class DemoError(RuntimeError):
    """Something did not come out as it has to; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What every step needs."""

    folder: Path
    processes: Processes
    stand_in: StandIn
    started: float

    def say(self, text: str) -> None:
        print(f"  {time.monotonic() - self.started:5.0f} s  {text}", flush=True)

    def step(self, number: int, text: str) -> None:
        print(flush=True)
        self.say(f"{number}/9  {text}")

    def command(self, *words: str | Path, log: Path | None = None) -> None:
        """Run a command of the project as the user would; its output is seen, or in `log`."""
        seen = f" > {log}" if log else ""
        print(f"           $ {shlex.join(str(word) for word in words)}{seen}", flush=True)
        self.processes.run(words, environment=self.stand_in.environment, folder=ROOT, log=log)


def rehearse(args: argparse.Namespace) -> Path:
    """Run all steps in `args.folder`; returns the path of the page."""
    folder: Path = args.folder.resolve()
    started = time.monotonic()
    with Processes(folder / "state") as processes:
        work = folder / "run"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stand_in = StandIn(processes, work)
        os.environ.clear()  # none of the user's own AWS settings is left
        os.environ.update(stand_in.environment)
        demo = Demo(folder=work, processes=processes, stand_in=stand_in, started=started)
        real = REAL_BINS.exists() and not args.synthetic
        photos = args.photos or (REAL_PHOTOS if real else SYNTHETIC_PHOTOS)
        bins = REAL_BINS if real else _synthesize(demo, photos)

        demo.step(1, "a stand-in for AWS")
        objects = stand_in.start(bins)
        stand_in.bootstrap()

        demo.step(2, "cdk deploy DataStack TrainStack (BudgetStack comes along)")
        stand_in.deploy("DataStack", "TrainStack")
        bucket = stack_output("DataStack", "BucketName")

        kind = "real" if real else "synthetic"
        demo.step(3, f"the public bucket: {kind} bins, put there as the stand-in started")
        demo.say(objects)
        demo.step(4, "data: download, split without leakage, shards, upload")
        _prepare(demo, photos)

        demo.step(5, "python -m training.launch (what this stand-in does not know is not checked)")
        run_id, group = _launch(demo, args.epochs)
        demo.step(6, f"the machine trains; interrupted at {', '.join(args.interrupt_at)}")
        group.run(interruptions=args.interrupt_at, limit_seconds=RUN_LIMIT_SECONDS)

        demo.step(7, "what the run left")
        record = RunRecord(boto3.client("s3"), bucket, run_id)
        _check_run(demo, record, group, machines=1 + len(args.interrupt_at))
        demo.command("python", "-m", "training.launch", "list")
        demo.command("python", "-m", "training.launch", "logs", log=work / "logs.txt")

        demo.step(8, "cdk deploy EndpointStack, and the container that SageMaker would start")
        samples = _predict(demo)

        demo.step(9, "results")
        page = write_page(
            folder / "report.html",
            record=record,
            samples=samples,
            real=real,
            seconds=time.monotonic() - started,
        )
        _print_results(demo, record, samples)
    return page


def _synthesize(demo: Demo, photos: int) -> Path:
    bins = demo.folder / "public"
    size = ("--photos", str(photos), "--side", "224-320")
    demo.command("python", "-m", "data_prep", "synthesize", "--out", bins, *size)
    return bins


def _prepare(demo: Demo, photos: int) -> None:
    data = demo.folder / "data"
    demo.command(
        *("python", "-m", "data_prep", "all", "--data", data, "--name", DATASET),
        *("--counts", "1-5", "--limit", str(photos)),
    )
    demo.command("python", "-m", "data_prep", "weights", "--data", data, "--arch", ARCH)
    wheels = Path(sys.prefix) / "wheels"
    demo.command("python", "-m", "training.runtime", "--wheels", wheels)


def _launch(demo: Demo, epochs: int) -> tuple[str, RehearsedGroup]:
    launch = ("python", "-m", "training.launch")
    # Each epoch is kept, as this machine's epochs take a fraction of a second.
    settings = ("--", "--epochs", str(epochs), "--snapshot-seconds", "0")
    demo.command(*launch, "--dataset", DATASET, "--arch", ARCH, "--yes", *settings)
    active = current_run(boto3.client("s3"), stack_output("DataStack", "BucketName"))
    if active is None:
        raise DemoError("the launcher started no run")
    # Before a machine boots, so that it costs the demo no time.
    demo.command(*launch, "status")
    demo.command(*launch, "stop")
    demo.command(*launch, "resume", active["run_id"], "--yes")
    group = RehearsedGroup(
        processes=demo.processes,
        endpoint=demo.stand_in.endpoint,
        group=stack_output("TrainStack", "GroupName"),
        folder=demo.folder / "machines",
        say=demo.say,
    )
    return active["run_id"], group


def _check_run(demo: Demo, record: RunRecord, group: RehearsedGroup, *, machines: int) -> None:
    """Raises DemoError unless the run succeeded, did no work twice, and left nothing running."""
    status = record.status()
    outcomes = [attempt.get("outcome", "none") for attempt in status["attempts"]]
    if outcomes != ["interrupted"] * (machines - 1) + ["succeeded"]:
        raise DemoError(f"the run {status['state']} ({status['message']}), attempts: {outcomes}")
    demo.say(f"{record.uri('')} succeeded; attempts: {', '.join(outcomes)}")

    left = {
        key.removeprefix(record.key("")) for key in list_keys(record.s3, record.bucket, "runs/")
    }
    missing = {
        "model.tar.gz",
        "metrics.json",
        "metrics.jsonl",
        "loss.png",
        "report.html",
        "weights.pth",
        "cost.json",
        "traces.tar.gz",
    } - left
    if missing:
        raise DemoError(f"{record.uri('')} lacks {', '.join(sorted(missing))}")
    demo.say(f"it holds {', '.join(sorted(left))}")

    checkpoints = list_keys(record.s3, record.bucket, f"checkpoints/{record.run_id}/")
    chunks = [
        key.partition("/features-")[2]
        for key in checkpoints
        if "/features-" in key and key.endswith(".npy")
    ]
    if len(chunks) != len(set(chunks)):
        raise DemoError("a chunk of features was computed twice")
    demo.say(f"{len(chunks)} chunks of features, none computed twice; {_resumed(group)}")

    name = stack_output("TrainStack", "ModelParameterName")
    model = boto3.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    if model != record.uri("model.tar.gz"):
        raise DemoError(f"{name} points at {model}")
    states = group.states()
    if states != {"desired": 0, "instances": 0}:
        raise DemoError(f"the group is not at rest: {states}")
    demo.say(f"{name} points at the model; group at 0, no machine left")


def _resumed(group: RehearsedGroup) -> str:
    """What the last machine said of where it went on."""
    console = list(group.machines.values())[-1].console.read_text()
    said = re.search(r"going on after epoch \d+", console)
    return f"the last machine: {said.group()}" if said else "the head was trained on one machine"


def _predict(demo: Demo) -> list[Sample]:
    """Deploy the endpoint and ask it for some test photos through sagemaker-runtime."""
    demo.stand_in.deploy("EndpointStack")
    name = stack_output("EndpointStack", "EndpointName")
    dataset = open_dataset(demo.folder / "data" / "datasets" / DATASET)
    chosen: dict[int, list[Any]] = {count: [] for count in dataset.counts}
    for photo in dataset.photos("test"):
        if len(chosen[photo.count]) < SAMPLES_PER_COUNT:
            chosen[photo.count].append(photo)
    with HostedEndpoint(
        processes=demo.processes, name=name, disk=demo.folder / "sagemaker"
    ) as host:
        for environment in (os.environ, demo.stand_in.environment):
            environment["AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME"] = host.url
        demo.command("python", "-m", "serving.smoke_test")
        predictor = ImagePredictor(endpoint=name)
        return [
            Sample(photo.id, photo.jpeg, photo.count, predictor.predict(photo.jpeg))
            for photos in chosen.values()
            for photo in photos
        ]


def _print_results(demo: Demo, record: RunRecord, samples: list[Sample]) -> None:
    for sample in samples:
        probability = sample.prediction.probabilities[str(sample.prediction.count)]
        print(
            f"           {sample.photo_id:>8}.jpg  true {sample.truth}  "
            f"predicted {sample.prediction.count}  ({probability:.0%})"
        )
    test = record.read("metrics.json")["test"]
    for label, value in (
        ("accuracy", test["accuracy"]),
        (f"always {test['majority']['count']}", test["majority"]),
        ("difference", test["accuracy_minus_majority"]),
    ):
        interval = f"{value['low']:.1%} to {value['high']:.1%}"
        print(f"           {label:<10} {value['value']:6.1%}  ({interval}, 95 %)")
    print(f"           on {test['photos']:,} test photos")
    demo.command(
        *("python", "-m", "costs", "compare"),
        *("--run-id", record.run_id, "--bucket", record.bucket),
    )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rehearsal.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flag = parser.add_argument
    flag("--folder", type=Path, default=ROOT / ".demo", help="all it writes (default: .demo)")
    flag("--synthetic", action="store_true", help="drawn bins even where real photos are")
    flag("--photos", type=int, help="at most so many (default: all 6,749 real, 1,200 synthetic)")
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
        page = rehearse(args)
    except KeyboardInterrupt:
        sys.exit("\nstopped, nothing is left running")
    except (CommandError, DemoError, EndpointFailedError, StandInError, StillRunningError) as error:
        sys.exit(f"error: {error}")
    print(page)


if __name__ == "__main__":
    main()
