import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import Tensor, nn

from data_prep.weights import save_weights
from training.learn.model import (
    Backbone,
    Counter,
    Ensemble,
    Head,
    Network,
    WeightsError,
    export_onnx,
    fold_batch_norm,
    keep_depthwise_in_float32,
    load_backbone,
    load_matching,
    make_ensemble,
)

SIZE = 12
NAMES = ("pixels", "probabilities")


class TinyBackbone(nn.Module):
    """Pixels, uint8 [N, size, size, 3] → features, float32 [N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels.permute(0, 3, 1, 2) / 255).mean((2, 3))
        return features


def random_pixels(photos: int, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(photos)
    return torch.randint(256, (photos, size, size, 3), dtype=torch.uint8, generator=generator)


def counter(backbone: nn.Module, features: int) -> Counter:
    torch.manual_seed(0)
    head = Head(features, classes=5, hidden=8, dropout=0.5)
    head.standardise(torch.randn(50, features) * 0.1)
    return Counter(Network(backbone, head)).eval()  # type: ignore[arg-type]


def onnx_answers(file: Path, pixels: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (answers,) = session.run([NAMES[1]], {NAMES[0]: pixels.numpy()})
    return np.asarray(answers)


@pytest.fixture(scope="module")
def tiny() -> Counter:
    return counter(TinyBackbone(), features=6)


@pytest.fixture(scope="module")
def exported(tiny: Counter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "model.onnx"
    tiny.train()  # as training leaves it: the export must not carry dropout along
    export_onnx(tiny, random_pixels(2), file, names=NAMES)
    return file


@pytest.mark.parametrize("photos", [1, 2, 5])
def test_the_onnx_file_answers_as_pytorch_for_any_number_of_photos(
    tiny: Counter, exported: Path, photos: int
) -> None:
    pixels = random_pixels(photos)
    with torch.inference_mode():
        expected = tiny.eval()(pixels).numpy()
    answers = onnx_answers(exported, pixels)
    assert answers.shape == (photos, 5)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    np.testing.assert_allclose(answers.sum(axis=1), 1, atol=1e-5)
    assert answers.std() > 1e-3


class Depthwise(nn.Module):
    """What EfficientNet has: a depthwise convolution, BatchNorm, an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels.permute(0, 3, 1, 2) / 255).mean((2, 3))
        return features


def test_a_fine_tuned_network_is_exported_with_its_batch_norm_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    network = Depthwise()
    batch_norm = network.layers[1]
    assert isinstance(batch_norm, nn.BatchNorm2d)
    nn.init.uniform_(batch_norm.running_mean, 0.1, 0.5)
    nn.init.uniform_(batch_norm.weight, 2, 3)
    keep_depthwise_in_float32(network)
    pixels = random_pixels(3)
    with torch.inference_mode():
        expected = network.eval()(pixels).numpy()
    export_onnx(network, pixels, tmp_path / "model.onnx", names=NAMES)
    np.testing.assert_allclose(onnx_answers(tmp_path / "model.onnx", pixels), expected, atol=1e-5)
    with torch.inference_mode():
        np.testing.assert_array_equal(network(pixels).numpy(), expected)


def test_the_onnx_file_takes_bytes_and_stands_alone(exported: Path) -> None:
    (entry,) = onnxruntime.InferenceSession(str(exported)).get_inputs()
    assert (entry.name, entry.type) == ("pixels", "tensor(uint8)")
    assert entry.shape[1:] == [SIZE, SIZE, 3]
    assert isinstance(entry.shape[0], str)
    assert list(exported.parent.iterdir()) == [exported]


