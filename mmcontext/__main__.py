"""The tools, wherever the package is installed: ``python -m mmcontext train CONFIG``."""
import os
import runpy
import sys
from pathlib import Path
from typing import Dict, List

TOOLS = Path(__file__).resolve().parent / '.mim' / 'tools'


def tools() -> Dict[str, Path]:
    """Name -> script, for the tools that are useful without a clone."""
    scripts = [TOOLS / name for name in ('train.py', 'test.py', 'dist_train.sh', 'dist_test.sh',
                                         'slurm_train.sh', 'slurm_test.sh')]
    for folder in ('analysis', 'dataset_converters', 'deployment', 'model_converters',
                   'visualization'):
        scripts += sorted((TOOLS / folder).glob('*.py'))
    return {script.stem: script for script in scripts if script.exists()}


def main(argv: List[str]) -> int:
    """Run a tool with its arguments; returns the exit status."""
    known = tools()
    name = argv[0] if argv else ''
    if name not in known:
        print(f'usage: python -m mmcontext TOOL [arguments of the tool], or TOOL -h\n'
              f'TOOL is one of {", ".join(known)}', file=sys.stderr)
        return 0 if name in ('-h', '--help') else 2
    script = str(known[name])
    if script.endswith('.sh'):
        os.environ.setdefault('PYTHON', sys.executable)
        os.execvp('bash', ['bash', script, *argv[1:]])
    sys.argv = [script, *argv[1:]]
    # As if it had been started by its path: some tools import others from their folder.
    sys.path[0] = str(known[name].parent)
    runpy.run_path(script, run_name='__main__')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
