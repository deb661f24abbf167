#!/usr/bin/env bash
# Two models on MovieLens over two processes, and popularity, on the same test rows.
#   benchmarks/movielens.sh movielens_100k FOLDER_WITH_ML_100K runs/movielens_100k
#   benchmarks/movielens.sh movielens_1m   FOLDER_WITH_ML_1M   runs/movielens_1m
set -euo pipefail
if [[ $# != 3 ]]; then
  echo "usage: $0 EXPERIMENT SOURCE OUT" >&2
  exit 2
fi
experiment=$1 source=$2 out=$3
repository=$(dirname "$0")/..
export OMP_NUM_THREADS=1

python -m trainer.prepare data=movielens data.source="$source" data.dir="$out/data"
for model in two_tower matrix_factorization; do
  overrides=(data.dir="$out/data" run.dir="$out/$model" experiment="$experiment" model="$model")
  # the experiment's temperature is that of a cosine; a plain dot product wants 1
  if [[ $model == matrix_factorization ]]; then overrides+=(model.loss.temperature=1); fi
  SECONDS=0
  torchrun --nproc-per-node 2 -m trainer.train "${overrides[@]}"
  echo "$model trained in $SECONDS s"
  torchrun --nproc-per-node 2 -m trainer.evaluate run.dir="$out/$model"
done
python "$repository/benchmarks/compare.py" "$out/two_tower" "$out/matrix_factorization"
