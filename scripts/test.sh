#!/usr/bin/env bash
# Installs what the tests need (a virtual environment, Java and Maven, a real Hadoop and ZooKeeper, a browser) and runs
# all of them; arguments go to pytest:  scripts/test.sh tests/unit -k name
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
cd "$root"

missing=()
command -v javac >/dev/null || missing+=(openjdk-17-jdk-headless) # headers, too: libhdfs is compiled
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
command -v mvn >/dev/null || missing+=(maven)
command -v chromium >/dev/null || missing+=(chromium)
command -v chromedriver >/dev/null || missing+=(chromium-driver)
command -v ip >/dev/null || missing+=(iproute2)
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} …"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null && apt-get install -y -qq "${missing[@]}" >/dev/null
  else
    echo "The tests need these, which are missing here (Debian's names): ${missing[*]}." >&2
    echo "Install them and run this again. Tests that need them are skipped for now." >&2
  fi
fi

scripts/setup-venv.sh test
export PATH="$root/.venv/bin:$PATH"
if command -v java >/dev/null && command -v mvn >/dev/null; then
  python hadoop-docker/cluster.py install
  python hadoop-docker/libhdfs.py >/dev/null || true # its tests say what is missing
fi

echo "ruff and mypy …"
ruff check .
ruff format --check --quiet .
mypy --no-error-summary
# A worker more than cores, as many tests wait for daemons; those that share one stay together (tests/conftest.py).
exec python -m pytest -n 3 --dist loadscope --no-loadscope-reorder "$@"
