#!/usr/bin/env bash
# A SLURM of one node on this machine, to try submission and to test it: two CPU-only "GPUs", two hyper-threads for each
# core whatever the machine has, no accounting, and a small MaxArraySize, so that larger plans are cut. It speaks over the
# loopback interface only and shares nothing with another SLURM here; munge has a key of its own. Debian or Ubuntu;
# `install` and `start` need root.
#
#   slurm/test_cluster.sh install   packages: slurmctld, slurmd, slurm-client, munge
#   slurm/test_cluster.sh start     prints what to export
#   slurm/test_cluster.sh restart-controller
#   slurm/test_cluster.sh stop      ends its daemons and jobs and removes its state
set -euo pipefail

state=${NAS_RETRAIN_TEST_CLUSTER:-/var/tmp/nas-retrain-test-cluster}
node=$(hostname -s)
export SLURM_CONF=$state/slurm.conf

configure() {
  mkdir -p "$state"/{controller,node,munge}
  chmod 700 "$state/munge"
  touch "$state/gpu0" "$state/gpu1"
  if [ ! -e "$state/munge/key" ]; then
    (umask 077 && head -c 1024 /dev/urandom >"$state/munge/key")
  fi
  # No cgroups and no core binding: they need a systemd or rights that containers lack.
  cat >"$SLURM_CONF" <<END
ClusterName=nas-retrain-test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=26817
SlurmdPort=26818
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation=$state/controller
SlurmctldPidFile=$state/controller.pid
SlurmctldLogFile=$state/controller.log
SlurmdSpoolDir=$state/node
SlurmdPidFile=$state/node.pid
SlurmdLogFile=$state/node.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
KillWait=5
MaxArraySize=101
ReturnToService=2
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=$node NodeAddr=127.0.0.1 CPUs=$((2 * $(nproc))) CoresPerSocket=$(nproc) ThreadsPerCore=2 RealMemory=4000 \\
  Gres=gpu:2
PartitionName=test Nodes=$node Default=YES MaxTime=INFINITE
END
  echo "NodeName=$node Name=gpu File=$state/gpu[0-1]" >"$state/gres.conf"
  echo "CgroupPlugin=cgroup/v1" >"$state/cgroup.conf"
}

until_it_answers() { # a daemon, its log below the state's folder, and a command that succeeds once it answers
  for _ in {1..240}; do
    if "${@:3}" >/dev/null 2>&1; then return; fi
    sleep 0.25
  done
  echo "test_cluster.sh: $1 did not answer within a minute; see $state/$2" >&2
  exit 1
}

node_is_up() { sinfo --noheader --format=%T | grep -qE '^(idle|mixed|allocated)'; }

start() {
  configure
  munged --key-file="$state/munge/key" --socket="$state/munge/socket" --pid-file="$state/munge/pid" \
    --log-file="$state/munge/log" --seed-file="$state/munge/seed" --force
  until_it_answers munged munge/log munge --socket="$state/munge/socket" --no-input
  start_controller
  slurmd -f "$SLURM_CONF"
  until_it_answers slurmd node.log node_is_up
  echo "export SLURM_CONF=$SLURM_CONF"
}

start_controller() {
  slurmctld -f "$SLURM_CONF"
  until_it_answers slurmctld controller.log scontrol ping
}

end() { # the daemon whose process id is in this file
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in {1..40}; do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.25
  done
  kill -9 "$pid" 2>/dev/null || true
}

case "${1:-}" in
  install)
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
      slurmctld slurmd slurm-client munge >/dev/null
    ;;
  start) start ;;
  restart-controller)
    end "$state/controller.pid"
    start_controller
    until_it_answers slurmd node.log node_is_up
    ;;
  stop)
    timeout 20 scancel --user="$(id -un)" 2>/dev/null && sleep 1 || true
    for pid in node.pid controller.pid munge/pid; do end "$state/$pid"; done
    rm -rf "$state"
    ;;
  *)
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
