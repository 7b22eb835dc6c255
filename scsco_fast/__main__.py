"""`python -m scsco_fast`, the same as `scsco`."""

from scsco_fast.cli import run

if __name__ == "__main__":
    run()
