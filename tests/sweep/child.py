"""The function that a process of the sweep runs: light to import, for the driver imports it too."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import time
from dataclasses import asdict
from multiprocessing.connection import Connection

__all__ = ["child"]


def child(sender: Connection, model_type: str, quant: str, log: str, limit: int) -> None:
    """Sends the result of `model_type` as JSON; what is printed meanwhile goes to `log`.

    limit: seconds of processor time, so that a busy machine does not decide what becomes of a
    model. After them SIGXCPU ends the process, and the log says where it was.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGXCPU, chain=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 10))
    from subject import prepare, run_subject

    prepare()
    result = run_subject(model_type, quant)
    result.seconds["processor"] = round(time.process_time(), 1)
    sender.send(json.dumps(asdict(result)))
    sender.close()
