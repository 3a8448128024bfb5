"""How long a training run will take and what it will cost, and the bill of a machine.

Standard library only: training machines import this module.
"""

from dataclasses import dataclass

from common.choices import Arch, Mode, Purchase
from common.table import money, table
from costs.prices import Price, Prices

HOURS_PER_MONTH = 730  # AWS's own convention for prices a month
MINIMUM_SECONDS = 60  # EC2, gp3 and public IPv4 are billed by the second, a minute at least

BOOT_SECONDS = 180  # until the machine is up and has its packages and the data set
# Views a second through the frozen backbone in ONNX Runtime, float32, 224 pixels, on two cores,
# measured in November 2026: EfficientNet-Lite0 by `make demo`, ResNet50 as its forward pass alone;
# EfficientNet-Lite2 is derived from Lite0 by the ratio of their multiplications.
FEATURE_RATE: dict[Arch, float] = {
    "resnet50": 47.0,
    "efficientnet_lite0": 175.0,
    "efficientnet_lite2": 115.0,
}
VIEWS = 2  # features are computed of each photo and of its mirror image
# Photos a second through the head in training, on cached features, by the same `make demo`.
HEAD_RATE = 9_000.0
# Photos a second when every layer trains, bfloat16, 224 pixels, on two cores of an AMD EPYC:
# benchmarks/training/README.md. EfficientNet-Lite2 is derived from Lite0 by the time of an epoch.
FINETUNE_RATE: dict[Arch, float] = {
    "resnet50": 24.0,
    "efficientnet_lite0": 52.0,
    "efficientnet_lite2": 37.0,
}
DERIVED = ("efficientnet_lite2",)
DEFAULT_VOLUME_GIB = 30


@dataclass(frozen=True)
class Estimate:
    """Expected seconds from boot to the end, their cost in US dollars, and what both rest on."""

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


def estimate_training(
    photos: int,
    arch: Arch,
    epochs: int,
    instance_type: str,
    prices: Prices,
    *,
    mode: Mode = "head",
    ensemble_size: int = 1,
    volume_gib: int = DEFAULT_VOLUME_GIB,
    purchase: Purchase = "spot",
) -> Estimate:
    """Time and cost of training for `epochs` on `photos` photos, as `mode` of training.train.

    `ensemble_size` networks train side by side. Raises PriceError for a machine type without a
    price.
    """
    work = _work(photos, arch, epochs, mode, ensemble_size)
    seconds = BOOT_SECONDS + sum(work.values())
    dollars = total(run_cost(seconds, instance_type, purchase, volume_gib, prices))
    found = "derived from those measured" if arch in DERIVED else "measured"
    steps = ", ".join(f"{name.format(took)}" for name, took in work.items())
    basis = (
        f"boot {BOOT_SECONDS} s, {steps}; rates {found} on two cores in November 2026, "
        f"not on {instance_type}, where half or twice the time is possible; no interruption; "
        f"prices of {prices.region}, {prices.date}"
    )
    return Estimate(seconds, dollars, basis)


def _work(photos: int, arch: Arch, epochs: int, mode: Mode, ensemble_size: int) -> dict[str, float]:
    """Seconds of each step, by its description with a placeholder for them."""
    passes = f"{epochs} epochs" + (f" of {ensemble_size} networks" if ensemble_size > 1 else "")
    trained = photos * epochs * ensemble_size
    if mode == "finetune":
        rate = FINETUNE_RATE[arch]
        what = f"every layer {{:.0f}} s ({passes}, {photos:,} photos at {rate:.0f}/s)"
        return {what: trained / rate}
    rate = FEATURE_RATE[arch]
    features = f"features {{:.0f}} s ({photos:,} photos and their mirror images at {rate:.0f}/s)"
    head = f"head {{:.0f}} s ({passes} at {HEAD_RATE:,.0f}/s)"
    return {features: VIEWS * photos / rate, head: trained / HEAD_RATE}


def run_cost(
    seconds: float, instance_type: str, purchase: Purchase, volume_gib: int, prices: Prices
) -> list[CostLine]:
    """The bill of one EC2 machine that ran for `seconds` with a gp3 disk of `volume_gib`.

    Storage in S3 and requests are left out: a run adds less than a hundredth of a cent.
    Raises PriceError for a machine type without a price.
    """
    label = f"{instance_type}, {purchase.replace('_', '-')}"
    machine = prices.machine_hour(instance_type, purchase)
    return machine_bill(seconds, label, machine, volume_gib, prices)


def machine_bill(
    seconds: float, label: str, machine: Price, volume_gib: int, prices: Prices
) -> list[CostLine]:
    """The same bill at a given price of the machine's hour."""
    hours = max(seconds, MINIMUM_SECONDS) / 3600
    return [
        cost_line(label, hours, "hour", machine),
        cost_line(
            f"disk, gp3, {volume_gib} GiB",
            volume_gib * hours / HOURS_PER_MONTH,
            "GiB-month",
            prices.other["gp3_gib_month"],
        ),
        cost_line("public IPv4 address", hours, "hour", prices.other["public_ipv4_hour"]),
    ]


def cost_line(name: str, quantity: float, unit: str, price: Price) -> CostLine:
    return CostLine(name, quantity, unit, price.dollars, quantity * price.dollars, price.basis)


def total(lines: list[CostLine]) -> float:
    """Sum of a bill in US dollars."""
    return sum(line.dollars for line in lines)


def format_bill(lines: list[CostLine]) -> str:
    """The bill as a table with its total, followed by each source once."""
    rows = [
        [
            line.name,
            f"{line.quantity:.4f}",
            line.unit,
            f"{line.unit_price:.5f}",
            money(line.dollars),
        ]
        for line in lines
    ]
    rows.append(["total", "", "", "", money(total(lines))])
    sources = dict.fromkeys(f"source: {line.source}" for line in lines)
    return "\n".join([table(["item", "quantity", "unit", "$ each", "$"], rows), "", *sources])


def print_estimate(estimate: Estimate, bill: list[CostLine]) -> None:
    """Print what `python -m costs estimate` shows."""
    print(f"about {estimate.seconds / 60:.0f} minutes, ${estimate.dollars:.4f}")
    print(f"basis: {estimate.basis}\n")
    print(format_bill(bill))
