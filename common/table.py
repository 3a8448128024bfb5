"""Tables of text."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; columns of numbers are set to the right."""
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
    """Whether every cell that is not empty is a number, such as `-1,234.5`, `$0.01` or `+12 %`."""
    return all(
        cell.removesuffix(" %").lstrip("+-$").replace(",", "").replace(".", "", 1).isdigit()
        for cell in cells
        if cell
    )


def money(dollars: float) -> str:
    """Dollars to four places, as a run costs fractions of a cent."""
    return f"{dollars:,.4f}"


def decimal(value: float, places: int) -> str:
    """A number without the zeros at its end, such as `0.000005` or `1,000`; `places` > 0."""
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".")
