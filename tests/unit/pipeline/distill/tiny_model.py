"""A tiny random-weight model with a real tokenizer: it trains in seconds."""

import json
from pathlib import Path

TEXT = "the a of to and in cat dog sees runs red blue one two three house tree over under with"
WORDS = TEXT.split()
VOCAB = 128


def write_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {word: index + 3 for index, word in enumerate(words)}
    vocab |= {f"<{index}>": index for index in range(len(vocab), VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(folder: Path, *, num_layers: int = 2, seed: int = 0, tied: bool = True, **changes: object) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "initializer_range": 0.1,
    }
    LlamaForCausalLM(LlamaConfig(**(shape | changes))).save_pretrained(folder)
    write_tokenizer(folder, WORDS)
    return folder
