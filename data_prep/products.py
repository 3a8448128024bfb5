"""The products of a bin's record, from its metadata to the label of its photo.

Lengths are in inches, weights in pounds; what the record does not say is absent.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypedDict

# Units of the public bucket are IN and pounds; the others are those of systems that export both.
INCHES = {"in": 1.0, "inch": 1.0, "inches": 1.0, "mm": 1 / 25.4, "cm": 1 / 2.54, "m": 100 / 2.54}
POUNDS = {
    **dict.fromkeys(("pound", "pounds", "lb", "lbs"), 1.0),
    **dict.fromkeys(("ounce", "ounces", "oz"), 1 / 16),
    **dict.fromkeys(("gram", "grams", "g"), 1 / 453.59237),
    **dict.fromkeys(("kilogram", "kilograms", "kg"), 1000 / 453.59237),
}
UNITS = {"length": INCHES, "width": INCHES, "height": INCHES, "weight": POUNDS}
# No bin holds more; the public bucket's products reach 27 inches and 24 pounds.
MOST = {"length": 100.0, "width": 100.0, "height": 100.0, "weight": 200.0}
DECIMALS = 3  # of an inch or a pound


class Product(TypedDict, total=False):
    """One product of a record; what is unknown is absent."""

    asin: str  # text, also where it is made of digits
    quantity: int  # at least 1
    length: float  # inches, as width and height
    width: float
    height: float
    weight: float  # pounds, of one item


def read_products(metadata: bytes) -> tuple[list[Product], Counter[str]]:
    """Read the products of valid metadata, in the order of their ASINs.

    Also counts what is left out, such as `weight missing`, and records whose quantities do not add
    up to their count. An empty entry is a group of the user's own photos, and no product.
    """
    record = json.loads(metadata)
    entries = record.get("BIN_FCSKU_DATA")
    entries = entries if isinstance(entries, dict) else {}
    problems: Counter[str] = Counter()
    keys = sorted((asin_of(key, entry), key) for key, entry in entries.items() if entry != {})
    products = [
        _read_product(asin, entries[key], problems)
        for asin, key in keys
        if isinstance(entries[key], dict)
    ]
    problems["product without any field"] += len(keys) - len(products)
    quantities = [product.get("quantity") for product in products]
    known = [quantity for quantity in quantities if quantity is not None]
    if products and len(known) == len(products) and sum(known) != record["EXPECTED_QUANTITY"]:
        problems["quantities that do not add up to the count"] += 1
    return products, +problems  # without those that are none


def to_entry(product: Product) -> dict[str, Any]:
    """The entry of BIN_FCSKU_DATA from which `read_products` reads this product."""
    entry: dict[str, Any] = {"asin": product.get("asin")}
    for name, value in product.items():
        if name in UNITS:
            entry[name] = {"unit": "pounds" if name == "weight" else "IN", "value": value}
        elif name == "quantity":
            entry[name] = value
    return entry


def asin_of(key: str, entry: object) -> str:
    """The ASIN of an entry of BIN_FCSKU_DATA, whose key may be a seller's number instead."""
    asin = entry.get("asin") if isinstance(entry, dict) else None
    return asin if isinstance(asin, str) and asin else key


def _read_product(asin: str, entry: dict[str, Any], problems: Counter[str]) -> Product:
    product = Product()
    if entry.get("asin", asin) is None:
        problems["asin missing"] += 1
    else:
        product["asin"] = asin
    quantity = entry.get("quantity")
    if isinstance(quantity, int) and not isinstance(quantity, bool) and quantity > 0:
        product["quantity"] = quantity
    else:
        problems["quantity missing or wrong"] += 1
    product.update(_read_measures(entry, problems))  # type: ignore[typeddict-item]
    return product


def _read_measures(entry: dict[str, Any], problems: Counter[str]) -> Iterator[tuple[str, float]]:
    for name, units in UNITS.items():
        measure = entry.get(name)
        value = measure.get("value") if isinstance(measure, dict) else None
        unit = measure.get("unit") if isinstance(measure, dict) else None
        factor = units.get(unit.strip().lower()) if isinstance(unit, str) else None
        if value is None:
            problems[f"{name} missing"] += 1
        elif factor is None:
            problems[f"{name} in an unknown unit"] += 1
        elif isinstance(value, bool) or not isinstance(value, int | float):
            problems[f"{name} is no number"] += 1
        elif not 0 < value <= MOST[name] / factor:  # NaN as well
            problems[f"{name} out of range"] += 1
        else:
            yield name, min(max(round(value * factor, DECIMALS), 10**-DECIMALS), MOST[name])
