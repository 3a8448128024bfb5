#!/bin/bash
# What a training machine does at boot, started once by cloud-init as root.
# TrainStack prepends the exports of BUCKET, GROUP_NAMES, … All other logic is in
# training/machine; this is only what has to work before Python does, or when it does not.
set -euo pipefail # no -E: the trap below is for this shell alone, not for its $(…)
# A shutdown sends SIGTERM only to cloud-init itself (KillMode=process in its cloud-final.service). In
# a unit of its own, every process here receives it before the network stops. OOMPolicy keeps systemd
# from stopping the whole unit when the kernel kills one process that is out of memory. If systemd
# refuses, the child of cloud-init does the work.
if [ "${1:-}" != in-unit ] && systemd-run --unit=bin-counter --service-type=exec \
  --property=After=network.target --property=TimeoutStopSec=100 --property=OOMPolicy=continue \
  --property=StandardOutput=journal+console "$BASH" "$0" in-unit; then
  exit
fi
work="${WORK:-/opt/bin-counter}"
instance_id="${INSTANCE_ID:-$(cat /var/lib/cloud/data/instance-id || echo unknown)}"
BOOT_STARTED="$(date -u +%FT%TZ)"
export BOOT_STARTED       # from here on the machine is billed
export TMPDIR="$work/tmp" # /tmp is in memory and too small for pip
# By default, botocore asks for credentials once, for one second, and then assumes there are none.
export AWS_METADATA_SERVICE_NUM_ATTEMPTS=5 AWS_METADATA_SERVICE_TIMEOUT=5

# Powering off alone does not stop the spending, as a group would start another machine.
# If a call is refused, repeat it; otherwise the action that the launcher has scheduled ends it.
stop_spending() {
  local terminated=
  # Setting its own group to 0 ends this machine, possibly before the other group is at 0: the
  # shutdown sends SIGTERM to every process here.
  trap 'terminated=yes' TERM
  aws() { (trap "" TERM && exec aws "$@"); }
  echo "boot: nothing more to do here, groups to 0"
  if [ "$1" = broken ]; then # a run that ended normally has reported its end itself
    log_to_cloudwatch || true
    aws sns publish --topic-arn "$TOPIC_ARN" --subject "Training machine broke" \
      --message "See s3://$BUCKET/runs/${run_id:-none}/logs/$instance_id.log" > /dev/null || true
  fi
  store_log
  local first fallback name pending refused
  read -r first fallback <<< "$GROUP_NAMES"
  [ -z "$fallback" ] || aws autoscaling delete-scheduled-action --auto-scaling-group-name "$fallback" \
    --scheduled-action-name fallback || true
  pending="$fallback $first"
  while true; do
    refused=
    for name in $pending; do
      aws autoscaling set-desired-capacity --auto-scaling-group-name "$name" --desired-capacity 0 ||
        refused+="$name "
    done
    pending=$refused
    [ -n "$pending" ] && [ -z "$terminated" ] || break
    sleep 60 &
    wait "$!" || kill "$!" || true
  done
  shutdown -h now
  exit
}
trap 'stop_spending broken' ERR

store_log() {
  aws s3 cp --only-show-errors machine.log "s3://$BUCKET/runs/${run_id:-none}/logs/$instance_id.log" || true
}

# Send the end of the log; training.machine, if it was started, has sent the rest.
log_to_cloudwatch() {
  local stream=(--log-group-name "$LOG_GROUP" --log-stream-name "${run_id:-none}/$instance_id")
  aws logs create-log-stream "${stream[@]}" 2> /dev/null || true # it may exist already
  aws logs put-log-events "${stream[@]}" --log-events "$(tail -n 100 machine.log | python3 -c '
import json, sys, time
print(json.dumps([{"timestamp": int(time.time() * 1000), "message": sys.stdin.read()}]))')" > /dev/null
}

# At boot, a service may not answer yet, and the update of the SSM agent may hold rpm's lock
# (github.com/amazonlinux/amazon-linux-2023/issues/397).
retry() {
  local tries=4
  until "$@"; do
    ((--tries)) || return 1
    echo "boot: trying again: $*"
    sleep "${SPOT_PAUSE_SECONDS:-30}"
  done
}

mkdir -p "$work/code" "$work/wheels" "$TMPDIR"
cd "$work"
exec > >(trap "" TERM && exec tee -a machine.log) 2>&1 # to log what happens after SIGTERM
echo "boot: $BOOT_STARTED"
retry aws s3 cp --only-show-errors "s3://$BUCKET/control/current.json" current.json
field() { python3 -c 'import json, sys; print(json.load(open("current.json"))[sys.argv[1]])' "$1"; }
run_id=$(field run_id)
runtime=$(field runtime)

echo "boot: run $run_id, code and wheels"
python3.11 -m pip --version > /dev/null 2>&1 || retry dnf install -y -q python3.11 python3.11-pip
retry aws s3 cp --only-show-errors "s3://$BUCKET/runs/$run_id/code.tar.gz" code.tar.gz
tar -xzf code.tar.gz -C code
retry aws s3 cp --only-show-errors --recursive "s3://$BUCKET/$runtime" wheels
python3.11 -m pip install --quiet --disable-pip-version-check --no-index --no-deps --require-hashes \
  --find-links wheels --target runtime --requirement wheels/requirements.txt

echo "boot: training"
# Not exported: our packages would shadow those of the system's `aws`.
PYTHONPATH="$work/runtime:$work/code" python3.11 -m training.machine --work "$work" &
spot=$!
trap 'kill -TERM "$spot" || true' TERM # bash handles no signal while a foreground child runs
while kill -0 "$spot" 2> /dev/null; do wait "$spot" || true; done
code=0
wait "$spot" || code=$?
trap - TERM
# EX_TEMPFAIL, or SIGTERM before training.machine handled it: another machine continues.
if [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; then
  echo "boot: leaving the run to the next machine"
  store_log
  shutdown -h now
  exit
fi
[ "$code" -eq 0 ] || stop_spending broken
stop_spending ended
