"""What the log says of a measurement, and SageMaker reads there."""

import re

from hypothesis import given
from hypothesis import strategies as st

from training.learn.metric_line import METRICS, OBJECTIVE, metric_definitions, metric_line

LOSSES = st.floats(1e-6, 1e6)


def read(log: str) -> dict[str, list[float]]:
    """As CloudWatch does: each metric's values, by its regular expression's first group."""
    return {
        each["Name"]: [float(value) for value in re.findall(each["Regex"], log)]
        for each in metric_definitions()
    }


def measured(epoch: int, loss: float, validation_loss: float) -> dict[str, float]:
    return {
        "epoch": epoch,
        "step": epoch * 10,
        "learning_rate": 1e-3,
        "train_loss": loss,
        "validation_loss": validation_loss,
        "validation_accuracy": 0.25,
        "photos_per_second": 41.5,
    }


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=5))
def test_every_number_is_read_where_it_was_written(losses: list[tuple[float, float]]) -> None:
    history = [measured(epoch, *pair) for epoch, pair in enumerate(losses, start=1)]
    log = "\n".join(metric_line(history[:end]) for end in range(1, len(history) + 1))
    found = read(f"loading\n{log}\nthe end\n")
    assert found["train:loss"] == [loss for loss, _ in losses]
    assert found["validation:loss"] == [loss for _, loss in losses]
    assert found["validation:accuracy"] == [0.25] * len(losses)
    assert found[OBJECTIVE] == [
        min(loss for _, loss in losses[:end]) for end in range(1, len(losses) + 1)
    ]


def test_what_was_not_measured_is_left_out() -> None:
    line = measured(1, 2.0, 3.0)
    del line["photos_per_second"]
    assert "photos_per_second" not in metric_line([line])


def test_metrics_are_named_and_matched_as_sagemaker_allows() -> None:
    # docs.aws.amazon.com/sagemaker/latest/APIReference/API_MetricDefinition.html
    for each in metric_definitions():
        assert re.fullmatch(r".{1,255}", each["Name"])
        assert 1 <= len(each["Regex"]) <= 500
        assert re.compile(each["Regex"]).groups == 1
    assert len(METRICS) <= 40
