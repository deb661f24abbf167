#!/usr/bin/env bash
# The main job on generated data, in the commands that a user types: prepare, train over two processes with row-wise
# sharded tables, evaluate, export; then the same model without its features, as matrix factorisation, to compare with.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

step() {
  printf '\n$ %s\n' "$*"
  "$@"
}

rm -rf demo
step python -m trainer.prepare data=generated data.dir=demo/data data.users=10000 data.items=3000
for model in two_tower matrix_factorization; do
  step torchrun --nproc-per-node 2 -m trainer.train data.dir=demo/data run.dir="demo/$model" model="$model" \
    experiment=generated
  step torchrun --nproc-per-node 2 -m trainer.evaluate run.dir="demo/$model"
done
step torchrun --nproc-per-node 2 -m trainer.export run.dir=demo/two_tower

echo
python benchmarks/compare.py demo/two_tower demo/matrix_factorization
printf '\nitem embeddings: demo/two_tower/item_embeddings/part-*.parquet\n'
