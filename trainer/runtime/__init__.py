"""Many processes: process group, sharding, gathering, Lightning, checkpoints."""
