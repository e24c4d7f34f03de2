"""``t2t-deploy variants``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from t2t_deploy.cli._adapter import plain_command
from t2t_deploy.cli._output import Output
from t2t_deploy.model import VARIANTS

if TYPE_CHECKING:
    from rich.console import Console


@plain_command("variants")
def command(workspace: Any, output: Output) -> None:
    """List the family: dimensions, parameters, published accuracy."""
    rows: list[dict[str, Any]] = []
    for variant in VARIANTS.values():
        config, published = variant.config, variant.published
        rows.append(
            {
                "variant": variant.name,
                "tokens_type": config.tokens_type.value,
                "backbone": config.backbone.value,
                "embed_dim": config.embed_dim,
                "depth": config.depth,
                "num_heads": config.num_heads,
                "mlp_ratio": config.mlp_ratio,
                "params": variant.params,
                "macs_g": published.macs_g,
                "top1": published.top1,
                "note": published.note,
            }
        )

    def show(console: Console) -> None:
        from rich.table import Table

        table = Table(title="T2T-ViT, 224 px, 1000 classes; accuracy as its authors published it")
        for name in ("variant", "tokens", "backbone", "width x depth, heads"):
            table.add_column(name)
        for name in ("params M", "MACs G", "top-1 %"):
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(
                *(str(row[key]) for key in ("variant", "tokens_type", "backbone")),
                f"{row['embed_dim']} x {row['depth']}, {row['num_heads']}",
                f"{row['params'] / 1e6:.2f}",
                *("" if row[key] is None else str(row[key]) for key in ("macs_g", "top1")),
            )
        console.print(table)

    output.result({"variants": rows}, show)
