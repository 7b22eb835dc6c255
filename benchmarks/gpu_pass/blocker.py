"""Makes packages unimportable that the machine of a GPU pass does not have, or need not have.

A rehearsal links this file as `sitecustomize`, which Python imports before anything else in every process, so that it
also holds for processes that a stage starts. A pass that imports one of them fails here instead of there.
"""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

VARIABLE = "SCSCO_UNIMPORTABLE"


class Blocker:
    """A finder that refuses some packages."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(
                f"{name} is made unimportable by {VARIABLE}: the pass must not need it", name=name
            )
        return None


if os.environ.get(VARIABLE):
    sys.meta_path.insert(0, Blocker(os.environ[VARIABLE].split()))
