#!/usr/bin/env bash
# Runs one command of the trainer over the processes of this node, or of several nodes; the rest is Hydra's, untouched:
#
#   launch/torchrun.sh train data.dir=prepared run.dir=runs/first model.embedding_dim=128
#   launch/torchrun.sh evaluate run.dir=runs/first
#   launch/torchrun.sh export run.dir=runs/first
#
# Topology comes from the environment, the same on every node but for NODE_RANK and LOCAL_ADDR; where Kubeflow Trainer says it
# in PET_NNODES, PET_MASTER_ADDR and others, from these:
#   NNODES          nodes, or MIN:MAX where nodes may come and go               (1)
#   NPROC_PER_NODE  processes a node                                            (one a GPU; 1 where there is no GPU)
#   RDZV_ENDPOINT   HOST:PORT of the node where all nodes meet; required when NNODES is not 1
#   RDZV_ID         name that the nodes of one job share                        (two-tower)
#   NODE_RANK       0 on the node that RDZV_ENDPOINT names, another number elsewhere (SLURM_NODEID; without either,
#                   torchrun compares host names)
#   LOCAL_ADDR      address of this node as the others reach it                 (its host name)
#   MAX_RESTARTS    times the processes are started again after a failure       (0)
#   GRACE_SECONDS   what processes have to finish their step and save when this script is sent SIGTERM or SIGUSR1   (120)
#
# Exit status 75 (EX_TEMPFAIL) says that a training was ended by such a signal and has saved: start the same command again.
set -euo pipefail

case "${1:-}" in
    train | evaluate | export | replay) ;;
    *)
        echo "usage: ${BASH_SOURCE[0]} train|evaluate|export|replay [hydra override ...]" >&2
        exit 2
        ;;
esac
command=$1
shift

nnodes=${NNODES:-${PET_NNODES:-1}}
nproc=${NPROC_PER_NODE:-${PET_NPROC_PER_NODE:-$(if command -v nvidia-smi >/dev/null; then echo gpu; else echo 1; fi)}}
endpoint=${RDZV_ENDPOINT:-${PET_MASTER_ADDR:+$PET_MASTER_ADDR:$PET_MASTER_PORT}}
topology=(--nnodes "$nnodes" --nproc-per-node "$nproc" --max-restarts "${MAX_RESTARTS:-0}")
topology+=(--signals-to-handle "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" --shutdown-timeout "${GRACE_SECONDS:-120}")

if [[ $nnodes == 1 ]]; then
    topology+=(--standalone --local-addr localhost) # which is there also where the host's own name leads nowhere
else
    if [[ -z $endpoint ]]; then
        echo "NNODES=$nnodes needs RDZV_ENDPOINT=HOST:PORT, a port of one of the nodes that the others can reach" >&2
        exit 2
    fi
    # Nodes come up minutes apart where an image is pulled first; torchrun's own limit for the first contact is one minute.
    rdzv_conf=read_timeout=600
    node_rank=${NODE_RANK:-${PET_NODE_RANK:-${SLURM_NODEID:-}}}
    if [[ -n $node_rank ]]; then
        rdzv_conf+=,is_host=$([[ $node_rank == 0 ]] && echo true || echo false)
    fi
    topology+=(--rdzv-backend c10d --rdzv-endpoint "$endpoint" --rdzv-id "${RDZV_ID:-two-tower}" --rdzv-conf "$rdzv_conf")
    if [[ -n ${LOCAL_ADDR:-} ]]; then
        topology+=(--local-addr "$LOCAL_ADDR")
    fi
fi

# Otherwise processes that are started again find the addresses of those before in a store that torchrun keeps.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# torchrun ends with 1 whatever its processes end with; so they write a note.
TRAINER_PREEMPTED_NOTE=$(mktemp)
export TRAINER_PREEMPTED_NOTE
torchrun "${topology[@]}" -m "trainer.$command" "$@" &
torchrun=$!
for name in TERM USR1; do
    # shellcheck disable=SC2064 # the process is known by now
    trap "kill -$name $torchrun" "$name"
done
while kill -0 "$torchrun" 2>/dev/null; do # a signal ends wait before torchrun has ended
    wait "$torchrun" || true
done
wait "$torchrun" && status=0 || status=$?
if [[ $status != 0 && -s $TRAINER_PREEMPTED_NOTE ]]; then
    status=75
fi
rm -f "$TRAINER_PREEMPTED_NOTE"
exit "$status"
