"""Which tiny models stand for which families: what `families.py` makes goldens of.

A case is a folder under engine/tests/fixtures/families. Values are unusual on purpose: where
a program ignores a field, or takes a default for it, the logits must show it, and
`families.py` checks that they do. The older styles of the same configs are in old_configs.py.
"""

from dataclasses import dataclass, field

from transformers import (
    DeepseekV2Config, DeepseekV3Config, Gemma2Config, Gemma3TextConfig, GemmaConfig,
    GptOssConfig, GraniteConfig, LlamaConfig, MistralConfig, MixtralConfig, Olmo2Config,
    Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig, SmolLM3Config,
)

VOCAB = 96
SHAPE = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=48, vocab_size=VOCAB, max_position_embeddings=128,
    bos_token_id=1, eos_token_id=2, pad_token_id=None, rms_norm_eps=1e-3,
)
LATENT = SHAPE | dict(
    num_key_value_heads=4, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=8,
    v_head_dim=6, moe_intermediate_size=8, first_k_dense_replace=1,
)


@dataclass
class Case:
    config: object
    # Lengths of the documents: ascending, because dynamic scaling keeps the frequencies of
    # the longest sequence that it has seen until a short one comes.
    lengths: list = field(default_factory=lambda: [5, 17, 32, 50])
    # Lengths of the prompts that 32 tokens continue.
    prompts: list = field(default_factory=lambda: [9, 33])


def rope(kind="default", theta=700.0, **rest):
    return {"rope_type": kind, "rope_theta": theta, **rest}


def llama(**fields):
    return LlamaConfig(**{**SHAPE, "rope_parameters": rope(), **fields})


def factors(start, step, count):
    return [round(start + step * i, 3) for i in range(count)]


LLAMA = {
    "llama": Case(llama(rms_norm_eps=3e-3)),
    "llama-linear": Case(llama(rope_parameters=rope("linear", factor=3.0))),
    # Shorter than the trained length, exactly it, and longer; a continuation that crosses it.
    "llama-dynamic": Case(
        llama(max_position_embeddings=32, rope_parameters=rope("dynamic", factor=2.5)),
        lengths=[5, 32, 40, 50], prompts=[9, 35],
    ),
    # Wave lengths on both sides of 8 and 32, and between them.
    "llama-llama3": Case(llama(head_dim=16, rope_parameters=rope(
        "llama3", 500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=32,
    ))),
    "llama-yarn": Case(llama(head_dim=16, rope_parameters=rope(
        "yarn", 100.0, factor=4.0, beta_fast=1.2, beta_slow=0.12, attention_factor=1.25,
        original_max_position_embeddings=32,
    ))),
    "llama-longrope": Case(
        llama(rope_parameters=rope(
            "longrope", short_factor=factors(1.1, 0.15, 4), long_factor=factors(2.0, 1.5, 4),
            original_max_position_embeddings=48,
        )),
        lengths=[5, 17, 48, 56], prompts=[9, 60],
    ),
    "llama-bias": Case(llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
}

DENSE = {
    "mistral": Case(MistralConfig(
        **SHAPE, head_dim=16, sliding_window=12, rope_parameters=rope(theta=900.0))),
    "qwen2": Case(Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_parameters=rope(theta=300.0))),
    "qwen2-sliding": Case(Qwen2Config(
        **SHAPE | dict(num_hidden_layers=3), use_sliding_window=True, sliding_window=10,
        max_window_layers=1, rope_parameters=rope())),
    "qwen3": Case(Qwen3Config(**SHAPE, head_dim=16, rope_parameters=rope(theta=400.0))),
    "gemma": Case(GemmaConfig(
        **SHAPE | dict(num_key_value_heads=1), head_dim=12, rope_parameters=rope())),
    "gemma2": Case(Gemma2Config(
        **SHAPE | dict(num_hidden_layers=3), head_dim=12, query_pre_attn_scalar=20,
        sliding_window=10, attn_logit_softcapping=3.0, final_logit_softcapping=0.8,
        rope_parameters=rope())),
    "gemma3_text": Case(Gemma3TextConfig(
        **SHAPE | dict(num_hidden_layers=4), head_dim=12, query_pre_attn_scalar=20,
        sliding_window=10, sliding_window_pattern=3, rope_parameters={
            "sliding_attention": rope(theta=200.0),
            "full_attention": rope("linear", 3000.0, factor=4.0),
        })),
    "phi3": Case(Phi3Config(
        **SHAPE | dict(num_attention_heads=2, num_key_value_heads=1), sliding_window=12,
        rope_parameters=rope(partial_rotary_factor=0.75))),
    # The first prompt crosses the switch from short to long factors, where Phi-3 starts anew.
    "phi3-longrope": Case(
        Phi3Config(
            **SHAPE | dict(max_position_embeddings=96), original_max_position_embeddings=24,
            tie_word_embeddings=True, rope_parameters=rope(
                "longrope", short_factor=factors(1.05, 0.2, 4), long_factor=factors(1.5, 2.0, 4),
            )),
        lengths=[5, 24, 32, 50], prompts=[9, 33],
    ),
    "smollm3": Case(SmolLM3Config(
        **SHAPE | dict(num_hidden_layers=3), no_rope_layers=[1, 0, 1],
        rope_parameters=rope(theta=600.0))),
    "olmo2": Case(Olmo2Config(**SHAPE, rope_parameters=rope(theta=800.0))),
    "granite": Case(GraniteConfig(
        **SHAPE, embedding_multiplier=3.5, logits_scaling=2.5, residual_multiplier=0.6,
        attention_multiplier=0.5, tie_word_embeddings=True, rope_parameters=rope())),
}

