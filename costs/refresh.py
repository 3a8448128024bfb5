"""Write today's prices into the price file, from the Price List API and the spot price history."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import boto3
from tqdm import tqdm

from common.files import write_atomic
from common.table import decimal, table
from costs import price_list
from costs.price_list import LINUX, NoPriceError, Product
from costs.prices import load_prices
from costs.spot_prices import mean_price, spot_history

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_pricing import PricingClient

PRICING_REGION = "us-east-1"  # one of the few that answer; they know the prices of all
SPOT_DAYS = 7
SPOT_SOURCE = f"EC2 DescribeSpotPriceHistory: mean of {SPOT_DAYS} days, then of the zones"

FOREIGN = "_elsewhere"  # suffix of a source's name if the price is of another region

Entry = list[Any]  # of the price file: dollars, date, name of the source


@dataclass(frozen=True)
class Question:
    """A price of the file: its name for the user, where it is, how to get it, and from where."""

    name: str
    entries: dict[str, Entry]
    key: str
    ask: Callable[[], float]
    source: str = "price_list_api"


@dataclass(frozen=True)
class Change:
    """The old and new value of a price; equal where AWS has returned none, as `problem` says."""

    name: str
    old: float
    old_date: str
    new: float
    problem: str = ""


def refresh(
    file: Path, region: str, pricing: "PricingClient", ec2: "EC2Client", now: datetime
) -> list[Change]:
    """Ask AWS for every price in `file` and write the answers, all or nothing.

    A price that AWS does not return stays as it is, with its date; its source then names the
    region, if that was another one. Raises PriceError when the file is damaged.
    """
    old_region = load_prices(file).region
    content = json.loads(file.read_text())
    content["sources"] |= {"price_list_api": price_list.SOURCE, "spot_history": SPOT_SOURCE}
    questions = list(_questions(content, pricing, ec2, region, now))
    changes = []
    for question in tqdm(questions, desc="prices", unit="price"):
        dollars, date, source = question.entries[question.key]
        try:
            new = question.ask()
        except NoPriceError as error:
            changes.append(Change(question.name, dollars, date, dollars, str(error)))
            if region != old_region and not source.endswith(FOREIGN):
                said = content["sources"][source]
                content["sources"][source + FOREIGN] = f"{said}; a price of {old_region}"
                question.entries[question.key] = [dollars, date, source + FOREIGN]
        else:
            changes.append(Change(question.name, dollars, date, new))
            question.entries[question.key] = [new, f"{now:%Y-%m-%d}", question.source]
    content |= {"date": f"{now:%Y-%m-%d}", "region": region}
    _forget_unused_sources(content)
    write_atomic(file, format_prices(content).encode())
    return changes


def _questions(
    content: dict[str, Any], pricing: "PricingClient", ec2: "EC2Client", region: str, now: datetime
) -> Iterator[Question]:
    def asking_for(product: Product) -> Callable[[], float]:
        return partial(price_list.ask, pricing, product, region)

    for type, purchases in content["ec2"].items():
        machine = Product("AmazonEC2", f"BoxUsage:{type}", LINUX)
        yield Question(f"{type} on demand", purchases, "on_demand", asking_for(machine))
        if "spot" in purchases:
            ask = partial(spot_price, ec2, type, now)
            yield Question(f"{type} spot", purchases, "spot", ask, "spot_history")
    for use, usage_type in (("training", "Train"), ("hosting", "Host")):
        entries = content[f"sagemaker_{use}"]
        for type in entries:
            machine = Product("AmazonSageMaker", f"{usage_type}:{type}")
            yield Question(f"{type} {use}", entries, type, asking_for(machine))
    for name in content["other"]:
        yield Question(name, content["other"], name, asking_for(price_list.OTHER[name]))


def spot_price(ec2: "EC2Client", instance_type: str, now: datetime) -> float:
    """US dollars an hour, the mean of all zones. Raises NoPriceError where the type is not sold."""
    start = now - timedelta(days=SPOT_DAYS)
    zones = spot_history(ec2, instance_type, start, now)
    if not zones:
        raise NoPriceError(f"EC2 has no spot price of {instance_type} in {ec2.meta.region_name}")
    return round(mean(mean_price(changes, start, now) for changes in zones.values()), 5)


def _forget_unused_sources(content: dict[str, Any]) -> None:
    names = ("sagemaker_training", "sagemaker_hosting", "other", "free_each_month")
    tables = [*content["ec2"].values(), *(content[name] for name in names)]
    used = {source for entries in tables for _, _, source in entries.values()}
    used |= {past["source"] for past in content["original_project"].values()}
    content["sources"] = {name: text for name, text in content["sources"].items() if name in used}


def format_prices(content: dict[str, Any]) -> str:
    """JSON with one price on each line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def print_refresh(file: Path, region: str | None) -> None:
    """Refresh the prices in `file` and print what `python -m costs refresh` shows."""
    region = region or load_prices(file).region
    changes = refresh(
        file,
        region,
        boto3.client("pricing", region_name=PRICING_REGION),
        boto3.client("ec2", region_name=region),
        datetime.now(UTC),
    )
    answered = [change for change in changes if not change.problem]
    moved = [change for change in answered if change.new != change.old]
    if moved:
        rows = [
            [
                change.name,
                decimal(change.old, 7),
                change.old_date,
                decimal(change.new, 7),
                f"{100 * (change.new / change.old - 1):+.1f} %",
            ]
            for change in moved
        ]
        print(table(["price", "old, $", "of", "new, $", "change"], rows))
    print(f"{len(answered)} prices of {region} from AWS: {len(moved)} changed")
    for change in changes:
        if change.problem:
            kept = f"{change.name}, {decimal(change.old, 7)} of {change.old_date}"
            print(f"kept {kept}: {change.problem}")
    print(f"written: {file}")
