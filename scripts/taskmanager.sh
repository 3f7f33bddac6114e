#!/usr/bin/env bash
# Starts or stops a TaskManager on this host.
USAGE="Usage: taskmanager.sh ((start|start-foreground) [-D key=value])|stop|stop-all"
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"

ACTION=${1:-}
split_arguments "${@:2}"
if [[ ${#POSITIONAL[@]} -gt 0 ]]; then
    echo "$USAGE" >&2
    exit 1
fi
daemon_script taskexecutor taskmanager "$USAGE" "$ACTION"
