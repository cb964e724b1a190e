# Sourced by quickstart.sh and run_tests.sh: one .venv with the pinned stack, made step by step.
# Every step first checks whether its work is done, so that both scripts can be rerun, and in
# either order. Expects ROOT (the repository) and SCRIPT (name for messages).

CONSTRAINTS=$ROOT/tools/constraints.txt
WANTED=outdated

say() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: error: %s\n' "$SCRIPT" "$*" >&2
    exit 1
}

# The interpreter to build on: $PYTHON, or the first of the usual names that is 3.10 or newer.
find_python() {
    local name found=
    for name in ${PYTHON:-python3 python python3.13 python3.12 python3.11 python3.10}; do
        command -v "$name" >/dev/null 2>&1 || continue
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            PYTHON=$(command -v "$name")
            return
        fi
        found="$found $name ($("$name" -V 2>&1))"
    done
    die "Python 3.10 or newer is needed, found:${found:- none}; set PYTHON=/path/to/python3"
}

# Set PYTHON to ROOT/.venv, made if need be; with --no-venv to the current environment.
activate_environment() {
    find_python
    if [ "$USE_VENV" = 0 ]; then
        "$PYTHON" -m pip --version >/dev/null 2>&1 || die "$PYTHON has no pip"
        # What is installed stays unchanged.
        WANTED=missing
        CONSTRAINTS=$(mktemp)
        trap 'rm -f "$CONSTRAINTS"' EXIT
        "$PYTHON" "$ROOT/tools/pins.py" keep > "$CONSTRAINTS"
        return
    fi
    local venv=$ROOT/.venv
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "Making $venv with $("$PYTHON" -V)"
        "$PYTHON" -m venv --clear "$venv" || die "$PYTHON cannot make a virtual environment;" \
            "install its venv module (Debian, Ubuntu: apt install python3-venv), or make and" \
            "activate an environment yourself and add --no-venv"
    fi
    PYTHON=$venv/bin/python
    export PATH=$venv/bin:$PATH  # for ninja
}

has_package() { [ -z "$("$PYTHON" "$ROOT/tools/pins.py" missing "$1")" ]; }

# Install the given packages at their pinned versions, unless they are there.
install_packages() {
    local missing
    missing=$("$PYTHON" "$ROOT/tools/pins.py" "$WANTED" "$@")
    [ -n "$missing" ] || return 0
    say "Installing" $missing
    # Word splitting is intended.
    # shellcheck disable=SC2086
    "$PYTHON" -m pip install --disable-pip-version-check -c "$CONSTRAINTS" $missing
}

# What everything depends on. torch and torchvision come together: their versions must match.
install_base() {
    if [ "$USE_VENV" = 0 ] && has_package torch && ! has_package torchvision; then
        die "torch is installed without torchvision; install the torchvision that matches it"
    fi
    install_packages setuptools wheel ninja torch torchvision numpy
    install_packages mmengine mmpretrain scikit-learn opencv-python
    if ! "$PYTHON" -c 'import cv2' >/dev/null 2>&1; then
        say "OpenCV finds no display libraries here: taking its headless build"
        "$PYTHON" -m pip install --disable-pip-version-check -c "$CONSTRAINTS" --no-deps \
            --force-reinstall opencv-python-headless
    fi
}

# mmcv-lite, unless some mmcv is there already.
install_mmcv_lite() {
    has_package mmcv || install_packages mmcv-lite
}

mmcv_has_ops() { "$PYTHON" -W ignore -c 'import mmcv.ops' >/dev/null 2>&1; }

# mmcv with compiled operators: a wheel if pip finds one that fits, else built here.
install_mmcv_with_ops() {
    mmcv_has_ops && return
    local sources
    sources=$("$PYTHON" "$ROOT/tools/pins.py" sources mmcv)
    case ${sources:-mmcv} in
        mmcv | mmcv-lite | mmcv$'\n'mmcv-lite) ;;
        *) die "mmcv comes from" $sources "here, without operators; build that one with" \
            "MMCV_WITH_OPS=1, or leave out --no-venv" ;;
    esac
    say "Installing mmcv with operators (10 minutes on 2 cores where it has to be built)"
    # mmcv and mmcv-lite own the same folder.
    "$PYTHON" -m pip uninstall -y mmcv-lite mmcv
    install_packages psutil
    pip_install_mmcv
    mmcv_has_ops && return
    say "That mmcv has no operators for this torch: building it"
    pip_install_mmcv --force-reinstall --no-cache-dir --no-binary mmcv --no-deps
    mmcv_has_ops || die "mmcv was built without operators; see $MMCV_LOG"
}

MMCV_LOG=$ROOT/work_dirs/mmcv_install.log

# pip install mmcv with one line of progress for each object it compiles.
pip_install_mmcv() {
    mkdir -p "$(dirname "$MMCV_LOG")"
    if ! MMCV_WITH_OPS=1 "$PYTHON" -m pip install -v --disable-pip-version-check "$@" \
            -c "$CONSTRAINTS" --no-build-isolation mmcv 2>&1 | tee "$MMCV_LOG" \
            | { grep --line-buffered -oE '^ *\[[0-9]+/[0-9]+\]' || true; }; then
        tail -n 20 "$MMCV_LOG" >&2
        command -v "${CXX:-c++}" >/dev/null 2>&1 || die "no wheel of mmcv fits and there is no" \
            "C++ compiler to build it; install one (Debian, Ubuntu: apt install g++), or put a" \
            "wheel in a folder and set PIP_FIND_LINKS to it"
        die "mmcv could not be installed; see $MMCV_LOG"
    fi
}

# This repository as an editable install, with its C++ kernels if there is a compiler.
install_mmcontext() {
    local found kernels
    found=$(find_mmcontext)
    kernels=$("$PYTHON" -c 'import torch
print("_native_torch" + "_".join(torch.__version__.split(".")[:2]) + ".so")')
    # An existing editable install is kept, unless its C++ kernels are older than the sources, or
    # missing although they can be built.
    kernels=$ROOT/mmcontext/ops/$kernels
    if [ "$found" = "$ROOT/mmcontext/__init__.py" ]; then
        if [ ! -e "$kernels" ]; then
            if [ "${MMCONTEXT_WITH_NATIVE:-1}" = 0 ] ||
                ! command -v "${CXX:-c++}" >/dev/null 2>&1; then return 0; fi
        elif [ -z "$(find "$ROOT/mmcontext/ops/csrc" -type f -newer "$kernels" -print -quit)" ]
        then return 0; fi
    fi
    say "Installing mmcontext"
    "$PYTHON" -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e "$ROOT"
    found=$(find_mmcontext)
    [ "$found" = "$ROOT/mmcontext/__init__.py" ] || die "another project called mmcontext," \
        "$found, hides this one: $PYTHON -m pip uninstall mmcontext"
}

# The file that `import mmcontext` runs; empty if there is none.
find_mmcontext() {
    (cd / && "$PYTHON" -c 'import importlib.util as util
spec = util.find_spec("mmcontext")
print(spec.origin if spec else "")')
}
