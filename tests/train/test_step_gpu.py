"""The training step on a CUDA device with the Triton kernels: compiled whole, and replayed from a CUDA graph."""

import pytest
import torch
from oracle import make_mask
from torch import Tensor

import scsco_fast as sf
from scsco_fast import kernels

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
    from scsco_fast.kernels.bain_attention_kernels import bain_attention_fwd_kernel

    def compiled() -> int:
        return sum(len(entry[0]) for entry in bain_attention_fwd_kernel.device_caches.values())

    step = Step()
    step.forward().backward()
    before = compiled()
    for seed in range(6):
        step.change(seed)
        step.forward().backward()
    assert compiled() == before
