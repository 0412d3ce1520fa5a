"""A pretended GPU: tensors of the CPU that claim to be on "cuda", and refuse to meet those of the CPU."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["OnGpu", "pretended_gpu"]

_GPU, _CPU = torch.device("cuda", 0), torch.device("cpu")
_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class OnGpu(Tensor):
    """A tensor that claims to be on the GPU, while `pretended_gpu` lasts."""

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


def _raise(error: Exception) -> Any:
    raise error


def _is_gpu(device: object) -> bool:
    """Whether a device, in any notation of torch's, is the GPU."""
    if isinstance(device, Tensor):
        return isinstance(device, OnGpu)
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def _wrap(value: Any) -> Any:
    return value.as_subclass(OnGpu) if isinstance(value, Tensor) and not isinstance(value, OnGpu) else value


def _unwrap(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, OnGpu) else value


def _move(tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], *, gpu: bool | None) -> Tensor:
    """Run ``tensor.to(...)`` with another device; between devices the result is a copy."""
    there = isinstance(tensor, OnGpu)
    gpu = there if gpu is None else gpu
    plain = _unwrap(tensor)
    moved = plain.to(*(_CPU if _is_device(a) else _unwrap(a) for a in args), **kwargs)
    if gpu != there and moved.untyped_storage().data_ptr() == plain.untyped_storage().data_ptr():
        moved = moved.clone()
    if gpu == there and moved is plain:
        return tensor
    found: Tensor = _wrap(moved) if gpu else moved
    return found


def _is_device(value: object) -> bool:
    return isinstance(value, str | torch.device)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    places = [a for a in (*args, kwargs.pop("device", None), kwargs.pop("other", None)) if a is not None]
    named = next((a for a in places if _is_device(a) or isinstance(a, Tensor)), None)
    like = [a for a in places if isinstance(a, Tensor) and a not in args] if named is not None else []
    return _move(tensor, (*args, *like), kwargs, gpu=None if named is None else _is_gpu(named))


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    if isinstance(tensor, OnGpu):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    pinned = tensor.clone()
    pinned.__dict__["pinned"] = True
    return pinned


def _to_numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(tensor, OnGpu):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
    return tensor.numpy() if not args else tensor.__array__(*args, **kwargs)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda t: _GPU if isinstance(t, OnGpu) else t.device,
    Tensor.is_cuda.__get__: lambda t: isinstance(t, OnGpu),  # type: ignore[attr-defined]  # a descriptor of C
    Tensor.is_cpu.__get__: lambda t: not isinstance(t, OnGpu) and t.is_cpu,  # type: ignore[attr-defined]  # a descriptor of C
    Tensor.to: _to,
    Tensor.cpu: lambda t, **_: _move(t, (), {}, gpu=False),
    Tensor.cuda: lambda t, *_, **__: _move(t, (), {}, gpu=True),
    Tensor.pin_memory: _pin,
    Tensor.is_pinned: lambda t, *_: t.__dict__.get("pinned", False),
    Tensor.numpy: _to_numpy,
    Tensor.__array__: _to_numpy,
    # so that a module that is moved gets new parameters, of the type that claims to be there
    torch._has_compatible_shallow_copy_type: lambda *_: False,
}
#: What takes tensors of both devices: copies, and shapes of others.
_MIXING = {
    Tensor.copy_,
    Tensor.expand_as,
    Tensor.reshape_as,
    Tensor.set_,
    Tensor.view_as,
    Tensor.data.__set__,  # type: ignore[attr-defined]  # a descriptor of C
    Tensor.grad.__set__,  # type: ignore[union-attr]  # a descriptor of C
}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
#: What takes no numbers of the CPU either.
_STRICT = {torch.cat, torch.stack, torch.lerp}


class _PretendedGpu(TorchFunctionMode):
    """Sees each call of torch in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _SPECIAL:
            with torch._C.DisableTorchFunctionSubclass():
                return _SPECIAL[func](*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        gpu = any(isinstance(one, OnGpu) for one in tensors)
        if gpu and func not in _MIXING:
            self._check(func, args, tensors)
        if func in _MIXING:
            gpu = isinstance(args[0], OnGpu)
        if kwargs.get("device") is not None:
            gpu = _is_gpu(kwargs["device"])
            if gpu:
                kwargs["device"] = _CPU
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return tree_map(_wrap, result) if gpu else result

    @staticmethod
    def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
        if func in _INDEXING and isinstance(args[0], OnGpu):
            tensors = [one for one in args[2:] if isinstance(one, Tensor)]
        strays = [one for one in tensors if not isinstance(one, OnGpu) and (one.ndim > 0 or func in _STRICT)]
        if strays:
            raise RuntimeError(
                "expected all tensors on the GPU; found one on the CPU, of shape "
                f"{tuple(strays[0].shape)}, in {getattr(func, '__name__', func)}"
            )


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Let "cuda" be a device of this process, which computes on the CPU."""
    values: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "is_bf16_supported": True,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
        "manual_seed_all": None,
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "is_current_stream_capturing": False,
    }
    of_any: dict[str, Any] = {
        "is_available": True,
        "current_accelerator": _GPU,
        "current_stream": mock.Mock(is_capturing=lambda: False),
    }
    with ExitStack() as stack:
        for module, named in ((torch.cuda, values), (torch.accelerator, of_any)):
            for name, value in named.items():
                stack.enter_context(mock.patch.object(module, name, lambda *_, value=value, **__: value))
        stack.enter_context(_PretendedGpu())
        yield
