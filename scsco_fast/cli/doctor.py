"""`scsco doctor`: what works here, and what not."""

import json
from dataclasses import dataclass

from scsco_fast.cli.parsing import parse


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, backends, VGG-16 weights and optional packages. Exit code 1: nothing can be computed."""

    json: bool = False
    """Print JSON instead of text."""


def command(arguments: list[str]) -> int:
    options = parse(DoctorOptions, arguments, "scsco doctor")
    from scsco_fast.info import doctor, format_report, problems

    report = doctor()
    found = problems(report)
    if options.json:
        print(json.dumps({**report, "problems": found}, indent=2))
    else:
        print(format_report(report))
        print("problems: " + ("; ".join(found) or "none"))
    return 1 if found else 0
