"A make-believe accelerator: tensors that say they are on another device, and refuse to mix with tensors that are not"
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
MAY_MIX = ('copy_', '_to_copy', 'index.Tensor', 'index_put')  # as on CUDA: copies, and indices that lie on the CPU


class Away(torch.Tensor):
    "A CPU tensor under another device's name"
    @staticmethod
    def __new__(cls, held):
        new = torch.Tensor._make_wrapper_subclass(cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=DEVICE)
        new.held = held
        return new

    def __format__(self, spec): return format(self.held, spec)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


def held(tree): return tree_map(lambda x: x.held if isinstance(x, Away) else x, tree)


def run(func, args, kwargs):
    "The operation on what is held; its results are away if its device argument, else its tensors, say so"
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away, here = [x for x in tensors if isinstance(x, Away)], [x for x in tensors if not isinstance(x, Away)]
    if away and any(x.ndim for x in here) and not any(name in str(func) for name in MAY_MIX): raise RuntimeError(f'{func}: tensors on two devices')
    goes_away = kwargs['device'].type == 'away' if kwargs.get('device') else bool(away) and isinstance(tensors[0], Away)
    args, kwargs = held((args, kwargs))
    out = func(*args, **kwargs | ({'device': torch.device('cpu')} if 'device' in kwargs else {}))
    doubles = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in tree_leaves(out))
    if doubles and not DOUBLES[0] and (away or goes_away): raise TypeError(f'{func}: no float64 here')
    same = {id(x.held): x for x in away}  # an operation in place returns what it was given
    return tree_map(lambda x: same.get(id(x), Away(x)) if isinstance(x, torch.Tensor) else x, out) if goes_away else out


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    "What looks at memory, or makes a tensor, without an operation"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get('device') or 'cpu').type == 'away': return torch.tensor(*held(args), **kwargs | dict(device='cpu')).to(DEVICE)
        if func is torch.Tensor.tolist and isinstance(args[0], Away): return args[0].held.tolist()
        if func is torch.Tensor.new_tensor and isinstance(args[0], Away): return args[0].held.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[1], list): args = args[0], torch.tensor(args[1], dtype=torch.long), *args[2:]
        return func(*args, **kwargs)


@contextmanager
def present(doubles=True):
    "Within the context, the device can be used; `doubles=False`: it has no double precision, and makes none on the way to the CPU"
    DOUBLES[0] = doubles
    with _Operations(), _Functions(), torch.no_grad(): yield


def send(model):
    "All weights of the model, moved"
    for m in model.modules():
        for store in (m._parameters, m._buffers):
            store |= {k: Away(p.data) if k in m._buffers else nn.Parameter(Away(p.data), requires_grad=False) for k, p in store.items() if p is not None}
    return model
