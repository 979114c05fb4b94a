"""Write what preference objectives are tested against: TRL's own trainers.

    .venv/bin/python scripts/goldens/preference.py                 # writes engine/tests/fixtures/preference
    .venv/bin/python scripts/goldens/preference.py --output DIR    # elsewhere, to compare

The model is `tiny-llama`, the adapter that of `lora-all-linear`, put into the new adapter that
the trainer makes, so that its reference is the base.

`pairs.safetensors`, `labelled.safetensors`: documents as TRL makes them of the rows.
`NAME.safetensors`: for each case its loss, what TRL logs of it, and the gradient of each weight.
`curve.safetensors`: the losses of 50 steps of DPO, two pairs each.
`cases.json`: the cases, by the words of a recipe.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from common import generator, peft_keys, save

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "engine/tests/fixtures"
VOCAB, EOS = 97, 1
# Tokens of the question, of the better answer and of the worse one, without their ends.
PAIRS = [(5, 3, 9), (12, 20, 4), (1, 1, 1), (30, 7, 7)]
CURVE_STEPS, CURVE_PAIRS = 50, 2

DPO, ORPO, KTO, SIMPO = "dpo", "orpo", "kto", "simpo"
CASES = {
    "dpo-sigmoid": {DPO: {"beta": 0.1}},
    "dpo-sigmoid-2": {DPO: {"beta": 0.5}},
    "dpo-ipo": {DPO: {"beta": 0.2, "loss_type": "ipo"}},
    "dpo-hinge": {DPO: {"beta": 0.3, "loss_type": "hinge"}},
    "orpo": {ORPO: {"beta": 0.1}},
    "kto": {KTO: {"beta": 0.1}},
    "kto-weights": {KTO: {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.7}},
    "simpo": {SIMPO: {}},
    "simpo-smoothed": {SIMPO: {"beta": 2.5, "simpo_gamma": 1.2, "label_smoothing": 0.1}},
}


def words(rng, count):
    # Not the ones that end a text.
    return " ".join(f"t{number}" for number in rng.integers(2, VOCAB, count))


def preferences(seed, lengths):
    rng = generator(seed)
    rows = [[words(rng, count) for count in counts] for counts in lengths]
    # A space, so that the words of question and answer stay apart.
    return [{"prompt": p, "chosen": " " + c, "rejected": " " + r} for p, c, r in rows]


def labelled(rows):
    for row in rows:
        for label, answer in [(True, "chosen"), (False, "rejected")]:
            yield {"prompt": row["prompt"], "completion": row[answer], "label": label}


def tokenizer():
    vocab = {f"t{number}": number for number in range(VOCAB)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token=f"t{EOS}", pad_token="t0", unk_token="t0")



def trainer(case, rows, folder, **more):
    (word, settings), = case.items()
    settings = dict(settings)
    config, kind = {
        DPO: (DPOConfig, DPOTrainer), ORPO: (ORPOConfig, ORPOTrainer),
        KTO: (KTOConfig, KTOTrainer), SIMPO: (CPOConfig, CPOTrainer),
    }[word]
    if word == SIMPO:
        settings = {"beta": 2.0, "loss_type": "simpo", "cpo_alpha": 0.0} | settings
    if word in (DPO, KTO):
        settings |= {"pad_to_multiple_of": None}
    args = config(**({
        "output_dir": folder, "per_device_train_batch_size": len(rows), "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "report_to": [], "logging_steps": 1,
        "train_sampling_strategy": "sequential", "max_length": None if word in (DPO, KTO) else 256,
    } | settings | more))
    adapter = FIXTURES / "lora-all-linear/adapter"
    kept = {"r", "lora_alpha", "target_modules", "use_rslora", "task_type", "bias"}
    lora = json.loads((adapter / "adapter_config.json").read_text())
    made = kind(
        model=LlamaForCausalLM.from_pretrained(FIXTURES / "tiny-llama"), args=args,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer(),
        peft_config=LoraConfig(**{name: value for name, value in lora.items() if name in kept}))
    set_peft_model_state_dict(made.model, load_file(adapter / "adapter_model.safetensors"))
    # What another step has logged.
    return made


def documents(prefix, rows, answers):
    tensors = {}
    words = tokenizer()
    texts = [(row["prompt"], row[answer]) for row in rows for answer in answers]
    for number, (prompt, answer) in enumerate(texts):
        asked = words(prompt)["input_ids"]
        ids = asked + words(answer)["input_ids"] + [EOS]
        trained = [place >= len(asked) for place in range(len(ids))]
        tensors[f"{prefix}ids.{number}"] = torch.tensor(ids)
        tensors[f"{prefix}trained.{number}"] = torch.tensor(trained, dtype=torch.uint8)
    return tensors


def measured(case, rows, folder):
    made = trainer(case, rows, folder)
    batch = next(iter(made.get_train_dataloader()))
    made.model.train()
    if hasattr(made, "get_batch_loss_metrics"):
        loss, logged = made.get_batch_loss_metrics(made.model, batch)
    else:
        loss = made.compute_loss(made.model, batch)
        logged = {name: values[-1] for name, values in made._metrics["train"].items()}
    loss.backward()
    names = ("rewards/", "logps/", "kl", "log_odds") + (("nll_loss",) if ORPO in case else ())
    figures = {f"figure.{name}": torch.tensor([float(value)])
               for name, value in logged.items() if name.startswith(names)}
    gradients = peft_keys(made.model, "grad.", lambda weight: weight.grad)
    return {"loss": loss.detach().float().view(1)} | figures | gradients


def curve(folder):
    rng = generator(9)
    rows = preferences(8, rng.integers(1, 24, (CURVE_STEPS * CURVE_PAIRS // 5, 3)))
    made = trainer(
        {DPO: {"beta": 0.1}}, rows, folder, per_device_train_batch_size=CURVE_PAIRS,
        num_train_epochs=5, learning_rate=1e-3, lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=1.0, save_strategy="no", disable_tqdm=True)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert len(losses) == CURVE_STEPS, losses
    return {"losses": torch.tensor(losses)} | documents("", rows, ["chosen", "rejected"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=FIXTURES)
    out = parser.parse_args().output / "preference"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pairs = preferences(7, PAIRS)
    # Five, so that wanted and unwanted answers are not as many.
    single = list(labelled(pairs))[:5]
    save(documents("", pairs, ["chosen", "rejected"]), out / "pairs.safetensors")
    labels = torch.tensor([row["label"] for row in single], dtype=torch.uint8)
    save({"labels": labels} | documents("", single, ["completion"]), out / "labelled.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            save(measured(case, single if KTO in case else pairs, folder), out / f"{name}.safetensors")
        save(curve(folder), out / "curve.safetensors")
    text = json.dumps(CASES, indent=2) + "\n"
    (out / "cases.json").write_text(text)


if __name__ == "__main__":
    main()
