# Sourced by the other scripts: goes to the checkout's top folder, makes .venv there with the pinned
# requirements (once; again when they change), and puts it first in PATH. Needs Python 3.11 or 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.12 python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 or 3.12 found; install one, or name it: PYTHON=/path/to/python3.12" >&2
    return 1
}

# install_requirements FILE...: into .venv, unless the same files were installed before.
install_requirements() {
    local file stamp args=()
    for file in "$@"; do
        stamp=.venv/installed-$(cksum <"$file" | tr ' ' -)
        [ -e "$stamp" ] || args+=(-r "$file")
    done
    [ ${#args[@]} -eq 0 ] && return
    echo "installing ${args[*]} into .venv (the first time: about 6 GB, minutes)"
    python -m pip install --quiet --disable-pip-version-check "${args[@]}"
    for file in "$@"; do touch ".venv/installed-$(cksum <"$file" | tr ' ' -)"; done
}

if [ ! -x .venv/bin/python ]; then
    python=$(find_python)
    rm -rf .venv
    "$python" -m venv .venv || {
        echo "error: $python cannot make a virtual environment (Debian: package python3-venv)" >&2
        exit 1
    }
fi
export PATH="$PWD/.venv/bin:$PATH"
install_requirements requirements.txt
