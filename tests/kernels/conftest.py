"""The interpreted tests are collected only where Triton interprets; test_interpreted.py starts such a run."""

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
