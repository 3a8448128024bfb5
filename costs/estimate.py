"""What a training run will take and cost, what it did cost, and what it would have elsewhere."""

from dataclasses import dataclass

from costs.prices import PriceError, Prices, Purchase

HOURS_PER_MONTH = 730  # AWS's own convention for prices a month
MINIMUM_SECONDS = 60  # EC2, gp3 and public IPv4 are billed by the second, a minute at least

BOOT_SECONDS = 180  # start of the machine, wheels, data set
# Views a second through the frozen backbone in ONNX Runtime, float32, 224 pixels, on two cores,
# measured in November 2026: EfficientNet-Lite0 by `make demo`, ResNet50 as its forward pass alone.
FEATURE_RATE = {"resnet50": 47.0, "efficientnet_lite0": 175.0}
VIEWS = 2  # features are computed of each photo and of its mirror image
# Photos a second through the head in training, on cached features, by the same `make demo`.
HEAD_RATE = 9_000.0
DEFAULT_VOLUME_GIB = 30


@dataclass(frozen=True)
class Estimate:
    """Expected seconds from boot to the end, US dollars for all of it, and what they rest on."""

    seconds: float
    dollars: float
    basis: str


@dataclass(frozen=True)
class CostLine:
    """One line of a bill: `quantity` of `unit` at `unit_price` US dollars."""

    name: str
    quantity: float
    unit: str
    unit_price: float
    dollars: float
    source: str


@dataclass(frozen=True)
class ComparisonRow:
    """What the same training costs at one place; `hours` is None where nobody wrote them down."""

    where: str
    instance_type: str
    hours: float | None
    dollars: float
    note: str


def estimate_training(
    photos: int,
    arch: str,
    epochs: int,
    instance_type: str,
    prices: Prices,
    *,
    volume_gib: int = DEFAULT_VOLUME_GIB,
    purchase: Purchase = "spot",
) -> Estimate:
    """Time and cost of training a new head for `epochs` on the features of `photos` photos.

    Raises ValueError for an architecture that was not measured, PriceError for a machine type
    without a price.
    """
    if arch not in FEATURE_RATE:
        raise ValueError(f"no measured rate for {arch!r}; known: {', '.join(FEATURE_RATE)}")
    feature_seconds = VIEWS * photos / FEATURE_RATE[arch]
    head_seconds = photos * epochs / HEAD_RATE
    seconds = BOOT_SECONDS + feature_seconds + head_seconds
    dollars = total(run_cost(seconds, instance_type, purchase, volume_gib, prices))
    basis = (
        f"boot {BOOT_SECONDS} s, features {feature_seconds:.0f} s ({photos:,} photos and their "
        f"mirror images at {FEATURE_RATE[arch]:.0f}/s), head {head_seconds:.0f} s "
        f"({epochs} epochs at {HEAD_RATE:,.0f}/s); rates measured on two cores in November 2026, "
        f"not on {instance_type}, where half or twice the time is possible; no interruption; "
        f"prices of {prices.region}, {prices.date}"
    )
    return Estimate(seconds, dollars, basis)


def run_cost(
    seconds: float, instance_type: str, purchase: Purchase, volume_gib: int, prices: Prices
) -> list[CostLine]:
    """The bill of one EC2 machine that ran for `seconds` with a gp3 disk of `volume_gib`.

    Storage in S3 and requests are left out: a run adds less than a hundredth of a cent.
    Raises PriceError for a machine type without a price.
    """
    if seconds < 0:
        raise ValueError(f"a run cannot take {seconds} seconds")
    hours = max(seconds, MINIMUM_SECONDS) / 3600
    machine = prices.machine_hour(instance_type, purchase)
    disk = prices.other["gp3_gib_month"]
    address = prices.other["public_ipv4_hour"]
    gib_months = volume_gib * hours / HOURS_PER_MONTH
    return [
        CostLine(
            f"{instance_type}, {purchase.replace('_', '-')}",
            hours,
            "hour",
            machine.dollars,
            hours * machine.dollars,
            machine.source,
        ),
        CostLine(
            f"disk, gp3, {volume_gib} GiB",
            gib_months,
            "GiB-month",
            disk.dollars,
            gib_months * disk.dollars,
            disk.source,
        ),
        CostLine(
            "public IPv4 address",
            hours,
            "hour",
            address.dollars,
            hours * address.dollars,
            address.source,
        ),
    ]


def total(lines: list[CostLine]) -> float:
    """The sum of a bill in US dollars."""
    return sum(line.dollars for line in lines)


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
    machine = prices.sagemaker_training[sagemaker_type].dollars
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
