"""The process that writes a base checkpoint: `core.jobs` calls `work` with one of

{"kind": "gguf", "gguf": FILE, "output": FOLDER}                        dequantize a GGUF
{"kind": "random", "shape": {...}, "seed": 0, "tokenizer": FOLDER, "output": FOLDER}   a shape with random weights
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROGRAM = "pipeline.checkpoints.convert:work"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


class GgufJob(TypedDict):
    """Dequantize a GGUF file."""

    kind: Literal["gguf"]
    gguf: str
    output: str


class RandomJob(TypedDict):
    """Write a model with random weights and another checkpoint's tokenizer."""

    kind: Literal["random"]
    shape: Mapping[str, object]
    """Entries of its config.json."""
    seed: int
    tokenizer: str
    output: str


def work(job: GgufJob | RandomJob) -> dict[str, object]:
    """Write the checkpoint that the job describes; its files are the result."""
    output = Path(job["output"])
    if job["kind"] == "gguf":
        from_gguf(Path(job["gguf"]), output)
    else:
        random_weights(job["shape"], job["seed"], output)
        for name in TOKENIZER_FILES:
            if (Path(job["tokenizer"]) / name).exists():
                shutil.copy(Path(job["tokenizer"]) / name, output / name)
    return {}


def from_gguf(path: Path, output: Path) -> None:
    """Dequantize a GGUF file into a 16-bit checkpoint.

    transformers will not save a model that it loaded from a GGUF, so its weights go into a plain model of the same
    configuration. The end-of-sequence token is the configuration's: the GGUF's tokenizer names another one.
    """
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers parses the file anew for configuration, weights and tokenizer, each time 10 s on 2 cores, and makes
    # the table of tensor names anew for every module.
    gguf.GGUFReader = functools.cache(array_reader())
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    config = type(loaded.config)(
        **{key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    with torch.device("meta"):  # without weights of its own
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.save_pretrained(output)


def array_reader() -> type:
    """The reader of gguf over a plain array: the slices of a memory map, of which it makes half a million, are slow."""
    import gguf
    import numpy as np

    class ArrayReader(gguf.GGUFReader):  # type: ignore[misc]
        data: NDArray[np.uint8]

        def _get(self, *args: object, **settings: object) -> NDArray[np.generic]:
            self.data = self.data.view(np.ndarray)
            found: NDArray[np.generic] = super()._get(*args, **settings)
            return found

    return ArrayReader


def random_weights(shape: Mapping[str, object], seed: int, output: Path) -> None:
    """Write a model of this shape with seeded random weights (the library's own initialization)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    values = {key: value for key, value in shape.items() if key != "model_type"}
    config = AutoConfig.for_model(shape["model_type"], **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(output)
