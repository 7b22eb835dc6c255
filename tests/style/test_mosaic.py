"""The style encoder on windows around the foreground: equal to whole images, cheaper, and without waiting."""

import copy
import math
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import FLOAT64, NoReading, NoWaiting, random
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import scsco_fast as sf
from scsco_fast.style import mosaic as mosaic_module
from scsco_fast.style import vgg
from scsco_fast.style.loss import RATIO_EPS, scaled
from scsco_fast.style.mosaic import Depth, Layout, build_levels, plan, reaches, shelves, surround

pytestmark = pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")

SIZES = ((48, 48), (53, 38))
LAYERS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3")


def build_encoder(*layers: str, dtype: torch.dtype = torch.float64, share: int = 16) -> sf.VGG16Features:
    """Random weights with biases, without which a masked-out image has no activations at all.

    `share`: VGG-16 with 1/16 of its channels is enough for what depends on places alone.
    """
    narrow = [(n, i, max(3, a // share), b // share) for n, i, a, b in vgg.CONVOLUTIONS]
    with mock.patch.object(vgg, "CONVOLUTIONS", tuple(narrow)):
        encoder = sf.VGG16Features("random", layers=layers)
    for seed, convolution in enumerate(encoder.features.values()):
        convolution.bias.copy_(0.5 * random(len(convolution.bias), seed=seed))
    return encoder.to(dtype)


@pytest.fixture(scope="module")
def encoder() -> sf.VGG16Features:
    return build_encoder(*LAYERS)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make mosaics also where whole images are cheaper, as they are at the tests' sizes."""
    monkeypatch.setattr(mosaic_module, "WORTH", math.inf)
    monkeypatch.setattr(mosaic_module, "SHARES_OF_LARGE", (0.0, 0.5, 1.0))


def mask_of(kind: str, height: int, width: int) -> Tensor:
    """(3, 1, H, W) float64."""
    mask, noise = torch.zeros(3, 1, height, width, dtype=torch.float64), random(3, 1, height, width, seed=5)
    corners = {"top left": (0, 0), "bottom left": (-4, 0), "top right": (0, -5), "bottom right": (-4, -5)}
    edges = {"top": (0, 17), "left": (21, 0), "bottom": (-3, 11), "right": (13, -2)}
    if kind in corners or kind in edges:
        rows, columns = (slice(start, None if start < 0 else start + 4) for start in {**corners, **edges}[kind])
        mask[:, :, rows, columns] = 1
    elif kind == "one pixel":
        mask[:, :, height // 3, width // 2] = 1
    elif kind == "soft":  # far below the threshold of a foreground, and not 0
        mask[:, :, 10:22, 8:30] = 0.01 * noise[:, :, 10:22, 8:30].abs()
    elif kind == "random":
        mask = (noise > 2.2).double()
    elif kind == "full":
        mask.fill_(1)
    elif kind in ("ragged", "every size"):
        mask[0, :, 5:12, 20:33] = 1
        mask[1] = 1
        mask[2, :, 30, 9] = kind == "every size"  # the third of "ragged" is empty
    return mask


CORNERS = ("top left", "bottom left", "top right", "bottom right")
EDGES = ("top", "left", "bottom", "right")
MASKS = (*CORNERS, *EDGES, "one pixel", "soft", "random", "empty", "full", "ragged")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", MASKS)
def test_features_and_gradients_equal_the_whole_images(
    encoder: sf.VGG16Features, kind: str, size: tuple[int, int], fixed: bool
) -> None:
    mask, images = mask_of(kind, *size), random(3, 2, 3, *size, seed=1)
    mosaic = encoder.mosaic(sf.foreground_boxes(mask), *size, fixed=fixed)
    assert mosaic is not None
    results = []
    for cropped in (True, False):
        leaf = images.clone().requires_grad_()
        if cropped:
            found = encoder.forward_mosaic(leaf, mask, mosaic)
        else:
            whole = encoder(leaf.flatten(0, 1), mask.repeat_interleave(2, dim=0))
            found = {layer: features.unflatten(0, (3, 2)) for layer, features in whole.items()}
        total = sum((features * random(*features.shape, seed=2)).sum() for features in found.values())
        (gradient,) = torch.autograd.grad(total, leaf)
        results.append([*(found[layer].detach() for layer in LAYERS), gradient])
    for ours, theirs in zip(*results, strict=True):
        size_of = float(theirs.abs().max())
        assert size_of > 0 or kind == "empty"
        torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT64 * size_of)


@pytest.mark.usefixtures("always")
def test_the_deepest_layer_too() -> None:
    encoder, (mask, images) = build_encoder("relu5_3"), (mask_of("left", 40, 33), random(3, 1, 3, 40, 33))
    mosaic = encoder.mosaic(sf.foreground_boxes(mask), 40, 33)
    assert mosaic is not None
    ours, theirs = encoder.forward_mosaic(images, mask, mosaic)["relu5_3"], encoder(images[:, 0], mask)["relu5_3"]
    torch.testing.assert_close(ours[:, 0], theirs, rtol=0, atol=FLOAT64 * float(theirs.abs().max()))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_whole_images(encoder: sf.VGG16Features, dtype: torch.dtype) -> None:
    """Twice the error of the whole images in the same dtype plus the rounding band of `oracle`."""
    mask, images = mask_of("bottom right", 48, 48), random(3, 1, 3, 48, 48).to(dtype).double()
    exact = encoder(images[:, 0], mask)
    narrow = copy.deepcopy(encoder).to(dtype)
    mosaic = narrow.mosaic(sf.foreground_boxes(mask), 48, 48)
    assert mosaic is not None
    whole = narrow(images[:, 0].to(dtype), mask.to(dtype))
    ours = narrow.forward_mosaic(images.to(dtype), mask.to(dtype), mosaic)
    for layer in LAYERS:
        size, error = exact[layer].abs().max(), (whole[layer].double() - exact[layer]).abs().max()
        terms = 9 * exact[layer].shape[1]  # of one convolution
        band = torch.finfo(dtype).eps + math.log2(terms) * torch.finfo(torch.float32).eps
        allowed = 2 * (error + band * size)
        assert ours[layer].dtype == dtype
        assert (ours[layer][:, 0].double() - exact[layer]).abs().max() <= allowed


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("style_size", [None, 31])
@pytest.mark.parametrize(("gram", "self_style"), [("channel", "feature"), ("channel", "gram"), ("position", "feature")])
@pytest.mark.parametrize("kind", ["every size", "top right", "empty"])
def test_loss_equals_the_whole_images(
    encoder: sf.VGG16Features, kind: str, gram: str, self_style: str, style_size: int | None
) -> None:
    loss = sf.SCSCoLoss(encoder, style_weight=1.0, gram=gram, self_style=self_style, style_size=style_size)
    mask, (output, real, composite) = mask_of(kind, 48, 40), random(3, 3, 3, 48, 40).sigmoid()
    negatives = random(3, 2, 3, 48, 40, seed=1).sigmoid()
    results = []
    for boxes in (sf.foreground_boxes(mask), None):
        leaf = output.clone().requires_grad_()
        terms = loss(leaf, real, composite, mask, negatives, boxes=boxes)
        terms.total.backward()
        assert leaf.grad is not None
        results.append((torch.stack(list(terms)), leaf.grad))
    (ours, our_gradient), (theirs, their_gradient) = results
    # Without any foreground the ratios are rounding errors over 1e-8.
    torch.testing.assert_close(ours, theirs, rtol=FLOAT64, atol=FLOAT64 / RATIO_EPS if kind == "empty" else FLOAT64)
    # A difference of exactly 0 has gradient 0; one of 1e-16 has +-1. None of them may decide about the comparison.
    torch.testing.assert_close(our_gradient, their_gradient, rtol=0, atol=1e-11 * float(their_gradient.abs().max()))


def test_switch_and_missing_boxes_mean_whole_images(encoder: sf.VGG16Features, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = mask_of("one pixel", 192, 192)
    boxes = sf.foreground_boxes(mask)
    assert sf.SCSCoLoss(encoder).mosaic(boxes, 192, 192) is not None
    assert sf.SCSCoLoss(encoder, crop=False).mosaic(boxes, 192, 192) is None
    assert sf.SCSCoLoss(encoder).mosaic(None, 192, 192) is None
    assert sf.SCSCoLoss(None, style_weight=0.0).mosaic(boxes, 192, 192) is None
    assert sf.SCSCoLoss(encoder).mosaic(sf.foreground_boxes(torch.ones(3, 1, 192, 192)), 192, 192) is None
    monkeypatch.setattr(encoder, "forward_mosaic", None)
    images = random(3, 3, 3, 32, 32).sigmoid()
    sf.SCSCoLoss(encoder, crop=False, negatives=1)(*images, mask[..., :32, :32], boxes=boxes)


def test_boxes() -> None:
    mask = torch.zeros(4, 1, 6, 9)
    mask[0, :, 2:5, 3:8] = 1
    mask[1, :, 0, 0] = 1e-3
    mask[2] = 1
    assert sf.foreground_boxes(mask).tolist() == [[2, 3, 5, 8], [0, 0, 1, 1], [0, 0, 6, 9], [0, 0, 0, 0]]
    assert sf.foreground_boxes(mask > 0.5).tolist()[0] == [2, 3, 5, 8]
    assert sf.foreground_boxes(mask.to("meta")) is None  # as on a GPU: reading it would wait
    with pytest.raises(ValueError, match="boxes must be"):
        build_encoder("relu1_1").mosaic(torch.zeros(4, 1), 6, 9)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_boxes_of_resized_masks(size: int, wanted: int, data: st.DataObject) -> None:
    wanted = min(size, wanted)
    first = data.draw(st.integers(0, size))
    last = data.draw(st.integers(first, size))
    line = torch.zeros(size)
    line[first:last] = 1
    mask = line.reshape(1, 1, -1, 1) * line
    resized = sf.foreground_boxes(F.interpolate(mask, size=(wanted, wanted), mode="nearest"))
    boxes = sf.foreground_boxes(mask)
    assert boxes is not None
    assert resized is not None
    (box,) = scaled(boxes, (size, size), (wanted, wanted))
    assert (resized[0, :2] >= box[:2]).all() or not resized.any()
    assert (resized[0, 2:] <= box[2:]).all()
    assert (box[2:] <= wanted).all()
    assert (box >= 0).all()


def flops(encoder: sf.VGG16Features, mask: Tensor, cropped: bool) -> int:
    """Floating-point operations of one image; on the meta device nothing is computed."""
    image = torch.zeros(1, 1, 3, *mask.shape[-2:], device="meta")
    mosaic = encoder.mosaic(sf.foreground_boxes(mask), *mask.shape[-2:])
    assert mosaic is not None
    with FlopCounterMode(display=False) as counter:
        if cropped:
            encoder.forward_mosaic(image, mask.to("meta"), mosaic)
        else:
            encoder(image[:, 0], mask.to("meta"))
    return int(counter.get_total_flops())


def test_convolutions_cost_what_the_windows_cost() -> None:
    """A 40x40 foreground of 256x256: windows of 48, 28, 24 and 18 pixels of their levels."""
    encoder = build_encoder("relu4_3", dtype=torch.float32, share=1).to("meta")
    mask = torch.zeros(1, 1, 256, 256)
    mask[..., 100:140, 90:130] = 1
    whole, ours = flops(encoder, mask, cropped=False), flops(encoder, mask, cropped=True)
    heights = [last - first for first, last in reaches(100, 140, 256, encoder.depths)]
    assert heights == [48, 28, 24, 18]
    canvases = zip((48, 32, 24, 18), (48, 30, 22, 18), encoder.depths, strict=True)
    assert ours == 2 * sum(rows * columns * depth.multiplications for rows, columns, depth in canvases)
    assert ours < 0.2 * whole


def test_one_batch_costs_what_its_images_need_and_not_what_the_largest_needs() -> None:
    encoder = build_encoder("relu4_3", dtype=torch.float32, share=1).to("meta")
    boxes = torch.tensor([[0, 0, 256, 256], *[[90, 90, 110, 110]] * 7])
    layouts = plan([tuple(box) for box in boxes.tolist()], (256, 256), encoder.depths, fixed=False)
    assert layouts is not None
    cost = sum(
        layout.canvas[0] * layout.canvas[1] * d.multiplications
        for layout, d in zip(layouts, encoder.depths, strict=True)
    )
    whole = 8 * sum((256 >> level) ** 2 * depth.multiplications for level, depth in enumerate(encoder.depths))
    assert cost < 0.4 * whole


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12),
    st.integers(20, 50),
)
@settings(max_examples=100, deadline=None)
def test_shelves_keep_windows_apart(windows: list[tuple[int, int]], columns: int) -> None:
    places, rows = shelves(windows, columns)
    taken = torch.zeros(rows, columns, dtype=torch.long)
    for (height, width), (row, column) in zip(windows, places, strict=True):
        assert row + height <= rows
        assert column + width <= columns
        taken[row : row + height, column : column + width] += 1
    assert taken.max() <= 1 if taken.numel() else True


@given(st.integers(1, 90), st.data(), st.lists(st.integers(1, 3), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_windows_hold_what_the_foreground_reaches(size: int, data: st.DataObject, convolutions: list[int]) -> None:
    """Against sums with positive weights, which are 0 exactly where nothing arrives."""
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first + 1, size))
    signal = torch.zeros(1, 1, size, dtype=torch.float64)
    signal[..., first:last] = 1
    extents = reaches(first, last, size, [Depth(count, 1) for count in convolutions])
    for level, ((low, high), count) in enumerate(zip(extents, convolutions, strict=True)):
        if signal.shape[2] == 0:
            break
        for _ in range(count):
            signal = (F.conv1d(signal, torch.ones(1, 1, 3, dtype=torch.float64), padding=1) > 0).double()
        reached = signal[0, 0].nonzero().flatten().tolist()
        assert all(low < pixel < high - 1 for pixel in reached)  # inside the rim
        if level < len(convolutions) - 1:
            assert low % 2 == 0
            assert high % 2 == 0
            signal = F.max_pool1d(signal, 2) if signal.shape[2] > 1 else signal[..., :0]


@pytest.mark.usefixtures("always")
def test_few_compilations_and_one_whole_graph() -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    encoder = build_encoder("relu2_2")
    loss, counter = sf.SCSCoLoss(encoder, style_weight=1.0), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss.forward, backend=counter, fullgraph=True)
    output, real, composite = random(3, 2, 3, 48, 48).sigmoid()
    negatives, canvases = random(2, 2, 3, 48, 48, seed=1).sigmoid(), set()
    for side in (3, 20, 46, 5, 30, 12):
        mask = torch.zeros(2, 1, 48, 48, dtype=torch.float64)
        mask[:, :, 1 : 1 + side, 2 : 2 + side] = 1
        mosaic = loss.mosaic(sf.foreground_boxes(mask), 48, 48, fixed=True)
        assert mosaic is not None
        mosaic.mark_static()
        canvases.add(tuple(level.inside.shape for level in mosaic.levels))
        ours, theirs = (output.clone().requires_grad_() for _ in range(2))
        compiled(ours, real, composite, mask, negatives, boxes=mosaic).total.backward()
        loss(theirs, real, composite, mask, negatives).total.backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-11 * float(theirs.grad.abs().max()))
    assert counter.frame_count == len(canvases) == 3


