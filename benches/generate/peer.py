"""What `generate` of Transformers does with a file of prompts, timed from within.

    python benches/generate/peer.py MODEL REQUESTS.jsonl --dtype float32 --threads 2 --new-tokens 128

All prompts are one batch, padded on the left. Prints JSON.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria


class Clock(StoppingCriteria):
    """Is asked after each token of the batch, and only looks at the time."""

    def __init__(self):
        self.times = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("requests")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa").eval()
    # Without an end-of-sequence token nothing ends early.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    with open(args.requests) as lines:
        texts = [json.loads(line)["prompt"] for line in lines]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    clock = Clock()
    began = time.perf_counter()
    out = model.generate(**inputs, do_sample=False, max_new_tokens=args.new_tokens,
                         stopping_criteria=[clock])
    new = out[:, inputs["input_ids"].shape[1]:]
    assert new.shape == (len(texts), args.new_tokens), new.shape
    decoded = (args.new_tokens - 1) * len(texts)
    print(json.dumps({
        "prefill_seconds": clock.times[0] - began,
        "tokens_per_second": decoded / (clock.times[-1] - clock.times[0]),
        "texts": tokenizer.batch_decode(new, skip_special_tokens=True),
    }))


if __name__ == "__main__":
    main()
