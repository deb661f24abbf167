"""What `trainer.train` is told: configs/train.yaml, configs/model/*.yaml and configs/experiment/*.yaml."""

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TrainDataConfig:
    """Which rows train, and in what portions."""

    dir: str = MISSING
    """Folder written by trainer.prepare."""
    layout: str = "event"
    """event: a row is one query and its positive; sequence: a row is a user's ordered events, each of them the positive
    of a query that has seen those before it. The folder must have been prepared with it."""
    global_batch_size: int = 4096
    """Rows of one optimizer step over all ranks; each rank takes an equal share."""
    streams: int = 64
    """Logical streams that fix the order of rows whatever the number of ranks: a multiple of every number of ranks that
    the run may go on with, and a divisor of global_batch_size."""
    memory_gb: float = 4.0
    """What a rank may hold of row groups, one a stream; data that needs more is refused at the start."""


@dataclass
class TowerConfig:
    """One tower: embed, combine, cross, MLP."""

    features: list[str] | None = None
    """Names of its inputs; null for every feature that the prepared data has on this side."""
    combine: str = "concatenate"
    """concatenate, or sum: all inputs have width embedding_dim and are added up, dense ones after a linear layer."""
    cross_layers: int = 0
    """DCN-v2 layers that multiply the combined inputs with one another; what they give goes on into the MLP."""
    hidden: list[int] | None = field(default_factory=lambda: [256])
    """Widths of the hidden layers before the linear layer to embedding_dim; [] for that layer alone; null for none:
    the combined inputs are the embedding."""
    residual: bool = False
    """Whether a hidden layer's input is added to its output; from the second on, so they have one width."""
    layer_norm: bool = False
    """Whether hidden layers are normalised before their ReLU."""
    dropout: float = 0.0
    """Share of each hidden layer's outputs that training sets to zero."""


@dataclass
class HistoryConfig:
    """What the query tower makes of the user's events."""

    encoder: str = "mean"
    """mean: average of their rows in the item table. Others see each event as the candidate tower embeds its item:
    item_mean: the average of these; attention: an average with learned weights; transformer: causal self-attention with
    learned positions and, where events have times, buckets of the time between them."""
    sees: str = "before"
    """What a query of data.layout=sequence has seen of its row. before: the events before it. For events whose order
    says nothing, with item_mean: others, all events but its positive; or all: a row is a single query with all its
    events as positives, far less work than a query for each, but what it is to find stands in its history."""
    interests: int = 1
    """Of attention: query embeddings per user, each with weights of its own; an item's score is that of the best."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 2
    """Of the transformer; twice their number divides embedding_dim."""
    dropout: float = 0.2
    """Of attention and the transformer: of what they see of events, and of what each layer adds."""


@dataclass
class LossConfig:
    """Softmax of a query's positive against candidates: the positives of the whole batch and uniform draws."""

    temperature: float = 0.1
    """Divides the scores."""
    learn_temperature: bool = False
    """Whether the temperature is trained from there on, between a tenth of it and ten times it."""
    in_batch_negatives: bool = True
    """Whether the positives of all queries of the global batch are candidates."""
    uniform_negatives: int = 0
    """Further candidates of each step, drawn from the whole catalogue, each item at most once; as many as there are
    items stand for all of them."""
    cold_negatives: bool = True
    """Whether items without training events are among the uniform draws: they teach that nobody chooses such items,
    which is so of old ones and not of new ones. Otherwise draws of them are dropped."""
    log_q: str = "counts"
    """Correction of a candidate's score for how often it comes into a batch. counts: by its training events in the
    catalogue; streaming: by an estimate from the batches so far; none. Uniform negatives are reckoned in."""
    streaming_rate: float = 0.01
    """Of the streaming estimate: weight of an item's newest appearance."""
    streaming_buckets: int = 1 << 20
    """Of the streaming estimate: buckets that items are hashed to where there are more items."""
    remove_accidental_hits: bool = True
    """Whether other candidates that are the query's own item are left out of its negatives."""
    sample_weights: bool = False
    """Whether queries count by the weights that their events were prepared with."""
    remove_known_positives: str = "none"
    """Whether other items that the query's user chose are: none are; history: those that it had chosen before; user:
    also what other rows of the batch say of the same user, and in sequences what came after."""


