"""What a worker process is asked to do in tests; in a module of its own because processes import it by name."""

import os
import signal
import time


def act(task: str) -> str:
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    return task.upper()


def process_id(task: float) -> int:
    time.sleep(task)
    return os.getpid()
