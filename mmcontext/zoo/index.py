"""The names of the model zoo, and what they stand for."""
import ast
import difflib
import fnmatch
import functools
import os.path as osp
import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Union

import yaml
from mmengine.config import Config

import mmcontext

_IMAGENET = '_imagenet'
_TASKS = (
    ('detection', re.compile(r'(faster|mask|cascade|cascade_mask)_rcnn_|retinanet_')),
    ('segmentation', re.compile('fpn_|upernet_|pyconvsegnet_')),
    ('classification', re.compile('')),
)
TASKS = tuple(task for task, _ in _TASKS)


class Entry(NamedTuple):
    """A network of the zoo: its name, its entry in the metafile, and its config file."""
    name: str
    metadata: dict
    config: str
    results: Sequence[dict] = ()

    @property
    def task(self) -> str:
        """'classification', 'detection' or 'segmentation'."""
        return next(task for task, pattern in _TASKS if pattern.match(self.name))


def root() -> str:
    """The folder with ``model-index.yml`` and ``configs``.

    Raises:
        FileNotFoundError: mmcontext is on the path without them.
    """
    package = osp.dirname(mmcontext.__file__)
    for folder in (osp.join(package, '.mim'), osp.dirname(package)):
        if osp.isfile(osp.join(folder, 'model-index.yml')):
            return folder
    raise FileNotFoundError(
        f'the model zoo of mmcontext is neither in {package}/.mim nor beside {package}; install '
        'mmcontext with pip (-e for a clone)')


@functools.lru_cache(maxsize=None)
def entries() -> Dict[str, Entry]:
    """All networks of the zoo by name, in the order of the metafiles."""
    folder = root()
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    found = {}
    with open(osp.join(folder, 'model-index.yml')) as file:
        metafiles = yaml.load(file, loader)['Import']
    for metafile in metafiles:
        with open(osp.join(folder, metafile)) as file:
            models = yaml.load(file, loader)['Models']
        for model in models:
            found[model['Name']] = Entry(model['Name'], model.get('Metadata', {}),
                                         osp.join(folder, model['Config']),
                                         model.get('Results', ()))
    return found


def find(name: str) -> Entry:
    """The network with that name.

    Args:
        name: A name in the zoo, in upper or lower case; ``_imagenet`` may be left out.

    Raises:
        ValueError: There is none; similar names are listed.
    """
    known = entries()
    if not isinstance(name, str):
        raise ValueError(f'name must be a string, got {name!r}')
    for candidate in (name.lower(), name.lower() + _IMAGENET):
        if candidate in known:
            return known[candidate]
    short = [known_name.replace(_IMAGENET, '') for known_name in known]
    near = difflib.get_close_matches(name.lower(), [*known, *short], n=3)
    hint = f'; did you mean {" or ".join(near)}?' if near else \
        '; mmcontext.list_models() lists the names'
    raise ValueError(f'the zoo has no network {name!r}{hint}')


def _matches(name: str, patterns: Union[str, Sequence[str]]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern.lower()) for pattern in patterns)


def list_models(pattern: Union[str, Sequence[str]] = '*',
                task: Optional[str] = 'classification',
                exclude_filters: Union[str, Sequence[str]] = ()) -> List[str]:
    """Names of the zoo.

    Args:
        pattern: Shell pattern for the names, such as ``'ced*'``, or several, one of which must
            match. Defaults to all.
        task: 'classification' (default), 'detection', 'segmentation', or None for all of them.
        exclude_filters: Pattern or patterns of names to leave out, such as ``'*_rsb-*'``.

    Returns:
        The sorted names.

    Raises:
        ValueError: There is no such task.
    """
    if task not in (None, *TASKS):
        raise ValueError(f'task must be one of {", ".join(TASKS)} or None, got {task!r}')
    return sorted(name for name, entry in entries().items() if task in (None, entry.task)
                  and _matches(name, pattern) and not _matches(name, exclude_filters))


def get_config(name: str) -> Config:
    """The complete config of a network of the zoo.

    Args:
        name: See :func:`find`.

    Raises:
        ValueError: There is no such network.
        ImportError: The config inherits from files of an mm library that is not installed.
    """
    entry = find(name)
    try:
        return Config.fromfile(entry.config)
    except ImportError as error:
        raise ImportError(f'the config of {entry.name} builds on files of an mm library that '
                          f'cannot be imported here: {error}') from error


def _kept_statements(tree: ast.Module, wanted: set) -> List[ast.stmt]:
    """The assignments on which the wanted names depend."""
    kept, wanted = [], set(wanted)
    for statement in reversed(tree.body):
        if not isinstance(statement, ast.Assign):
            continue
        names = {node.id for target in statement.targets for node in ast.walk(target)
                 if isinstance(node, ast.Name)}
        if names & wanted:
            kept.insert(0, statement)
            wanted |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    return kept


def read_settings(path: str, *names: str) -> Config:
    """Settings of a config file, without the mm library from whose files it inherits.

    ``Config.fromfile`` reads those files too, and so needs the library. The settings needed here
    (the model of a classifier) are in this package's own files.

    Args:
        path: Config file.
        *names: Top-level settings to read.

    Returns:
        Those that exist; one that is based on a setting of the library is left out.
    """
    with open(path) as file:
        tree = ast.parse(file.read(), path)
    settings = Config()
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == '_base_':
            bases = ast.literal_eval(statement.value)
            for base in [bases] if isinstance(bases, str) else bases:
                if '::' not in base:
                    settings.merge_from_dict(read_settings(
                        osp.join(osp.dirname(path), base), *names).to_dict())
            break
    for name in names:
        namespace = {'_base_': settings._cfg_dict}
        statements = [statement for statement in _kept_statements(tree, {name})
                      if getattr(statement.targets[0], 'id', '') != '_base_']
        try:
            exec(compile(ast.Module(statements, []), path, 'exec'), namespace)
        except AttributeError:
            # It changes a setting that exists only in the library's file.
            settings.pop(name, None)
            continue
        if name in namespace:
            settings.merge_from_dict({name: namespace[name]})
    return settings
