"""One run on EC2 and on SageMaker, spot and on demand, beside the original project."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from costs.estimate import HOURS_PER_MONTH, run_cost, total
from costs.prices import PriceError, Prices, Purchase
from costs.runs import read
from costs.table import money, table
from costs.twin import Measured, find_twin, measure
from training.run_record import Request, RunRecord, billed_seconds


@dataclass(frozen=True)
class Machine:
    """One machine's share of a run."""

    instance_type: str
    seconds: float


@dataclass(frozen=True)
class PastRun:
    """The part of a run's record that a comparison needs: its machines, each with such a disk."""

    machines: Sequence[Machine]
    volume_gib: int

    @property
    def seconds(self) -> float:
        return sum(machine.seconds for machine in self.machines)

    @property
    def instance_types(self) -> list[str]:
        """Each type once, in the order of their work."""
        return list(dict.fromkeys(machine.instance_type for machine in self.machines))


@dataclass(frozen=True)
class ComparisonRow:
    """What the same training costs at one place; `hours` is None where nobody wrote them down.

    Measured: by the record of a run there.
    """

    where: str
    instance_type: str
    hours: float | None
    dollars: float
    note: str
    measured: bool = False


def past_run(record: RunRecord, prices: Prices) -> PastRun:
    """A run by its record; of one on SageMaker, EC2's machines in place of SageMaker's.

    Raises ValueError when the record is damaged, or names no machine.
    """
    ec2_type_for = {ml: ec2 for ec2, ml in reversed([*prices.sagemaker_type_for.items()])}
    request, status, cost = (read(record, f"{name}.json") for name in ("request", "status", "cost"))
    try:
        attempts = status["attempts"]
        seconds = billed_seconds(attempts, cast(Request, request))
        machines = [
            Machine(ec2_type_for.get(attempt["instance_type"], attempt["instance_type"]), paid)
            for attempt, paid in zip(attempts, seconds, strict=True)
        ]
        run = PastRun(machines, int(cost["volume_gib"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{record.uri('')} is damaged: {error!r}") from error
    if not machines:
        raise ValueError(f"no machine ever worked on run {record.run_id}: it cost nothing")
    return run


def measured_runs(record: RunRecord) -> list[Measured]:
    """The run, and the newest one with the same work at the other place, as their records have
    them; none without one there."""
    twin = find_twin(record)
    if twin is None:
        return []
    found = [measure(each) for each in (record, twin)]
    return sorted((each for each in found if each), key=lambda each: each.where)


def compare_run(
    run: PastRun, prices: Prices, measured: Sequence[Measured] = ()
) -> list[ComparisonRow]:
    """The same training on EC2 and on SageMaker, spot and on demand.

    `measured` are runs that were there; for the other places the machine time is `run`'s.
    AWS states no price for managed spot, only "up to 90 %" less than on demand on machines that
    are EC2 spot ones (docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html),
    so the row assumes EC2's discount. The last two rows are what the original project paid for
    a training of its own. Raises PriceError for a machine type without a price.
    """
    spot, on_demand = _on_ec2(run, "spot", prices), _on_ec2(run, "on_demand", prices)
    hours = run.seconds / 3600
    disk_hour = prices.other["sagemaker_volume_gib_month"].dollars / HOURS_PER_MONTH
    sagemaker = managed_spot = hours * run.volume_gib * disk_hour
    paid_share = {
        type: prices.machine_hour(type, "spot").dollars
        / prices.machine_hour(type, "on_demand").dollars
        for type in run.instance_types
    }
    for machine in run.machines:
        hour = prices.sagemaker_hour(_sagemaker_type(machine.instance_type, prices), "training")
        dollars = machine.seconds / 3600 * hour.dollars
        sagemaker += dollars
        managed_spot += dollars * paid_share[machine.instance_type]
    seen = {each.where for each in measured}
    ec2_types = ", ".join(run.instance_types)
    sagemaker_types = ", ".join(_sagemaker_types(run, prices))
    discounts = ", ".join(f"{1 - share:.0%}" for share in paid_share.values())
    rows = [
        ComparisonRow("EC2 spot", ec2_types, hours, spot, "machine, disk, public IPv4"),
        ComparisonRow("EC2 on demand", ec2_types, hours, on_demand, "machine, disk, public IPv4"),
        ComparisonRow(
            "SageMaker training",
            sagemaker_types,
            hours,
            sagemaker,
            "the closest type with a known price, taking as long",
        ),
        ComparisonRow(
            "SageMaker managed spot",
            sagemaker_types,
            hours,
            managed_spot,
            f"assumed: the discount of {ec2_types} on EC2 spot, {discounts}",
        ),
    ]
    rows = [_measured_row(each) for each in measured] + [r for r in rows if r.where not in seen]
    labels = {"spot": "EC2 spot", "sagemaker": "SageMaker"}
    for place, past in prices.original_project.items():
        rows.append(
            ComparisonRow(
                f"original project, {labels[place]}",
                past.instance_type or "not reported",
                past.hours,
                past.dollars,
                "its own training: ResNet50 on 10,441 photos",
            )
        )
    return rows


def _measured_row(run: Measured) -> ComparisonRow:
    note = f"measured: run {run.run_id}, {run.judged}"
    return ComparisonRow(run.where, run.instance_type, run.hours, run.dollars, note, measured=True)


def _on_ec2(run: PastRun, purchase: Purchase, prices: Prices) -> float:
    """Each machine billed by itself, as the shortest is billed a minute."""
    return sum(
        total(run_cost(machine.seconds, machine.instance_type, purchase, run.volume_gib, prices))
        for machine in run.machines
    )


def _sagemaker_type(instance_type: str, prices: Prices) -> str:
    if instance_type not in prices.sagemaker_type_for:
        raise PriceError(f"no SageMaker machine with a price is close to {instance_type!r}")
    return prices.sagemaker_type_for[instance_type]


def _sagemaker_types(run: PastRun, prices: Prices) -> list[str]:
    """Each type once."""
    return list(dict.fromkeys(_sagemaker_type(type, prices) for type in run.instance_types))


def print_run(run: PastRun, prices: Prices, measured: Sequence[Measured] = ()) -> None:
    """The first half of what `python -m costs compare` shows."""
    rows = [
        [
            row.where,
            row.instance_type,
            "" if row.hours is None else f"{row.hours:.2f}",
            money(row.dollars),
            row.note,
        ]
        for row in compare_run(run, prices, measured)
    ]
    types = run.instance_types
    print(f"This run: {run.seconds / 60:.1f} minutes on {', '.join(types)}\n")
    print(table(["where", "machine", "hours", "$", "note"], rows))
    if len(measured) == 2:
        print(f"\n{_dearer(*measured)}")
    for name, price in (
        *((f"{type} spot", prices.machine_hour(type, "spot")) for type in types),
        *((f"{type} on demand", prices.machine_hour(type, "on_demand")) for type in types),
        *(
            (type, prices.sagemaker_hour(type, "training"))
            for type in _sagemaker_types(run, prices)
        ),
        ("SageMaker's disk", prices.other["sagemaker_volume_gib_month"]),
    ):
        print(f"source: {name} {price.dollars:g}: {price.basis}")
    print(f"source: original project: {prices.original_project['spot'].source}")


def _dearer(one: Measured, other: Measured) -> str:
    """How the two that were measured compare, in a sentence."""
    less, more = sorted((one, other), key=lambda each: each.dollars)
    times = more.dollars / less.dollars if less.dollars else float("inf")
    return f"The same training cost {times:.1f} times as much on {more.where} as on {less.where}."
