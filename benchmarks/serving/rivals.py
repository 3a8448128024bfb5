"""Plain servers around eager PyTorch, as their tutorials write them: FastAPI and Ray Serve.

    python -m benchmarks.serving.rivals fastapi weights.pth --port 8081

Ends with SIGTERM.
"""

import argparse
import io
import signal
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import transforms

from benchmarks.serving.network import CLASSES, ResNet50

LABELS = [str(count) for count in range(1, CLASSES + 1)]


class Network:
    """The bytes of a photo → the probability of each label."""

    def __init__(self, weights: Path) -> None:
        self._network = ResNet50()
        self._network.load_state_dict(torch.load(weights, weights_only=True))
        self._network.eval()
        self._preprocess = transforms.Compose(
            [
                transforms.Resize((224, 224)),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    @torch.inference_mode()
    def answer(self, photo: bytes) -> dict[str, float]:
        image = Image.open(io.BytesIO(photo)).convert("RGB")
        logits = self._network(self._preprocess(image).unsqueeze(0))
        return dict(zip(LABELS, torch.softmax(logits, 1)[0].tolist(), strict=True))


def serve_fastapi(weights: Path, port: int) -> None:
    """A function of one photo in FastAPI's thread pool."""
    import uvicorn
    from fastapi import Body, FastAPI

    network, app = Network(weights), FastAPI()

    def predict(photo: bytes = Body(media_type="image/jpeg")) -> dict[str, float]:
        return network.answer(photo)

    app.post("/predict")(predict)

    uvicorn.run(app, port=port, log_level="warning")


def serve_ray(weights: Path, port: int) -> None:
    """Two replicas, each with a core of its own."""
    import ray
    from ray import serve

    class Predict:
        def __init__(self) -> None:
            self._network = Network(weights)

        async def __call__(self, request: Any) -> dict[str, float]:
            return self._network.answer(await request.body())

    ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = serve.deployment(num_replicas=2, ray_actor_options={"num_cpus": 1})
    serve.run(deployment(Predict).bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


SERVERS = {"fastapi": serve_fastapi, "ray": serve_ray}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.rivals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("weights", type=Path, help="a state dict of ResNet50 with five classes")
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()
    SERVERS[args.server](args.weights, args.port)
