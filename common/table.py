"""Text tables and formats of numbers."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table with padded columns; columns of numbers are aligned to the right."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    numeric = [is_numeric(column[1:]) for column in columns]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [header, *rows]
    )


def is_numeric(cells: Sequence[str]) -> bool:
    """Whether every non-empty cell is a number, such as `-1,234.5`, `$0.01` or `+12 %`."""
    return all(
        cell.removesuffix(" %").lstrip("+-$").replace(",", "").replace(".", "", 1).isdigit()
        for cell in cells
        if cell
    )


def money(dollars: float) -> str:
    """Format dollars with four decimal places, as a run costs fractions of a cent."""
    return f"{dollars:,.4f}"


def decimal(value: float, places: int) -> str:
    """Format a number without trailing zeros, such as `0.000005` or `1,000`; `places` > 0."""
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".")
