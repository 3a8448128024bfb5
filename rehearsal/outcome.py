"""Checks of a rehearsed run, and the demo's summary."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from common.outputs import stack_output
from common.run_record import RESULTS, RunRecord
from common.storage import list_keys
from costs.compare import ComparisonRow
from rehearsal.aws.group import RehearsedGroups


class DemoError(RuntimeError):
    """The demo did not end as it must; the message is one line."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of the demo."""

    page: Path
    log: Path
    proven: Sequence[str]
    test: Mapping[str, Any]  # of metrics.json
    costs: Sequence[ComparisonRow]
    seconds: float

    @property
    def summary(self) -> str:
        """The results in a few lines: numbers, what was proven, files, and the next step."""
        exact, majority = self.test["accuracy"], self.test["majority"]
        dollars = {row.where: row.dollars for row in self.costs}
        return "\n".join(
            [
                "",
                f"  {exact['value']:7.1%}  exact counts on {self.test['photos']:,} test photos "
                f"({exact['low']:.1%} to {exact['high']:.1%}, 95 %)",
                f"  {majority['value']:7.1%}  for always answering {majority['count']}",
                f"  ${dollars['EC2 spot']:.4f}  for the training on EC2 spot; on SageMaker "
                f"${dollars['SageMaker training']:.4f}",
                f"  {self.seconds:5.0f} s  from an empty account to an answer",
                "",
                "Proven on this machine:",
                *(f"  - {each}" for each in self.proven),
                "",
                f"Page:     {self.page}",
                f"Log:      {self.log}",
                "Next:     make test, or “On your AWS account” in README.md",
            ]
        )


def check_run(record: RunRecord, group: RehearsedGroups, *, machines: int) -> list[str]:
    """What the run has proven.

    Raises DemoError unless it succeeded, repeated no work, and left nothing running.
    """
    status = record.status()
    outcomes = [attempt.get("outcome", "none") for attempt in status["attempts"]]
    if outcomes != ["interrupted"] * (machines - 1) + ["succeeded"]:
        raise DemoError(f"the run {status['state']} ({status['message']}), attempts: {outcomes}")
    left = {
        key.removeprefix(record.key("")) for key in list_keys(record.s3, record.bucket, "runs/")
    }
    missing = {*RESULTS} - left
    if missing:
        raise DemoError(f"{record.uri('')} lacks {', '.join(sorted(missing))}")

    checkpoints = list_keys(record.s3, record.bucket, f"checkpoints/{record.run_id}/")
    chunks = [
        key.partition("/features-")[2]
        for key in checkpoints
        if "/features-" in key and key.endswith(".npy")
    ]
    if len(chunks) != len(set(chunks)):
        raise DemoError("a chunk of features was computed twice")

    name = stack_output("TrainStack", "ModelParameterName")
    model = boto3.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    if model != record.uri("model.tar.gz"):
        raise DemoError(f"{name} points to {model}")
    states = group.states()
    if states != {"desired": 0, "instances": 0}:
        raise DemoError(f"the groups still run: {states}")
    return [
        "the stacks deploy, and the launcher starts, stops and resumes a run",
        f"machines that worked on it: {', '.join(outcomes)}; {_resumed(group)}",
        f"{len(chunks)} chunks of features were computed, none twice",
        "the groups are at 0, and no machine is left",
        "the endpoint gives the same answer for a test photo as the model on this machine",
    ]


def check_requests(violations: Path) -> str:
    """What the requests have proven. Raises DemoError when AWS would have refused one."""
    refused = violations.read_text().splitlines()
    if refused:
        raise DemoError(f"AWS would refuse {refused[0]}; all of them: {violations}")
    return "every request conforms to AWS's own models, patterns and ranges (S3: the headers)"


def _resumed(group: RehearsedGroups) -> str:
    """Where the last machine continued, by its own console."""
    console = list(group.machines.values())[-1].console.read_text()
    said = re.search(r"resuming (after epoch \d+)", console)
    return f"the last one resumed {said[1]}" if said else "the head was trained on one machine"
