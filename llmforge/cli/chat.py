"""`llmforge chat`: a conversation in the terminal."""

import sys

from llmforge.cli.places import cache_folder


def run_chat(
    source: str, checkpoint: str, *, system: str | None, max_tokens: int | None, temperature: float | None
) -> None:
    """Read a line, stream the answer, keep the history; Ctrl-C stops an answer, Ctrl-D leaves."""
    from llmforge.inference.generate import open_generator
    from llmforge.inference.sampling import Sampling

    generator = open_generator(source, checkpoint, cache_folder())
    sampling = Sampling(max_tokens, temperature)
    history: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    print("Write a message and press Enter. Ctrl-C stops an answer, Ctrl-D leaves.", file=sys.stderr)
    while True:
        try:
            text = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not text:
            continue
        asked = [*history, {"role": "user", "content": text}]
        answer = ""
        stream = generator.stream(generator.parse(asked), sampling)
        try:
            print("model: ", end="", flush=True)
            for piece in stream:
                answer += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            stream.close()
        print()
        if answer.strip():
            history = [*asked, {"role": "assistant", "content": answer}]
