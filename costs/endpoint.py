"""The endpoint, serverless against real-time, as a function of calls a day."""

from dataclasses import dataclass

from common.table import decimal, table
from costs.estimate import HOURS_PER_MONTH
from costs.prices import Prices

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

    call: float  # one call of the serverless endpoint
    month: float  # the real-time endpoint, called or not

    @classmethod
    def of(
        cls, *, call_seconds: float, memory_mb: int, instance_type: str, prices: Prices
    ) -> "EndpointCosts":
        """Raises PriceError for a machine type without a price."""
        gib_seconds = call_seconds * memory_mb / 1024
        return cls(
            call=gib_seconds * prices.other["serverless_gib_second"].dollars,
            month=prices.sagemaker_hour(instance_type, "hosting").dollars * HOURS_PER_MONTH,
        )

    def serverless_month(self, calls_a_day: float) -> float:
        return calls_a_day * DAYS_PER_MONTH * self.call

    @property
    def break_even(self) -> float:
        """Calls a day from which real-time is cheaper."""
        return self.month / DAYS_PER_MONTH / self.call


def print_endpoint(
    *, call_seconds: float, memory_mb: int, instance_type: str, prices: Prices
) -> None:
    """The second half of what `python -m costs compare` shows."""
    costs = EndpointCosts.of(
        call_seconds=call_seconds, memory_mb=memory_mb, instance_type=instance_type, prices=prices
    )
    serverless = prices.other["serverless_gib_second"]
    realtime = prices.sagemaker_hour(instance_type, "hosting")
    rows = [
        [
            f"{calls:,.0f}",
            f"{costs.serverless_month(calls):,.2f}",
            f"{costs.month:,.2f}",
            "serverless" if calls < costs.break_even else "real-time",
        ]
        for calls in CALLS_A_DAY
    ]
    print(f"The endpoint: serverless with {memory_mb} MB, or real-time on one {instance_type}\n")
    print(table(["calls a day", "serverless, $ a month", "real-time, $ a month", "cheaper"], rows))
    print(
        f"\nbreak-even: {costs.break_even:,.0f} calls a day, which keep one machine busy for "
        f"{costs.break_even * call_seconds / 3600:.0f} hours of computing"
    )
    print(
        f"basis: {call_seconds:g} s a call (--call-seconds); without cold starts, data in and out "
        "(the same for both), and the machine's disk"
    )
    print(f"source: serverless {decimal(serverless.dollars, 7)} a GiB-second: {serverless.basis}")
    print(f"source: {instance_type} {realtime.dollars:g} an hour: {realtime.basis}")
