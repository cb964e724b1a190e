#!/usr/bin/env bash
# Install and test this repository in the environments that its users have, following README.md.
# Usage: check_matrix.sh [--keep] [CELL...]   (all cells without one)
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
CELLS="oldest transformers5 current newest forks wheel editable"
KEEP=0

usage() {
    cat <<TEXT
usage: $0 [--keep] [CELL...]
  oldest        torch 2.1.2, numpy 1, setuptools 68; needs Python 3.11 or 3.10
  transformers5 the pinned stack, with transformers 5 and pycocotools
  current       the pinned stack (constraints.txt), mmcv-lite
  newest        torch 2.15
  forks         onedl-* on torch 2.13, the newest that onedl-mmcv builds on
  wheel         a wheel in an environment without compiler, away from the clone
  editable      a bare environment, pip 23.2
  torch==X.Y.Z  another torch, with the newest packages that go with it (never among all cells)
  --keep        leave the environments and logs in the folder that is printed
Needs 8 GB for one environment at a time; PYTHON names the interpreter, PIP_* work as in pip.
Prints a table, and ends with 1 where an installation failed, lacks kernels, or fails a test.
TEXT
}

while [ $# -gt 0 ]; do
    case $1 in
        --keep) KEEP=1 ;;
        -h | --help) usage; exit ;;
        *)
            [[ " $CELLS " == *" $1 "* || $1 =~ ^torch==2\.[0-9]+\.[0-9]+$ ]] ||
                { usage >&2; exit 2; }
            CHOSEN="${CHOSEN:-} $1" ;;
    esac
    shift
done

unset PYTHONPATH  # nothing but what is installed
WORK=$(mktemp -d "${TMPDIR:-/tmp}/mmcontext-matrix.XXXXXX")
[ "$KEEP" = 1 ] && echo "environments and logs: $WORK" || trap 'rm -rf "$WORK"' EXIT

# The line that README.md gives for an installation, so that exactly this is tested.
INSTALL=$(sed -n '/^## Install/,/^## /s/^    \(pip install .* -e \.\)$/\1/p' "$ROOT/README.md")
# And the one for wheels.
WHEEL=$(sed -n '/^## Install/,/^## /s/^    \(pip wheel .* \.\)$/\1/p' "$ROOT/README.md")
[ "$(wc -l <<< "$INSTALL")" = 1 ] && [ -n "$INSTALL" ] && [ -n "$WHEEL" ] || {
    echo "check_matrix.sh: error: README.md, Install, has not one line 'pip install ... -e .'" \
        "and one 'pip wheel ... .'" >&2
    exit 1
}

TESTING="pytest pytest-xdist scipy scikit-learn opencv-python-headless"
PINNED="-c $ROOT/tools/constraints.txt setuptools wheel ninja torch torchvision numpy"
LITE="mmengine==0.10.7 mmcv-lite==2.1.0 mmpretrain==1.2.0"
PARTS="tests/ops tests/layers tests/models tests/converters"

# Run a command with the environment's own `pip` and `python`.
inside() { (cd "$SOURCE" && export PATH="$ENV/bin:$PATH" && eval "$*"); }

# make_environment PYTHON PACKAGES: what users have before they install this package.
make_environment() {
    "$1" -m venv "$ENV"
    inside "pip install --disable-pip-version-check ${*:2}"
}

# The files of this repository, tracked or not ignored by git.
copy_clone() {
    mkdir -p "$SOURCE"
    (cd "$ROOT" && git ls-files -z --cached --others --exclude-standard |
        xargs -0 tar -c --ignore-failed-read) | tar -x -C "$SOURCE"
}

