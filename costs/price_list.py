"""AWS's Price List API: which products to request, and how to read the answers."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_pricing import PricingClient
    from mypy_boto3_pricing.type_defs import FilterTypeDef

SOURCE = "AWS Price List API (GetProducts): on demand, the first tier that is not free"
# Usage types begin with the region, such as USE1-, or us-east-1- for keys; in us-east-1 often not.
REGION_PREFIX = r"(?:[A-Z]{2,4}\d?-|[a-z]{2}-[a-z]+-\d-)?"


class NoPriceError(ValueError):
    """AWS returned no price, or several; the message is one line."""


@dataclass(frozen=True)
class Product:
    """Something that AWS sells, by its name on the bill."""

    service: str
    usage_type: str  # without the region in front
    attributes: dict[str, str] = field(default_factory=dict)  # where the usage type is not enough
    everywhere: bool = False  # at the same price, and in no region


LINUX = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "operation": "RunInstances",
}
OTHER = {
    "gp3_gib_month": Product("AmazonEC2", "EBS:VolumeUsage.gp3"),
    "public_ipv4_hour": Product("AmazonVPC", "PublicIPv4:InUseAddress"),
    "s3_standard_gib_month": Product(
        "AmazonS3", "TimedStorage-ByteHrs", {"volumeType": "Standard"}
    ),
    "s3_put_request": Product("AmazonS3", "Requests-Tier1", {"group": "S3-API-Tier1"}),
    "s3_get_request": Product("AmazonS3", "Requests-Tier2", {"group": "S3-API-Tier2"}),
    "ecr_gib_month": Product("AmazonECR", "TimedStorage-ByteHrs"),
    "log_storage_gib_month": Product("AmazonCloudWatch", "TimedStorage-ByteHrs"),
    "alarm_month": Product("AmazonCloudWatch", "CW:AlarmMonitorUsage"),
    "dashboard_month": Product("AmazonCloudWatch", "DashboardsUsageHour-Basic", everywhere=True),
    "kms_key_month": Product("awskms", "KMS-Keys"),
    "budget_action_day": Product("AWSBudgets", "ActionEnabledBudgetsUsage", everywhere=True),
    "sagemaker_volume_gib_month": Product("AmazonSageMaker", "Train:VolumeUsage.gp2"),
    "serverless_gib_second": Product("AmazonSageMaker", "ServerlessInf:Mem-1GB"),
}


def ask(pricing: "PricingClient", product: Product, region: str) -> float:
    """The price of one unit in US dollars. Raises NoPriceError when AWS has none, or several."""
    exact = product.attributes | ({} if product.everywhere else {"regionCode": region})
    filters: list[FilterTypeDef] = [
        {"Type": "CONTAINS", "Field": "usagetype", "Value": product.usage_type}
    ]
    for name, value in exact.items():
        filters.append({"Type": "TERM_MATCH", "Field": name, "Value": value})
    pages = pricing.get_paginator("get_products").paginate(
        ServiceCode=product.service, Filters=filters, FormatVersion="aws_v1"
    )
    found = {
        dollars
        for page in pages
        for text in page["PriceList"]
        for dollars in _first_paid_tier(json.loads(text), product)
    }
    if len(found) != 1:
        said = "no price" if not found else f"{len(found)} prices: {sorted(found)}"
        raise NoPriceError(f"{product.service} {product.usage_type} in {region}: {said}")
    return found.pop()


def _first_paid_tier(entry: dict[str, Any], product: Product) -> Iterator[float]:
    usage_type = entry["product"]["attributes"].get("usagetype", "")
    if not re.fullmatch(REGION_PREFIX + re.escape(product.usage_type), usage_type):
        return
    for term in entry["terms"].get("OnDemand", {}).values():
        tiers = sorted(
            (float(tier.get("beginRange", 0)), float(tier["pricePerUnit"]["USD"]))
            for tier in term["priceDimensions"].values()
            if "USD" in tier["pricePerUnit"]
        )
        yield from [dollars for _, dollars in tiers if dollars > 0][:1]
