"""The commands, and the texts of `scsco --help` and `scsco train --help`, which are written and not generated."""

# Command, what it does, how it is called; each command's file is the module of its name.
_LINES = (
    ("harmonize", "harmonize a picture or a folder", "scsco harmonize --image A.png --mask M.png --output B.png"),
    ("demo", "a page to try it on, in a browser", "scsco demo"),
    ("serve", "stay loaded, for editors", "scsco serve"),
    ("train", "train a model", "scsco train demo"),
    ("evaluate", "measure a method on a data set", "scsco evaluate --dataset iHarmony4"),
    ("", "or compare two measurements", "scsco evaluate compare A.csv B.csv"),
    ("prepare", "check a data set, or pack it", "scsco prepare iHarmony4 --check"),
    ("synthesize", "make a data set of photographs", "scsco synthesize PHOTOS --output DIR"),
    ("import-rainnet", "convert RainNet's checkpoint", "scsco import-rainnet net_G_last.pth"),
    ("export", "write a model for other programs", "scsco export --format onnx --output model.onnx"),
    ("bench", "time every operation, end to end", "scsco bench --suite cpu"),
    ("build", "compile the CUDA library", "scsco build"),
    ("doctor", "show what works here, and what not", "scsco doctor"),
)
COMMANDS = tuple(command for command, _, _ in _LINES if command)
_TABLE = "\n".join(f"  {command:<15}{purpose + ':':<36}{example}" for command, purpose, example in _LINES)

USAGE = f"""\
usage: scsco COMMAND [OPTIONS]

Image harmonization with SCS-Co: fit the colours of a pasted foreground to its background.

commands:
{_TABLE}

`scsco COMMAND --help` lists a command's options; `scsco --version` prints the version.
exit codes: 0 done, 1 some files failed, 2 wrong use or unusable input, 70 a fault of scsco, 130 interrupted
"""

TRAIN_USAGE = """\
usage: scsco train PRESET [OPTIONS]
       scsco train resume RUN [OPTIONS]

Train a model into a run folder: model.safetensors, metrics.csv, loss.png, TensorBoard logs and checkpoints.

presets:
  demo         composites made from photographs that come with the installed packages: about three
               minutes on two CPU cores
  compact      a small model for real pictures, on a folder of photographs (docs/training.md): two hours
               and twenty minutes on two CPU cores, with
               `OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m scsco_fast train compact`
  compact-gpu  the same recipe for one GPU, compiled and captured in a CUDA graph: aims at less than eight
               minutes on an H100
  paper        the published setting on iHarmony4 at 256x256, for a GPU

`scsco train resume RUN` continues an interrupted run where it stopped; options change its settings.
`scsco train PRESET --verify` compares a few steps with the reference operations; `--profile` shows where time goes.
`torchrun --nproc-per-node N -m scsco_fast train PRESET` shares each step's batch among N GPUs or processes.
`scsco train demo --help` lists every setting with its value in the preset.
"""
