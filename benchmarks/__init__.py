"""Programs that measure speed and memory; no test asserts a time."""
