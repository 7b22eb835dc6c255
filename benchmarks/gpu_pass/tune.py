"""The fixed candidates of the attention's kernels, timed; each kernel's winner is written into OUT's table at once."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from scsco_fast.benchmarks import tuning
from scsco_fast.benchmarks.gpu_pass.items import Item, Phase, Record
from scsco_fast.benchmarks.gpu_pass.journal import code_digest, read
from scsco_fast.benchmarks.gpu_pass.plan import Attention, Plan
from scsco_fast.benchmarks.tuning import Trial, Where
from scsco_fast.kernels.bain_attention import candidates
from scsco_fast.kernels.bain_attention import launch as bain_attention
from scsco_fast.kernels.bain_attention.table import PATH, Config, Key

SECONDS = 20.0
TABLE = "bain_attention_table.txt"  # in OUT, which is flat
REHEARSED = 2  # candidates of a kernel


def phases(plan: Plan) -> list[Phase]:
    """A line of the table after the other, each in an order in which a stage that is cut short has the most."""
    return [Phase([item for shape in plan.tuned for item in of_line(plan, shape)])]


def of_line(plan: Plan, shape: Attention) -> Iterator[Item]:
    """For each kernel of the line its candidates, and then the choice among them."""
    size, keys, channels = shape
    sm = bain_attention.architecture(torch.device(plan.device))
    key: Key = (sm, "half", channels, keys)
    # The interpreter multiplies bfloat16 wrongly, and has no table of its own: it takes sm_80's and any candidates.
    dtype = torch.float16 if plan.rehearsing else torch.bfloat16
    where = Where(plan.device, dtype, plan.batch, size)
    listed = [c._replace(key=(sm, *c.key[1:])) if plan.rehearsing else c for c in candidates.read()]
    for kernel, configs in candidates.timed(key, listed).items():
        label = f"{' '.join(map(str, key))} {kernel}"
        for config in configs[:REHEARSED] if plan.rehearsing else configs:
            arguments = (key, kernel, config, where)
            warm = [partial(tuning.compile_kernels, *arguments)]
            yield Item(f"{label} {text(config)}", SECONDS, partial(candidate, *arguments), warm)
        yield Item(f"{label} winner", SECONDS, partial(choose, plan, key, kernel, configs))


def text(config: Config) -> str:
    return ",".join(map(str, config))


def candidate(key: Key, kernel: str, config: Config, where: Where) -> Iterator[Record]:
    found = tuning.trial(key, kernel, config, where)
    yield {"key": key, "kernel": kernel, "config": text(config), **found._asdict() | {"config": text(config)}}


def choose(plan: Plan, key: Key, kernel: str, configs: list[Config]) -> Iterator[Record]:
    """The fastest of what the candidates' items wrote down; of one that was timed twice the last time counts."""
    found = read_trials(plan.out / "tune.jsonl", key, kernel, plan.device)
    trials = [found.get(text(config), Trial(kernel, config)) for config in configs]
    best = tuning.winner(trials)
    if best is None:
        yield {"winner": None, "passed": False}
        return
    tuning.set_winner(key, kernel, best, plan.out / TABLE, PATH)
    yield {"winner": text(best), "ms": found[text(best)].ms, "table's own ms": trials[0].ms}


def read_trials(path: Path, key: Key, kernel: str, device: str) -> dict[str, Trial]:
    """Trials that have a time, by configuration, of this code on this device."""
    code, found = code_digest(), dict[str, Trial]()
    for record in read(path):
        same = (record.get("code"), record.get("device")) == (code, device)
        if same and record.get("key") == list(key) and record.get("kernel") == kernel and record.get("ms"):
            config = Config(*map(int, record["config"].split(",")))
            numbers = {name: record[name] for name in ("ms", "low", "high", "events")}
            found[record["config"]] = Trial(kernel, config, **numbers)
    return found
