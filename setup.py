"""What pyproject.toml cannot express: the C++ kernels, if torch and a compiler are found, and
configs and tools inside the package."""
import os
import re
import shutil
import sys
import sysconfig
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools < 70.1
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:  # then wheels cannot be built, and the rest can
        from setuptools import Command as bdist_wheel

ROOT = Path(__file__).resolve().parent
# What mim and `_base_ = 'mmcontext::...'` look for in the .mim folder of an installed package.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
# File in mmcontext/ops that says why there are no kernels, for the first call that needs them.
MISSING_NOTE = '_native_missing.txt'


def version(kernels: bool) -> str:
    """The version in mmcontext/version.py; with kernels, also the torch they are built for."""
    text = (ROOT / 'mmcontext/version.py').read_text()
    plain = re.search(r"__version__ = '([^']+)'", text).group(1)
    if not kernels or 'sdist' in sys.argv:
        return plain
    return f'{plain}+torch{".".join(torch_version())}'


def mim_content() -> list:
    """The entries of MIM_CONTENT that exist."""
    return [name for name in MIM_CONTENT if (ROOT / name).exists()]


def link_mim() -> None:
    """Link configs and tools into mmcontext/.mim of this folder (editable install)."""
    mim = ROOT / 'mmcontext/.mim'
    mim.mkdir(exist_ok=True)
    for name in mim_content():
        link = mim / name
        if not link.is_symlink():
            link.symlink_to(os.path.join('..', '..', name))


class BuildPy(build_py):
    """Adds configs, tools and model-index.yml to the package."""

    def run(self) -> None:
        package = ROOT if self.editable_mode else Path(self.build_lib)
        package /= 'mmcontext'
        if not self.editable_mode:
            # An earlier build may have left kernels for another torch.
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        note_missing(package, missing_kernels)
        if self.editable_mode:
            link_mim()
            return
        mim = package / '.mim'
        for name in mim_content():
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, mim / name, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns('__pycache__'))
            else:
                mim.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, mim / name)


class Sdist(sdist):
    """Adds what BuildPy needs to the source distribution."""

    def make_distribution(self) -> None:
        for name in (*mim_content(), 'mmcontext', 'README.md', 'LICENSE'):
            path = ROOT / name
            files = [path] if path.is_file() else path.rglob('*')
            self.filelist.extend(
                str(file.relative_to(ROOT)) for file in files
                if file.is_file() and '__pycache__' not in file.parts
                and '.mim' not in file.parts and file.suffix != '.so'
                and file.name != MISSING_NOTE)
        super().make_distribution()


class BdistWheel(bdist_wheel):
    """The kernels do not use Python's ABI: a wheel is for one torch, but for any Python."""

    def get_tag(self) -> tuple:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ('py3', 'none', platform)


def torch_version() -> tuple:
    """Major and minor version of the torch to build for."""
    import torch
    return tuple(torch.__version__.split('.')[:2])


def show_torch() -> None:
    """Make the environment's torch importable when pip builds in isolation."""
    for folder in (sysconfig.get_path('platlib'), sysconfig.get_path('purelib')):
        if find_spec('torch') is None and folder not in sys.path:
            sys.path.append(folder)
    import torch
    if torch.__version__ < '2.2':
        import pkg_resources

        # Its cpp_extension imports packaging from there, and setuptools 70 no longer has it.
        if not hasattr(pkg_resources, 'packaging'):
            import packaging
            pkg_resources.packaging = packaging


def native_kernels() -> dict:
    """setup() arguments for the C++ kernels; {'missing': reason} if they cannot be built.

    ``MMCONTEXT_WITH_NATIVE=0`` leaves them out. The package works without them, more slowly
    on CPU. ``MMCONTEXT_SANITIZE=address`` builds them for the address sanitizer
    (CONTRIBUTING.md).
    """
    sources = sorted(glob('mmcontext/ops/csrc/*.cpp'))
    if os.environ.get('MMCONTEXT_WITH_NATIVE', '1') == '0':
        return {'missing': 'MMCONTEXT_WITH_NATIVE=0 left them out when mmcontext was installed'}
    try:
        show_torch()
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except Exception as error:  # a broken torch fails in many ways
        return {'missing': f'torch could not be imported when mmcontext was installed ({error})'}

    class OptionalBuildExtension(BuildExtension):
        """Continues without the kernels if they do not compile."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # compilers fail in many ways
                reason = f'they did not compile when mmcontext was installed ({error})'
                editable = self.inplace or getattr(self, 'editable_mode', False)
                package = ROOT if editable else Path(self.build_lib)
                note_missing(package / 'mmcontext', reason)
                # There may be outdated kernels from other sources.
                Path(self.get_ext_fullpath(self.extensions[0].name)).unlink(missing_ok=True)
                self.extensions = []

    flags = ([] if sys.platform == 'win32' else
             ['-O3', '-g0', '-fopenmp', '-ffp-contract=fast', '-Wno-psabi',
              '-Wno-unknown-pragmas'])
    # GCC's OpenMP runtime comes with torch; clang's is a different library.
    link = ['-fopenmp'] if 'clang' in os.environ.get('CXX', '') else []
    sanitizer = os.environ.get('MMCONTEXT_SANITIZE')
    if sanitizer:
        flags += [f'-fsanitize={sanitizer}', '-fno-omit-frame-pointer', '-O1', '-g1']
        link += [f'-fsanitize={sanitizer}']
    # torch's C++ ABI changes with its minor version: mmcontext/ops/native_library.py loads the
    # library with the running version in its name.
    extension = CppExtension(f'mmcontext.ops._native_torch{"_".join(torch_version())}', sources,
                             extra_compile_args=flags, extra_link_args=link)
    return {'ext_modules': [extension],
            'cmdclass': {'build_ext': OptionalBuildExtension.with_options(
                no_python_abi_suffix=True)}}


def note_missing(package: Path, reason: str) -> None:
    """Write why there are no kernels to a file in the package and to stderr; '' for no file."""
    note = package / 'ops' / MISSING_NOTE
    note.unlink(missing_ok=True)
    if reason:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(reason)
        print(f'WARNING: mmcontext is installed without its C++ kernels for the CPU: {reason}',
              file=sys.stderr)


native = native_kernels()
missing_kernels = native.get('missing', '')
if 'develop' in sys.argv:
    link_mim()
setup(
    version=version(kernels=not missing_kernels),
    packages=find_packages(include=['mmcontext', 'mmcontext.*']),
    package_data={'mmcontext': ['ops/**/csrc/**/*', 'ops/**/*.cu', 'ops/**/*.cuh',
                                'ops/**/*.json', 'deployment/csrc/*']},
    include_package_data=False,
    zip_safe=False,
    ext_modules=native.get('ext_modules', []),
    cmdclass={'build_py': BuildPy, 'sdist': Sdist, 'bdist_wheel': BdistWheel,
              **native.get('cmdclass', {})},
)
