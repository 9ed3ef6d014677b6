"""The 135M model's shape and the machine that the unit tests plan for."""

from pipeline.checkpoints.facts import facts_from_shape
from pipeline.types import Machine

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
FACTS = facts_from_shape("tiny", SHAPE)
MACHINE = Machine("cpu", "test CPU", 1, 2, 24 * 2**30, None, None)
