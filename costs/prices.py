"""The prices in `prices.json`: for one region, every figure with its date and its source.

Standard library only: training machines import this module. `refresh` writes the file.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.choices import Purchase

PRICES_FILE = Path(__file__).with_name("prices.json")


class PriceError(ValueError):
    """There is no such price; the message is one line."""


@dataclass(frozen=True)
class Price:
    """US dollars for one unit (an hour unless the name says otherwise), as of an ISO date."""

    dollars: float
    date: str
    source: str

    @property
    def basis(self) -> str:
        """The source, and its date."""
        return f"{self.source} ({self.date})"


@dataclass(frozen=True)
class Allowance:
    """Units that are free each month, without end, for the whole account."""

    units: float
    date: str
    source: str


@dataclass(frozen=True)
class PastCost:
    """What the project that this one replaces paid in total; `hours` is None where not reported."""

    instance_type: str | None
    hours: float | None
    dollars: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Prices:
    """All prices of one region; `date` (ISO 8601) is when the file was last refreshed."""

    date: str
    region: str
    ec2: Mapping[str, Mapping[str, Price]]
    sagemaker_training: Mapping[str, Price]
    sagemaker_hosting: Mapping[str, Price]
    other: Mapping[str, Price]
    free_each_month: Mapping[str, Allowance]
    sagemaker_type_for: Mapping[str, str]
    original_project: Mapping[str, PastCost]

    def machine_hour(self, instance_type: str, purchase: Purchase) -> Price:
        """An hour of an EC2 machine. Raises PriceError for a type or purchase without a price."""
        known = [name for name, prices in self.ec2.items() if purchase in prices]
        if instance_type not in known:
            raise PriceError(
                f"no {purchase.replace('_', '-')} price for {instance_type!r} in "
                f"{PRICES_FILE.name} of {self.date}; known: {', '.join(known)}"
            )
        return self.ec2[instance_type][purchase]

    def sagemaker_hour(self, instance_type: str, use: Literal["training", "hosting"]) -> Price:
        """An hour of a SageMaker machine. Raises PriceError for a type without a price."""
        known = self.sagemaker_training if use == "training" else self.sagemaker_hosting
        if instance_type not in known:
            raise PriceError(
                f"no {use} price for {instance_type!r} in {PRICES_FILE.name} of {self.date}; "
                f"known: {', '.join(known)}"
            )
        return known[instance_type]


def load_prices(file: Path = PRICES_FILE) -> Prices:
    """Read the price file. Raises PriceError when it is damaged or names an unknown source."""
    try:
        content = json.loads(file.read_text())
        sources = content["sources"]

        def prices(table: dict[str, list[Any]]) -> dict[str, Price]:
            return {
                name: Price(float(dollars), date, sources[source])
                for name, (dollars, date, source) in table.items()
            }

        return Prices(
            date=content["date"],
            region=content["region"],
            ec2={name: prices(purchases) for name, purchases in content["ec2"].items()},
            sagemaker_training=prices(content["sagemaker_training"]),
            sagemaker_hosting=prices(content["sagemaker_hosting"]),
            other=prices(content["other"]),
            free_each_month={
                name: Allowance(float(units), date, sources[source])
                for name, (units, date, source) in content["free_each_month"].items()
            },
            sagemaker_type_for=content["sagemaker_type_for"],
            original_project={
                where: PastCost(**{**past, "source": sources[past["source"]]})
                for where, past in content["original_project"].items()
            },
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise PriceError(f"{file} is not a price file: {error!r}") from error
