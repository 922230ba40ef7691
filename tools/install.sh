#!/bin/sh
# Makes .venv from the pinned constraints. Says what it is going to fetch first.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $("$PYTHON" --version) found; patchline needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2
    exit 2
}
# One without pip is what a creation that failed has left.
.venv/bin/python -m pip --version >/dev/null 2>&1 || {
    rm -rf .venv
    "$PYTHON" -m venv .venv
} || {
    echo "error: python's venv module is missing: install your system's python3-venv" >&2
    exit 2
}
pip=".venv/bin/python -m pip --disable-pip-version-check --quiet"
torch=$(sed -n 's/^torch==//p' constraints.txt)

# Of the pinned version: pip would put PyPI's CUDA build in place of another one. "+cpu" and the like do not count.
have_torch() {
    .venv/bin/python -c 'import sys, torch; sys.exit(torch.__version__.split("+")[0] != sys.argv[1])' "$torch" 2>/dev/null
}

if have_torch; then
    echo "torch $torch is there already; fetching about 410 MB of other packages where they are missing"
elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1; then
    echo "NVIDIA driver found: fetching torch $torch with CUDA (about 3,500 MB) and about 410 MB of other packages"
    $pip install "torch==$torch"
else
    echo "no NVIDIA driver found: fetching torch $torch for CPUs (about 200 MB) and about 410 MB of other packages"
    # A CPU build that pip's own settings offer comes first; else uv, which knows where PyTorch keeps them.
    $pip install "torch==$torch+cpu" 2>/dev/null || {
        $pip install -c constraints.txt uv
        .venv/bin/uv pip install --quiet --python .venv/bin/python --torch-backend cpu "torch==$torch"
    }
fi
$pip install -c constraints.txt --editable ".[local,test]"
touch .venv/installed
