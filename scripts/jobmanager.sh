#!/usr/bin/env bash
# Starts or stops a JobManager on this host.
USAGE="Usage: jobmanager.sh ((start|start-foreground) [host] [webui-port] [-D key=value])|stop|stop-all"
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"

ACTION=${1:-}
split_arguments "${@:2}"
# Up to Flink 1.5 the mode came first.
[[ ${POSITIONAL[0]:-} == cluster ]] && POSITIONAL=("${POSITIONAL[@]:1}")
ARGUMENTS=()
[[ -n ${POSITIONAL[0]:-} ]] && ARGUMENTS+=(--host "${POSITIONAL[0]}")
[[ -n ${POSITIONAL[1]:-} ]] && ARGUMENTS+=(--webui-port "${POSITIONAL[1]}")
daemon_script standalonesession jobmanager "$USAGE" "$ACTION" "${ARGUMENTS[@]}"
