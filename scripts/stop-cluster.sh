#!/usr/bin/env bash
# Stops the TaskManagers on the hosts in conf/workers, then the JobManager. With high availability the JobManagers first:
# a job that runs does not fail then, it goes on when the cluster is started again.
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"

find_python
read_settings 2>/dev/null
FAILED=0
stop_masters() {
    local master
    for master in "$@"; do
        run_on_host "${master%:*}" jobmanager.sh stop || FAILED=1
    done
}
[[ $FLINK_HIGH_AVAILABILITY != NONE ]] && stop_masters "${FLINK_MASTERS[@]}"
# A host that is listed twice runs two TaskManagers; each line stops one.
run_on_hosts "${FLINK_WORKERS[@]}" -- taskmanager.sh stop || FAILED=1
[[ $FLINK_HIGH_AVAILABILITY == NONE ]] && stop_masters "${FLINK_MASTERS[0]%%:*}"
exit $FAILED
