#!/usr/bin/env bash
# Make the virtual environment and install the pinned requirements. Called by the Makefile; every failure is one line.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "error: $*" >&2; exit 3; }

command -v "$PYTHON" >/dev/null || fail "no $PYTHON on the PATH; install python3 3.11-3.13, or run: make PYTHON=/path/to/python3.12 ..."
version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case "$version" in
    3.11 | 3.12 | 3.13) ;;
    *) fail "$PYTHON is Python $version; this project needs 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." ;;
esac
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "Python $version has no venv module; on Debian/Ubuntu: apt-get install python3-venv"
free_mb=$(df -Pm . | awk 'NR==2 {print $4}')
[ "$free_mb" -ge 4000 ] || fail "only $free_mb MB are free here; the environment and the demo need 4000 MB"

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" || fail "python3 -m venv $VENV failed"
echo "installing the pinned requirements into $VENV"
"$VENV/bin/python" -m pip install --quiet uv==0.13.8 || fail "pip could not install uv; is a package index reachable?"

options=(--constraints constraints.txt --requirements requirements-dev.txt)
# uv does not read pip's setting for folders with local wheels
for folder in ${PIP_FIND_LINKS:-}; do options+=(--find-links "$folder"); done
[ -z "${TORCH_INDEX:-}" ] || options+=(--extra-index-url "$TORCH_INDEX" --index-strategy unsafe-best-match)
if ! "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" "${options[@]}"; then
    echo "uv failed; trying pip" >&2
    "$VENV/bin/python" -m pip install --quiet ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
        -c constraints.txt -r requirements-dev.txt || fail "the requirements could not be installed; see above"
fi
