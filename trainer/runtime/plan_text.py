"""A cluster's plan as a person reads it."""

from trainer.runtime.planning import GIB, ClusterPlan

MEASURED = "CPU ranks took 6 % less to 3 % more"
"""Than is planned: benchmarks/plan.py."""


def told(plan: ClusterPlan) -> str:
    """Tables, memory, exchange and time; the last lines say the sum of each."""
    cluster = plan.config.plan
    ranks = cluster.nodes * cluster.ranks_per_node
    memory, host, on_cpu = sum(plan.memory.values()), sum(plan.host.values()), cluster.device == "cpu"
    sent, seconds = sum(exchange.sent for exchange in plan.sent), sum(plan.seconds.values())
    room = cluster.host_gib / cluster.ranks_per_node if on_cpu else cluster.hbm_gib
    lines = [f"{'table':16}{'rows':>15}{'dim':>5}  {'sharding':12}{'kernel':20}{'ranks':>6}{'a rank':>14}"
             f"{'GiB a rank':>12}{'host GiB':>10}"]  # fmt: skip
    for table in plan.tables:
        held = [rows for rows in table.rows_of_rank if rows]
        most = table.rows_of_rank.index(max(held))
        lines.append(f"{table.name:16}{sum(held):>15,}{table.dim:>5}  {table.sharding:12}{table.kernel:20}"
                     f"{len(held):>6}{max(held):>14,}{(table.weights(most) + table.state(most)) / GIB:>12.3f}"
                     f"{table.on_host(most) / GIB:>10.3f}")  # fmt: skip
    where = "a rank" if on_cpu else "a GPU"
    lines += ["", f"memory of {where}, on the rank that holds most, as if all were there at once ({MEASURED})"]
    lines += [f"    {name:45}{_size(value):>11}" for name, value in plan.memory.items() if value]
    lines += ["", "memory of a machine" + (", all its ranks" if on_cpu else "'s host")]
    lines += [f"    {name:44}{_size(value):>12}" for name, value in plan.host.items() if value]
    if plan.sent:
        lines += ["", "sent by a rank in a step (~: depends on the rows looked up)"]
        lines += [
            f"    {e.what:44}{'' if e.is_exact else '~':>1}{_size(e.sent):>{12 - (not e.is_exact)}}" for e in plan.sent
        ]
    lines += [
        "",
        f"time of a step, if it reaches {cluster.efficiency:.0%} of the rates given: an estimate, none measured",
    ]
    lines += [f"    {name:44}{value * 1e3:>9.3f} ms" for name, value in plan.seconds.items() if value]
    batch = plan.config.data.global_batch_size
    lines += [
        "",
        f"fits {ranks} ranks on {cluster.nodes} machines: {memory / GIB:,.2f} of {room:,.1f} GiB {where}, "
        f"{host / GIB:,.1f} of {cluster.host_gib:,.0f} GiB a machine",
        f"a step of {batch:,} rows, {plan.batch_size_per_rank:,} a rank: {_size(sent)} sent by a rank, "
        f"some {seconds * 1e3:,.1f} ms, {batch / seconds:,.0f} rows/s",
    ]
    return "\n".join(lines)


def _size(amount: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if amount < 1000:
            return f"{amount:,.1f} {unit}" if unit != "B" else f"{amount:,.0f} B"
        amount /= 1024
    return f"{amount:,.2f} GiB"