def test_the_surroundings_are_the_same_in_place_and_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU and a compiler get a new canvas; a CPU writes the cells that are not inside."""
    level = build_levels([Layout((6, 6), (4, 10), [(0, 0, 4, 4, 0, 0), (2, 2, 4, 4, 0, 5)])], torch.device("cpu"))[0]
    still, canvas, weights = random(36, 3), random(2, 3, 4, 10), random(2, 3, 4, 10, seed=1)
    results = []
    for in_place in (True, False):
        monkeypatch.setattr(mosaic_module, "may_read_values", lambda canvas, answer=in_place: answer)
        leaf = canvas.clone().requires_grad_()
        given = (leaf * 1).contiguous(memory_format=torch.channels_last)
        found = surround(given, still, level)
        assert (found.data_ptr() == given.data_ptr()) == in_place
        results.append((found, *torch.autograd.grad((found * weights).sum(), leaf)))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
    assert 0 < int(level.inside.sum()) < 40


@pytest.mark.usefixtures("always")
def test_nothing_waits_for_the_device(encoder: sf.VGG16Features, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic_module, "may_read_values", lambda canvas: False)  # as on a GPU
    mask, images = mask_of("ragged", 48, 48), random(3, 1, 3, 48, 48).requires_grad_()
    boxes = sf.foreground_boxes(mask)
    with NoWaiting():
        mosaic = encoder.mosaic(boxes, 48, 48)
        assert mosaic is not None
        with NoReading():
            sum(features.sum() for features in encoder.forward_mosaic(images, mask, mosaic).values()).backward()


def test_still_activations_are_kept_and_follow_the_weights() -> None:
    encoder = build_encoder("relu1_2", dtype=torch.float32)
    boxes, keys = torch.tensor([[4, 4, 8, 8]]), set(encoder.state_dict())

    def still(size: int = 64) -> Tensor:
        mosaic = encoder.mosaic(boxes, size, size)
        assert mosaic is not None
        return mosaic.outputs[-1]

    first = still()
    assert still() is first
    assert set(encoder.state_dict()) == keys
    assert still(72).shape[0] == 72 * 72
    with torch.autocast("cpu", torch.bfloat16):
        assert still().dtype == torch.bfloat16
    assert still().dtype == torch.float32
    encoder.double()
    assert still().dtype == torch.float64
    state = {key: value * 2 for key, value in encoder.state_dict().items()}
    before = still()
    encoder.load_state_dict(state)
    assert not torch.equal(still(), before)
    encoder.features.to(torch.bfloat16)
    assert still().dtype == torch.bfloat16


def test_bfloat16_weights_are_what_autocast_makes_of_them(encoder: sf.VGG16Features) -> None:
    images, mask = random(2, 3, 32, 32, dtype=torch.float32), torch.ones(2, 1, 32, 32)
    automatic, cast = copy.deepcopy(encoder).float(), copy.deepcopy(encoder).float()
    cast.features.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        wanted, got = automatic(images, mask), cast(images, mask)
    for layer in LAYERS:
        assert torch.equal(wanted[layer], got[layer])
