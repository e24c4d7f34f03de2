"""What reports are made of in tests that measure nothing."""

from __future__ import annotations

from t2t_deploy.bench import BenchSettings, Environment

HERE = Environment(
    date_utc="2026-01-02T03:04:05+00:00",
    platform="Linux-6.1-x86_64",
    cpu_model="Some CPU",
    cpu_flags=("avx2", "avx512_vnni"),
    logical_cores=4,
    usable_cores=2,
    memory_bytes=16_000_000_000,
    governor="performance",
    python="3.11.2",
    versions={"numpy": "2.4.6", "torch": "2.13.0"},
    threads=(2,),
    load_before=(0.25, 0.5, 0.75),
    load_after=(1.75, 1.0, 0.5),
)
SETTINGS = BenchSettings(rounds=5, round_seconds=0.5, warm_up_limit_s=5.0, seed=0)
