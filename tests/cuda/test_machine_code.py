"""The table of machine code: what is read from it, and what the library's own kernels must not do."""

import csv
import re
import sys
from dataclasses import astuple, fields
from pathlib import Path

import pytest
from compiled import needs_nvcc, plan_of

from scsco_fast.benchmarks import machine_code
from scsco_fast.cuda import build
from scsco_fast.errors import ScscoError
from scsco_fast.kernels import sass

LOG = """\
ptxas info    : Compiling entry function '_ZN5scsco12_GLOBAL__N_14fwdXILb1EEEvv' for 'sm_90'
ptxas info    : Function properties for _ZN5scsco12_GLOBAL__N_14fwdXILb1EEEvv
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function '_ZN5scsco12_GLOBAL__N_14fwdXILb1EEEvv' for 'sm_80'
ptxas info    : Function properties for _ZN5scsco12_GLOBAL__N_14fwdXILb1EEEvv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 99 registers, used 1 barriers
"""
# An outer loop of eight instructions around the products, then a longer loop without any.
BODY = [
    *("MOV R1, R2", "LDSM.16.M88.4 R4, [R2]", "LD.E.64 R6, [R8.64]", "HMMA.16816.F32 R4, R4, R6, R4", "@P0 BRA 0x10"),
    *("F2F.BF16.F32 R1, R1", "F2FP.BF16.F32.PACK_AB R1, R1, R2", "MUFU.EX2 R1, R1", "@P1 BRA 0x0"),
    *(["LDL R1, [R1]"] * 12),
    *("LDS R1, [R3]", "@P0 BRA 0x90", "EXIT"),
]


