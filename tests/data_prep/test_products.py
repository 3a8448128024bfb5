"""What a record says of its products, whatever state it is in."""

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.products import INCHES, MOST, POUNDS, UNITS, Product, read_products

WHOLE = {
    "asin": "B000C33MI2",
    "name": "FRAM XG7317 ULTRA Spin-On Oil Filter",
    "quantity": 4,
    "length": {"unit": "IN", "value": 3.90157479917},
    "width": {"unit": "IN", "value": 2.90157480019},
    "height": {"unit": "IN", "value": 2.79921259557},
    "weight": {"unit": "pounds", "value": 0.3000050461296},
}


def read(*entries: Any, count: int = 4) -> tuple[list[Product], Counter[str]]:
    keyed = {f"B{number:09d}": entry for number, entry in enumerate(entries)}
    return read_products(json.dumps({"EXPECTED_QUANTITY": count, "BIN_FCSKU_DATA": keyed}).encode())


def test_a_whole_entry_is_read_in_inches_and_pounds() -> None:
    products, problems = read(WHOLE)
    assert products == [
        {
            "asin": "B000C33MI2",
            "quantity": 4,
            "length": 3.902,
            "width": 2.902,
            "height": 2.799,
            "weight": 0.3,
        }
    ]
    assert not problems


def test_products_are_in_the_order_of_their_asins_and_asins_stay_text() -> None:
    entries = [WHOLE | {"asin": asin, "quantity": 1} for asin in ("0002", "B1", "0001", "2")]
    assert [product["asin"] for product in read(*entries)[0]] == ["0001", "0002", "2", "B1"]


@pytest.mark.parametrize(
    ("name", "value", "unit", "expected"),
    [
        ("length", 25.4, "CM", 10.0),
        ("width", 254, "millimetres", None),
        ("width", 254, "mm", 10.0),
        ("height", 0.254, "M", 10.0),
        ("weight", 8, " Ounces ", 0.5),
        ("weight", 453.59237, "g", 1.0),
        ("weight", 2, "kilograms", 4.409),
        ("weight", 2, "IN", None),
        ("length", 2, "pounds", None),
        ("length", 2, None, None),
    ],
)
def test_other_units_are_converted_and_unknown_ones_counted(
    name: str, value: float, unit: str | None, expected: float | None
) -> None:
    products, problems = read(WHOLE | {name: {"unit": unit, "value": value}})
    assert products[0].get(name) == expected
    assert problems == ({} if expected else {f"{name} in an unknown unit": 1})


@pytest.mark.parametrize("value", [0, -1.5, 1e9, 10**400, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", UNITS)
def test_values_that_cannot_be_are_left_out_and_counted(name: str, value: Any) -> None:
    products, problems = read(WHOLE | {name: {"unit": WHOLE[name]["unit"], "value": value}})
    assert name not in products[0]
    assert problems == {f"{name} out of range": 1}


@pytest.mark.parametrize("value", ["3", [3], True])
@pytest.mark.parametrize("name", UNITS)
def test_values_that_are_no_numbers_are_left_out_and_counted(name: str, value: Any) -> None:
    products, problems = read(WHOLE | {name: {"unit": WHOLE[name]["unit"], "value": value}})
    assert name not in products[0]
    assert problems == {f"{name} is no number": 1}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("measure", [None, {}, 3.0, "3 IN", {"unit": "IN"}, {"value": None}])
def test_missing_values_are_left_out_and_counted(name: str, measure: Any) -> None:
    products, problems = read(WHOLE | {name: measure})
    assert name not in products[0]
    assert problems == {f"{name} missing": 1}


@pytest.mark.parametrize("quantity", [None, 0, -1, 2.5, "4", True])
def test_a_quantity_that_is_no_number_of_items_is_left_out_and_counted(quantity: Any) -> None:
    products, problems = read(WHOLE | {"quantity": quantity})
    assert "quantity" not in products[0]
    assert problems == {"quantity missing or wrong": 1}


def test_quantities_that_do_not_add_up_are_counted() -> None:
    assert read(WHOLE, WHOLE, count=8)[1] == {}
    assert read(WHOLE, WHOLE, count=7)[1] == {"quantities that do not add up to the count": 1}


@pytest.mark.parametrize("metadata", ["{}", '{"BIN_FCSKU_DATA": null}', '{"BIN_FCSKU_DATA": []}'])
def test_a_record_without_products_has_none(metadata: str) -> None:
    assert read_products(metadata.encode()) == ([], Counter())


def test_a_group_of_one_s_own_photos_is_no_product() -> None:
    assert read({}) == ([], Counter())


def test_what_is_no_product_is_counted() -> None:
    assert read("a product", None, 3) == ([], Counter({"product without any field": 3}))


def test_a_product_whose_asin_is_not_known_has_none() -> None:
    products, problems = read({"asin": None, "quantity": 4})
    assert products == [{"quantity": 4}]
    assert problems["asin missing"] == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
MEASURES = st.fixed_dictionaries(
    {}, optional={"unit": st.sampled_from([*INCHES, *POUNDS, "IN"]) | ANYTHING, "value": ANYTHING}
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "asin": ANYTHING,
        "quantity": st.integers() | ANYTHING,
        **dict.fromkeys(UNITS, MEASURES | ANYTHING),
    },
)


@given(st.lists(ENTRIES | ANYTHING, max_size=4), st.integers())
def test_whatever_the_record_a_label_holds_only_what_can_be(entries: list[Any], count: int) -> None:
    products, _ = read(*entries, count=count)
    assert json.loads(json.dumps(products, allow_nan=False)) == products
    for product in products:
        assert isinstance(product.get("asin", ""), str)
        assert product.get("quantity", 1) >= 1
        for name, most in MOST.items():
            assert 0 < product.get(name, 1.0) <= most
