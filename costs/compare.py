"""One run on EC2 and on SageMaker, spot and on demand, beside the original project."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from botocore.exceptions import ClientError

from common.choices import Purchase
from common.run_record import Attempt, Request, RunRecord, billed_seconds
from common.table import money, table
from costs.estimate import HOURS_PER_MONTH, run_cost, total
from costs.prices import PriceError, Prices
from costs.runs import read
from costs.twin import differences, find_twin

Places = Mapping[Purchase, str]
EC2: Places = {"spot": "EC2 spot", "on_demand": "EC2 on demand"}
SAGEMAKER: Places = {"on_demand": "SageMaker training", "spot": "SageMaker managed spot"}


@dataclass(frozen=True)
class Machine:
    """One machine's share of a run."""

    instance_type: str
    seconds: float


@dataclass(frozen=True)
class PastRun:
    """The machine time of a run; each machine has a disk of `volume_gib`."""

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
    """What the same training costs at one place; `hours` are those paid for, if recorded.

    Measured: according to the record of a run there.
    """

    where: str
    instance_type: str
    hours: float | None
    dollars: float
    note: str
    measured: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run cost, according to its own record."""

    run_id: str
    request: Mapping[str, Any]
    row: ComparisonRow
    run: PastRun  # its machine time, from which other places are estimated


def past_run(record: RunRecord, prices: Prices) -> PastRun:
    """Read the machine time of a run; for one on SageMaker, in the equivalent EC2 types.

    Raises ValueError when the record is incomplete, or names no machine.
    """
    ec2_type_for = {ml: ec2 for ec2, ml in reversed([*prices.sagemaker_type_for.items()])}
    request, status, cost = _read_all(record)
    if not status["attempts"]:
        raise ValueError(f"no machine ever worked on run {record.run_id}: it cost nothing")
    # The elapsed time: managed spot bills only a part of it, every other place all of it.
    attempts = [
        {name: value for name, value in attempt.items() if name != "billed_seconds"}
        for attempt in status["attempts"]
    ]
    seconds = billed_seconds(cast(list[Attempt], attempts), cast(Request, request))
    types = [attempt["instance_type"] for attempt in attempts]
    machines = [
        Machine(ec2_type_for.get(type, type), passed)
        for type, passed in zip(types, seconds, strict=True)
    ]
    return PastRun(machines, cost["volume_gib"])


def _read_all(record: RunRecord) -> list[dict[str, Any]]:
    return [read(record, f"{name}.json") for name in ("request", "status", "cost")]


def measured_runs(record: RunRecord, prices: Prices, named: str | None = None) -> list[Measured]:
    """The run, and one at the other place: the one `named`, or the newest with the same work.

    Without one there, only a run on SageMaker is returned: the costs of one on EC2 follow from its
    machine time anyway. Raises ValueError for an incomplete record, and for a run without dollars
    when one is named.
    """
    twin = find_twin(record, named)
    found = [_measure(each, prices) for each in (record, twin) if each]
    known = sorted((each for each in found if each), key=lambda each: each.row.where)
    if named and len(known) < 2:
        raise ValueError(f"no price of run {record.run_id} or of {named}: see `costs actual`")
    return [] if len(known) < 2 and _run_at(EC2, known) else known


def _measure(record: RunRecord, prices: Prices) -> Measured | None:
    """What a run cost; None without dollars."""
    run = past_run(record, prices)
    request, status, cost = _read_all(record)
    dollars = cost.get("actual", cost).get("dollars")
    if dollars is None:
        return None
    attempts = status["attempts"]
    places = SAGEMAKER if request.get("service") == "sagemaker" else EC2
    row = ComparisonRow(
        where=places[attempts[-1]["purchase"]],
        instance_type=", ".join(dict.fromkeys(_machines(each) for each in attempts)),
        hours=sum(billed_seconds(attempts, cast(Request, request))) / 3600,
        dollars=dollars,
        note=f"measured: run {record.run_id}, {_accuracy(record)}",
        measured=True,
    )
    return Measured(run_id=record.run_id, request=request, row=row, run=run)


def _machines(attempt: Attempt) -> str:
    number = attempt.get("machines", 1)
    return f"{number} × {attempt['instance_type']}" if number > 1 else attempt["instance_type"]


def _accuracy(record: RunRecord) -> str:
    try:
        return f"{record.judged()['accuracy']['value']:.1%} exact"
    except ClientError:
        return "no metrics"


def compare_run(
    run: PastRun, prices: Prices, measured: Sequence[Measured] = ()
) -> list[ComparisonRow]:
    """The same training on EC2 and on SageMaker, spot and on demand.

    What was `measured` comes first, then estimates for the other places. The last two rows are
    what the original project paid for a training of its own. Raises PriceError for a machine type
    without a price.
    """
    rows = [each.row for each in measured]
    seen = {row.where for row in rows}
    rows += [
        _estimated_row(places, purchase, run, prices, measured)
        for places in (EC2, SAGEMAKER)
        for purchase, where in places.items()
        if where not in seen
    ]
    labels = {"spot": "EC2 spot", "sagemaker": "SageMaker"}
    rows += [
        ComparisonRow(
            f"original project, {labels[place]}",
            past.instance_type or "not reported",
            past.hours,
            past.dollars,
            "its own training: ResNet50 on 10,441 photos",
        )
        for place, past in prices.original_project.items()
    ]
    return rows


def _estimated_row(
    places: Places, purchase: Purchase, run: PastRun, prices: Prices, measured: Sequence[Measured]
) -> ComparisonRow:
    """A place where nothing was measured.

    AWS states no price for managed spot, only "up to 90 %" less than on demand on machines that
    are EC2 spot ones (docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html),
    so the row assumes EC2's discount.
    """
    there = _run_at(places, measured)
    run = there or run
    note = "taking as long" if there else "the closest type with a known price, taking as long"
    if places is EC2:
        types, dollars = run.instance_types, _on_ec2(run, purchase, prices)
        note = f"{note}: machine, disk, public IPv4" if measured else "machine, disk, public IPv4"
    else:
        types, dollars = _sagemaker_types(run, prices), _on_sagemaker(run, purchase, prices)
        if purchase == "spot":
            discounts = ", ".join(f"{1 - _paid_share(t, prices):.0%}" for t in run.instance_types)
            note = f"the discount of {', '.join(run.instance_types)} on EC2 spot, {discounts}"
    if measured or (places is SAGEMAKER and purchase == "spot"):
        note = f"assumed: {note}"
    return ComparisonRow(places[purchase], ", ".join(types), run.seconds / 3600, dollars, note)


def _run_at(places: Places, measured: Sequence[Measured]) -> PastRun | None:
    return next((each.run for each in measured if each.row.where in places.values()), None)


def _on_ec2(run: PastRun, purchase: Purchase, prices: Prices) -> float:
    """Each machine billed by itself, as the shortest is billed a minute."""
    return sum(
        total(run_cost(machine.seconds, machine.instance_type, purchase, run.volume_gib, prices))
        for machine in run.machines
    )


def _on_sagemaker(run: PastRun, purchase: Purchase, prices: Prices) -> float:
    """Each machine as SageMaker's closest, and the disks."""
    disk_hour = prices.other["sagemaker_volume_gib_month"].dollars / HOURS_PER_MONTH
    dollars = run.seconds / 3600 * run.volume_gib * disk_hour
    for machine in run.machines:
        type_ = _sagemaker_type(machine.instance_type, prices)
        share = _paid_share(machine.instance_type, prices) if purchase == "spot" else 1
        hour = prices.sagemaker_hour(type_, "training").dollars
        dollars += machine.seconds / 3600 * hour * share
    return dollars


