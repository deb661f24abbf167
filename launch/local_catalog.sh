#!/usr/bin/env bash
# A prepared folder whose catalogue, which training maps into memory, lies on a disk of this node; all else in it is a link:
#
#   launch/local_catalog.sh /storage/prepared /cache/prepared
#
# Training then reads the items' features from there, and rows of events from where they were.
set -euo pipefail

if [[ $# != 2 || ! -f $1/catalog.arrow ]]; then
    echo "usage: ${BASH_SOURCE[0]} PREPARED LOCAL, where PREPARED is a folder written by trainer.prepare" >&2
    exit 2
fi
mkdir -p "$2"
ln -sfn "$(realpath "$1")"/* "$2"
cp --remove-destination "$1/catalog.arrow" "$2/catalog.arrow.partial"
mv "$2/catalog.arrow.partial" "$2/catalog.arrow"
