"""What small random models of a Llama's kind are made of, and prompts of ids that they know."""

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
PROMPTS = [[5, 9, 2], [7], list(range(20, 49)), [3, 3, 3, 3, 60, 61], list(range(13)), [1, 2]]
