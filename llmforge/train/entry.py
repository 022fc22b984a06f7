"""Where a training worker begins.

The driver, and Ray Train's controller process, load this module and not the worker: transformers, deepspeed and peft
take seconds to import, and only the workers need them.
"""

import gc
import os
import sys
import time
from importlib import import_module

from llmforge.train.task import WorkerTask

_UNUSED_IN_WORKERS = "mlflow"
"""DeepSpeed imports it where it is installed, for a tuner of its own: an eighth of a worker's imports. The driver alone
logs to it."""


def start_worker(task: WorkerTask) -> None:
    """Entry of a Ray Train worker: imports the worker where it runs."""
    if os.path.isdir(task.working_folder):  # Ray Train has gone to a folder of its own
        os.chdir(task.working_folder)
    entered_at = time.time()
    sys.modules.setdefault(_UNUSED_IN_WORKERS, None)  # type: ignore[arg-type]  # None: as if it was not installed
    worker = import_module("llmforge.train.worker")
    gc.freeze()  # DeepSpeed collects garbage many times as it starts, and what the imports have made is none
    start_seconds = {
        "worker: start by Ray Train": entered_at - task.sent_at,
        "worker: imports of torch, transformers, deepspeed, peft": time.time() - entered_at,
    }
    worker.train_worker(task, start_seconds)
