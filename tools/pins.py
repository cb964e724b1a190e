"""Answers quickstart.sh's and run_tests.sh's questions about installed packages. Needs no other
package."""
import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List, Optional

CONSTRAINTS = Path(__file__).parent / 'constraints.txt'
# Import names of packages that other distributions may also provide: forks, or headless builds.
MODULES = {'mmengine': 'mmengine', 'mmcv': 'mmcv', 'mmcv-lite': 'mmcv', 'mmpretrain': 'mmpretrain',
           'mmdet': 'mmdet', 'mmsegmentation': 'mmseg', 'opencv-python': 'cv2'}
UNKNOWN = 'unknown'
_PIN = re.compile(r'([\w-]+)==([\w.]+)(?:; python_version (>=|<) "3\.11")?')


def read_pins(text: str, new_python: bool = sys.version_info >= (3, 11)) -> Dict[str, str]:
    """Pinned versions by package.

    Args:
        text (str): lines ``name==version``, optionally ``; python_version >= "3.11"`` or
            ``< "3.11"``; ``#`` starts a comment.
        new_python (bool): whether Python is 3.11 or newer. Defaults to the running one.
    """
    pins = {}
    for line in text.splitlines():
        line = line.split('#')[0].strip()
        if not line:
            continue
        match = _PIN.fullmatch(line)
        if match is None:
            raise ValueError(f'constraints.txt: cannot read the line {line!r}')
        name, pinned, marker = match.groups()
        if marker in (None, '>=' if new_python else '<'):
            pins[name] = pinned
    return pins


def installed(name: str) -> Optional[str]:
    """Installed version of a package, or of what is imported under its name; None if neither.

    UNKNOWN if a module of that name does not belong to an installed package.
    """
    try:
        return version(name)
    except PackageNotFoundError:
        others = sources(name)
        if others:
            return version(others[0])
        module = MODULES.get(name)
        return UNKNOWN if module is not None and find_spec(module) is not None else None


def sources(name: str) -> List[str]:
    """The installed packages that provide what is imported under the name of this one."""
    return sorted(set(packages_distributions().get(MODULES.get(name, ''), [])))


def missing(names: List[str], pins: Dict[str, str], exact: bool) -> List[str]:
    """Those of the packages that have to be installed.

    Args:
        names (list[str]): packages.
        pins (dict): pinned versions.
        exact (bool): whether a version other than the pinned one counts as missing. A local
            label such as ``+cpu`` makes no difference.
    """
    wanted = []
    for name in names:
        found = installed(name)
        if found is None or (exact and found != UNKNOWN
                             and found.split('+')[0] != pins.get(name, found.split('+')[0])):
            wanted.append(name)
    return wanted


def keep_installed(pins: Dict[str, str]) -> List[str]:
    """Constraints that keep every installed package unchanged and pin the others."""
    found = {name: installed(name) for name in pins}
    return [f'{name}=={pinned if found[name] in (None, UNKNOWN) else found[name]}'
            for name, pinned in pins.items()]


def main(argv: Optional[List[str]] = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['missing', 'outdated', 'keep', 'sources'],
                        help='missing: not installed; outdated: that, or not at the pinned '
                        'version; keep: constraints that change no installed package; sources: '
                        'the packages that bring what is imported by these names')
    parser.add_argument('packages', nargs='*')
    args = parser.parse_args(argv)
    pins = read_pins(CONSTRAINTS.read_text())
    if args.what == 'keep':
        print('\n'.join(keep_installed(pins)))
    elif args.what == 'sources':
        print('\n'.join(source for name in args.packages for source in sources(name)))
    else:
        print('\n'.join(missing(args.packages, pins, exact=args.what == 'outdated')))


if __name__ == '__main__':
    main()
