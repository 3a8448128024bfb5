"""Today's prices into the price file, asked of a small stand-in for AWS's two price APIs."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber

from costs import price_list
from costs.__main__ import main
from costs.price_list import NoPriceError, Product, ask
from costs.prices import PRICES_FILE, load_prices
from costs.refresh import format_prices, refresh, spot_price

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
GP3 = Product("AmazonEC2", "EBS:VolumeUsage.gp3")


def entry(usage_type: str, *tiers: str) -> str:
    """A product as the Price List API describes it: JSON in a string, prices in strings."""
    ends = [*(str(10 * index) for index in range(1, len(tiers))), "Inf"]
    dimensions = {
        f"SKU.TERM.{index}": {
            "unit": "GB-Mo",
            "beginRange": "0" if index == 0 else ends[index - 1],
            "endRange": ends[index],
            "description": f"${price} per GB-month",
            "appliesTo": [],
            "rateCode": f"SKU.TERM.{index}",
            "pricePerUnit": {"USD": price},
        }
        for index, price in enumerate(tiers)
    }
    return json.dumps(
        {
            "product": {"sku": "SKU", "attributes": {"usagetype": usage_type}},
            "serviceCode": "AmazonEC2",
            "terms": {
                "OnDemand": {"SKU.TERM": {"priceDimensions": dimensions}},
                "Reserved": {"SKU.YEAR": {"priceDimensions": {}}},
            },
        }
    )


class FakePricing:
    """Answers with all its products whose usage type contains the filter's, as AWS does."""

    def __init__(self, **prices: str) -> None:
        self.prices = {name.replace("__", ":").replace("_", "."): p for name, p in prices.items()}

    def get_paginator(self, _: str) -> "FakePricing":
        return self

    def paginate(self, *, ServiceCode: str, Filters: Any, **_: str) -> Iterator[dict[str, Any]]:
        (part,) = [f["Value"] for f in Filters if f["Type"] == "CONTAINS"]
        for usage_type, price in self.prices.items():
            if part in usage_type:
                yield {"PriceList": [entry(f"USE1-{usage_type}", price)]}


