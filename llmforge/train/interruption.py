"""Ctrl-C and SIGTERM while workers train: the first asks them to save and leave, the second leaves at once.

In: what is to be run, and whom to ask. It must be the main thread's work, since only that one hears signals.
"""

import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from types import FrameType

POLL_SECONDS = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_interruptibly(work: Callable[[], None], ask_to_stop: Callable[[], None]) -> int | None:
    """Do the work in a thread of its own while this one listens; returns the signal that was heard, if any.

    At the first signal `ask_to_stop` is called; whether the work ends sooner is up to that. The second raises
    `KeyboardInterrupt` here, while the work may still go on. Raises what the work raises.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        work()
        return None

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(number)
        if len(heard) > 1:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, hear) for number in SIGNALS}
    pool = ThreadPoolExecutor(1, thread_name_prefix="llmforge-fit")
    try:
        future = pool.submit(work)
        has_asked = False
        while not wait([future], POLL_SECONDS, FIRST_COMPLETED).done:
            if heard and not has_asked:
                has_asked = True
                ask_to_stop()
        future.result()
        return heard[0] if heard else None
    finally:
        pool.shutdown(wait=False)
        for number, handler in previous.items():
            signal.signal(number, handler)
