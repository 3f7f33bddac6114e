#!/usr/bin/env bash
# Starts a JobManager on the host in conf/masters, with high availability on each line of it, and a TaskManager on each
# host in conf/workers.
# shellcheck source=scripts/config.sh
. "$(dirname "$(readlink -f "$0")")/config.sh"

find_python
read_settings
if [[ $FLINK_HIGH_AVAILABILITY != NONE ]]; then
    echo "Starting HA cluster with ${#FLINK_MASTERS[@]} masters."
    for master in "${FLINK_MASTERS[@]}"; do
        run_on_host "${master%:*}" jobmanager.sh start "${master%:*}" "${master##*:}" || exit 1
    done
else
    echo "Starting cluster."
    if [[ ${#FLINK_MASTERS[@]} -gt 1 ]]; then
        echo "[WARN] conf/masters lists ${#FLINK_MASTERS[@]} hosts; without high availability (high-availability.type) only the first is used."
    fi
    run_on_host "${FLINK_MASTERS[0]%%:*}" jobmanager.sh start || exit 1
fi
run_on_hosts "${FLINK_WORKERS[@]}" -- taskmanager.sh start
