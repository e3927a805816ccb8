"The house of CONTRIBUTING.md: imports run one way, private names stay at home, pages are whole"
import ast
import inspect
import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / 'headpursuit'
SOURCES = sorted(p for p in LIBRARY.rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))


def name_of(path):
    "The module of a file, as the list of rooms has it: `pursuit`, `pocket.reading`"
    return '.'.join(path.relative_to(LIBRARY).with_suffix('').parts)


def rooms():
    "Modules from the bottom to the top, as CONTRIBUTING.md lists them"
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    return re.findall(r'^\| `([\w.]+)` \|', text, re.M)


def imports(path):
    "What a file takes from the library: (module, name), wherever in the file the import stands"
    package = ['headpursuit', *path.relative_to(LIBRARY).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] == 'headpursuit':
                    yield alias.name.partition('.')[2], ''
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) + 1 - node.level] if node.level else []
            module = '.'.join([*above, *filter(None, [node.module])])
            if module.split('.')[0] != 'headpursuit': continue
            for alias in node.names:
                inner = f'{module}.{alias.name}'.partition('.')[2]
                if is_module(inner): yield inner, ''
                else: yield module.partition('.')[2], alias.name


def is_module(name):
    path = LIBRARY / name.replace('.', '/')
    return path.is_dir() or path.with_suffix('.py').is_file()


def private(name):
    return name.startswith('_') and not name.startswith('__')


def test_every_module_has_a_room():
    assert sorted(rooms()) == sorted(map(name_of, SOURCES))


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_imports_run_one_way(path):
    order = rooms()
    below = order[:order.index(name_of(path))]
    taken = {module for module, _ in imports(path)} - {'_modidx'}
    upward = {module or 'headpursuit' for module in taken if module not in below}
    assert not upward, f'{name_of(path)} may only import from rooms below it: {below}'


@pytest.mark.parametrize('path', SOURCES, ids=name_of)
def test_private_names_stay_in_their_room(path):
    taken = [f'{module}.{name}' for module, name in imports(path) if private(name)]
    modules = {module.split('.')[-1] for module, name in imports(path) if not name}
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and private(node.attr):
                taken.append(f'{node.value.id}.{node.attr}')
    assert not taken


def test_imports_are_found(tmp_path, monkeypatch):
    "The two tests above cannot pass by overlooking how an import is written"
    for module in ('store', 'dev/site', 'editing'):
        (tmp_path / module).with_suffix('.py').parent.mkdir(exist_ok=True)
        (tmp_path / module).with_suffix('.py').touch()
    monkeypatch.setitem(globals(), 'LIBRARY', tmp_path)
    path = tmp_path / 'dev' / 'bench.py'
    path.write_text(
        'import os, headpursuit.store\n'
        'from headpursuit.store import whole_file\n'
        'from ..editing import HeadEdit\n'
        'from .site import _row\n'
        'from .. import store\n'
        'def late():\n'
        '    from headpursuit import capture\n')
    assert list(imports(path)) == [
        ('store', ''), ('store', 'whole_file'), ('editing', 'HeadEdit'), ('dev.site', '_row'),
        ('store', ''), ('', 'capture')]


def shown():
    "What pages show as a table: (module, qualified name), private names left out"
    from headpursuit._modidx import d
    for module, names in d['syms'].items():
        for name in names:
            qualified = name.removeprefix(f'{module}.')
            if any(map(private, qualified.split('.'))): continue
            if '.' not in qualified or is_patched(find(module, qualified)): yield module, qualified


def find(module, qualified):
    "A function, class, method or property of the library"
    return reduce(getattr, qualified.split('.'), import_module(module))


def is_patched(method):
    "Whether a method was added to its class in a cell of its own"
    method = getattr(method, 'fget', method)
    routine = inspect.isfunction(method) or inspect.ismethod(method)
    return routine and inspect.getsource(method).startswith('@patch')


def test_every_parameter_has_a_meaning_on_its_page():
    pytest.importorskip('nbdev', reason='the pages are made by nbdev')
    from headpursuit.dev.site import ParameterTable
    empty = []
    for module, qualified in shown():
        for row in ParameterTable(find(module, qualified)).rows():
            parameter, *_, meaning = row.split(' | ')
            if parameter != '*returns*' and not meaning.strip():
                empty.append(f'{module}: {qualified}({parameter.strip("`")})')
    assert not empty, f'{len(empty)} parameters without a comment:\n' + '\n'.join(empty)


def test_source_links_end_in_the_line_of_the_definition():
    pytest.importorskip('nbdev', reason='the pages are made by nbdev')
    from headpursuit.dev.site import ParameterTable
    for module, qualified in shown():
        address, line = ParameterTable(find(module, qualified)).source().split('#L')
        path = ROOT / address.partition('/blob/main/')[2]
        text = path.read_text(encoding='utf-8').splitlines()[int(line) - 1]
        assert re.match(rf'(def|class) {qualified.split(".")[-1]}\b', text), (qualified, text)
