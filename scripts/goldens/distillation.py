"""Write the numbers that distillation is tested against, from TRL, PEFT and PyTorch.

    .venv/bin/python scripts/goldens/distillation.py                 # engine/tests/fixtures/distillation
    .venv/bin/python scripts/goldens/distillation.py --output DIR    # elsewhere, to compare

Divergences over all tokens are those of TRL's `GKDTrainer.generalized_jsd_loss`. TRL has no word
for the cross-entropy beside them (torchtune has `kd_ratio`) nor for teachers of whom only the most
likely tokens are known: those are PyTorch's own `kl_div` over the k tokens and one bucket for the
rest. Needs the models that make.py writes.
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM
from trl.experimental.gkd import GKDTrainer

from common import documents, generator, numpy_normal, save

FIXTURES = Path(__file__).resolve().parents[2] / "engine/tests/fixtures"
LENGTHS = [7, 33, 18]

# Another family, another width, and logits that are capped.
TEACHER = Gemma2Config(
    vocab_size=97, hidden_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=12, intermediate_size=40, max_position_embeddings=64,
    query_pre_attn_scalar=12, sliding_window=10, attn_logit_softcapping=30.0,
    final_logit_softcapping=8.0, bos_token_id=0, eos_token_id=1, pad_token_id=0,
)

# (name, beta, temperature, kd_ratio, tokens of the teacher that are known)
CASES = [
    ("forward", 0.0, 1.0, 1.0, None),
    ("reverse", 1.0, 1.0, 1.0, None),
    ("between", 0.5, 1.0, 1.0, None),
    ("forward-warm", 0.0, 2.0, 1.0, None),
    ("reverse-cool", 1.0, 0.7, 1.0, None),
    ("between-warm", 0.1, 3.0, 1.0, None),
    ("ratio", 0.0, 2.0, 0.4, None),
    ("top-forward", 0.0, 1.0, 1.0, 8),
    ("top-reverse", 1.0, 2.0, 1.0, 8),
    ("top-between", 0.5, 0.7, 0.4, 8),
]


def student():
    base = AutoModelForCausalLM.from_pretrained(
        FIXTURES / "tiny-llama", dtype=torch.float32, attn_implementation="eager"
    )
    folder = FIXTURES / "lora-all-linear/adapter"
    return PeftModel.from_pretrained(base, folder, is_trainable=True).eval()


def drawn_teacher(seed):
    rng = generator(seed)
    model = Gemma2ForCausalLM(TEACHER).eval()
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.copy_(numpy_normal(rng, weight, 0.3))
    return model


def buckets(log_probs, ids):
    """Log-probabilities of some tokens, and of all others together."""
    rest = log_probs.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([log_probs.gather(-1, ids), rest], -1)


def top_divergence(student, teacher, beta, temperature, known):
    student, teacher = ((x / temperature).log_softmax(-1) for x in (student, teacher))
    ids = teacher.topk(known, -1).indices
    student, teacher = buckets(student, ids), buckets(teacher, ids)
    kl = lambda p, q: F.kl_div(q, p, reduction="sum", log_target=True)
    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixed = ((1 - beta) * student.exp() + beta * teacher.exp()).log()
    return beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)


def loss_of(student, teacher, docs, beta, temperature, kd_ratio, known):
    """The mean over all trained tokens."""
    count = sum(int(trained.sum()) for _, trained in docs)
    total = 0.0
    for ids, trained in docs:
        labels = torch.where(trained, ids, -100)[1:]
        mine = student(ids[None], use_cache=False).logits[0, :-1]
        with torch.no_grad():
            theirs = teacher(ids[None], use_cache=False).logits[0, :-1]
        if known is None:
            found = GKDTrainer.generalized_jsd_loss(
                mine[None], theirs[None], labels[None], beta, temperature, num_items_in_batch=count
            )
        else:
            kept = labels != -100
            found = top_divergence(mine[kept], theirs[kept], beta, temperature, known) / count
        ce = F.cross_entropy(mine, labels, ignore_index=-100, reduction="sum") / count
        total = total + kd_ratio * found + (1 - kd_ratio) * ce
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FIXTURES / "distillation")
    out = parser.parse_args().output
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(out, ignore_errors=True)
    drawn_teacher(90).save_pretrained(out / "teacher")
    model = student()
    teacher = AutoModelForCausalLM.from_pretrained(
        out / "teacher", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    docs = documents(91, LENGTHS, TEACHER.vocab_size)
    tensors = {}
    for k, (ids, trained) in enumerate(docs):
        tensors[f"ids.{k}"] = ids
        tensors[f"trained.{k}"] = trained.to(torch.uint8)
    for name, beta, temperature, kd_ratio, known in CASES:
        model.zero_grad()
        loss = loss_of(model, teacher, docs, beta, temperature, kd_ratio, known)
        loss.backward()
        tensors[f"{name}.settings"] = torch.tensor([beta, temperature, kd_ratio, known or 0])
        tensors[f"{name}.loss"] = loss
        for key, weight in model.named_parameters():
            if weight.requires_grad:
                # A copy: the gradient is zeroed before the file is written.
                key = key.replace(".default.", ".")
                tensors[f"{name}.grad.{key}"] = weight.grad.clone()
    save(tensors, out / "golden.safetensors")


if __name__ == "__main__":
    main()
