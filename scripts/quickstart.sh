#!/usr/bin/env bash
# quickstart.sh          installs into .venv and counts words of a stream in a cluster inside one process
# quickstart.sh --yarn   the same on a real Hadoop, started here from Maven's jars and ended afterwards
set -euo pipefail
root="$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)"
"$root/scripts/setup-venv.sh"
python="$root/.venv/bin/python"

if [ "${1:-}" != "--yarn" ]; then
  exec "$python" "$root/examples/quickstart.py" "$@"
fi
exec bash "$root/scripts/quickstart-yarn.sh"
