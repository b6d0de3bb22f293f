"""A LoRA adapter as peft keeps it: a folder with its configuration and its factors.

Here its scale is part of B, so that it is B·A.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from warp_core.store.errors import MergeError
from warp_core.store.files import write_json
from warp_core.store.tensors import Array, WeightFiles

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
# What would make of an adapter other than s·B·A on frozen weights.
OTHERWISE = ("rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "lora_bias")
OTHERWISE += ("target_parameters", "trainable_token_indices", "alora_invocation_tokens")
Pair = tuple[Array, Array]
"""B (out, r), with its scale, and A (r, in), float32."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / CONFIG).is_file()


class Adapter:
    """A folder of peft's.

    Attributes:
        pairs: name of an adapted matrix, as the body calls it -> its factors.
        rank: of all of them.

    Raises MergeError where it is no LoRA adapter of that one form, DamagedError where a file is not
    what was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            self.rank, alpha = int(self.config["r"]), float(self.config["lora_alpha"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MergeError(f"{folder / CONFIG}: is no configuration of LoRA: {error!r}") from None
        strange = [key for key in OTHERWISE if self.config.get(key)]
        strange += ["bias"] if self.config.get("bias", "none") != "none" else []
        if self.config.get("peft_type") != "LORA" or strange:
            what = ", ".join(strange) or f"peft_type {self.config.get('peft_type')!r}"
            raise MergeError(f"{folder}: only plain LoRA can be merged, and it has {what}")
        scale = alpha / (math.sqrt(self.rank) if self.config.get("use_rslora") else self.rank)
        files = WeightFiles(folder)
        read = {name: _whole(files, name) for name in files.shapes}
        self.pairs: dict[str, Pair] = {}
        for name in sorted(name for name in read if name.endswith(A)):
            module = name.removesuffix(A)
            if module + B in read:
                b = read.pop(module + B) * np.float32(scale)
                self.pairs[module.removeprefix(PREFIX)] = b, read.pop(name)
        if read or any(
            b.shape[1] != self.rank or len(a) != self.rank for b, a in self.pairs.values()
        ):
            what = ", ".join(sorted(read)[:5]) or f"factors of another rank than {self.rank}"
            raise MergeError(f"{folder}: only plain LoRA can be merged, and it has {what}")

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Of the matrices that it adapts: (out, in)."""
        return {name: (len(b), a.shape[1]) for name, (b, a) in self.pairs.items()}


def write_adapter(
    folder: Path, pairs: Mapping[str, Pair], config: Mapping[str, Any], alpha: float | None = None
) -> None:
    """An adapter as peft reads it; all matrices have one rank.

    Args:
        config: the rest of its configuration.
        alpha: its `lora_alpha`; None: the rank, so that its scale is 1.
    """
    rank = len(next(iter(pairs.values()))[1])
    own = {"r": rank, "lora_alpha": rank if alpha is None else alpha, "use_rslora": False}
    named = {f"{PREFIX}{name}{A}": np.ascontiguousarray(a) for name, (_, a) in pairs.items()}
    named |= {f"{PREFIX}{name}{B}": np.ascontiguousarray(b) for name, (b, _) in pairs.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, {**config, **own})


def _whole(files: WeightFiles, name: str) -> Array:
    """A matrix in float32."""
    pieces = [piece.astype(np.float32) for piece in files.pieces(name)]
    return np.concatenate([np.zeros(0, np.float32), *pieces]).reshape(files.shapes[name])
