"""Which driver a run has, or had: a small file in the run's folder, so that no two work on the same run.

It also tells the next driver whether the one before is surely gone, and with it all that it left unfinished.
"""

import os
import socket
from dataclasses import dataclass

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from llmforge.checkpoint.names import new_driver_id
from llmforge.errors import ConfigError
from llmforge.storage.base import NotFoundError, Storage, read_bytes, write_bytes

DRIVER_FILE = "driver.json"


class DriverRecord(BaseModel):
    """One driver process."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    driver_id: str
    host: str
    pid: int
    process_started_at: float
    """With the pid it names one process, also when the system has given the pid to another."""


@dataclass(frozen=True)
class Driver:
    """This process as the driver of a run."""

    driver_id: str
    is_previous_gone: bool
    """Whether whoever drove the run before surely does so no more."""


def take_over(storage: Storage) -> Driver:
    """Become the driver of the run whose folder is the root of `storage`.

    Raises `ConfigError` where another process of this machine still is. Whether one of another machine is cannot be
    told from here.
    """
    previous = _read(storage)
    if previous is not None and _is_alive(previous):
        raise ConfigError(
            f"run_name: {storage.root_uri} is being trained by process {previous.pid} of this machine right now; wait"
            " for it, stop it (kill -INT saves first), or choose another run_name"
        )
    process = psutil.Process()
    record = DriverRecord(
        driver_id=new_driver_id(), host=socket.gethostname(), pid=os.getpid(), process_started_at=process.create_time()
    )
    write_bytes(storage, DRIVER_FILE, record.model_dump_json().encode())
    return Driver(record.driver_id, is_previous_gone=previous is None or previous.host == record.host)


def _read(storage: Storage) -> DriverRecord | None:
    try:
        return DriverRecord.model_validate_json(read_bytes(storage, DRIVER_FILE))
    except (NotFoundError, ValidationError):
        return None


def _is_alive(record: DriverRecord) -> bool:
    if record.host != socket.gethostname() or record.pid == os.getpid():
        return False
    try:
        return psutil.Process(record.pid).create_time() == record.process_started_at
    except psutil.NoSuchProcess:
        return False