EXPERTS = {
    "mixtral": Case(MixtralConfig(
        **SHAPE | dict(intermediate_size=16), num_local_experts=5, num_experts_per_tok=2,
        sliding_window=None, rope_parameters=rope(theta=900.0))),
    "qwen3_moe": Case(Qwen3MoeConfig(
        **SHAPE | dict(num_hidden_layers=3), head_dim=16, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=12, mlp_only_layers=[1], norm_topk_prob=True,
        rope_parameters=rope())),
    "qwen3_moe-step": Case(Qwen3MoeConfig(
        **SHAPE | dict(num_hidden_layers=3), head_dim=8, num_experts=6, num_experts_per_tok=3,
        moe_intermediate_size=12, decoder_sparse_step=2, norm_topk_prob=False,
        rope_parameters=rope())),
    "deepseek_v2": Case(DeepseekV2Config(
        **LATENT, q_lora_rank=None, n_routed_experts=6, n_shared_experts=2,
        num_experts_per_tok=2, topk_method="greedy", routed_scaling_factor=1.5, norm_topk_prob=False,
        rope_parameters=rope())),
    "deepseek_v2-group": Case(DeepseekV2Config(
        **LATENT, q_lora_rank=10, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
        topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=3.0,
        norm_topk_prob=False, rope_parameters=rope(
            "yarn", 100.0, factor=4.0, beta_fast=1.2, beta_slow=0.12, mscale=0.7,
            mscale_all_dim=1.3, original_max_position_embeddings=32,
        ))),
    "deepseek_v3": Case(DeepseekV3Config(
        **LATENT, q_lora_rank=10, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
        n_group=4, topk_group=2, routed_scaling_factor=2.5, norm_topk_prob=True,
        num_nextn_predict_layers=0, rope_parameters=rope(
            "yarn", 100.0, factor=4.0, beta_fast=1.2, beta_slow=0.12, mscale=1.0,
            mscale_all_dim=1.0, original_max_position_embeddings=32,
        ))),
    "gpt_oss": Case(GptOssConfig(
        **SHAPE | dict(num_hidden_layers=2, intermediate_size=12), head_dim=16,
        num_local_experts=5, num_experts_per_tok=2, sliding_window=10,
        swiglu_limit=1.2, rope_parameters=rope(
            "yarn", 100.0, factor=4.0, beta_fast=1.2, beta_slow=0.12, truncate=False,
            original_max_position_embeddings=32,
        ))),
}

CASES = LLAMA | DENSE | EXPERTS