class FakeSpot:
    """One price for each zone, since long ago."""

    meta = SimpleNamespace(region_name="us-east-1")

    def __init__(self, **zones: str) -> None:
        self.zones = zones

    def get_paginator(self, _: str) -> "FakeSpot":
        return self

    def paginate(self, **_: Any) -> Iterator[dict[str, Any]]:
        for zone, price in self.zones.items():
            yield {
                "SpotPriceHistory": [
                    {
                        "AvailabilityZone": zone,
                        "Timestamp": NOW - timedelta(days=30),
                        "SpotPrice": price,
                    }
                ]
            }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A price file with one machine, one SageMaker machine and two other prices."""
    content = json.loads(PRICES_FILE.read_text())
    content["sources"] |= {"old": "an old source", "unused": "nobody's"}
    old = [1.0, "2026-01-01", "old"]
    content["ec2"] = {"c7i.large": {"on_demand": old, "spot": old}}
    content["sagemaker_training"] = content["sagemaker_hosting"] = {"ml.m5.large": old}
    content["other"] = {"gp3_gib_month": old, "kms_key_month": old}
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(content))
    return file


def refreshed(file: Path, pricing: FakePricing, region: str = "us-east-1") -> dict[str, Any]:
    spot = FakeSpot(a="0.02", b="0.04")
    changes = refresh(file, region, pricing, spot, NOW)  # type: ignore[arg-type]
    return {change.name: change for change in changes}


def test_prices_that_aws_names_are_written_with_todays_date(file: Path) -> None:
    pricing = FakePricing(BoxUsage__c7i_large="0.09", EBS__VolumeUsage_gp3="0.08")
    changes = refreshed(file, pricing)
    prices = load_prices(file)
    on_demand = prices.ec2["c7i.large"]["on_demand"]
    assert (on_demand.dollars, on_demand.date) == (0.09, "2026-12-01")
    assert "Price List API" in on_demand.source
    assert prices.other["gp3_gib_month"].dollars == 0.08
    spot = prices.ec2["c7i.large"]["spot"]
    assert spot.dollars == pytest.approx(0.03)
    assert "DescribeSpotPriceHistory" in spot.source
    assert (prices.date, prices.region) == ("2026-12-01", "us-east-1")
    assert (changes["c7i.large on demand"].old, changes["c7i.large on demand"].new) == (1.0, 0.09)


def test_a_price_that_aws_does_not_name_stays_with_its_date(file: Path) -> None:
    changes = refreshed(file, FakePricing())
    kept = load_prices(file).other["gp3_gib_month"]
    assert (kept.dollars, kept.date, kept.source) == (1.0, "2026-01-01", "an old source")
    assert "EBS:VolumeUsage.gp3 in us-east-1: no price" in changes["gp3_gib_month"].problem


def test_a_kept_price_of_another_region_says_so(file: Path) -> None:
    for region in ("eu-west-1", "ap-southeast-2"):  # the second does not take it for its first's
        refreshed(file, FakePricing(EBS__VolumeUsage_gp3="0.088"), region)
        prices = load_prices(file)
        assert prices.region == region
        assert prices.other["kms_key_month"].source == "an old source; a price of us-east-1"
        assert prices.other["gp3_gib_month"].dollars == 0.088


def test_sources_that_no_price_names_any_more_go(file: Path) -> None:
    refreshed(file, FakePricing(EBS__VolumeUsage_gp3="0.08"))
    sources = json.loads(file.read_text())["sources"]
    assert "unused" not in sources
    assert {"old", "price_list_api", "spot_history", "original", "cloudwatch_page"} <= set(sources)


def test_when_aws_refuses_nothing_is_written(file: Path) -> None:
    before = file.read_bytes()

    class Refusing(FakePricing):
        def paginate(self, **_: Any) -> Iterator[dict[str, Any]]:
            raise ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetProducts")

    with pytest.raises(ClientError, match="AccessDenied"):
        refreshed(file, Refusing())
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_the_whole_price_file_can_be_asked_for() -> None:
    assert set(load_prices().other) == set(price_list.OTHER)


def test_a_written_file_has_a_price_a_line_and_reads_as_before(tmp_path: Path) -> None:
    text = format_prices(json.loads(PRICES_FILE.read_text()))
    assert re.search(r'^  "gp3_gib_month": \[0\.\d+, "\d{4}-\d\d-\d\d", "\w+"\],$', text, re.M)
    copy = tmp_path / "prices.json"
    copy.write_text(text)
    assert load_prices(copy) == load_prices()


def test_the_command_shows_what_changed_and_what_was_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clients = {
        "pricing": FakePricing(BoxUsage__c7i_large="0.9", EBS__VolumeUsage_gp3="1.0"),
        "ec2": FakeSpot(a="1.5"),
    }
    monkeypatch.setattr(boto3, "client", lambda name, region_name: clients[name])
    monkeypatch.setattr("costs.__main__.PRICES_FILE", file)
    main(["refresh"])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["c7i.large", "on", "demand", "1", "2026-01-01", "0.9", "-10.0", "%"] in rows
    assert ["c7i.large", "spot", "1", "2026-01-01", "1.5", "+50.0", "%"] in rows
    assert "3 prices of us-east-1 from AWS: 2 changed" in printed
    assert "kept kms_key_month, 1 of 2026-01-01: awskms KMS-Keys in us-east-1: no price" in printed


def asked(*answers: list[str], product: Product = GP3, region: str = "us-east-1") -> float:
    """`ask`, of the real client and model, with these answers page by page."""
    client = boto3.client("pricing", region_name="us-east-1")
    tokens = [{"NextToken": str(page)} for page in range(1, len(answers))] + [{}]
    exact = product.attributes | ({} if product.everywhere else {"regionCode": region})
    asked = {
        "ServiceCode": product.service,
        "FormatVersion": "aws_v1",
        "Filters": [
            {"Type": "CONTAINS", "Field": "usagetype", "Value": product.usage_type},
            *({"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in exact.items()),
        ],
    }
    with Stubber(client) as stub:
        for answer, token, last in zip(answers, tokens, [{}, *tokens], strict=False):
            stub.add_response("get_products", {"PriceList": answer} | token, asked | last)
        dollars = ask(client, product, region)
        stub.assert_no_pending_responses()
    return dollars


def test_a_price_is_read_as_the_api_gives_it() -> None:
    assert asked([entry("EBS:VolumeUsage.gp3", "0.0800000000")]) == 0.08
    assert asked([], [entry("EUN1-EBS:VolumeUsage.gp3", "0.0836")], region="eu-north-1") == 0.0836


def test_of_several_tiers_the_first_that_costs_counts() -> None:
    assert asked([entry("EBS:VolumeUsage.gp3", "0.00", "0.10", "0.05")]) == 0.1


def test_what_is_sold_everywhere_is_asked_without_a_region() -> None:
    product = price_list.OTHER["dashboard_month"]
    assert asked([entry("DashboardsUsageHour-Basic", "3.0")], product=product) == 3


@pytest.mark.parametrize(
    ("usage_type", "is_the_product"),
    [
        ("EBS:VolumeUsage.gp3", True),
        ("USE1-EBS:VolumeUsage.gp3", True),
        ("eu-west-1-EBS:VolumeUsage.gp3", True),
        ("EBS:VolumeUsage.gp3-Snapshot", False),
        ("USE1-Other-EBS:VolumeUsage.gp3", False),
        ("EBS:VolumeUsage-gp3", False),
    ],
)
def test_a_product_is_known_by_its_usage_type(usage_type: str, is_the_product: bool) -> None:
    if is_the_product:
        assert asked([entry(usage_type, "0.08")]) == 0.08
    else:
        with pytest.raises(NoPriceError, match="no price"):
            asked([entry(usage_type, "0.08")])


def test_two_different_prices_are_no_price() -> None:
    with pytest.raises(NoPriceError, match=r"2 prices: \[0.08, 0.09\]"):
        asked([entry("EBS:VolumeUsage.gp3", "0.08"), entry("USE1-EBS:VolumeUsage.gp3", "0.09")])
    assert asked([entry("EBS:VolumeUsage.gp3", "0.08")] * 2) == 0.08


def test_a_type_that_is_not_sold_on_spot_has_no_price() -> None:
    with pytest.raises(NoPriceError, match=r"no spot price of x9.huge in us-east-1"):
        spot_price(FakeSpot(), "x9.huge", NOW)  # type: ignore[arg-type]
