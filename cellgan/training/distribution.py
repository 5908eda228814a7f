"""Where training runs: one device, all GPUs of a machine, or several machines.

Everything is TensorFlow's own `tf.distribute`; this room chooses the strategy and hands
each replica its share of the batches. ``batch_size`` is the global one, shared out
evenly. Variables must be made inside ``strategy.scope()``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.errors import CheckpointError, ConfigError

BatchesFrom = Callable[[int, int, int], tf.data.Dataset]
"""``(position, shard_index, n_shards)`` -> endless batches of static size.

The data set starts at global batch `position` and holds share ``shard_index`` of
``n_shards`` of every global batch."""


def make_strategy(distribution: str) -> tf.distribute.Strategy:
    """Choose the strategy for ``training.distribution``.

    Must be called before TensorFlow has used any device. GPU memory is then taken as
    it is needed, not all at once.

    Parameters
    ----------
    distribution
        - ``"one_device"``: the first visible GPU, or the CPU.
        - ``"mirrored"``: all visible GPUs, or all logical CPU devices without one.
        - ``"multi_worker"``: the tasks named by ``TF_CONFIG`` or started by ``srun``.
        - ``"auto"``: ``"multi_worker"`` when there are several tasks, else
          ``"one_device"``.

    Raises
    ------
    ConfigError
        If several workers are wanted and neither ``TF_CONFIG`` nor SLURM names them.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)  # noqa: FBT003
    if distribution == "auto":
        distribution = "multi_worker" if _n_tasks() > 1 else "one_device"
    if distribution == "mirrored":
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        devices = [device.name for device in tf.config.list_logical_devices(kind)]
        return tf.distribute.MirroredStrategy(devices)
    if distribution == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver())
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes checkpoints and logs."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.cluster_spec():
        return True
    if resolver.task_type == "chief":
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return not has_chief and resolver.task_type == "worker" and resolver.task_id == 0


def devices() -> str:
    """Say what TensorFlow computes on, and whether a wanted GPU is missing."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return f"{len(gpus)} GPU"
    is_wanted = os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
    missing = " (no GPU found: it takes one, and pip install 'cellgan[gpu]')"
    return f"{os.cpu_count()} CPU cores{missing if is_wanted else ''}"


def common_data_source(
    strategy: tf.distribute.Strategy, requested: Literal["auto", "memory", "disk"]
) -> Literal["auto", "memory", "disk"]:
    """Let several workers, whose free memory may differ, take the same source."""
    is_several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return "disk" if is_several and requested == "auto" else requested


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Refuse a global batch that cannot be shared out evenly.

    Raises
    ------
    ConfigError
        If `batch_size` is not a multiple of the number of replicas.
    """
    n_replicas = strategy.num_replicas_in_sync
    if batch_size % n_replicas:
        lower = batch_size - batch_size % n_replicas
        wanted = f"{lower} or {lower + n_replicas}" if lower else str(n_replicas)
        msg = (
            f"training.batch_size: {batch_size} cells cannot be shared evenly by "
            f"{n_replicas} replicas. Set it to {wanted}."
        )
        raise ConfigError(msg)


def distributed_batches(
    strategy: tf.distribute.Strategy, batches_from: BatchesFrom, position: int
) -> Iterator[CellBatch]:
    """Iterate over the batches of `distributed_dataset`."""
    return iter(distributed_dataset(strategy, batches_from, position))


