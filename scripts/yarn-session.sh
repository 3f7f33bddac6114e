#!/usr/bin/env bash
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"
find_python
exec "$FLINK_PYTHON" -m flink_yarn.yarn_session "$@"
