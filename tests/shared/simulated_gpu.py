"""A GPU that is not there: tensors that say they are on it, are computed by the processor, and mix as on a real one.

What would fail on a GPU because tensors of two devices meet fails here too, in every thread. How often the processor
would have to wait for the GPU is counted. torch knows one such device for a process and never forgets it, so importing
this is for a process of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simulated"
WAITS: Counter[str] = Counter()
"""What made the processor wait for the GPU, and how often."""

_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
)
"""The tensors by which these index may be the processor's."""
_OF_UNKNOWN_SIZE = (
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
    _aten.equal.default,
)
"""Their results' sizes, or results, are the processor's to know."""


class _Module(_DummyBackendModule):
    """What torch asks of a device beside its operations."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
GPU = torch.device(NAME, 0)


class OnGPU(torch.Tensor):
    """A tensor of the simulated GPU; `inner` is where it really is."""

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGPU:
        one = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )
        one.inner = inner
        return cast("OnGPU", one)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.inner})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    def tolist(self) -> Any:
        WAITS["tolist"] += 1
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of a GPU to numpy")

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation that has a tensor of the GPU, or is to make one there."""
    device = kwargs.get("device")
    if func is _aten._to_copy.default:
        return _copied(args[0], **kwargs)
    if func is _aten.copy_.default:
        target, source, *rest = args
        WAITS["to the processor"] += isinstance(source, OnGPU) and not isinstance(target, OnGPU)
        func(_inner(target), _inner(source), *rest, **kwargs)
        return target
    if func is _aten._fused_sdp_choice.default:
        return 0  # the plain formula
    if func is _aten._local_scalar_dense.default:
        WAITS["item"] += 1
        return func(args[0].inner)
    if func is _aten.histc.default and not args[0].is_floating_point():  # a GPU counts whole numbers too
        return OnGPU(func(args[0].inner.float(), *args[1:], **kwargs).to(args[0].dtype))
    generator = kwargs.get("generator")
    if generator is not None and not _is_gpu(generator.device):
        raise RuntimeError(f"{func}: a generator of the processor cannot fill a tensor of the GPU")
    _check(func, args, kwargs)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    return return_and_correct_aliasing(func, args, kwargs, tree_map(_outer, found))


def _copied(tensor: torch.Tensor, *, device: Any = None, non_blocking: bool = False, **options: Any) -> torch.Tensor:
    there = isinstance(tensor, OnGPU) if device is None else _is_gpu(device)
    if isinstance(tensor, OnGPU) and not there:
        WAITS["to the processor"] += 1
    found: torch.Tensor = _aten._to_copy.default(_inner(tensor), **options)
    return OnGPU(found) if there else found


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Raise RuntimeError where tensors of two devices meet, but for numbers and indices; count what is waited for."""
    given = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
    indices = [one for one in tree_iter(args[1]) if isinstance(one, torch.Tensor)] if func in _INDEXING else []
    if indices and not isinstance(args[0], OnGPU):
        raise RuntimeError(f"{func}: what is on the processor is indexed by what is on the GPU")
    for one in given:
        if one.dim() and not isinstance(one, OnGPU) and not any(one is index for index in indices):
            shapes = [tuple(other.shape) for other in given]
            raise RuntimeError(f"{func}: tensors of the processor and of the GPU, of the shapes {shapes}")
    if func in _OF_UNKNOWN_SIZE:
        WAITS[func.__name__] += 1
    if any(index.dtype == torch.bool and isinstance(index, OnGPU) for index in indices):
        WAITS["index by a mask"] += 1


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, OnGPU) else one


def _outer(one: Any) -> Any:
    return OnGPU(one) if isinstance(one, torch.Tensor) and not isinstance(one, OnGPU) else one


def _without_lists(index: Any) -> Any:
    """Lists as tensors: torch itself would make tensors of them for a device that it cannot."""
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_without_lists, index)) if isinstance(index, tuple) else index


def _made_here(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`make`, of lists and numbers; for the GPU as torch does it for any: made by the processor, and copied there."""

    def made(*data: Any, **options: Any) -> torch.Tensor:
        device = options.get("device")
        return make(*data, **{**options, "device": "cpu"}).to(device) if _is_gpu(device) else make(*data, **options)

    return made


_LIBRARY = torch.library.Library("_", "IMPL")
_LIBRARY.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
_LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
_device_constructors()  # remembers torch's own functions, by which `with torch.device("meta")` knows them
torch.tensor = _made_here(torch.tensor)
torch.as_tensor = _made_here(torch.as_tensor)
