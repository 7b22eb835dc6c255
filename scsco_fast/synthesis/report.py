"""What is written when all composites are made: the lists of the splits, a table, and the report."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from scsco_fast.data.photos import SPLITS
from scsco_fast.synthesis.journal import COMPOSITES
from scsco_fast.synthesis.photographs import Inspected, Source
from scsco_fast.synthesis.realism import Measures
from scsco_fast.synthesis.recipes import FAMILIES
from scsco_fast.system.files import replacing


@dataclasses.dataclass(frozen=True)
class Synthesis:
    """What `synthesize` did.

    Attributes:
        folder: the subset's folder.
        made: composites in the dataset.
        given_up: composites that no try of `recipes.TRIES` made well enough.
        unusable: files that are no photograph to use, with the reason.
        families: for each transfer family how many composites were "kept" and how many tries each rule rejected.
    """

    folder: Path
    made: int
    given_up: int
    unusable: dict[str, str]
    families: dict[str, dict[str, int]]

    def acceptance(self, family: str) -> float:
        """Share of the tries that were kept; NaN where nothing was tried."""
        counts = self.families[family]
        return counts["kept"] / sum(counts.values()) if sum(counts.values()) else float("nan")


def summary(folder: Path, records: list[dict[str, Any]], unusable: dict[str, str]) -> Synthesis:
    """Count what was kept and rejected."""
    families = {}
    for family in FAMILIES:
        own = [record for record in records if record["family"] == family]
        rejected: Counter[str] = sum((Counter(record["rejected"]) for record in own), Counter())
        families[family] = {"kept": sum(bool(record["files"]) for record in own), **dict(sorted(rejected.items()))}
    made = sum(counts["kept"] for counts in families.values())
    return Synthesis(folder, made, len(records) - made, unusable, families)


def write_lists(output: Path, folder: Path, records: list[dict[str, Any]], splits: dict[str, str]) -> None:
    """The composites of each split, in the data set's folder and in the subset's."""
    for split in SPLITS:
        kept = (record for record in records if record["files"] and splits[record["identity"]] == split)
        names = [record["files"][COMPOSITES] for record in kept]
        with replacing(folder / f"{folder.name}_{split}.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in names))
        with replacing(output / f"IHD_{split}.txt") as temporary:
            temporary.write_text("".join(f"{folder.name}/{COMPOSITES}/{name}\n" for name in names))


def write_table(path: Path, records: list[dict[str, Any]], splits: dict[str, str]) -> None:
    """A line for each composite: how it was made, and its measures."""
    measures = [field.name for field in dataclasses.fields(Measures)]
    names = ("composite", "photograph", "split", "region", "family", "reference", "reference_part", "tries", *measures)
    text = io.StringIO()
    table = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for record in records:
        if record["files"]:
            row = record | {name: f"{value:.6g}" for name, value in record["measures"].items()}
            row |= {"composite": record["files"][COMPOSITES], "split": splits[record["identity"]]}
            table.writerow(row | {"tries": sum(record["rejected"].values()) + 1})
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue())


def write_report(
    path: Path,
    result: Synthesis,
    settings: dict[str, Any],
    usable: list[Source],
    inspected: dict[str, Inspected],
    splits: dict[str, str],
) -> None:
    """Settings, counts, sources, photographs used and unusable."""
    report = {
        "made": result.made,
        "given_up": result.given_up,
        "families": result.families,
        "acceptance": {
            family: result.acceptance(family) if sum(result.families[family].values()) else None for family in FAMILIES
        },
        "sources": FAMILIES,
        "unusable": result.unusable,
        "photographs": {
            each.identity: {
                "file": each.name,
                "split": splits[each.identity],
                "regions": inspected[each.identity].candidates,
                "from": "segmentation" if each.mask is None else "mask",
                "sha256": inspected[each.identity].pixels,
            }
            for each in usable
        },
        "settings": settings,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n")