# Set up a cell; sets TESTS.
prepare() {
    local python=${PYTHON:-python3}
    TESTS=$PARTS
    case $1 in
        oldest)
            for python in ${PYTHON:-} python3.11 python3.10; do
                "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 12))' \
                    2>/dev/null && break
                python=
            done
            [ -n "$python" ] || { echo 'torch 2.1.2 needs Python 3.11 or 3.10' >&2; return 1; }
            make_environment "$python" setuptools==68.2.2 wheel ninja torch==2.1.2 \
                torchvision==0.16.2 numpy==1.26.4 'opencv-python\<4.12' $LITE \
                "${TESTING/headless/headless\\<4.12}" ;;
        transformers5)
            make_environment "$python" "$PINNED" $LITE $TESTING transformers==5.24.0 pycocotools
            TESTS="tests/models tests/tools/test_train_test.py" ;;
        current) make_environment "$python" "$PINNED" $LITE $TESTING ;;
        newest)
            make_environment "$python" 'setuptools\<82' wheel ninja torch==2.15.0 torchvision \
                numpy $LITE $TESTING ;;
        forks)
            make_environment "$python" 'setuptools\<81' wheel ninja psutil torch==2.13.0 \
                torchvision==0.28.0 numpy $TESTING
            inside MMCV_WITH_OPS="${MMCV_WITH_OPS:-1}" pip install --no-build-isolation \
                onedl-mmcv==2.3.6 onedl-mmengine==0.10.12 onedl-mmpretrain==1.3.6 \
                onedl-mmdetection==3.5.1 onedl-mmsegmentation==1.4.2
            TESTS="$PARTS tests/configs" ;;
        wheel)
            make_environment "$python" "$PINNED"
            inside "$WHEEL"
            mv "$SOURCE"/dist/*.whl "$WORK/$1/"
            rm -rf "$ENV"
            make_environment "$python" "$PINNED" $LITE $TESTING
            # The tests without the clone, and no compiler.
            mv "$SOURCE/tests" "$WORK/$1/tests"
            rm -rf "$SOURCE"
            mkdir "$SOURCE"
            mv "$WORK/$1/tests" "$SOURCE/tests"
            INSTALL="CC=false CXX=false pip install $WORK/$1/mmcontext_vision-*.whl"
            # Except tests of the clone's sources.
            TESTS="tests/ops tests/layers --ignore=tests/ops/cuda_emulation
                --ignore=tests/ops/test_cuda.py --ignore=tests/ops/test_cuda_machine_code.py" ;;
        torch==*)
            # Before 2.3 torch is built for numpy 1, which opencv no longer accepts.
            local old=()
            [[ $1 =~ ^torch==2\.[0-2]\. ]] && old=('numpy\<2' 'opencv-python\<4.12')
            make_environment "$python" 'setuptools\<81' wheel ninja "$1" torchvision \
                "${old[@]}" $LITE "${TESTING/headless/headless${old:+\\<4.12}}" ;;
        editable)
            make_environment "$python" pip==23.2.1
            inside "pip install $PINNED $LITE $TESTING"
            TESTS="tests/ops" ;;
    esac
}

# Only a wheel can show that tools and configs come with the package.
use_wheel() {
    inside "python -m mmcontext digits_imagenet && python -m mmcontext train \
        mmcontext::cednet/cednet26_digits.py --cfg-options train_cfg.max_epochs=1"
}

# Install and test one cell, and write its row.
check() {
    local start=$SECONDS versions kernels tests=failed result=1
    versions=$(inside python "$WORK/versions.py") || versions="-"
    kernels=$(inside python -W ignore -c '"from mmcontext.ops.native_library import UNAVAILABLE
print(UNAVAILABLE or \"yes\")"' | tail -n 1) || kernels="not importable"
    if inside OMP_NUM_THREADS=1 python -m pytest -q -p no:cacheprovider -n logical \
        --maxprocesses 4 --dist loadfile $TESTS > "$WORK/$1.tests" 2>&1; then
        result=0
    fi
    tests=$(tail -n 1 "$WORK/$1.tests" | sed 's/ in [0-9.]*s.*//; s/, [0-9]* warnings\?//')
    [ "$result" = 0 ] || cat "$WORK/$1.tests"
    if [ "$1" = wheel ] && ! use_wheel; then
        tests="$tests; the tools fail"
        result=1
    fi
    [ "$kernels" = yes ] || result=1
    echo "| $1 | $versions | $kernels | $tests | $((SECONDS - start)) |" >> "$WORK/table"
    return "$result"
}

cat > "$WORK/versions.py" <<'PY'
import importlib
import platform
from importlib.metadata import packages_distributions

found = [f'Python {platform.python_version()}']
for module in ('torch', 'numpy', 'setuptools', 'mmengine', 'mmcv', 'transformers'):
    try:
        version = importlib.import_module(module).__version__.split('+')[0]
    except ImportError:
        continue
    found.append(f'{packages_distributions().get(module, [module])[0]} {version}')
print(', '.join(found))
PY

STATUS=0
DOCUMENTED=$INSTALL
for cell in ${CHOSEN:-$CELLS}; do
    SOURCE=$WORK/$cell/clone ENV=$WORK/$cell/env INSTALL=$DOCUMENTED
    printf '\n== %s\n' "$cell"
    copy_clone
    # (Not in a condition: that would disable -e inside.)
    set +e
    (set -e; prepare "$cell"; inside "$INSTALL"; declare -p TESTS > "$WORK/$cell.vars")
    installed=$?
    set -e
    if [ "$installed" = 0 ]; then
        . "$WORK/$cell.vars"
        check "$cell" || STATUS=1
    else
        echo "| $cell | - | not installed | - | - |" >> "$WORK/table"
        STATUS=1
    fi
    [ "$KEEP" = 1 ] || rm -rf "${WORK:?}/$cell"
done

printf '\n%s, %s cores; %s\n\n' "$(date +%F)" "$(nproc)" "$DOCUMENTED"
printf '| Cell | Versions | C++ kernels | Tests | Seconds |\n|:--|:--|:--|:--|--:|\n'
cat "$WORK/table"
exit "$STATUS"
