#!/usr/bin/env bash
# Lint, types and tests:  bash scripts/test.sh [--all] [pytest's arguments]
# --all: a component that is missing fails its tests instead of skipping them; on Debian as root it
# is installed first.
. "$(dirname "$0")/setup.sh"
install_requirements tests/requirements.txt

if [ "${1:-}" = --all ]; then
    shift
    export MRL_TEST_ALL=1
    packages=()
    command -v chromium >/dev/null || packages+=(chromium)
    command -v slurmctld >/dev/null || packages+=(slurmctld slurmd slurm-client munge)
    if [ ${#packages[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing ${packages[*]}"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            "${packages[@]}" >/dev/null
    fi
    bash scripts/install_ffcv.sh
    python scripts/get_data.py
fi

ruff check .
ruff format --check .
mypy
python -m pytest -n 2 --dist loadfile "$@"
