"""Costs of a serverless and of a real-time endpoint, as a function of the calls a day."""

from dataclasses import dataclass

from common.table import decimal, table
from costs.estimate import HOURS_PER_MONTH
from costs.prices import Price, Prices

DAYS_PER_MONTH = HOURS_PER_MONTH / 24
CALLS_A_DAY = [10.0**power for power in range(7)]  # 1 to 1,000,000
# One photo through ResNet50 in ONNX Runtime takes 0.043 s on one core (47/s on two, measured in
# November 2026); the rest is for decoding and for slower vCPUs.
CALL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class EndpointCosts:
    """What both kinds of endpoint cost, in US dollars.

    Data in and out costs the same with both and is left out, as are cold starts and the disk of
    the real-time machine.
    """

    call_seconds: float  # of computing for one photo
    memory_mb: int  # of the serverless endpoint
    instance_type: str  # of the real-time endpoint
    prices: Prices

    @property
    def serverless(self) -> Price:
        """A second with 1 GiB of memory."""
        return self.prices.other["serverless_gib_second"]

    @property
    def realtime(self) -> Price:
        """An hour of the machine. Raises PriceError for a machine type without a price."""
        return self.prices.sagemaker_hour(self.instance_type, "hosting")

    @property
    def call(self) -> float:
        """One call of the serverless endpoint."""
        return self.call_seconds * self.memory_mb / 1024 * self.serverless.dollars

    @property
    def month(self) -> float:
        """A month of the real-time endpoint, whether it is called or not."""
        return self.realtime.dollars * HOURS_PER_MONTH

    def serverless_month(self, calls_a_day: float) -> float:
        return calls_a_day * DAYS_PER_MONTH * self.call

    @property
    def break_even(self) -> float:
        """Calls a day from which real-time is cheaper."""
        return self.month / DAYS_PER_MONTH / self.call


def print_endpoint(costs: EndpointCosts) -> None:
    """The second half of what `python -m costs compare` shows."""
    type, seconds = costs.instance_type, costs.call_seconds
    rows = [
        [
            f"{calls:,.0f}",
            f"{costs.serverless_month(calls):,.2f}",
            f"{costs.month:,.2f}",
            "serverless" if calls < costs.break_even else "real-time",
        ]
        for calls in CALLS_A_DAY
    ]
    print(f"The endpoint: serverless with {costs.memory_mb} MB, or real-time on one {type}\n")
    print(table(["calls a day", "serverless, $ a month", "real-time, $ a month", "cheaper"], rows))
    print(
        f"\nbreak-even: {costs.break_even:,.0f} calls a day, which keep one machine busy for "
        f"{costs.break_even * seconds / 3600:.0f} hours of computing"
    )
    print(
        f"basis: {seconds:g} s a call (--call-seconds); without cold starts, data in and out "
        "(the same for both), and the machine's disk"
    )
    gib_second, hour = costs.serverless, costs.realtime
    print(f"source: serverless {decimal(gib_second.dollars, 7)} a GiB-second: {gib_second.basis}")
    print(f"source: {type} {hour.dollars:g} an hour: {hour.basis}")