@dataclass
class ModelConfig:
    """Both towers and the loss between them."""

    embedding_dim: int = 64
    """Width of the query and candidate embeddings, and of the id tables."""
    categorical_dim: int = 16
    """Width of the categoricals' tables."""
    table_dims: dict[str, int] = field(default_factory=dict)
    """Width of a single table, by name, where the two above do not suit."""
    table_dtype: str = "float32"
    """float32, or float16: tables, and their part of checkpoints, of half the size. Rows are then rounded to the
    nearest after each update, so one of less than 1/4096 of a number leaves it as it is; all else remains float32. It
    needs optimizer.embedding=rowwise_adagrad."""
    query: TowerConfig = field(default_factory=TowerConfig)
    candidate: TowerConfig = field(default_factory=TowerConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    normalize: bool = True
    """Whether embeddings are scaled to length 1, so that the score is a cosine."""
    id_dropout: float = 0.1
    """Share of ids that a step replaces by the out-of-vocabulary row, so that other features learn to stand alone."""
    list_dropout: float = 0.0
    """Share of the values of an item's lists (tags, words, audience) that a step leaves out, of each item for
    itself."""
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class OptimizerConfig:
    """Two optimizers: one fused into the embedding kernels, one for the dense layers."""

    embedding: str = "rowwise_adagrad"
    """rowwise_adagrad or sgd."""
    embedding_learning_rate: float = 0.05
    """Of the tables, from the first step on."""
    embedding_weight_decay: float = 0.0
    """Of the rows that a step looks up."""
    embedding_init_std: float = 0.05
    """Standard deviation of the initial table rows."""
    dense_learning_rate: float = 1e-3
    """Of AdamW."""
    dense_weight_decay: float = 0.0
    """Of the dense layers' weights; biases and norms have none."""
    dense_gradient_clip: float | None = None
    """Norm that the gradient of all dense layers together is scaled down to."""
    warmup_steps: int = 100
    """Steps over which the dense learning rate rises linearly to its value."""
    schedule: str = "constant"
    """constant, or cosine: both learning rates fall along half a cosine, to zero at the run's last step."""


@dataclass
class ShardingConfig:
    """What TorchRec's planner may choose from; see its ShardingType."""

    ids: str = "row_wise"
    """Sharding type of the id tables: row_wise or table_wise."""
    categoricals: str | None = None
    """Of the categoricals' tables; null leaves it to the planner."""
    tables: dict[str, str] = field(default_factory=dict)
    """Of a single table, by name, where the two above do not suit."""
    exchange: str = "float32"
    """float32, or float16: as what training, with its validations, sends embeddings and their gradients from rank to
    rank, candidates' too. Gradients are multiplied by data.global_batch_size on their way, and held to what float16
    can hold."""
    host_memory: bool = False
    """Whether tables that GPUs cannot hold may lie in the host's memory, with a fifth of their rows cached on the GPU
    (UVM caching): many times slower for rows that are not."""


@dataclass
class RunConfig:
    """One training run."""

    dir: str = MISSING
    """Where everything about the run is written; the same command again resumes from what is there."""
    seed: int = 0
    """Of the initial tables and layers, the order of rows, and what is drawn or dropped."""
    accelerator: str = "auto"
    """cpu, gpu, or auto: gpu where there is one."""
    threads: int | None = None
    """Threads a rank on the CPU; null shares the cores out evenly."""
    matrix_products: str = "float32"
    """float32, or bfloat16: towers and loss round factors and results of their matrix products, in training alone; what
    adds up, tables, layers and exchange remain float32. It pays on GPUs, and on CPUs with such instructions."""
    compile: bool = False
    """Whether training runs towers that torch.compile has made: fewer kernels, whose sums may differ in the last bits.
    Takes a C++ compiler, and half a minute at the start. On CPUs it gains little (benchmarks/towers.py)."""
    epochs: int = 10
    """Passes over the training rows. The run ends with a validation, and each of those falls on a whole step: so it may
    go on into one pass more by as many steps as there are validations."""
    validate_every: float = 1.0
    """Epochs between validations; before each a checkpoint is saved, as is done without validation too."""
    validation_batch_size_per_rank: int = 1024
    """Queries a rank scores at a time."""
    monitor: str | None = "val/recall@100"
    """The metric that decides the best checkpoint and when to stop: recall, ndcg, mrr, hit_rate or map at any k.
    Of val/cold/recall@100 cold items alone are candidates and targets, of val/warm/recall@100 the others; cold are
    those without training events. null validates nothing: the run trains all its epochs, and its newest checkpoint is
    its best; so it is for data of which nothing is held out for validation."""
    patience: int = 3
    """Validations without a better monitor before training stops."""
    log_every: int = 20
    """Steps between lines of the logs."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints besides those before each validation; null for those alone."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, beside the best. With the one being written, a run takes the room of
    as many and two more."""
    save_in_background: bool = True
    """Whether training goes on while a checkpoint is written: a copy of each rank's tables is then kept in the host's
    memory. false waits for it and copies nothing."""
    on_non_finite: str = "stop"
    """What follows a step whose loss or gradient is not finite; tables and layers are spared it, and its rows are
    written to RUN/non_finite. stop: the run ends; leave_out: it goes on without the step and counts it in the logs, up
    to twenty in a row."""
    on_failed_checkpoint: str = "stop"
    """What follows a checkpoint that cannot be written, as on a full disk. stop: the run ends; go_on: it tells so and
    trains on. The checkpoints before are whole in either case."""
    set_aside_damaged: bool = False
    """Whether a newest checkpoint that is no longer as it was written is renamed to step-N.damaged, and the run goes on
    from the one before; otherwise it is refused."""
    stall_seconds: float = 600.0
    """Seconds without progress on any rank after which the job is ended, with every rank's stacks in RUN/stalls: longer
    than any pause of a sound run, such as starting, its first batch, embedding the catalogue, or a checkpoint."""


@dataclass
class StartConfig:
    """What the run begins with: initial values, or what another run has learned, of a model that may differ.

    Steps, order, epochs and schedule are the run's own. Resumed, it goes on from its own newest checkpoint, and the
    other run may be gone by then.
    """

    checkpoint: str | None = None
    """Folder RUN/checkpoints/step-N of the other run; null for initial values."""
    state: str = "all"
    """all: also the optimizers' state and the streaming estimate of the loss; weights: parameters alone."""
    changes: list[str] = field(default_factory=list)
    """In what the model may differ from the other run's; whatever else differs is refused. vocabulary: tables have
    grown, on data prepared with data.extends; their rows are kept, and new ones get their usual initial values.
    features: some are added or removed, and tables with them; the layers' weights for new ones begin at zero, so that
    the first scores are those without them. optimizer: optimizer.embedding, whose state begins anew. settings: all
    else in model and optimizer that decides no parameter's shape, such as rates, dropout and the loss, and data.layout
    and data.global_batch_size. What state=weights does not take over (optimizer, loss) may differ anyway."""


@dataclass
class TrainConfig:
    """configs/train.yaml."""

    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    start: StartConfig = field(default_factory=StartConfig)
    run: RunConfig = field(default_factory=RunConfig)
