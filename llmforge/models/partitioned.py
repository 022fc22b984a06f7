"""Loading a model that is partitioned over the ranks from its first tensor on, for ZeRO stage 3.

`transformers` does it (`transformers/integrations/deepspeed.py`): every weight is made as this rank's part of it,
rank 0 alone reads the files, through memory maps, and hands out one layer after another. So no rank ever holds the
whole model, and the weights are read once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config


@contextmanager
def partitioned_loading(deepspeed_config: Mapping[str, Any]) -> Iterator[None]:
    """Models that are loaded within this context are partitioned where the configuration says stage 3.

    DeepSpeed's process group must be there.
    """
    held = HfDeepSpeedConfig(dict(deepspeed_config))
    try:
        yield
    finally:
        del held
        unset_hf_deepspeed_config()