@pytest.fixture
def disassembled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library, the log of its build, and a cuobjdump that prints `BODY` as its code."""
    lines = [f"        /*{16 * place:04x}*/                   {line} ;" for place, line in enumerate(BODY)]
    text = (
        "\nFatbin elf code:\n================\narch = sm_90\nidentifier = /somewhere/csrc/attention.cu\n"
        "\tcode for sm_90\n\t\tFunction : _ZN5scsco12_GLOBAL__N_14fwdXILb1EEEvv\n" + "\n".join(lines) + "\n"
    )
    (tmp_path / "text").write_text(text)
    program = tmp_path / "cuobjdump"
    program.write_text(f'#!/bin/sh\n[ "$3" = sm_90 ] && cat {tmp_path}/text || true\n')
    program.chmod(0o755)
    monkeypatch.setattr(machine_code, "cuobjdump", lambda: str(program))
    (tmp_path / build.LOG).write_text(LOG)
    return tmp_path / "library.so"


def test_a_row(disassembled: Path) -> None:
    (row,) = machine_code.rows(disassembled)
    assert row == machine_code.Row(
        "attention",
        "fwdX<true>",
        "sm_90",
        registers=40,
        spilled=28,
        loop_instructions=9,
        ldsm=1,
        lds=0,
        generic_loads=1,
        hmma=1,
        f2f=1,
        mufu=1,
        f2fp=1,
        local_loads=0,
        stack=8,
        turn_64=0,
        turn_128=0,
        turn_256=0,
    )


# A turn of 13 instructions, and 7 more for every panel after the first.
TURN = [
    *("MOV R1, R2", "@P0 BRA 0x50"),  # 0: there is a second stage, so not the next three
    *("BAR.SYNC 0x0", "LDGSTS.E.128 [R1], [R2]", "BRA 0x50"),
    *("LDGSTS.E.128 [R1], [R2]", "@P1 BRA 0x50"),  # 5: once for every panel
    *("@P2 BRA 0xb0",),  # 7: a whole panel, so not the next three
    *("HMMA.16816.F32 R4, R4, R6, R4", "@P3 BRA 0x80", "BRA 0xe0"),
    *("HMMA.16816.F32 R4, R4, R6, R4", "HMMA.16816.F32 R4, R4, R6, R4", "@!P4 BRA 0xe0"),  # 11
    *("@P4 BRA 0x70", "ISETP.GE.AND P5, PT, R1, R2, PT", "@P5 BRA 0x310"),  # 14: no end of a tile, so not the next 32
    *(["FSEL R1, R1, R2, P1"] * 32),
    *("MUFU.EX2 R1, R1", "@P6 BRA 0x0", "EXIT"),  # 49
]


@pytest.mark.parametrize(("panels", "issued"), [(1, 13), (2, 13 + 7), (4, 13 + 3 * 7)])
def test_a_turn_follows_a_whole_tile(panels: int, issued: int) -> None:
    lines = [f"        /*{16 * place:04x}*/                   {line} ;" for place, line in enumerate(TURN)]
    code = sass.instructions("Function : f\n" + "\n".join(lines) + "\n")
    loop = machine_code.main_loop(code)
    assert (min(loop), max(loop)) == (0, 50)
    assert machine_code.turn(code, loop, panels) == issued


def test_without_products_the_longest_loop_counts(disassembled: Path) -> None:
    text = disassembled.with_name("text")
    text.write_text(text.read_text().replace("HMMA.16816.F32", "FFMA"))
    (row,) = machine_code.rows(disassembled)
    assert (row.loop_instructions, row.local_loads, row.lds, row.hmma) == (14, 12, 1, 0)


def test_another_architecture_is_an_error(disassembled: Path) -> None:
    with pytest.raises(ScscoError, match=r"library\.so has no machine code for sm_80"):
        machine_code.rows(disassembled, "8.0")


def test_the_command(
    disassembled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = machine_code.rows(disassembled)
    command = ["machine_code", "--library", str(disassembled)]
    monkeypatch.setattr(sys, "argv", command)
    assert machine_code.main() == 0
    header, line = capsys.readouterr().out.splitlines()
    assert dict(zip(header.split(), line.split(), strict=True))["hmma"] == "1"
    monkeypatch.setattr(sys, "argv", [*command, "--csv", str(tmp_path / "table.csv")])
    assert machine_code.main() == 0
    with (tmp_path / "table.csv").open() as file:
        names, *lines = csv.reader(file)
    assert names == [field.name for field in fields(machine_code.Row)]
    assert lines == [[str(value) for value in astuple(row)]]
    monkeypatch.setattr(sys, "argv", [*command, "--architecture", "7.5"])
    assert machine_code.main() == 1
    assert capsys.readouterr().err == f"error: {disassembled} has no machine code for sm_75\n"


def test_where_cuobjdump_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(machine_code, "find_spec", lambda name: None)
    with pytest.raises(ScscoError, match="cuobjdump is not found: it is in the CUDA toolkit"):
        machine_code.cuobjdump()
    for folder in (tmp_path / "cuda" / "bin", tmp_path / "path"):
        folder.mkdir(parents=True)
        (folder / "cuobjdump").write_text("#!/bin/sh\n")
        (folder / "cuobjdump").chmod(0o755)
        assert machine_code.cuobjdump() == str(folder / "cuobjdump")


@pytest.fixture(scope="module")
def real() -> list[machine_code.Row]:
    """The rows of the library that the tests compile."""
    try:
        machine_code.cuobjdump()
    except ScscoError as error:
        pytest.skip(str(error))
    return machine_code.rows(build.build(plan_of("real", "cuda")))


@needs_nvcc
@pytest.mark.slow
class TestOfTheLibrary:
    def test_every_kernel_is_read(self, real: list[machine_code.Row]) -> None:
        """A file is named where there are line numbers, which compute-sanitizer and ncu need too."""
        assert {path.stem for path in build.source_folder().glob("*.cu")} - {"library"} == {row.op for row in real}
        assert all(row.registers for row in real)
        assert {row.kernel.split("<")[0] for row in real if row.hmma} >= {
            *("bain_attention_fwd_kernel", "bain_attention_bwd_dq_kernel", "cross_gram_fwd_kernel"),
            *("masked_gram_fwd_kernel", "gram_distances_products_kernel", "gram_bwd_kernel"),
        }

    def test_nothing_is_kept_in_local_memory(self, real: list[machine_code.Row]) -> None:
        assert [row for row in real if row.spilled or row.stack or row.local_loads] == []

    def test_operands_of_tensor_cores_come_from_shared_memory(self, real: list[machine_code.Row]) -> None:
        """Generic loads find out at run time where an address points: twice the instructions of LDSM."""
        assert [(row.kernel, row.generic_loads) for row in real if row.hmma and row.generic_loads] == []

    def test_a_tile_of_the_attention_takes_few_instructions(self, real: list[machine_code.Row]) -> None:
        """With products by nvcuda::wmma a warp issued 1431, 2008 and 3821 for a tile of 64 x 64 at C = D = 64."""
        found = {
            row.kernel.split("<")[0]: row.turn_64
            for row in real
            if "BFloat16Product" in row.kernel and row.turn_64 and not re.search(r"\b(128|dk_|dv_)", row.kernel)
        }
        most = {
            "bain_attention_fwd_kernel": 600,
            "bain_attention_bwd_dq_kernel": 700,
            "bain_attention_bwd_dkv_kernel": 900,
        }
        assert {name for name, issued in found.items() if issued <= most.get(name, 0)} >= set(most), found
