"""A tiny random model of every family's own transformers class, saved as a real checkpoint with a tokenizer.

Each has what its family is known for: more than one kind of layer, a window shorter than the texts of the tests, at
least one layer with experts, images beside the text, a soft cap, norms around everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speculators.verifiers.random_model import byte_tokenizer

VOCABULARY = 300
LAYERS = 4
HIDDEN, HEAD = 128, 32
"""Attention in vLLM's CPU build has heads of 32 channels at least."""
WINDOW = 6


@dataclass(frozen=True)
class Family:
    """`model` and `config` are names of transformers' classes, `values` those of the text's config."""

    model: str
    config: str
    values: Mapping[str, Any]
    images: Mapping[str, Any] | None = None
    """Values of the composite config around the text's."""
    rereads: bool = False
    """Whether it keeps its own attention, because ours is of another kind."""

    def write(self, directory: Path) -> None:
        """Save the checkpoint: seeded weights wide enough that the argmax is never a near-tie."""
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()
        config_class = getattr(transformers, self.config)
        config = config_class(**({**TEXT, **self.values} if self.images is None else self._composite()))
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config)
        for name, parameter in model.named_parameters():
            with torch.no_grad():
                if name.endswith("norm.weight"):
                    parameter.add_(0.3 * torch.randn_like(parameter))
                elif name.endswith(("bias", "sinks")):
                    parameter.normal_(std=0.5)
        model.generation_config.eos_token_id = [258]
        model.save_pretrained(directory)
        byte_tokenizer(VOCABULARY).save_pretrained(directory)

    def _composite(self) -> dict[str, Any]:
        return {**dict(self.images or {}), "text_config": {**TEXT, **self.values}}


TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "head_dim": 16,  # transformers calls the rotary part so
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",  # as the published configs have it; transformers knows no other, vLLM does
    "first_k_dense_replace": 1,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}
INTERLEAVED = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [8, 4, 4], "mrope_interleaved": True}
"""As the published configs of Qwen3-VL have it; transformers interleaves whatever is said, vLLM asks."""
SMALL_VIT = {"depth": 1, "hidden_size": 64, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": HIDDEN}
IMAGE_IDS = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}

FAMILIES: dict[str, Family] = {
    "llama-3": Family(
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", {}),
    "qwen3-moe": Family("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**MOE, "decoder_sparse_step": 1}),
    "llama-4-text": Family(
        "Llama4ForCausalLM",
        "Llama4TextConfig",
        {
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": WINDOW,
            "floor_scale": 4,
        },
        rereads=True,
    ),
    "llama-4": Family(
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        {
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": WINDOW,
            "floor_scale": 4,
        },
        images={
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "vision_output_dim": 16,
                "image_size": 8,
                "patch_size": 4,
                "projector_input_dim": 16,
                "projector_output_dim": 16,
            }
        },
        rereads=True,
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 64,
                "truncate": False,
            },
        },
    ),
    "qwen3-vl": Family(
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {"rope_parameters": INTERLEAVED},
        images={"vision_config": {**SMALL_VIT, "deepstack_visual_indexes": [0]}, **IMAGE_IDS},
    ),
    "qwen3-vl-moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        {**MOE, "norm_topk_prob": True, "rope_parameters": INTERLEAVED},
        images={"vision_config": {**SMALL_VIT, "deepstack_visual_indexes": [0]}, **IMAGE_IDS},
    ),
    "qwen3-next": Family(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **MOE,
            **LINEAR,
            "linear_key_head_dim": 64,  # of which vLLM's CPU build wants as many
            "linear_value_head_dim": 64,
            "shared_expert_intermediate_size": 16,
        },
        rereads=True,
    ),
    "qwen3.5": Family(
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        LINEAR,
        images={"vision_config": SMALL_VIT, **IMAGE_IDS},
        rereads=True,
    ),
    "qwen3.5-moe": Family(
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        {**MOE, **LINEAR, "shared_expert_intermediate_size": 16},
        rereads=True,
    ),
    "gemma-2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {"tie_word_embeddings": True, "sliding_window": WINDOW, "query_pre_attn_scalar": HEAD},
    ),
    "gemma-3-text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": HEAD,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma-3": Family(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": HEAD,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
        images={
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
        },
    ),
    "gemma-4": Family(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        {
            "tie_word_embeddings": True,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
            "global_head_dim": HEAD,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "mistral": Family("MistralForCausalLM", "MistralConfig", {"sliding_window": None}),
    "mistral-small-3": Family(
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {"model_type": "mistral", "sliding_window": None},
        images={
            "vision_config": {
                "model_type": "pixtral",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
                "intermediate_size": 16,
                "image_size": 8,
                "patch_size": 4,
            }
        },
    ),
    "ministral-3": Family(
        "Ministral3ForCausalLM",
        "Ministral3Config",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 16.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 8,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "deepseek-v3": Family("DeepseekV3ForCausalLM", "DeepseekV3Config", LATENT),
    "deepseek-v3.2": Family(
        "DeepseekV32ForCausalLM",
        "DeepseekV32Config",
        {**LATENT, "index_topk": 8, "index_n_heads": 16, "index_head_dim": HEAD},
        rereads=True,
    ),
    "glm-4": Family(
        "Glm4ForCausalLM",
        "Glm4Config",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "glm-4-moe": Family(
        "Glm4MoeForCausalLM",
        "Glm4MoeConfig",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        },
    ),
    "glm-5": Family(
        "GlmMoeDsaForCausalLM",
        "GlmMoeDsaConfig",
        {**LATENT, "index_topk": 8, "index_n_heads": 16, "index_head_dim": HEAD},
        rereads=True,
    ),
    "kimi-k2.5": Family(
        "Kimi_K25ForConditionalGeneration",
        "Kimi_K25Config",
        {**LATENT, "model_type": "deepseek_v3"},
        images={
            "vision_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "patch_size": 4,
                "pos_emb_height": 2,
                "pos_emb_width": 2,
            },
            "projection_hidden_size": 16,
            "tie_word_embeddings": False,
        },
    ),
    "kimi-linear": Family(
        "KimiLinearForCausalLM",
        "KimiLinearConfig",
        {
            **{key: value for key, value in LATENT.items() if key not in ("first_k_dense_replace", "n_routed_experts")},
            "num_local_experts": 8,
            "q_lora_rank": None,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
        },
        rereads=True,
    ),
    "nemotron": Family("NemotronForCausalLM", "NemotronConfig", {"norm_eps": 1e-5, "rms_norm_eps": None}, rereads=True),
    "nemotron-h": Family(
        "NemotronHForCausalLM",
        "NemotronHConfig",
        {
            "layers_block_type": ["mamba", "moe", "attention", "mlp"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "layer_norm_epsilon": 1e-5,
        },
        rereads=True,
    ),
}
