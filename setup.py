"""Packaging of mmcontext: pure Python, plus C++ kernels where torch and a compiler are found."""
import os
import re
import shutil
import sys
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
# What mim and `_base_ = 'mmcontext::...'` look for in the .mim folder of an installed package.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


def version() -> str:
    """The version in mmcontext/version.py."""
    text = (ROOT / 'mmcontext/version.py').read_text()
    return re.search(r"__version__ = '([^']+)'", text).group(1)


def mim_content() -> list:
    """The entries of MIM_CONTENT that are there."""
    return [name for name in MIM_CONTENT if (ROOT / name).exists()]


def link_mim() -> None:
    """Show configs and tools in mmcontext/.mim of this folder (editable install)."""
    mim = ROOT / 'mmcontext/.mim'
    mim.mkdir(exist_ok=True)
    for name in mim_content():
        link = mim / name
        if not link.is_symlink():
            link.symlink_to(os.path.join('..', '..', name))


class BuildPy(build_py):
    """Puts configs, tools and model-index.yml into the package."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            link_mim()
            return
        mim = Path(self.build_lib) / 'mmcontext/.mim'
        for name in mim_content():
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, mim / name, dirs_exist_ok=True,
                                ignore=shutil.ignore_patterns('__pycache__'))
            else:
                mim.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, mim / name)


class Sdist(sdist):
    """Puts what BuildPy needs into the source package."""

    def make_distribution(self) -> None:
        for name in (*mim_content(), 'mmcontext', 'README.md', 'LICENSE'):
            path = ROOT / name
            files = [path] if path.is_file() else path.rglob('*')
            self.filelist.extend(
                str(file.relative_to(ROOT)) for file in files
                if file.is_file() and '__pycache__' not in file.parts
                and '.mim' not in file.parts and file.suffix != '.so')
        super().make_distribution()


def native_kernels() -> dict:
    """setup() arguments for the C++ kernels; empty where they cannot be built.

    ``MMCONTEXT_WITH_NATIVE=0`` leaves them out. The package works without them, more slowly
    on CPU.
    """
    sources = sorted(glob('mmcontext/ops/csrc/*.cpp'))
    if not sources or os.environ.get('MMCONTEXT_WITH_NATIVE', '1') == '0':
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        warn('torch is not visible here (pip install --no-build-isolation)')
        return {}

    class OptionalBuildExtension(BuildExtension):
        """Goes on without the kernels where they do not compile."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:  # compilers fail in many ways
                warn(f'the C++ compiler did not succeed ({error})')
                self.extensions = []

    flags = ([] if sys.platform == 'win32' else
             ['-O3', '-g0', '-fopenmp', '-ffp-contract=fast', '-Wno-psabi',
              '-Wno-unknown-pragmas'])
    # GCC's OpenMP comes with torch; clang's is another library.
    link = ['-fopenmp'] if 'clang' in os.environ.get('CXX', '') else []
    extension = CppExtension('mmcontext.ops._native', sources, extra_compile_args=flags,
                             extra_link_args=link, optional=True)
    return {'ext_modules': [extension],
            'cmdclass': {'build_ext': OptionalBuildExtension.with_options(
                no_python_abi_suffix=True)}}


def warn(reason: str) -> None:
    """Say that the installation goes on without the C++ kernels."""
    print(f'WARNING: mmcontext is installed without its C++ CPU kernels: {reason}; the PyTorch '
          'implementation serves instead', file=sys.stderr)


native = native_kernels()
if 'develop' in sys.argv:
    link_mim()
readme = ROOT / 'README.md'
setup(
    name='mmcontext',
    version=version(),
    description='Context operators for OpenMMLab: CoConv, PyConv, CoT, involution, '
    'C-volution, CKConv',
    long_description=readme.read_text() if readme.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.8',
    packages=find_packages(include=['mmcontext', 'mmcontext.*']),
    package_data={'mmcontext': ['**/csrc/*']},
    include_package_data=False,
    install_requires=['torch>=2.1', 'numpy', 'mmengine>=0.10.3'],
    extras_require={
        'cls': ['mmpretrain>=1.2.0'],
        'det': ['mmdet>=3.3.0'],
        'seg': ['mmsegmentation>=1.2.2', 'ftfy', 'regex'],
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'hub': ['safetensors', 'huggingface_hub'],
        'vis': ['grad-cam'],
        'test': ['pytest', 'scikit-learn', 'scipy'],
    },
    zip_safe=False,
    ext_modules=native.get('ext_modules', []),
    cmdclass={'build_py': BuildPy, 'sdist': Sdist, **native.get('cmdclass', {})},
)
