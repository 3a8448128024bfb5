"""What the servers did, as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.training.measure import Measured, Range, range_of
from benchmarks.training.report import in_words, number, table

WITHOUT_SERVER = " without a server"


@dataclass(frozen=True, kw_only=True)
class Result:
    """All runs, and what the servers take on disk."""

    runs: Mapping[int, Mapping[str, Sequence[Measured]]]  # clients → server → one run a round
    reference: str  # the server that the others are compared with
    disk: Mapping[str, float]  # MB of software, by server
    models: Mapping[str, float]  # MB of our model's files


def describe(result: Result) -> str:
    """A table for each number of clients, and one of what does not depend on it."""
    texts = [
        f"### {clients} client{'s' if clients > 1 else ''}\n\n{_speeds(runs, result.reference)}"
        for clients, runs in result.runs.items()
    ]
    first = next(iter(result.runs.values()))
    rows = [
        [server, in_words(_facts(first[server], "first answer s")), number(megabytes)]
        for server, megabytes in result.disk.items()
    ]
    texts.append(f"### Start and size\n\n{table(['', 'first answer, s', 'software, MB'], rows)}")
    texts.append(
        "Our model's files: "
        + ", ".join(f"{name} {number(megabytes)} MB" for name, megabytes in result.models.items())
    )
    return "\n\n".join(texts)


def _speeds(runs: Mapping[str, Sequence[Measured]], reference: str) -> str:
    rows = [
        [
            server,
            in_words(range_of([run.rate for run in mine])),
            "1" if server == reference else in_words(_ratios(mine, runs[reference])),
            in_words(_facts(mine, "p50 ms")),
            in_words(_facts(mine, "p99 ms")),
            in_words(_facts(mine, "MB")) if "MB" in mine[0].facts else "",
            _share_of_bare(server, runs),
        ]
        for server, mine in runs.items()
    ]
    heading = [
        "",
        "photos/s",
        f"× {reference}",
        "p50, ms",
        "p99, ms",
        "memory, MB",
        "server's cost",
    ]
    return table(heading, rows)


def _share_of_bare(server: str, runs: Mapping[str, Sequence[Measured]]) -> str:
    """How much fewer photos than the same work without a server, where that was measured."""
    without = runs.get(server.removeprefix("ours, ") + WITHOUT_SERVER)
    if not server.startswith("ours, ") or not without:
        return ""
    shares = _ratios(runs[server], without)
    median, least, most = (
        100 * (1 - share) for share in (shares.median, shares.most, shares.least)
    )
    return f"{median:.0f} % ({least:.0f}–{most:.0f})"


def _facts(runs: Sequence[Measured], name: str) -> Range:
    return range_of([run.facts[name] for run in runs])


def _ratios(mine: Sequence[Measured], others: Sequence[Measured]) -> Range:
    """Within each round: what slows a machine down slows neighbours in time."""
    return range_of([run.rate / other.rate for run, other in zip(mine, others, strict=True)])
