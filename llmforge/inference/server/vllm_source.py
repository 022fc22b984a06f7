"""vLLM as a source of tokens: prompt ids in, tokens and their scores out. To be imported where vllm is installed only.

Written for the engine of vLLM 0.32 (`vllm.v1.engine.async_llm`), which runs the model in a process of its own.
"""

import itertools
import os
import signal
from contextlib import aclosing

from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from llmforge.inference.server.async_engine import Tokens
from llmforge.inference.server.engine import EngineLimits
from llmforge.inference.server.generation import Generation
from llmforge.inference.server.vllm_options import VllmPlan, engine_arguments, sampling_arguments, scored


class VllmSource:
    """A `TokenSource`."""

    def __init__(self, plan: VllmPlan, limits: EngineLimits) -> None:
        self._arguments = engine_arguments(plan, limits)
        self._adapters = {
            adapter.name: LoRARequest(adapter.name, number, str(adapter.folder))
            for number, adapter in enumerate(plan.adapters, start=1)
        }
        self._request_ids = map(str, itertools.count())
        self._llm: AsyncLLM | None = None

    async def open(self) -> None:
        """Load the base and all adapters."""
        # A terminal sends Ctrl-C to every process: that of the model is to go on while answers end. It inherits this.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # Unless told otherwise vLLM reports to its makers what it runs on.
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))
        for adapter in self._adapters.values():
            await self._llm.add_lora(adapter)

    async def tokens(self, generation: Generation) -> Tokens:
        """The tokens of one answer."""
        assert self._llm is not None
        outputs = self._llm.generate(
            TokensPrompt(prompt_token_ids=generation.prompt),
            SamplingParams(**sampling_arguments(generation), output_kind=RequestOutputKind.DELTA),
            next(self._request_ids),
            lora_request=None if generation.adapter is None else self._adapters[generation.adapter],
        )
        async with aclosing(outputs):
            async for output in outputs:
                new = output.outputs[0]
                for place, token in enumerate(new.token_ids):
                    num_top = generation.num_top
                    yield token, None if num_top is None else scored(token, num_top, new.logprobs[place])

    def close(self) -> None:
        """End its process."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.shutdown()