def _paid_share(instance_type: str, prices: Prices) -> float:
    """EC2's spot price as a part of the one on demand."""
    spot, on_demand = (prices.machine_hour(instance_type, p).dollars for p in EC2)
    return spot / on_demand


def _sagemaker_type(instance_type: str, prices: Prices) -> str:
    if instance_type in prices.sagemaker_training:  # EC2 has none that is close
        return instance_type
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
    print(f"{_heading(run, measured)}\n")
    print(table(["where", "machine", "hours paid", "$", "note"], rows))
    if len(measured) == 2:
        print(f"\n{_price_ratio(*(each.row for each in measured))}")
    _print_sources(run, prices, measured)


def _heading(run: PastRun, measured: Sequence[Measured]) -> str:
    """What is compared; of two runs, what they do not have in common."""
    match measured:
        case []:
            return f"This run: {run.seconds / 60:.1f} minutes on {', '.join(run.instance_types)}"
        case [Measured(row=row)]:
            return f"This run: {60 * (row.hours or 0):.1f} minutes paid on {row.instance_type}"
    one, other = measured
    both = f"on {one.row.where} and on {other.row.where}"
    differ = differences(one.request, other.request)
    if differ:
        return f"Not the same training {both}: {'; '.join(differ)}"
    return f"The same training {both}"


def _price_ratio(one: ComparisonRow, other: ComparisonRow) -> str:
    less, more = sorted((one, other), key=lambda row: row.dollars)
    times = more.dollars / less.dollars if less.dollars else float("inf")
    return f"The run on {more.where} cost {times:.1f} times as much as the one on {less.where}."


def _print_sources(run: PastRun, prices: Prices, measured: Sequence[Measured]) -> None:
    ec2, sagemaker = (_run_at(places, measured) or run for places in (EC2, SAGEMAKER))
    for each in measured:
        print(f"source: {each.row.where}: cost.json of run {each.run_id}")
    types = ec2.instance_types
    for name, price in (
        *((f"{type} spot", prices.machine_hour(type, "spot")) for type in types),
        *((f"{type} on demand", prices.machine_hour(type, "on_demand")) for type in types),
        *(
            (type, prices.sagemaker_hour(type, "training"))
            for type in _sagemaker_types(sagemaker, prices)
        ),
        ("SageMaker's disk", prices.other["sagemaker_volume_gib_month"]),
    ):
        print(f"source: {name} {price.dollars:g}: {price.basis}")
    print(f"source: original project: {prices.original_project['spot'].source}")
