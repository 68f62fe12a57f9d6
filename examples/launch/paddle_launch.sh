#!/usr/bin/env bash
# Trains with paddle.distributed.launch:
#   examples/launch/paddle_launch.sh examples/quickstart/digits.yaml [KEY=VALUE ...]
#
# PROCESSES=4                         processes on this machine; default: one for each GPU
# NODES=2 MASTER=10.0.0.1:6170        several machines: run this on each of them, with the same address of one of them
# LOG_DIR=runs/launch                 receives workerlog.N with the output of each process
set -euo pipefail

options=(--nnodes "${NODES:-1}" --log_dir "${LOG_DIR:-runs/launch}")
[ -z "${MASTER:-}" ] || options+=(--master "$MASTER")
[ -z "${PROCESSES:-}" ] || options+=(--nproc_per_node "$PROCESSES")

# --resume auto: started again after a failure, the run continues from its newest checkpoint.
exec python -m paddle.distributed.launch "${options[@]}" erniekit train "$@" --resume auto
