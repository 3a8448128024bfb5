"""Predictions of the endpoint for some test photos."""

import base64
from dataclasses import dataclass

from common.dataset import Dataset
from serving.client.predictor import ImagePredictor
from serving.container.inference import Prediction


@dataclass(frozen=True)
class Sample:
    """A test photo, its true count, and the endpoint's prediction."""

    photo_id: str
    jpeg: bytes
    truth: int
    prediction: Prediction

    @property
    def data_url(self) -> str:
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg).decode()}"


def ask_endpoint(endpoint: str, dataset: Dataset, *, per_count: int) -> list[Sample]:
    """Ask the endpoint about the first test photos of each count."""
    predictor = ImagePredictor(endpoint=endpoint)
    chosen: dict[int, list[Sample]] = {count: [] for count in dataset.counts}
    for photo in dataset.photos("test"):
        if len(chosen[photo.count]) < per_count:
            answer = predictor.predict(photo.jpeg)
            chosen[photo.count].append(Sample(photo.id, photo.jpeg, photo.count, answer))
    return [sample for samples in chosen.values() for sample in samples]
