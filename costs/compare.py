"""One run on EC2 and on SageMaker, spot and on demand, beside the original project."""

from dataclasses import dataclass

from costs.estimate import HOURS_PER_MONTH, run_cost, total
from costs.prices import PriceError, Prices
from costs.runs import find_run, read
from costs.table import money, table


@dataclass(frozen=True)
class PastRun:
    """The part of a run's cost record that a comparison needs."""

    seconds: float
    instance_type: str
    volume_gib: int


@dataclass(frozen=True)
class ComparisonRow:
    """What the same training costs at one place; `hours` is None where nobody wrote them down."""

    where: str
    instance_type: str
    hours: float | None
    dollars: float
    note: str


def read_run(bucket: str | None, run_id: str | None) -> PastRun:
    """A run, by default the newest model's. Raises ValueError without a cost record."""
    record = find_run(bucket, run_id)
    cost = read(record, "cost.json")
    try:
        return PastRun(float(cost["seconds"]), str(cost["instance_type"]), int(cost["volume_gib"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{record.uri('cost.json')} is damaged: {error!r}") from error


def compare_run(
    seconds: float, instance_type: str, volume_gib: int, prices: Prices
) -> list[ComparisonRow]:
    """The same `seconds` of training on EC2 and on SageMaker, spot and on demand.

    AWS states no price for managed spot, only "up to 90 %" less than on demand on machines that
    are EC2 spot ones (docs.aws.amazon.com/sagemaker/latest/dg/model-managed-spot-training.html),
    so the row assumes EC2's discount. The last two rows are what the original project paid for
    a training of its own. Raises PriceError for a machine type without a price.
    """
    spot = total(run_cost(seconds, instance_type, "spot", volume_gib, prices))
    on_demand = total(run_cost(seconds, instance_type, "on_demand", volume_gib, prices))
    if instance_type not in prices.sagemaker_type_for:
        raise PriceError(f"no SageMaker machine with a price is close to {instance_type!r}")
    sagemaker_type = prices.sagemaker_type_for[instance_type]
    machine = prices.sagemaker_hour(sagemaker_type, "training").dollars
    disk = volume_gib / HOURS_PER_MONTH * prices.other["sagemaker_volume_gib_month"].dollars
    discount = 1 - (
        prices.machine_hour(instance_type, "spot").dollars
        / prices.machine_hour(instance_type, "on_demand").dollars
    )
    hours = seconds / 3600
    rows = [
        ComparisonRow("EC2 spot", instance_type, hours, spot, "machine, disk, public IPv4"),
        ComparisonRow(
            "EC2 on demand", instance_type, hours, on_demand, "machine, disk, public IPv4"
        ),
        ComparisonRow(
            "SageMaker training",
            sagemaker_type,
            hours,
            hours * (machine + disk),
            "the closest type with a known price, taking as long",
        ),
        ComparisonRow(
            "SageMaker managed spot",
            sagemaker_type,
            hours,
            hours * (machine * (1 - discount) + disk),
            f"assumed: the discount of {instance_type} on EC2 spot, {discount:.0%}",
        ),
    ]
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


def print_run(run: PastRun, prices: Prices) -> None:
    """The first half of what `python -m costs compare` shows."""
    rows = [
        [
            row.where,
            row.instance_type,
            "" if row.hours is None else f"{row.hours:.2f}",
            money(row.dollars),
            row.note,
        ]
        for row in compare_run(run.seconds, run.instance_type, run.volume_gib, prices)
    ]
    print(f"This run: {run.seconds / 60:.1f} minutes on {run.instance_type}\n")
    print(table(["where", "machine", "hours", "$", "note"], rows))
    sagemaker_type = prices.sagemaker_type_for[run.instance_type]
    for name, price in (
        (f"{run.instance_type} spot", prices.machine_hour(run.instance_type, "spot")),
        (f"{run.instance_type} on demand", prices.machine_hour(run.instance_type, "on_demand")),
        (sagemaker_type, prices.sagemaker_hour(sagemaker_type, "training")),
        ("SageMaker's disk", prices.other["sagemaker_volume_gib_month"]),
    ):
        print(f"source: {name} {price.dollars:g}: {price.basis}")
    print(f"source: original project: {prices.original_project['spot'].source}")
