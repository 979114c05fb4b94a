"""Count the parameters of published configurations as Transformers builds them.

The configurations in tests/fixtures/configs are written in the style, with the keys and the
numbers, in which the models were published; the factors of Phi-4-mini's rotary embedding are
made up. Writes `parameters.json` beside them. No weights are made: models live on the meta
device.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).resolve().parents[2] / "tests/fixtures/configs"


def count(folder):
    config = AutoConfig.from_pretrained(folder)
    # Only the way in which weights are stored; the parameters are those of the plain model.
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    buffers = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    return sum(tensor.numel() for tensor in [*model.parameters(), *buffers])


def main():
    folders = sorted(path for path in FOLDER.iterdir() if path.is_dir())
    counts = {folder.name: count(folder) for folder in folders}
    (FOLDER / "parameters.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
