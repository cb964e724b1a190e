"""Imported by the tools before mmcontext: stops them if another project of that name is found.

The name mmcontext on the package index belongs to another project, which hides an editable
install of this one.
"""
import sys
from importlib.util import find_spec
from pathlib import Path

_spec = find_spec('mmcontext')
if _spec is None:
    sys.exit(f'{Path(sys.argv[0]).name}: error: mmcontext is not installed here; from the folder '
             'of its setup.py: pip install --no-build-isolation -e .')
if _spec.origin is None or not Path(_spec.origin).with_name('registry.py').exists():
    sys.exit(f'{Path(sys.argv[0]).name}: error: the mmcontext in {_spec.origin} is another '
             'project and hides this one, whose distribution is mmcontext-vision; remove it: '
             'pip uninstall mmcontext')
