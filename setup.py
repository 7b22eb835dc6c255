"""Maps the folders kernels/, train/ and benchmarks/ into the package's namespace; all else is in pyproject.toml.

No compiler and no torch are needed: the package is pure Python.
"""

from setuptools import find_packages, setup

MAPPED = {"scsco_fast.kernels": "kernels", "scsco_fast.train": "train", "scsco_fast.benchmarks": "benchmarks"}


def packages_of(name: str, folder: str) -> list[str]:
    """The package `name` that lives in `folder`, and its subpackages."""
    return [name, *(f"{name}.{sub}" for sub in find_packages(folder))]


setup(
    packages=[
        *find_packages(include=["scsco_fast", "scsco_fast.*"]),
        *(package for name, folder in MAPPED.items() for package in packages_of(name, folder)),
    ],
    package_dir={"scsco_fast": "scsco_fast", **MAPPED},
    package_data={"scsco_fast": ["py.typed"], "scsco_fast.kernels": ["*.txt"]},
)
