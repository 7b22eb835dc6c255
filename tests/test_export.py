"""Exported networks, run by whoever reads them: the same output on any size, and the same background."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import make_mask
from torch import Tensor
from torch.torch_version import TorchVersion

import scsco_fast as sf
from scsco_fast.cli import main
from scsco_fast.export import formats
from scsco_fast.export import program as export

Network = Callable[[Tensor, Tensor], Tensor]

CASES = [(2, 48, 64, "ragged"), (1, 33, 70, "block"), (1, 40, 40, "full"), (3, 31, 8, "empty"), (1, 50, 34, "random")]
CASES += [(1, 5, 3, "one pixel"), (1, 1, 1, "full")]


def make(**options: object) -> sf.HarmonizationUNet:
    torch.manual_seed(0)
    model = sf.HarmonizationUNet(**({"base_channels": 4, "levels": 5} | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() == 4 else 1)
    model.working_size = 96
    return model


@pytest.fixture(scope="module", params=["residual", "affine"])
def model(request: pytest.FixtureRequest) -> sf.HarmonizationUNet:
    """A network with every kind of norm, and BAIN of one block and of several; and one with a transform."""
    if request.param == "affine":
        norms = ["bain", "instance", "rain", "bain"]
        return make(norm=norms, head="affine", in_channels=7, upsampling="resize")
    norms = ["instance", "rainnet", "bain", "bain"]
    return make(norm=norms, head="residual", in_channels=7, cosine=True, project_value=True)


@pytest.fixture(scope="module")
def program(model: sf.HarmonizationUNet) -> torch.export.ExportedProgram:
    return export.export_program(model)


def assert_same(network: Network, model: sf.HarmonizationUNet, case: tuple[int, int, int, str]) -> None:
    """No further from the model in float64 than four times what the model in float32 is, and a rounding."""
    batch, height, width, kind = case
    composite = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
    mask = make_mask(kind, batch, height, width).float()
    with torch.no_grad():
        output, ours = network(composite, mask), model(composite, mask)
        exact = model.double()(composite.double(), mask.double())
        model.float()
    rounding = (ours - exact).abs().max()
    assert rounding < 1e-4
    assert output.shape == composite.shape
    assert (output - exact).abs().max() <= 4 * rounding + 4 * torch.finfo(torch.float32).eps
    outside = (mask == 0).expand_as(output)
    assert torch.equal(output[outside], composite[outside])
    assert kind in ("empty", "full") or not torch.equal(output, composite)


def test_the_graph_holds_nothing_of_ours(program: torch.export.ExportedProgram) -> None:
    spaces = {node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert spaces == {"aten"}


def test_no_tensor_holds_a_number_for_every_pair_of_pixels() -> None:
    program = export.export_program(make(norm="bain"), (96, 96))
    graphs = [graph for graph in program.graph_module.modules() if isinstance(graph, torch.fx.GraphModule)]
    values = [node.meta.get("val") for graph in graphs for node in graph.graph.nodes]
    pixels = 48 * 48  # of the finest level
    assert max(value.numel() for value in values if isinstance(value, Tensor)) == export.BLOCK * pixels < pixels**2 / 8


def test_exporting_remembers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo, which `torch.compile` calls, decides by what the process has compiled before."""

    def compiled(*arguments: object, **options: object) -> None:
        raise AssertionError("something was compiled")

    monkeypatch.setattr(torch, "compile", compiled)
    export.export_program(make(norm="bain"), (32, 32))


def test_blocks_without_foreground_are_not_computed(
    program: torch.export.ExportedProgram, model: sf.HarmonizationUNet
) -> None:
    batch, height, width = 2, 96, 128
    mask = make_mask("block", batch, height, width).float()
    mask[1] = 0
    mask[1, :, :10, :10] = 1
    sizes = [(height >> level, width >> level) for level, norm in enumerate(model.norm, 1) if isinstance(norm, sf.BAIN)]
    counts = [sf.Regions(mask).at(*size).counts[:, 0] for size in sizes]
    wanted = sum(int((count + export.BLOCK - 1).div(export.BLOCK, rounding_mode="floor").sum()) for count in counts)
    every = sum(batch * math.ceil(rows * columns / export.BLOCK) for rows, columns in sizes)
    network = program.module()
    with torch.profiler.profile() as profile, torch.no_grad():
        network(torch.rand(batch, 3, height, width), mask)
    computed = sum(event.count for event in profile.key_averages() if event.key == "aten::_softmax")
    # Before torch 2.12 a scan computes its first block once more, to see the shapes.
    twice = len(sizes) if torch.__version__ < "2.12" else 0
    assert computed == wanted + twice < every


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_graph_computes_the_same(
    case: tuple[int, int, int, str], program: torch.export.ExportedProgram, model: sf.HarmonizationUNet
) -> None:
    assert_same(program.module(), model, case)


