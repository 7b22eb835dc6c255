"""The style encoder's windows on a CUDA device: the whole pictures' features, without waiting, and in a CUDA graph."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import scsco_fast as sf
from scsco_fast.style.mosaic import Mosaic

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")]

SIZE = 128


@pytest.fixture
def encoder() -> Iterator[sf.VGG16Features]:
    encoder = sf.VGG16Features("random", layers=("relu2_2", "relu4_3")).cuda()
    for convolution in encoder.features.values():
        torch.nn.init.normal_(convolution.bias, std=0.5)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield encoder
    torch.backends.cudnn.allow_tf32 = before


def masks(seed: int) -> Tensor:
    mask = torch.zeros(3, 1, SIZE, SIZE)
    for index, image in enumerate(mask):
        start = (11 * seed + 17 * index) % 60
        image[:, start : start + 12, 70 - start : 95 - start] = 1
    return mask


def test_features_equal_the_whole_pictures(encoder: sf.VGG16Features) -> None:
    exact, mask = encoder.double(), masks(0)
    images = torch.rand(3, 2, 3, SIZE, SIZE, device="cuda", dtype=torch.float64)
    mosaic = exact.mosaic(sf.foreground_boxes(mask), SIZE, SIZE)
    assert mosaic is not None
    on_device = mask.double().cuda()
    ours = exact.forward_mosaic(images, on_device, mosaic)
    for layer, theirs in exact(images.flatten(0, 1), on_device.repeat_interleave(2, dim=0)).items():
        wanted = theirs.unflatten(0, (3, 2))
        torch.testing.assert_close(ours[layer], wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


def test_nothing_waits(encoder: sf.VGG16Features) -> None:
    images, on_device = torch.rand(3, 2, 3, SIZE, SIZE, device="cuda", requires_grad=True), masks(1).cuda()
    boxes = sf.foreground_boxes(masks(1))
    encoder.mosaic(boxes, SIZE, SIZE)  # the still activations
    torch.cuda.set_sync_debug_mode("error")
    try:
        mosaic = encoder.mosaic(boxes, SIZE, SIZE)
        assert mosaic is not None
        encoder.forward_mosaic(images, on_device, mosaic)["relu4_3"].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_replays_with_other_windows(encoder: sf.VGG16Features) -> None:
    def build(seed: int) -> Mosaic:
        mosaic = encoder.mosaic(sf.foreground_boxes(masks(seed)), SIZE, SIZE, fixed=True)
        assert mosaic is not None
        return mosaic

    images, mask = torch.rand(3, 2, 3, SIZE, SIZE, device="cuda"), masks(0).cuda()
    tensors = [tensor.clone() for tensor in build(0).tensors()]
    mosaic = Mosaic.from_tensors(tensors, len(encoder.depths))
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(aside):
        encoder.forward_mosaic(images, mask, mosaic)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        captured = encoder.forward_mosaic(images, mask, mosaic)["relu4_3"]
    for seed in range(3):
        others = build(seed)
        assert [t.shape for t in others.tensors()] == [t.shape for t in tensors]
        for own, given in zip(tensors, others.tensors(), strict=True):
            own.copy_(given)
        mask.copy_(masks(seed))
        graph.replay()
        wanted = encoder.forward_mosaic(images, mask, others)["relu4_3"]
        torch.testing.assert_close(captured, wanted, rtol=1e-5, atol=1e-5)
