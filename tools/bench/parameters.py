"""How much a run of the bench does.

Invariants: two runs with equal `Parameters` serve the same bytes and make the same calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from capstore.schema.limits import KIB, MIB


@dataclass(frozen=True, slots=True)
class Parameters:
    """One run: sizes in bytes, the rest in numbers of what the name says.

    A figure is taken over at least `seconds`; `volume` is the specification of what the service
    serves (``dir:`` and ``memory:`` are completed by the bench).
    """

    rounds: int = 5
    seconds: float = 0.4
    seed: int = 1
    volume: str = "dir:"
    small_files: int = 1000
    small_bytes: int = 4 * KIB
    small_batch: int = 512
    calls_in_flight: int = 64
    large_bytes: int = 64 * MIB
    blocks_in_flight: int = 8
    list_entries: int = 10_000
    tree_files: int = 5000
    tree_directories: int = 50
    tar_members: int = 100_000
    gz_bytes: int = 1024 * MIB
    gz_batch: int = 16
    fat_entries: int = 2000
    fat_bytes: int = 64 * MIB
    ro1_entries: int = 1_000_000
    lookup_batch: int = 256
    wf1_files: int = 10_000
    wf1_file_bytes: int = 4 * KIB
    wf1_callers: int = 64
    wf1_large_bytes: int = 1024 * MIB
    wf1_overwritten_bytes: int = 64 * MIB
    wf1_overwrites: int = 8192
    wf1_mail_files: int = 1000
    wf1_mail_rounds: int = 2000
    wf1_mount_files: int = 1_000_000
    wf1_mount_changes: int = 5000
    wf1_pause_files: int = 4000
    wf1_pause_bytes: int = 512 * MIB
    wf1_alone_seconds: float = 5.0
    st1_entries: int = 100_000
    st1_value_bytes: int = 100
    st1_large_value_bytes: int = 4 * KIB
    st1_batch: int = 1000
    st1_reads: int = 20_000
    st1_syncs: int = 1000
    st1_callers: int = 64
    st1_puts: int = 6400
    st1_ycsb_records: int = 100_000
    st1_ycsb_record_bytes: int = 1000
    st1_ycsb_operations: int = 10_000
    st1_ycsb_callers: int = 16
    st1_scan_records_max: int = 100
    st1_open_entries: int = 1_000_000
    st1_compact_bytes: int = 1024 * MIB
    st1_alone_seconds: float = 5.0
    overlay_entries: int = 10_000
    overlay_copied_bytes: int = 1024 * MIB
    overlay_renamed_files: int = 10_000
    authority_slice: int = 192
    authority_traced_slice: int = 3072
    authority_large_bytes: int = 16 * MIB
    authority_connections: int = 1000
    authority_active: int = 50
    authority_flood: int = 1000
    authority_latencies: int = 4000
    authority_settle_seconds: float = 1.0

    @property
    def total_bytes(self) -> int:
        """More than everything that is served takes."""
        small = self.small_files * self.small_bytes
        tree = self.tree_files * TREE_FILE_BYTES_MAX
        return 2 * (self.large_bytes + small + tree + self.list_entries * KIB) + MIB


# Files of the tree are 0 to this many bytes long.
TREE_FILE_BYTES_MAX = 8 * KIB

FULL = Parameters()
QUICK = Parameters(
    rounds=3,
    seconds=0.15,
    small_batch=128,
    large_bytes=16 * MIB,
    tree_files=500,
    tree_directories=10,
    tar_members=10_000,
    gz_bytes=64 * MIB,
    fat_entries=200,
    fat_bytes=16 * MIB,
    ro1_entries=100_000,
    wf1_files=1000,
    wf1_large_bytes=64 * MIB,
    wf1_overwritten_bytes=16 * MIB,
    wf1_overwrites=1024,
    wf1_mail_rounds=320,
    wf1_mount_files=50_000,
    wf1_pause_bytes=128 * MIB,
    wf1_alone_seconds=1.0,
    st1_entries=10_000,
    st1_reads=2000,
    st1_syncs=100,
    st1_puts=640,
    st1_ycsb_records=10_000,
    st1_ycsb_operations=1600,
    st1_open_entries=50_000,
    st1_compact_bytes=128 * MIB,
    st1_alone_seconds=1.0,
    overlay_copied_bytes=64 * MIB,
    overlay_renamed_files=1000,
    authority_latencies=500,
)
