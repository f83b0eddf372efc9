"""Other tools' words for what a recipe says, so that somebody who knows those tools is told ours."""

from __future__ import annotations

KEYS = {
    "aux_hidden_state_layer_ids": "algorithm.aux_layers",
    "base_model": "verifier.model",
    "batch_size": "train.tokens_per_step",
    "cutoff_len": "data.max_length",
    "draft_vocab": "algorithm.draft_vocab_size",
    "eagle_aux_hidden_state_layer_ids": "algorithm.aux_layers",
    "eval_steps": "train.validation.every",
    "fc_norm": "algorithm.normalization.per_aux_layer",
    "grad_clip": "train.gradient_clip",
    "k": "eval.acceptance.speculative_tokens",
    "learning_rate_scheduler": "train.schedule.type",
    "lr": "train.optimizer.learning_rate",
    "lr_scheduler_type": "train.schedule.type",
    "max_grad_norm": "train.gradient_clip",
    "max_model_len": "data.max_length",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "model_name": "verifier.model",
    "model_name_or_path": "verifier.model",
    "noise_std": "algorithm.feature_noise",
    "norm_before_fc": "algorithm.normalization.before_fc",
    "norm_before_residual": "algorithm.normalization.before_residual",
    "norm_output": "algorithm.normalization.output",
    "num_draft_layers": "algorithm.layers",
    "num_epochs": "train.epochs",
    "num_layers": "algorithm.layers",
    "num_speculative_tokens": "eval.acceptance.speculative_tokens",
    "num_train_epochs": "train.epochs",
    "per_device_train_batch_size": "train.tokens_per_step",
    "random_seed": "seed",
    "save_steps": "train.checkpoint.every",
    "save_total_limit": "train.checkpoint.keep",
    "seq_length": "data.max_length",
    "speculator_type": "algorithm.type",
    "target_layer_ids": "algorithm.aux_layers",
    "target_model": "verifier.model",
    "target_model_path": "verifier.model",
    "torch_dtype": "verifier.dtype",
    "ttt_length": "algorithm.training_time_test.steps",
    "ttt_steps": "algorithm.training_time_test.steps",
    "warmup_ratio": "train.schedule.warmup",
}
"""A key as other tools spell it -> its path in a recipe."""

VALUES = {
    "bf16": "bfloat16",
    "half": "float16",
    "fp16": "float16",
    "f16": "float16",
    "float": "float32",
    "fp32": "float32",
    "f32": "float32",
    "gpu": "cuda",
    "adam": "adamw",
    "eagle-3": "eagle3",
    "eagle_3": "eagle3",
    "hf": "transformers",
    "torch.bfloat16": "bfloat16",
    "torch.float16": "float16",
    "torch.float32": "float32",
}
"""A value as other tools spell it -> as a recipe does, where that is allowed."""

BOOLEANS = {**dict.fromkeys(("yes", "on", "y"), "true"), **dict.fromkeys(("no", "off", "n"), "false")}
"""Truths of YAML 1.1, which are plain text in 1.2."""
