"""Runs inside vLLM's own environment: its hidden-states connector, with a copy that needs no GPU.

The connector that vLLM ships copies on a CUDA stream into pinned memory, which its CPU build does not have. Everything
else, locks and file format included, is vLLM's. Loaded with `kv_connector_module_path`; written for vLLM 0.32.
"""

from __future__ import annotations

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
    extract_from_kv_cache,
)


class _Copied:
    """In the place of a CUDA event: the copy is made when it is asked for."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class CpuHiddenStatesConnector(ExampleHiddenStatesConnector):  # type: ignore[misc]
    """Writes the states of finished requests to `shared_storage_path`."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        if not self._is_tp_rank_zero:
            return
        blocks = torch.tensor(pending.block_ids, dtype=torch.long)
        slots = (blocks[:, None] * self._block_size + torch.arange(self._block_size)).flatten()
        count = len(pending.token_ids)
        states = extract_from_kv_cache(self._kv_cache, slots[:count], count).contiguous().clone()
        tensors, event = {"hidden_states": states, "token_ids": pending.token_ids.clone()}, _Copied()
        lock = self._lock_fds.pop(pending.req_id, None)
        self._req_copy_events[pending.req_id] = event
        future = self._executor.submit(self._write_tensors, tensors, event, pending.filename, lock)
        self._req_futures[pending.req_id] = future
        future.add_done_callback(lambda done: self._on_write_done(pending.req_id, done))
