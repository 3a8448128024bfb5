"""The endpoint, serverless against real-time, in a table and in a chart."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from costs.__main__ import main
from costs.endpoint import EndpointCosts
from costs.prices import load_prices

PRICES = load_prices()


def costs(call_seconds: float = 0.1, memory_mb: int = 2048) -> EndpointCosts:
    return EndpointCosts(
        call_seconds=call_seconds,
        memory_mb=memory_mb,
        instance_type="ml.m5.large",
        prices=PRICES,
    )


def test_a_call_costs_its_seconds_times_its_memory() -> None:
    price = PRICES.other["serverless_gib_second"].dollars
    assert costs(0.5, 3072).call == pytest.approx(0.5 * 3 * price)
    assert costs().serverless_month(1000) == pytest.approx(1000 * 365 / 12 * 0.2 * price)


def test_a_real_time_endpoint_costs_its_hours_called_or_not() -> None:
    assert costs().month == pytest.approx(PRICES.sagemaker_hosting["ml.m5.large"].dollars * 730)


@given(call_seconds=st.floats(0.001, 60), memory_gib=st.integers(1, 6))
def test_both_cost_the_same_at_the_break_even(call_seconds: float, memory_gib: int) -> None:
    some = costs(call_seconds, 1024 * memory_gib)
    assert some.serverless_month(some.break_even) == pytest.approx(some.month)
    assert some.serverless_month(some.break_even / 2) < some.month


def test_the_table_says_which_is_cheaper_at_how_many_calls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["compare", "--seconds", "600", "--call-seconds", "0.1"])
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[-1] for line in printed.splitlines() if line.strip()}
    assert [rows[calls] for calls in ("1", "10", "100", "1,000")] == ["serverless"] * 4
    assert f"break-even: {costs().break_even:,.0f} calls a day" in printed
    assert "basis: 0.1 s a call" in printed
    assert PRICES.sagemaker_hosting["ml.m5.large"].basis in printed


def test_longer_calls_make_real_time_pay_sooner(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "--seconds", "600", "--call-seconds", "10", "--memory-mb", "4096"])
    printed = capsys.readouterr().out
    assert "4096 MB" in printed
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert [
        "10,000",
        f"{costs(10, 4096).serverless_month(1e4):.2f}",
        f"{costs().month:.2f}",
        "real-time",
    ] in rows


def test_the_chart_is_a_picture_with_something_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "costs.png"
    main(["compare", "--seconds", "600", "--chart", str(file)])
    with Image.open(file) as picture:
        assert picture.width > picture.height > 500
        counts = {colour: n for n, colour in picture.convert("RGB").getcolors(2**24)}
    # Both lines go through the whole chart, four pixels thick; words are much less.
    assert counts[0x1F, 0x77, 0xB4] > 2500
    assert counts[0xD9, 0x5F, 0x02] > 2500
    assert str(file) in capsys.readouterr().out


@pytest.mark.parametrize("name", ["costs.docx", "no/such/folder/costs.png"])
def test_a_chart_that_cannot_be_written_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--seconds", "600", "--chart", str(tmp_path / name)])
    error = capsys.readouterr().err
    assert error.startswith("error: --chart")
    assert error.count("\n") == 1
