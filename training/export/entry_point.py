"""The handlers for SageMaker's own containers, copied into model.tar.gz as code/inference.py.

The containers pass a context as one more argument if a handler has a parameter for it, so these
have none to spare.
"""

from serving.container import inference
from serving.container.artifact import Model
from serving.container.inference import Answers
from serving.container.questions import Questions


def model_fn(model_dir: str) -> Model:
    return inference.model_fn(model_dir)


def input_fn(body: bytes, content_type: str) -> Questions:
    return inference.input_fn(body, content_type)


def predict_fn(questions: Questions, model: Model) -> Answers:
    return inference.predict_fn(questions, model)


def output_fn(answers: Answers, accept: str) -> tuple[str, str]:
    return inference.output_fn(answers, accept)
