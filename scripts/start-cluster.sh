#!/usr/bin/env bash
# Starts a JobManager on the host in conf/masters and a TaskManager on each host in conf/workers.
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"

find_python
read_settings
echo "Starting cluster."
if [[ ${#FLINK_MASTERS[@]} -gt 1 ]]; then
    echo "[WARN] conf/masters lists ${#FLINK_MASTERS[@]} hosts; high availability is not supported yet, so only the first is used."
fi
run_on_host "${FLINK_MASTERS[0]%%:*}" jobmanager.sh start || exit 1
run_on_hosts "${FLINK_WORKERS[@]}" -- taskmanager.sh start
