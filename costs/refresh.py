"""Today's prices into the price file, from the Price List API and the spot price history."""

import json
import re
from collections.abc import Callable
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
from costs.price_list import NoPriceError
from costs.prices import load_prices
from costs.spot_prices import mean_price, spot_history

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_pricing import PricingClient

PRICING_REGION = "us-east-1"  # one of the few that answer; they know the prices of all
SPOT_DAYS = 7
SPOT_SOURCE = f"EC2 DescribeSpotPriceHistory: mean of {SPOT_DAYS} days, then of the zones"

FOREIGN = "_elsewhere"  # ends the name of a source whose price is of another region

Entry = list[Any]  # of the price file: dollars, date, name of the source


@dataclass(frozen=True)
class Change:
    """What happened to one price; `problem` says why AWS has given none, and `new` is the old."""

    name: str
    old: float
    old_date: str
    new: float
    problem: str = ""


def refresh(
    file: Path, region: str | None, pricing: "PricingClient", ec2: "EC2Client", now: datetime
) -> list[Change]:
    """Ask AWS for every price in `file` and write those that it names, all or nothing.

    A price that AWS does not name stays as it is, with its date; one of another region says so.
    Raises PriceError when the file is damaged, botocore's errors when AWS refuses.
    """
    load_prices(file)
    content = json.loads(file.read_text())
    old_region = content["region"]
    region = region or old_region
    content["sources"] |= {"price_list_api": price_list.SOURCE, "spot_history": SPOT_SOURCE}
    changes = []
    for question in tqdm(
        _questions(content, pricing, ec2, region, now), desc="prices", unit="price"
    ):
        dollars, date, source = question.entries[question.key]
        try:
            new = question.ask()
        except NoPriceError as error:
            changes.append(Change(question.name, dollars, date, dollars, str(error)))
            if region != old_region:
                source = _of_region(source, old_region, content["sources"])
            question.entries[question.key] = [dollars, date, source]
        else:
            changes.append(Change(question.name, dollars, date, new))
            question.entries[question.key] = [new, f"{now:%Y-%m-%d}", question.source]
    content |= {"date": f"{now:%Y-%m-%d}", "region": region}
    _forget_unused_sources(content)
    write_atomic(file, format_prices(content).encode())
    return changes


@dataclass(frozen=True)
class Question:
    """A price of the file: its name for the user, where it is kept, how to get it, from whom."""

    name: str
    entries: dict[str, Entry]
    key: str
    ask: Callable[[], float]
    source: str


def _questions(
    content: dict[str, Any], pricing: "PricingClient", ec2: "EC2Client", region: str, now: datetime
) -> list[Question]:
    questions: list[Question] = []

    def add(name: str, entries: dict[str, Entry], key: str, product: price_list.Product) -> None:
        ask = partial(price_list.ask, pricing, product, region)
        questions.append(Question(name, entries, key, ask, "price_list_api"))

    for type, purchases in content["ec2"].items():
        add(f"{type} on demand", purchases, "on_demand", price_list.ec2_machine(type))
        if "spot" in purchases:
            ask = partial(spot_price, ec2, type, now)
            questions.append(Question(f"{type} spot", purchases, "spot", ask, "spot_history"))
    training, hosting = content["sagemaker_training"], content["sagemaker_hosting"]
    for type in training:
        add(f"{type} training", training, type, price_list.training_machine(type))
    for type in hosting:
        add(f"{type} hosting", hosting, type, price_list.hosting_machine(type))
    for name in content["other"]:
        add(name, content["other"], name, price_list.OTHER[name])
    return questions


def spot_price(ec2: "EC2Client", instance_type: str, now: datetime) -> float:
    """Dollars an hour, the mean over zones. Raises NoPriceError where the type is not sold."""
    start = now - timedelta(days=SPOT_DAYS)
    zones = spot_history(ec2, instance_type, start, now)
    if not zones:
        raise NoPriceError(f"EC2 has no spot price of {instance_type} in {ec2.meta.region_name}")
    return round(mean(mean_price(changes, start, now) for changes in zones.values()), 5)


def _of_region(source: str, region: str, sources: dict[str, str]) -> str:
    """The name of the same source, saying that the price is of a region other than the file's."""
    if source.endswith(FOREIGN):
        return source
    sources[source + FOREIGN] = f"{sources[source]}; a price of {region}"
    return source + FOREIGN


def _forget_unused_sources(content: dict[str, Any]) -> None:
    tables = [
        *content["ec2"].values(),
        *(content[name] for name in ("sagemaker_training", "sagemaker_hosting")),
        *(content[name] for name in ("other", "free_each_month")),
    ]
    used = {source for entries in tables for _, _, source in entries.values()}
    used |= {past["source"] for past in content["original_project"].values()}
    content["sources"] = {name: text for name, text in content["sources"].items() if name in used}


def format_prices(content: dict[str, Any]) -> str:
    """JSON with one price a line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def print_refresh(file: Path, region: str | None) -> None:
    """What `python -m costs refresh` does and shows."""
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
