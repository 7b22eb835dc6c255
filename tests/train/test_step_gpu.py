"""The training step on a CUDA device with the Triton kernels: compiled whole, and replayed from a CUDA graph."""

import dataclasses

import pytest
import torch
from oracle import make_mask
from torch import Tensor

import scsco_fast as sf
from scsco_fast import kernels
from scsco_fast.train.build import build_model
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.step import TrainingStep

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:VGG-16 has RANDOM weights")]


@pytest.fixture(autouse=True)
def served() -> None:
    reason = kernels.unavailable()
    if reason is not None:
        pytest.skip(reason)


class Step:
    """Network and loss under bfloat16 autocast on tensors that stay where they are."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = sf.HarmonizationUNet(base_channels=16, levels=6, head="residual", dropout=False).cuda()
        self.loss = sf.SCSCoLoss(sf.VGG16Features(weights="random")).cuda()
        self.composite, self.real, self.negatives = (
            torch.rand(*shape, device="cuda") for shape in ((4, 3, 64, 64), (4, 3, 64, 64), (4, 2, 3, 64, 64))
        )
        self.mask = make_mask("block", 4, 64, 64).float().cuda()

    def forward(self) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            output = self.model(self.composite, self.mask)
            return self.loss(output, self.real, self.composite, self.mask, negatives=self.negatives).total

    def change(self, seed: int) -> None:
        generator = torch.Generator("cuda").manual_seed(seed)
        for tensor in (self.composite, self.real, self.negatives):
            tensor.copy_(torch.rand(tensor.shape, generator=generator, device="cuda"))
        self.mask.copy_(make_mask(("random", "one pixel", "ragged")[seed % 3], 4, 64, 64, seed))

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters()]


def test_step_is_one_graph() -> None:
    torch._dynamo.reset()
    step = Step()
    wanted = step.forward()
    wanted.backward()
    before = [gradient.clone() for gradient in step.gradients()]
    step.model.zero_grad(set_to_none=True)
    total = torch.compile(step.forward, fullgraph=True)()
    total.backward()
    # Fused elementwise work rounds to bfloat16 in fewer places than eager execution.
    torch.testing.assert_close(total, wanted, rtol=2**-6, atol=0)
    size = torch.stack([g.abs().max() for g in before]).max()
    for ours, theirs in zip(step.gradients(), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-4, atol=2**-5 * float(size))


def test_cuda_graph_replays_with_other_pictures_and_masks() -> None:
    step = Step()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):  # compiles the kernels, chooses cuDNN's algorithms
            step.model.zero_grad(set_to_none=True)
            step.forward().backward()
    torch.cuda.current_stream().wait_stream(aside)
    step.model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = step.forward()
        total.backward()
    captured = step.gradients()
    for seed in range(3):
        step.change(seed)
        graph.replay()
        replayed = [total.clone(), *(gradient.clone() for gradient in captured)]
        for parameter in step.model.parameters():
            parameter.grad = None
        again = step.forward()
        again.backward()
        for ours, theirs in zip(replayed, [again, *step.gradients()], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=1e-6)


def test_new_masks_compile_no_kernel() -> None:
    """The counts are read on the device: Triton's own cache of compiled kernels does not grow with masks."""
    from scsco_fast.kernels.bain_attention.forward import bain_attention_fwd_kernel

    def compiled() -> int:
        return sum(len(entry[0]) for entry in bain_attention_fwd_kernel.device_caches.values())

    step = Step()
    step.forward().backward()
    before = compiled()
    for seed in range(6):
        step.change(seed)
        step.forward().backward()
    assert compiled() == before


def training_step(**changes: object) -> TrainingStep:
    values = {"base_channels": 16, "levels": 6, "size": 64, "batch_size": 4, "head": "residual", "device": "cuda"}
    config = TrainConfig(**{**values, "dropout": False, "precision": "bfloat16", "schedule": "constant", **changes})
    model, loss, _ = build_model(dataclasses.replace(config, vgg_weights="random", vgg_layers=("relu2_2",)))
    return TrainingStep(model, loss, config)


def pictures(seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator("cuda").manual_seed(seed)
    composite, real = torch.rand(2, 4, 3, 64, 64, generator=generator, device="cuda")
    return composite, real, make_mask("block", 4, 64, 64, seed).float().cuda()


def test_captured_steps_equal_plain_ones() -> None:
    """With and without the style loss, which are two graphs, and with a batch that lost a sample, which is none."""
    plain, captured = training_step(style_every=2), training_step(style_every=2, cuda_graph=True)
    for index in range(5):
        batch = tuple(tensor[: 3 if index == 3 else 4] for tensor in pictures(index))
        for step in (plain, captured):
            step(*batch, index=index)
    assert len(captured._captured) == 2
    one, other = plain.read(), captured.read()
    assert one["means"] == pytest.approx(other["means"], rel=1e-2)
    for ours, theirs in zip(captured.parameters, plain.parameters, strict=True):
        # Adam makes whole steps of what is rounding in a gradient: five of them at most.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5 * 2.1 * plain.config.lr)
    vectors = [torch.cat([p.flatten() for p in step.parameters]) for step in (captured, plain)]
    assert torch.linalg.norm(vectors[0] - vectors[1]) <= 1e-2 * torch.linalg.norm(vectors[1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_step_does_not_wait_for_the_gpu(precision: str) -> None:
    step = training_step(precision=precision)
    for index in range(8):  # every family of negatives has compiled what it needs
        step(*pictures(index), index=index)
    step.read()
    batches = [pictures(index) for index in range(8, 12)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index, batch in enumerate(batches, start=8):
            step(*batch, index=index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    state = step.read()
    assert state["skipped"] == 0 or precision == "float16"
    assert all(state["milliseconds"][phase] > 0 for phase in ("forward", "backward", "optimizer"))
