"""A photo → a count: SageMaker's four handlers, independent of any server or framework.

    model_fn(folder) → model          once, at startup
    input_fn(body, content_type) → questions
    predict_fn(questions, model) → predictions
    output_fn(predictions, accept) → body, content type

Only ONNX Runtime, Pillow and NumPy are needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.container.artifact import Model, load_model
from serving.container.decision import decide
from serving.container.preprocess import PhotoError, to_pixels
from serving.container.questions import Question, Questions, RequestError, of_photo, read_questions

ANSWER_TYPES = ("application/json", "text/csv")
BATCH = 8  # photos of a request in one call of the network; more only take more memory
# A record less probable than this should be reviewed. The most probable of five counts is never
# below it, so with argmax, photos without a record are marked for review only at a higher limit.
REVIEW_BELOW = 0.1


@dataclass(frozen=True)
class Prediction:
    """The model's answer for one photo."""

    count: int  # the number of items that the model's decision rule chooses
    mean: float  # of the distribution, in items
    probabilities: dict[str, float]  # by label; they sum to 1


@dataclass(frozen=True)
class Answer:
    """A prediction, and what it means for the inventory record."""

    prediction: Prediction
    agreement: float | None  # the probability that the record is right; None without a record
    review: bool  # whether a person should check


@dataclass(frozen=True)
class Answers:
    """One answer for each photo of a request, in the same order."""

    answers: Sequence[Answer]
    many: bool  # the request was a list, so the response is one


def model_fn(model_dir: str | Path) -> Model:
    """Load the model folder and run a warm-up. Raises ModelError."""
    return load_model(model_dir)


def input_fn(body: bytes, content_type: str | None, record: int | None = None) -> Questions:
    """Parse the request; `record` is the inventory record of photos without one of their own.

    Raises RequestError (400, 413, 415).
    """
    return read_questions(body, content_type, record)


def predict_fn(questions: Questions, model: Model, review_below: float = REVIEW_BELOW) -> Answers:
    """Count the items in each photo. Raises RequestError (400), which names the photo.

    An answer asks for a review if its record, or without one its count, is less probable than
    `review_below`.
    """
    asked, answers = questions.asked, []
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        pixels = []
        for number, question in enumerate(batch, start=start + 1):
            try:
                pixels.append(to_pixels(question.photo, model.size))
            except PhotoError as error:
                if questions.many:
                    raise of_photo(number, len(asked), error) from error
                raise RequestError(400, str(error)) from error
        for question, prediction in zip(batch, predict(np.stack(pixels), model), strict=True):
            answers.append(_answer(question, prediction, review_below))
    return Answers(answers, questions.many)


def count_photo(photo: bytes, model: Model) -> Prediction:
    """The prediction for one photo. Raises RequestError (400) if it cannot be read."""
    (answer,) = predict_fn(Questions([Question(photo)], many=False), model).answers
    return answer.prediction


def predict(pixels: NDArray[np.uint8], model: Model) -> list[Prediction]:
    """The predictions for pixels [N, size, size, 3]."""
    probabilities = model.probabilities(pixels)
    counts = decide(probabilities, model.counts, model.decision)
    means = probabilities @ np.array(model.counts, np.float32)
    return [
        Prediction(
            count=int(counts[row]),
            mean=round(float(means[row]), 4),
            probabilities={
                label: round(share, 6)
                for label, share in zip(model.labels, probabilities[row].tolist(), strict=True)
            },
        )
        for row in range(len(pixels))
    ]


def agreement(prediction: Prediction, record: int) -> float:
    """The probability that `record` is right; 0 for a count that is none of the labels."""
    return prediction.probabilities.get(str(record), 0.0)


def _answer(question: Question, prediction: Prediction, review_below: float) -> Answer:
    if question.record is None:
        sure = prediction.probabilities[str(prediction.count)]
        return Answer(prediction, None, sure < review_below)
    agreed = agreement(prediction, question.record)
    return Answer(prediction, agreed, agreed < review_below)


def output_fn(answers: Answers, accept: str | None) -> tuple[str, str]:
    """Write the answers in the format that the client accepts; returns body and content type.

    JSON: {"count", "mean", "probabilities"}, with a record also "agreement" and "review", and
    without one "review" if it is true; a list if the request was one. CSV: a row for each photo,
    without header: count, mean, each label's probability, agreement (empty without a record),
    review. Raises RequestError (406).
    """
    content_type = answer_type(accept)
    if content_type == "application/json":
        found = [_object(answer) for answer in answers.answers]
        return json.dumps(found if answers.many else found[0]), content_type
    return "".join(f"{_row(answer)}\n" for answer in answers.answers), content_type


def answer_type(accept: str | None) -> str:
    """The first of ANSWER_TYPES that suits an Accept header (RFC 9110, without q ranking)."""
    wanted = [part.partition(";")[0].strip().lower() for part in (accept or "*/*").split(",")]
    for pattern in wanted:
        for known in ANSWER_TYPES:
            if pattern in (known, known.partition("/")[0] + "/*", "*/*"):
                return known
    allowed = ", ".join(ANSWER_TYPES)
    raise RequestError(406, f"accept {accept!r:.80} cannot be answered, accept one of {allowed}")


def _object(answer: Answer) -> dict[str, Any]:
    found = dict(vars(answer.prediction))
    if answer.agreement is not None:
        found["agreement"] = answer.agreement
    if answer.review or answer.agreement is not None:
        found["review"] = answer.review
    return found


def _row(answer: Answer) -> str:
    said = answer.prediction
    cells: list[Any] = [said.count, said.mean, *said.probabilities.values()]
    agreed = "" if answer.agreement is None else answer.agreement
    return ",".join(map(str, [*cells, agreed, str(answer.review).lower()]))
