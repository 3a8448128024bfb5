"""What each resource of the synthesized templates costs in a month without a run or a call."""

import json
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.table import decimal, money, table
from costs.prices import Price, PriceError, Prices
from costs.resources import (
    GIB,
    IMAGE_BYTES,
    IMAGES,
    PRICED,
    Contents,
    Resource,
    Use,
    free_reason,
)


@dataclass(frozen=True)
class Stacks:
    """The resources of all stacks by their type, and whether a deploy builds an image."""

    resources: Mapping[str, Sequence[Resource]]
    builds_image: bool


@dataclass(frozen=True)
class IdleRow:
    """One use that has a price; `free` of its quantity cost nothing."""

    use: Use
    price: Price
    free: float

    @property
    def dollars(self) -> float:
        return max(self.use.quantity - self.free, 0) * self.price.dollars

    @property
    def full_dollars(self) -> float:
        """The cost if the rest of the account has used up what is free each month."""
        return self.use.quantity * self.price.dollars


def read_stacks(folder: Path) -> Stacks:
    """Read the templates that `cdk synth` wrote into `folder`."""
    resources: dict[str, list[Resource]] = defaultdict(list)
    for template in sorted(folder.glob("*.template.json")):
        for resource in json.loads(template.read_text())["Resources"].values():
            if resource["Type"] != "AWS::CDK::Metadata":
                resources[resource["Type"]].append(resource.get("Properties", {}))
    builds_image = any(
        json.loads(assets.read_text()).get("dockerImages")
        for assets in folder.glob("*.assets.json")
    )
    return Stacks(resources, builds_image)


def synthesize(context: Mapping[str, Any]) -> Stacks:
    """Synthesize the stacks with the settings of `context`, which takes some seconds.

    Raises SettingError for a wrong setting.
    """
    # Otherwise the CDK prints a dozen lines of warning about Node 20, with which it works.
    os.environ.setdefault("JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION", "20")
    # Not at the top: importing the CDK takes most of that time.
    from aws_cdk import App

    from app import add_stacks

    with tempfile.TemporaryDirectory() as folder:
        app = App(context=dict(context), outdir=folder)
        add_stacks(app)
        app.synth()
        return read_stacks(Path(folder))


def idle_rows(stacks: Stacks, contents: Contents, prices: Prices) -> list[IdleRow]:
    """Everything that has a price, the most expensive first.

    Raises UnknownCostError for a resource in a form whose price is not known, PriceError for a
    machine type without a price.
    """
    uses = [
        use
        for type, resources in stacks.resources.items()
        if type in PRICED
        for use in PRICED[type](resources, contents)
    ]
    if stacks.builds_image:
        size, basis = IMAGES * IMAGE_BYTES / GIB, f"{IMAGES} of {IMAGE_BYTES / 1e6:g} MB"
        uses.append(Use("ECR, images of the endpoint", size, "GiB-month", "ecr_gib_month", basis))
    free = {name: allowance.units for name, allowance in prices.free_each_month.items()}
    rows = []
    for use in uses:
        allowed = min(free.get(use.price, 0), use.quantity)
        if use.price in free:
            free[use.price] -= allowed
        rows.append(IdleRow(use, _price(use, prices), allowed))
    return sorted(rows, key=lambda row: (-row.dollars, -row.full_dollars, row.use.name))


def _price(use: Use, prices: Prices) -> Price:
    if use.price.startswith("ml."):
        return prices.sagemaker_hour(use.price, "hosting")
    if use.price not in prices.other:
        raise PriceError(f"the price file has no {use.price}")
    return prices.other[use.price]


def free_resources(stacks: Stacks) -> dict[str, Counter[str]]:
    """The number of free resources of each type, by the reason why they are free.

    Raises UnknownCostError for a resource whose price is not known.
    """
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for type, resources in sorted(stacks.resources.items()):
        if type not in PRICED:
            for resource in resources:
                reasons[free_reason(type, resource)][type] += 1
    return reasons


def print_idle(context: Mapping[str, Any], photos: int, runs: int, prices: Prices) -> None:
    """Print what `python -m costs idle` shows."""
    print("synthesizing the stacks, which takes some seconds", file=sys.stderr)
    stacks = synthesize(context)
    rows = idle_rows(stacks, Contents(photos, runs), prices)
    dollars, full = sum(row.dollars for row in rows), sum(row.full_dollars for row in rows)
    cells = [
        [
            row.use.name,
            decimal(row.use.quantity, 3),
            decimal(row.free, 3) if row.free else "",
            row.use.unit,
            decimal(row.price.dollars, 7),
            money(row.dollars),
            row.use.basis,
        ]
        for row in rows
    ]
    cells.append(["sum", "", "", "", "", money(dollars), ""])
    print(table(["a month of", "quantity", "free", "unit", "$ each", "$", "basis"], cells))
    print(f"\nidle: ${dollars:.2f} a month")
    if full > dollars:
        print(f"${full:.2f} if the account's other projects use up what is free each month")
    print("\nat no cost:")
    for reason, types in free_resources(stacks).items():
        names = ", ".join(f"{count} {name.removeprefix('AWS::')}" for name, count in types.items())
        print(f"  {names}: {reason}")
    _print_sources(rows, prices)


def _print_sources(rows: Sequence[IdleRow], prices: Prices) -> None:
    print(f"\nprices of {prices.region}")
    for row in sorted({row.use.price: row for row in rows}.values(), key=lambda row: row.use.price):
        print(f"source: {row.use.price} {decimal(row.price.dollars, 7)}: {row.price.basis}")
    for name, allowance in prices.free_each_month.items():
        if any(row.use.price == name for row in rows):
            print(
                f"source: {name}, {allowance.units:g} free: {allowance.source} ({allowance.date})"
            )
