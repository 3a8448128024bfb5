"""Spot prices of the past, weighted by how long each held."""

from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st

from costs.spot_prices import mean_price, spot_history

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
END = START + 2 * HOUR


def test_each_price_counts_as_long_as_it_held() -> None:
    changes = [(START - 5 * HOUR, 0.01), (START + HOUR / 2, 0.03), (START + HOUR, 0.05)]
    assert mean_price(changes, START, END) == pytest.approx((0.5 * 0.01 + 0.5 * 0.03 + 0.05) / 2)


def test_a_price_from_after_the_end_does_not_count() -> None:
    assert mean_price([(START - HOUR, 0.01), (END + HOUR, 9.0)], START, END) == pytest.approx(0.01)


def test_prices_that_held_before_the_start_do_not_count() -> None:
    changes = [(START - 2 * HOUR, 9.0), (START - HOUR, 0.02)]
    assert mean_price(changes, START, END) == pytest.approx(0.02)


def test_before_the_first_known_change_its_price_is_taken() -> None:
    assert mean_price([(START + HOUR, 0.04)], START, END) == pytest.approx(0.04)


def test_an_attempt_of_no_length_has_the_price_of_its_moment() -> None:
    changes = [(START - HOUR, 0.01), (START + HOUR, 0.02)]
    assert mean_price(changes, START, START) == 0.01


@given(
    st.lists(st.tuples(st.integers(-500, 500), st.floats(0.001, 10)), min_size=1, max_size=9),
    st.integers(1, 300),
)
def test_the_mean_lies_between_the_lowest_and_the_highest_price(
    minutes: list[tuple[int, float]], length: int
) -> None:
    changes = sorted((START + timedelta(minutes=after), price) for after, price in minutes)
    mean = mean_price(changes, START, START + timedelta(minutes=length))
    prices = [price for _, price in changes]
    assert min(prices) * 0.999999 <= mean <= max(prices) * 1.000001


def test_the_history_is_sorted_by_zone_and_time() -> None:
    ec2 = boto3.client("ec2", region_name="us-east-1")

    def entry(zone: str, after: timedelta, price: str) -> dict[str, object]:
        return {"AvailabilityZone": zone, "Timestamp": START + after, "SpotPrice": price}

    with Stubber(ec2) as stub:
        asked = {
            "InstanceTypes": ["c7i.large"],
            "ProductDescriptions": ["Linux/UNIX"],
            "StartTime": START,
            "EndTime": END,
            "Filters": [],
        }
        page = [entry("us-east-1b", HOUR, "0.03"), entry("us-east-1a", HOUR, "0.02")]
        more = [entry("us-east-1b", -HOUR, "0.01")]
        answer = {"SpotPriceHistory": page, "NextToken": "more"}
        stub.add_response("describe_spot_price_history", answer, asked)
        stub.add_response(
            "describe_spot_price_history", {"SpotPriceHistory": more}, asked | {"NextToken": "more"}
        )
        history = spot_history(ec2, "c7i.large", START, END)
    assert history == {
        "us-east-1a": [(START + HOUR, 0.02)],
        "us-east-1b": [(START - HOUR, 0.01), (START + HOUR, 0.03)],
    }