@pytest.mark.parametrize(
    ("arch", "pixel", "expected"),
    [
        ("efficientnet_lite0", (255, 127, 0), (1.0, 0.0, -127 / 128)),
        # (value / 255 - mean) / std with ImageNet's usual numbers
        ("resnet50", (255, 0, 51), (0.515 / 0.229, -0.456 / 0.224, -0.206 / 0.225)),
    ],
)
def test_each_backbone_sees_pixels_normalised_as_it_was_trained(
    arch: str, pixel: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    backbone = Backbone(arch, all_stages=True)
    backbone.network = Stages(lambda pixels: [pixels])
    seen = backbone(torch.tensor(pixel, dtype=torch.uint8).expand(2, 4, 5, 3))
    np.testing.assert_allclose(seen[1], [*expected, 0, 0, 0], atol=1e-5)


def test_features_are_mean_and_spread_of_every_stage() -> None:
    backbone = Backbone("efficientnet_lite0", all_stages=True)
    backbone.network = Stages(lambda pixels: [pixels[:, :1], 10 * pixels[:, 1:2, ::2, ::2]])
    pixels = torch.randint(256, (3, 8, 8, 3), dtype=torch.uint8)
    seen = ((pixels.double() - 127) / 128).numpy()
    first, second = seen[..., 0], 10 * seen[:, ::2, ::2, 1]
    expected = [first.mean((1, 2)), first.std((1, 2)), second.mean((1, 2)), second.std((1, 2))]
    np.testing.assert_allclose(backbone(pixels), np.stack(expected, axis=1), rtol=1e-4)


class Stages(nn.Module):
    """A network whose feature maps are a function of what it sees."""

    def __init__(self, maps: Callable[[Tensor], list[Tensor]]) -> None:
        super().__init__()
        self.maps = maps

    def forward_intermediates(self, seen: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = self.maps(seen)
        return maps[-1], maps


def test_the_head_sees_features_of_mean_0_and_spread_1() -> None:
    head = Head(3, classes=2, hidden=4, dropout=0)
    head.layers = nn.Sequential(nn.Identity())
    features = torch.randn(500, 3) * torch.tensor([1e-2, 1.0, 500.0]) + torch.tensor([5, 0, -900])
    features[:, 1] = 7  # a feature that is always the same must not divide by 0
    head.standardise(features)
    seen = head(features)
    torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.tensor([1.0, 0.0, 1.0]), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Weights of an EfficientNet-Lite0 with its classifier, as the published files hold them."""
    torch.manual_seed(0)
    return dict(timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict())


@pytest.fixture
def weights(state: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_the_backbone_takes_over_every_weight_and_does_without_the_classifier(
    state: dict[str, Tensor], weights: Path
) -> None:
    backbone = load_backbone("efficientnet_lite0", weights, all_stages=True)
    loaded = backbone.network.state_dict()
    assert state.keys() - loaded.keys() == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    assert not any(module.training for module in backbone.modules())
    with torch.inference_mode():
        assert backbone(random_pixels(2, 32)).shape == (2, 3584)


def test_fine_tuning_sees_the_last_feature_map_alone(weights: Path) -> None:
    backbone = load_backbone("efficientnet_lite0", weights, all_stages=False)
    assert backbone.width() == 1280
    assert not backbone.training


@pytest.mark.parametrize("several", [False, True])
def test_training_goes_on_from_the_backbone_of_an_earlier_run(
    state: dict[str, Tensor], weights: Path, several: bool
) -> None:
    earlier = Network(
        load_backbone("efficientnet_lite0", weights, all_stages=False), Head(3, 2, 0, 0)
    )
    with torch.no_grad():
        for parameter in earlier.parameters():
            parameter += 0.125
    torch.save((Ensemble([earlier, earlier]) if several else earlier).state_dict(), weights)
    loaded = load_backbone("efficientnet_lite0", weights, all_stages=True).network.state_dict()
    stem = "conv_stem.weight"
    torch.testing.assert_close(loaded[stem], state[stem] + 0.125)


def test_heads_of_a_run_without_products_are_taken_over(weights: Path) -> None:
    earlier, network = (
        Network(load_backbone("efficientnet_lite0", weights, all_stages=False), Head(3, 2, 0, 0))
        for _ in range(2)
    )
    state = {k: v for k, v in earlier.state_dict().items() if ".with_products." not in k}
    torch.save(state, weights)
    assert load_matching(network, "efficientnet_lite0", weights)
    torch.testing.assert_close(network.head.layers[-1].weight, earlier.head.layers[-1].weight)
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, weights)
    assert not load_matching(network, "efficientnet_lite0", weights)


def test_frozen_batch_norm_makes_an_answer_depend_on_its_own_photo_alone() -> None:
    torch.manual_seed(0)
    network = Network(TinyBackbone(), Head(6, 2, 0, 0.0), frozen_batch_norm=True)  # type: ignore[arg-type]
    before = copy.deepcopy(network.state_dict())
    network.train()
    pixels = random_pixels(4)
    torch.testing.assert_close(network(pixels)[:1], network(pixels[:1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    network.frozen_batch_norm = False
    network.train()
    assert not torch.allclose(network(pixels)[:1], network(pixels[:1]))


def test_members_answer_for_themselves_in_training_and_together_when_asked() -> None:
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    both, inputs = make_ensemble([one, two]), torch.randn(4, 3)
    torch.testing.assert_close(both(inputs), torch.cat([one(inputs), two(inputs)]))
    torch.testing.assert_close(both.eval()(inputs), (one(inputs) + two(inputs)) / 2)
    assert make_ensemble([one]) is one


def test_an_answer_from_photo_and_mirror_image_is_the_same_for_both(tiny: Counter) -> None:
    both = Counter(tiny.network, 2.0, mirror=True).eval()
    pixels = random_pixels(3)
    torch.testing.assert_close(both(pixels), both(pixels.flip(2)))
    logits = (tiny.network(pixels) + tiny.network(pixels.flip(2))) / 2
    torch.testing.assert_close(both(pixels), torch.softmax(logits / 2.0, dim=1))
    assert not torch.allclose(tiny(pixels), tiny(pixels.flip(2)))


def test_under_autocast_only_depthwise_convolutions_stay_in_float32() -> None:
    dense, depthwise = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4)
    keep_depthwise_in_float32(nn.Sequential(dense, depthwise))
    inputs = torch.randn(2, 4, 8, 8)
    expected = nn.functional.conv2d(inputs, depthwise.weight, depthwise.bias, groups=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(inputs).dtype is torch.bfloat16
        torch.testing.assert_close(depthwise(inputs), expected)
        assert depthwise(inputs.bfloat16()).dtype is torch.float32


def refused(arch: str, weights: Path) -> str:
    with pytest.raises(WeightsError) as error:
        load_backbone(arch, weights, all_stages=True)
    message = str(error.value)
    assert "\n" not in message
    assert str(weights) in message
    return message


def test_missing_weights_are_one_line_that_says_how_to_get_them(tmp_path: Path) -> None:
    message = refused("efficientnet_lite0", tmp_path / "none.pth")
    assert "python -m data_prep weights --arch efficientnet_lite0" in message


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def to_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: cut(file, 0),
    "cut off early": lambda file: cut(file, 0.01),
    "cut off late": lambda file: cut(file, 0.99),
    "a web page": lambda file: file.write_text("<html>not found</html>"),
    "JSON": lambda file: file.write_text('{"message": "not found"}'),
    "words": lambda file: file.write_text("hello, no weights in here"),
    "zeros": lambda file: file.write_bytes(bytes(4000)),
    "a single tensor": lambda file: torch.save(torch.zeros(3), file),
    "a whole module": lambda file: torch.save(nn.Linear(2, 2), file),
    "a folder": to_folder,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_weights_are_one_line(weights: Path, damage: Callable[[Path], object]) -> None:
    damage(weights)
    assert "is not a weights file, or it is damaged" in refused("efficientnet_lite0", weights)


def test_weights_of_another_architecture_are_one_line(
    state: dict[str, Tensor], weights: Path
) -> None:
    assert "does not contain weights of resnet50" in refused("resnet50", weights)
    wider = {name: torch.cat([tensor, tensor]) for name, tensor in state.items() if tensor.dim()}
    torch.save({**state, **wider}, weights)
    assert "does not contain weights of efficientnet_lite0" in refused(
        "efficientnet_lite0", weights
    )
    torch.save(dict(list(state.items())[1:]), weights)
    assert "does not contain weights of efficientnet_lite0" in refused(
        "efficientnet_lite0", weights
    )


@pytest.mark.parametrize("all_stages", [True, False])
def test_the_pretrained_efficientnet_answers_alike_in_both_runtimes(
    tmp_path: Path, all_stages: bool
) -> None:
    weights = save_weights("efficientnet_lite0", tmp_path)
    backbone = load_backbone("efficientnet_lite0", weights, all_stages=all_stages)
    model = counter(backbone, features=backbone.width())
    file = tmp_path / "model.onnx"
    export_onnx(model, random_pixels(2, 224), file, names=NAMES)
    for photos in (1, 5):
        pixels = random_pixels(photos, 224)
        with torch.inference_mode():
            expected = model(pixels).numpy()
        answers = onnx_answers(file, pixels)
        np.testing.assert_allclose(answers, expected, atol=1e-4)
        assert answers.std() > 1e-3


def two_networks(hidden: int) -> nn.Module:
    networks = [Network(TinyBackbone(), Head(6, 5, hidden, 0.5)) for _ in range(2)]  # type: ignore[arg-type]
    return make_ensemble(networks)


def test_a_run_takes_over_what_an_earlier_one_left(tmp_path: Path) -> None:
    earlier, later = two_networks(8), two_networks(8)
    torch.save(earlier.state_dict(), tmp_path / "weights.pth")
    assert load_matching(later, "tiny", tmp_path / "weights.pth")
    for name, tensor in earlier.state_dict().items():
        assert torch.equal(later.state_dict()[name], tensor), name


def test_another_head_or_a_backbone_alone_is_not_taken_over(tmp_path: Path) -> None:
    later = two_networks(8)
    before = copy.deepcopy(later.state_dict())
    for earlier in (two_networks(4), two_networks(0), TinyBackbone()):
        torch.save(earlier.state_dict(), tmp_path / "weights.pth")
        assert not load_matching(later, "tiny", tmp_path / "weights.pth")
    for name, tensor in before.items():
        assert torch.equal(later.state_dict()[name], tensor), name


@pytest.mark.parametrize("arch", ["resnet50", "efficientnet_lite0"])
def test_a_folded_backbone_has_the_same_features(arch: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(arch, all_stages=True).eval()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    pixels = random_pixels(2, 64)
    with torch.inference_mode():
        expected = backbone(pixels)
        fold_batch_norm(backbone.network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
        torch.testing.assert_close(backbone(pixels), expected, rtol=1e-3, atol=1e-4)
