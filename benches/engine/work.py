"""What run.py and curves.py have in common: one recipe for both programs, and its inputs.

Needs only Python itself: the programs' peaks of memory are looked at from here, and Linux
counts a parent's memory at the fork into its child's.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / "runs" / "bench-engine"
SHAPES = json.loads((HERE / "shapes.json").read_text())
# Extensions that matrix products in bfloat16 hang on.
FEATURES = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"]


def recipe(shape, dtype, quantization, steps):
    """Everything is written out, so that no program's defaults matter. JSON is YAML, too."""
    length, batch = SHAPES[shape]["length"], SHAPES[shape]["batch"]
    base = {"model": str((WORK / shape / "base").relative_to(ROOT)), "dtype": dtype}
    if quantization != "none":
        base["quantization"] = quantization
    return {
        "heirloom": 1,
        "name": f"bench-engine-{shape}",
        "base": base,
        "adapter": {"lora": {"rank": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}},
        "data": {
            "purpose": ["dpv:ResearchAndDevelopment"],
            "train": [{"path": str((WORK / shape / "rows.parquet").relative_to(ROOT)), "format": "text"}],
            "sequence_length": length, "packing": True, "shuffle": False, "train_on": "all",
        },
        "train": {
            "epochs": 1000, "max_steps": steps, "tokens_per_step": length * batch, "micro_batch_tokens": length * batch,
            "optimizer": {"adamw": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}},
            "schedule": {"cosine": {"warmup_ratio": 0.03}},
            "clip_grad_norm": 1.0, "seed": 17, "checkpoint_every": 0,
        },
    }


def arguments(parser):
    """Options of both scripts."""
    parser.add_argument("--python", default=sys.executable, help="a Python with requirements.txt")
    parser.add_argument("--heirloom", default=ROOT / "target/release/heirloom", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="31m")
    parser.add_argument("--quantization", choices=["none", "nf4", "nf4-double"], default="none")
    parser.add_argument("--threads", type=int, default=os.cpu_count())


def environment(threads, isa=None):
    """The same for both programs."""
    count = str(threads)
    variables = os.environ | {
        "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "RAYON_NUM_THREADS": count,
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HEIRLOOM_HOME": str(WORK / "home"),
    }
    # Both names: which one counts depends on oneDNN's version.
    return variables | ({"ONEDNN_MAX_CPU_ISA": isa, "DNNL_MAX_CPU_ISA": isa} if isa else {})


def make(args, variables):
    """Model and rows, unless they are there."""
    folder = WORK / args.shape
    rows = folder / "rows.parquet"
    if rows.is_file():
        return
    call([args.python, HERE / "make.py", folder, "--shape", args.shape], variables)
    call([args.heirloom, "data", "import", folder / "rows.jsonl", "-o", rows, "--format", "text",
          "--consent", HERE / "consent.yaml"], variables)


def call(command, variables):
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed with status {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")
    return path


def machine():
    """What the numbers hang on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    value = lambda name: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
    flags = value("flags").split()
    return {"cpu": value("model name"), "cores": os.cpu_count(), "features": [name for name in FEATURES if name in flags]}
