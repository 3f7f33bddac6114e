#!/usr/bin/env bash
# Stops the TaskManagers on the hosts in conf/workers, then the JobManager.
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"

find_python
read_settings 2>/dev/null
FAILED=0
# A host that is listed twice runs two TaskManagers; each line stops one.
run_on_hosts "${FLINK_WORKERS[@]}" -- taskmanager.sh stop || FAILED=1
run_on_host "${FLINK_MASTERS[0]%%:*}" jobmanager.sh stop || FAILED=1
exit $FAILED
