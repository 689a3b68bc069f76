#!/usr/bin/env bash
# Sets up FFCV for data.loader=ffcv:  bash scripts/install_ffcv.sh
# FFCV is compiled here, against OpenCV and libjpeg-turbo; on Debian as root these are installed
# first, elsewhere they must be there. Takes half a minute, and nothing when it is done already.
. "$(dirname "$0")/setup.sh"

ffcv_version=1.0.2
debian_packages=(libopencv-dev libturbojpeg0-dev pkg-config g++)

ffcv_works() {
    python -c '
import sys
from importlib.metadata import version
import ffcv
sys.exit(version("ffcv") != sys.argv[1])' "$ffcv_version" >/dev/null 2>&1
}

libraries_there() {
    command -v g++ >/dev/null && command -v pkg-config >/dev/null &&
        { pkg-config --exists opencv4 || pkg-config --exists opencv; } &&
        pkg-config --exists libturbojpeg
}

if ! ffcv_works; then
    if ! libraries_there && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${debian_packages[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${debian_packages[@]}" >/dev/null
    fi
    if ! libraries_there; then
        echo "error: FFCV needs a C++ compiler, pkg-config, OpenCV 4 and libjpeg-turbo with headers." >&2
        echo "  Debian, Ubuntu:  sudo apt-get install ${debian_packages[*]}" >&2
        echo "  conda:           conda install -c conda-forge cxx-compiler pkg-config opencv libjpeg-turbo" >&2
        exit 1
    fi
    echo "installing FFCV $ffcv_version into .venv"
    # The constraints keep PyTorch and NumPy as they are.
    python -m pip install --quiet --disable-pip-version-check "ffcv==$ffcv_version" \
        -c <(python -m pip list --format=freeze | grep -E '^(torch|torchvision|numpy)==')
    ffcv_works || {
        echo "error: FFCV was installed but cannot be imported:" >&2
        python -c 'import ffcv'
        exit 1
    }
fi
echo "FFCV $ffcv_version works"
