"""What may go wrong in a run without ending it: samples that cannot be used, and steps that are not finite."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scsco_fast.data.samples import BadSample
from scsco_fast.errors import ScscoError
from scsco_fast.train.config import TrainConfig
from scsco_fast.train.processes import Processes
from scsco_fast.train.run_folder import Progress

NAMED = 8  # samples that a message names


class Failures:
    """Names each failure once, and ends the run with a `ScscoError` where there are too many.

    Args:
        config: `bad_sample_limit` and `non_finite_limit`.
        processes: those of the run; each of them has to note what any of them found.
        progress: of the run; what is found is kept there.
        samples: how many the data set has.
        say: takes each warning.
    """

    def __init__(
        self,
        config: TrainConfig,
        processes: Processes,
        progress: Progress,
        samples: int,
        say: Callable[[str], object],
    ) -> None:
        self.config, self.processes, self.progress, self.samples, self.say = config, processes, progress, samples, say
        self.names: dict[int, list[str]] = {}  # this process's samples in each step since the losses were read

    def note_bad(self, own: Sequence[BadSample]) -> None:
        """Warn of each bad sample that is new, in this process's batch or in another's."""
        known = self.progress.bad
        samples = [sample for found in self.processes.all_gather_object(own) for sample in found]
        for sample in samples:
            if sample.name in known:
                continue
            known[sample.name] = sample.reason
            self.say(f"warning: skipped {sample.name}: {sample.reason}")
            if len(known) >= self.samples:
                raise ScscoError(
                    f"none of the {self.samples} samples can be used, the last is {sample.name}: {sample.reason}; "
                    "repair the data (see scsco prepare --check)"
                )
            if len(known) > self.config.bad_sample_limit:
                raise ScscoError(
                    f"{len(known)} samples cannot be used (bad_sample_limit {self.config.bad_sample_limit}), "
                    f"the last is {sample.name}: {sample.reason}; repair the data or raise the limit"
                )

    def note_skipped(self, state: Mapping[str, Any]) -> None:
        """Warn of the last step that was skipped, if any was since the losses were read, with its samples.

        Args:
            state: what `TrainingStep.read` found.
        """
        before, self.progress.skipped = self.progress.skipped, state["skipped"]
        own, self.names = self.names.get(state["last_skipped"], []), {}
        if self.progress.skipped <= before:
            return
        names = self.processes.all_gather_object(own)
        wrong = [name for rank in state["culprits"] or range(len(names)) for name in names[rank]]
        named = ", ".join(wrong[:NAMED]) + (" ..." if len(wrong) > NAMED else "")
        where = f"step {state['last_skipped'] + 1}: the loss or gradient was not finite"
        limit = self.config.non_finite_limit
        if state["in_a_row"] >= limit:
            raise ScscoError(
                f"{where} for {state['in_a_row']} steps in a row (non_finite_limit {limit}), there with the samples "
                f"{named}; look at these, lower lr or use precision float32"
            )
        self.say(f"warning: {where} with the samples {named}; skipped, {state['skipped']} steps in all")
