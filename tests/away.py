"A make-believe accelerator: tensors on another device, which refuse to mix with those that are not"
from contextlib import contextmanager

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend('away')
DEVICE = torch.device('away:0')
DOUBLES = [True]  # whether the device has double precision
MAY_MIX = ('copy_', '_to_copy',  # as on CUDA: copies,
           'index.Tensor', 'index_put')  # and indices that lie on the CPU


class Away(torch.Tensor):
    "A CPU tensor under another device's name"
    @staticmethod
    def __new__(cls, held):
        layout = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype)
        new = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)
        new.held = held
        return new

    def __format__(self, spec): return format(self.held, spec)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def held(tree):
    "The tree with what is held in place of tensors that are away"
    return tree_map(lambda x: x.held if isinstance(x, Away) else x, tree)


def tensors_in(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def check_devices(func, tensors):
    "A `RuntimeError` for tensors here and away in one operation; numbers may be anywhere"
    away = any(isinstance(x, Away) for x in tensors)
    here = any(x.ndim and not isinstance(x, Away) for x in tensors)
    if away and here and not any(name in str(func) for name in MAY_MIX):
        raise RuntimeError(f'{func}: tensors on two devices')


def run(func, args, kwargs):
    "The operation on what is held; results are away if a device argument, else the tensors, say so"
    tensors = tensors_in((args, kwargs))
    check_devices(func, tensors)
    away = [x for x in tensors if isinstance(x, Away)]
    if kwargs.get('device'): goes_away = kwargs['device'].type == 'away'
    else: goes_away = bool(away) and isinstance(tensors[0], Away)
    args, kwargs = held((args, kwargs))
    if 'device' in kwargs: kwargs = kwargs | dict(device=torch.device('cpu'))
    out = func(*args, **kwargs)
    doubles = any(x.dtype == torch.float64 for x in tensors_in(out))
    if doubles and not DOUBLES[0] and (away or goes_away):
        raise TypeError(f'{func}: no float64 here')
    if not goes_away: return out
    same = {id(x.held): x for x in away}  # an operation in place returns what it was given
    return tree_map(lambda x: same.get(id(x), Away(x)) if isinstance(x, torch.Tensor) else x, out)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    "What looks at memory, or makes a tensor, without an operation"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        away = bool(args) and isinstance(args[0], Away)
        if func is torch.tensor and torch.device(kwargs.get('device') or 'cpu').type == 'away':
            return torch.tensor(*held(args), **kwargs | dict(device='cpu')).to(DEVICE)
        if func is torch.Tensor.tolist and away:
            return args[0].held.tolist()
        if func is torch.Tensor.new_tensor and away:
            return args[0].held.new_tensor(*args[1:], **kwargs).to(DEVICE)
        items = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)
        if func in items and isinstance(args[1], list):
            args = args[0], torch.tensor(args[1], dtype=torch.long), *args[2:]
        return func(*args, **kwargs)


@contextmanager
def present(doubles=True):
    "Within the context the device can be used; `doubles=False`: it has no double precision"
    DOUBLES[0] = doubles
    with _Operations(), _Functions(), torch.no_grad(): yield


def _send(tensors, wrap):
    for name, x in tensors.items():
        if x is not None: tensors[name] = wrap(Away(x.data))


def send(model):
    "All weights of the model, moved"
    for m in model.modules():
        _send(m._parameters, lambda x: nn.Parameter(x, requires_grad=False))
        _send(m._buffers, lambda x: x)
    return model