def test_an_exported_network_works_at_the_size_that_it_is_given(
    program: torch.export.ExportedProgram, model: sf.HarmonizationUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An affine head's model reduces a picture to its working size; the graph takes the picture's own as such."""
    case = (1, 100, 130, "block")
    composite, mask = torch.rand(1, 3, 100, 130), make_mask("block", 1, 100, 130).float()
    with torch.no_grad():
        reduced = model(composite, mask)
        monkeypatch.setattr(model, "working_size", 130)
        assert torch.equal(model(composite, mask), reduced) == (model.head == "residual")
    assert_same(program.module(), model, case)


def test_a_program_loads_without_this_project(
    program: torch.export.ExportedProgram, model: sf.HarmonizationUNet, tmp_path: Path
) -> None:
    export._write(program, tmp_path / "model.pt2", model.working_size, export._write_program)
    composite, mask = torch.rand(1, 3, 37, 50), make_mask("block", 1, 37, 50).float()
    torch.save((composite, mask), tmp_path / "inputs.pt")
    code = (
        "import sys; sys.modules['scsco_fast'] = None\n"
        "import torch; extra = {'working_size': ''}\n"
        "loaded = torch.export.load('model.pt2', extra_files=extra).module()\n"
        "assert extra['working_size'] == '96'\n"
        "torch.save(loaded(*torch.load('inputs.pt')), 'output.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "output.pt"), model(composite, mask))


@pytest.mark.slow
def test_onnx_computes_the_same(
    program: torch.export.ExportedProgram, model: sf.HarmonizationUNet, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript (the extra export)")
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra export)")
    path = tmp_path / "model.onnx"
    export._write(program, path, model.working_size, export._write_onnx)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # no weights beside it
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [(given.name, given.shape) for given in session.get_inputs()] == [
        ("composite", ["batch", 3, "height", "width"]),
        ("mask", ["batch", 1, "height", "width"]),
    ]
    assert session.get_modelmeta().custom_metadata_map == {"working_size": "96"}

    def run(composite: Tensor, mask: Tensor) -> Tensor:
        (output,) = session.run(["output"], {"composite": composite.numpy(), "mask": mask.numpy()})
        return torch.from_numpy(output)

    for case in CASES:
        assert_same(run, model, case)


@pytest.mark.slow
def test_onnx_needs_little_memory(tmp_path: Path) -> None:
    """A quarter of a gigabyte, where the dense attention of the finest level alone has more than five."""
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript (the extra export)")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra export)")
    export.export(make(norm="bain"), tmp_path / "model.onnx", "onnx")
    code = (
        "import numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession('model.onnx', providers=['CPUExecutionProvider'])\n"
        "mask = numpy.zeros((1, 1, 384, 384), numpy.float32); mask[..., 100:200, 100:200] = 1\n"
        "session.run(None, {'composite': numpy.zeros((1, 3, 384, 384), numpy.float32), 'mask': mask})\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 256 * 1024  # KiB at most; resource.getrusage counts the process that started this one


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"head": "affine", "upsampling": "resize"}], ids=str)
@pytest.mark.skipif(shutil.which(os.environ.get("CXX") or "g++") is None, reason="needs a C++ compiler")
@pytest.mark.skipif(
    torch.__version__ < export.COMPILES_LOOPS, reason=f"AOTInductor compiles no scan before {export.COMPILES_LOOPS}"
)
def test_a_compiled_package_computes_the_same(options: dict[str, object], tmp_path: Path) -> None:
    """Of a network with one BAIN: compiling takes as long as the graph is."""
    model = make(norm=["instance", "instance", "rain", "bain"], **options)
    path = tmp_path / "model.pt2"
    export.export(model, path, "aoti", (37, 50))
    loaded = torch._inductor.aoti_load_package(str(path))
    assert loaded.get_metadata()["working_size"] == "96"
    for kind in ("block", "random", "one pixel", "empty", "full"):
        assert_same(loaded, model, (1, 37, 50, kind))


def test_the_command_writes_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RainNet's depth, as an imported checkpoint has it, for one size."""
    model = make(in_channels=3, levels=8, norm="rainnet")
    sf.save_model(model, tmp_path / "model.safetensors")
    output = tmp_path / "model.pt2"
    arguments = ["export", "--model", str(tmp_path / "model.safetensors"), "--format", "pt2", "--output", str(output)]
    assert main([*arguments, "--size", "60", "90"]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    loaded = torch.export.load(output).module()
    for kind in ("block", "one pixel", "empty", "full"):
        assert_same(loaded, model, (1, 60, 90, kind))


def test_the_model_is_not_changed(model: sf.HarmonizationUNet, program: torch.export.ExportedProgram) -> None:
    assert type(model.norm[0]) is sf.BAIN
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx", "--output", "model.pt2"], "model.pt2: the format onnx has the suffix .onnx"),
        (["--format", "aoti", "--output", "model"], "model: the format aoti has the suffix .pt2"),
        (["--format", "tflite", "--output", "model.pt2"], "tflite"),
        (["--format", "pt2"], "missing --output"),
        (["--format", "pt2", "--output", "m.pt2", "--size", "64", "0"], "the size is 64x0 (height x width)"),
        (["--format", "pt2", "--output", "m.pt2", "--model", "/nowhere"], "/nowhere: no such file"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnx" else found(name))
    with pytest.raises(sf.ScscoError, match=r'ONNX needs onnx: pip install "scsco-fast\[export\]"'):
        formats.check("model.onnx", "onnx")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(sf.ScscoError, match="needs a C\\+\\+ compiler, and no-such-compiler is not found"):
        formats.check("model.pt2", "aoti")


def test_a_torch_that_cannot_compile_the_loop_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    # A network without BAIN has no loop, and other formats are not compiled.
    monkeypatch.setattr(export, "export_program", lambda *_: None)
    monkeypatch.setattr(export, "_write", lambda *_: None)
    path = tmp_path / "model.pt2"
    for version in ("2.9.1", "2.12.1+cu130", "2.13.0a0+git1"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        with pytest.raises(
            sf.ScscoError, match=rf"torch {re.escape(version)} cannot .* install torch 2\.13 .* or onnx"
        ):
            export.export(make(norm="bain"), path, "aoti")
        export.export(make(norm="rain"), path, "aoti")
        export.export(make(norm="bain"), path, "pt2")
    for version in ("2.13.0+cpu", "2.14.1"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        export.export(make(norm="bain"), path, "aoti")
