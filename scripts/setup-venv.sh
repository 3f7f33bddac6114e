#!/usr/bin/env bash
# Makes or renews <repository>/.venv with the engine installed; instant, and offline, when nothing has changed.
#   setup-venv.sh [EXTRAS]      EXTRAS: "" (what users need) or "test"
# Prints nothing on success but what it installs; the interpreter is then .venv/bin/python.
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
extras="${1:-}"
venv="$root/.venv"

find_python() {
  local candidate
  for candidate in "${FLINK_PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "No Python 3.11 or newer found. Install one, or set FLINK_PYTHON to its path." >&2
  exit 1
}

stamp_now() { # what decides whether an installation is still right
  cat "$root/setup.cfg" "$root/setup.py"
  "$venv/bin/python" -c 'import sys; print(sys.version, sys.prefix)' 2>/dev/null || true
}

wanted() { stamp_now | sha256sum | cut -c1-64; }

# Kernels, so that no job waits for its own (12 s of CPU time, on all cores): those whose source has changed since.
compile_kernels() {
  local stamp="$venv/.engine-kernels" sources
  sources="$(find "$root/engine" -name '*kernels.py' -o -name intrinsics.py -o -name column_hash.py -o -path '*/warm_up/*.py' | sort | xargs sha256sum)"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$sources" ]; then return; fi
  # A failure is the first job's to tell.
  "$venv/bin/python" -m engine.operators.warm_up && printf '%s\n' "$sources" > "$stamp" || true
}

for kind in "$extras" test; do
  if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.engine-$kind" 2>/dev/null)" = "$(wanted)" ]; then
    compile_kernels
    exit 0
  fi
done

python="$(find_python)"
# An environment without pip is one whose making failed half-way.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  rm -rf "$venv"
  "$python" -m venv "$venv" || { echo "Cannot make $venv; on Debian: apt-get install python3-venv." >&2; exit 1; }
fi
echo "Installing the engine into $venv …"
target="$root"
[ -z "$extras" ] || target="$root[$extras]"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$target"
"$venv/bin/python" -m compileall -q "$root/engine" "$root/flink_yarn" || true
wanted > "$venv/.engine-$extras"
compile_kernels