def distributed_dataset(
    strategy: tf.distribute.Strategy, batches_from: BatchesFrom, position: int
) -> Iterable[CellBatch]:
    """Return batches from a position on, each replica seeing its own share.

    Parameters
    ----------
    position
        Global batch to start at. The cells of a global batch do not depend on how many
        replicas share it.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shares = batches_from(
            position, context.input_pipeline_id, context.num_input_pipelines
        )
        n_local = context.num_replicas_in_sync // context.num_input_pipelines
        return shares if n_local == 1 else shares.map(_cut(n_local)).unbatch()

    return strategy.distribute_datasets_from_function(of_worker)


def mean_over_replicas(values: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    """Average scalars over all replicas; to be called by each of them."""
    floats = {name: tf.cast(value, tf.float32) for name, value in values.items()}
    return tf.distribute.get_replica_context().all_reduce(
        tf.distribute.ReduceOp.MEAN, floats
    )


def check_same_step(strategy: tf.distribute.Strategy, step: int) -> None:
    """Refuse to train when workers have restored different steps.

    Raises
    ------
    CheckpointError
        On every worker, if their steps differ.
    """
    if strategy.num_replicas_in_sync == 1:
        return

    def mean_step() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(
            tf.distribute.ReduceOp.MEAN, tf.constant(step, tf.float64)
        )

    mean = strategy.experimental_local_results(
        strategy.run(tf.function(mean_step, autograph=False))
    )[0]
    if float(mean) != step:
        msg = (
            f"this worker has the checkpoint of step {step}, others have another or "
            f"none. All workers must see the same experiments_dir: put it on a file "
            f"system they share."
        )
        raise CheckpointError(msg)


def cluster_resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    """Find the other tasks in ``TF_CONFIG``, else in the variables set by ``srun``.

    Raises
    ------
    ConfigError
        If there is neither, or ``TF_CONFIG`` is not valid.
    """
    if "TF_CONFIG" in os.environ:
        _read_tf_config()
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_STEP_NODELIST" in os.environ:
        return _slurm_resolver()
    msg = (
        'training.distribution: "multi_worker" needs several tasks, and neither '
        "TF_CONFIG nor SLURM names any. Start the program with srun, or set TF_CONFIG "
        'in every task; use "mirrored" for several GPUs of one machine.'
    )
    raise ConfigError(msg)


def _cut(n_pieces: int) -> Callable[[CellBatch], CellBatch]:
    """Return a function that gives every tensor a new first axis of `n_pieces`."""

    def cut(batch: CellBatch) -> CellBatch:
        return tf.nest.map_structure(
            lambda x: tf.reshape(x, (n_pieces, x.shape[0] // n_pieces, *x.shape[1:])),
            batch,
        )

    return cut


def _n_tasks() -> int:
    if "TF_CONFIG" in os.environ:
        cluster = _read_tf_config()
        return sum(len(cluster.get(job, ())) for job in ("chief", "worker"))
    # SLURM_NTASKS is also set where no srun has started the other tasks
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def _read_tf_config() -> Mapping[str, list[str]]:
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        cluster = {job: list(tasks) for job, tasks in config["cluster"].items()}
        _ = cluster[config["task"]["type"]][int(config["task"]["index"])]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        msg = (
            "TF_CONFIG: expected JSON such as "
            '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, '
            f"found {os.environ['TF_CONFIG'][:100]}"
        )
        raise ConfigError(msg) from None
    return cluster


def _slurm_resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    """Build the cluster of a SLURM step, one worker per task.

    TensorFlow's own SLURM resolver divides by the number of GPUs, so it fails on nodes
    without one, and it would choose GPUs, which SLURM (``--gpus-per-task``) has done:
    it is asked for host names only.
    """
    resolvers = tf.distribute.cluster_resolver
    tasks_per_node = int(os.environ["SLURM_STEP_NUM_TASKS"])  # at most
    # jobs that share a node must not share ports
    port_base = 12000 + int(os.environ.get("SLURM_JOB_ID", "0")) % 20000
    slurm = resolvers.SlurmClusterResolver(
        port_base=port_base,
        gpus_per_node=tasks_per_node,
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    cluster = slurm.cluster_spec()
    task_type, task_id = slurm.get_task_info()
    n_gpus = len(tf.config.list_physical_devices("GPU"))
    return resolvers.SimpleClusterResolver(
        cluster,
        task_type=task_type,
        task_id=task_id,
        num_accelerators={"GPU": n_gpus},
        rpc_layer="grpc",
    )
