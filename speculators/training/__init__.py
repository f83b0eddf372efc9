"""The trainer: batches, optimizers, schedules, checkpoints, the loop."""
