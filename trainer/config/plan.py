"""What `trainer.plan` is told besides what a training is: configs/plan.yaml."""

from dataclasses import dataclass, field

from trainer.config.train import TrainConfig


@dataclass
class ClusterConfig:
    """The cluster asked about. The defaults are what makers say of nodes with 8 H100 SXM; each can be overridden."""

    nodes: int = 8
    """Machines."""
    ranks_per_node: int = 8
    """Processes of a machine: one a GPU, or so many on its CPU."""
    device: str = "cuda"
    """cuda or cpu."""
    hbm_gib: float = 79.0
    """GiB of a GPU's memory; unused for device=cpu."""
    host_gib: float = 1024.0
    """GiB of a machine's memory."""
    intra_gb_s: float = 450.0
    """GB/s that a rank sends to others of its machine (NVLink 4, one direction)."""
    inter_gb_s: float = 50.0
    """GB/s that a rank sends to other machines (400 Gb/s for each GPU)."""
    memory_gb_s: float = 3350.0
    """GB/s that a rank reads or writes of its device's memory."""
    host_gb_s: float = 55.0
    """GB/s between a GPU and the host's memory, for sharding.host_memory (PCIe 5)."""
    tflops: float = 67.0
    """TFLOP/s of a rank in float32, in which the towers and the loss are computed."""
    efficiency: float = 0.5
    """Share of these rates that a step is taken to reach: an assumption, no measurement."""
    collective_us: float = 30.0
    """Microseconds that an exchange takes however little it carries: likewise."""
    fixed_ms: float = 5.0
    """Milliseconds that a step takes however small it is, for Python and the start of kernels: likewise."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows of a table in place of those of the prepared data, by name, such as +plan.rows.user_id=1000000000."""


@dataclass
class PlanConfig(TrainConfig):
    """configs/plan.yaml: a training's fields, of which run says nothing here, and the cluster."""

    plan: ClusterConfig = field(default_factory=ClusterConfig)
