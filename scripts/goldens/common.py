"""What the makers of goldens share: seeded numbers, documents, losses, adapters, files."""

import json

import numpy as np
import torch
import torch.nn.functional as F
from peft import get_peft_model_state_dict
from safetensors.torch import save_file


def generator(seed):
    """The same numbers on every machine and with every version of PyTorch."""
    return np.random.Generator(np.random.PCG64(seed))


def numpy_normal(rng, like, std):
    return torch.from_numpy(rng.standard_normal(like.shape) * std).to(like.dtype)


def documents(seed, lengths, vocab):
    """Token ids, and for each token whether predicting it carries loss (never the first)."""
    rng = generator(seed)
    result = []
    for length in lengths:
        ids = torch.from_numpy(rng.integers(0, vocab, length))
        trained = torch.from_numpy(rng.random(length) < 0.6)
        trained[0] = False
        result.append((ids, trained))
    return result


def token_losses(logits, ids):
    """Negative log-likelihood of every token but the first."""
    return F.cross_entropy(logits[:-1].float(), ids[1:], reduction="none")


def forward(model, docs):
    """Every document by itself: logits of each, and the mean loss over all trained tokens."""
    logits = [model(ids[None], use_cache=False).logits[0] for ids, _ in docs]
    each = [token_losses(l, ids)[trained[1:]] for l, (ids, trained) in zip(logits, docs)]
    return logits, torch.cat(each).mean()


def describe(docs, logits, loss):
    """What `forward` was given and gave, by the names that the tests read."""
    tensors = {"loss": loss.detach().float()}
    for k, (ids, trained) in enumerate(docs):
        tensors[f"ids.{k}"] = ids
        tensors[f"trained.{k}"] = trained.to(torch.uint8)
        tensors[f"logits.{k}"] = logits[k].detach().float().contiguous()
    return tensors


def draw_adapter(model, seed):
    """A and B of PEFT's model both drawn: B = 0 would hide half the numbers."""
    rng = generator(seed)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            if weight.requires_grad:
                weight.copy_(numpy_normal(rng, weight, 0.2))
    return model


def peft_keys(model, prefix, pick):
    """What `pick` takes from each trained weight, by its key in adapter_model.safetensors."""
    saved = get_peft_model_state_dict(model)
    result = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            key = name.replace(".default.", ".")
            assert key in saved, key
            result[prefix + key] = pick(weight).detach().clone()
    assert len(result) == len(saved), "PEFT saves what is not trained"
    return result


def save_adapter(model, folder, base, **how):
    # A path of this machine must not reach the repository.
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, **how)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    # PEFT keeps the targets in sets, whose order differs from run to run.
    for key in ["target_modules", "target_parameters", "exclude_modules"]:
        if config.get(key):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def save(tensors, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().clone().contiguous() for name, t in tensors.items()}, path)
