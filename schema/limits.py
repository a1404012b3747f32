"""Every limit of capstore, in one place.

Invariants: a limit that code enforces is a constant of this module and a row of `LIMITS`; what
``capstore limits`` and ``Gate.info`` show is this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

NAME_BYTES_MAX: Final = 255
SYMLINK_TARGET_BYTES_MAX: Final = 4095
LABEL_BYTES_MAX: Final = 200
TRANSFER_BYTES_MAX: Final = 1 * MIB
PAGE_ENTRIES_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 512 * KIB
MESSAGE_BYTES_MAX: Final = 2 * MIB
MESSAGE_NESTING_MAX: Final = 32
REFERENCES_MAX: Final = 65_536
REFERENCES_BELOW_MAX: Final = 4096
SERVICE_KEYS_OLD_MAX: Final = 8
CONNECTIONS_MAX: Final = 2048
CONNECTIONS_OF_PEER_MAX: Final = 1024
STRANGERS_MAX: Final = 1024
STRANGER_SECONDS_MAX: Final = 30
STRANGER_MESSAGES_MAX: Final = 256
STRANGER_BYTES_MAX: Final = 256 * KIB
MESSAGE_SECONDS_MAX: Final = 60
QUESTIONS_MAX: Final = 8192
UNANSWERABLE_MAX: Final = 1024
AUDIT_QUEUE_LINES_MAX: Final = 16_384
SCRAPES_MAX: Final = 8
SCRAPE_SECONDS_MAX: Final = 10
MESSAGE_CAPABILITIES_MAX: Final = 16
CALLS_IN_FLIGHT_MAX: Final = 1024
CALL_BYTES_MAX: Final = 16 * MIB
CAPABILITIES_MAX: Final = 4096
UNSENT_BYTES_MAX: Final = 8 * MIB
CALLS_TOTAL_MAX: Final = 16_384
CALL_BYTES_TOTAL_MAX: Final = 256 * MIB
CAPABILITIES_TOTAL_MAX: Final = 65_536
UNSENT_BYTES_TOTAL_MAX: Final = 256 * MIB
CALLS_SHARED_MAX: Final = 128
CALLS_SHARED_MIN: Final = 16
TURN_CALLS_MAX: Final = 8
TURN_CALLS_HURRIED_MAX: Final = 1
TURN_CALLS_FRESH_MAX: Final = 16
TURN_CALLS_ALONE_MAX: Final = 256
STALL_SECONDS_MAX: Final = 60
IDLE_SECONDS_MAX: Final = 60
SINKS_MAX: Final = 64
WATCHES_MAX: Final = 256
WATCHES_TOTAL_MAX: Final = 8192
WATCH_CHANGES_MAX: Final = 1024
WATCH_CHANGES_TOTAL_MAX: Final = 262_144
TELLINGS_LEFT_MAX: Final = 16_384
GRANT_DEPTH_MAX: Final = 64
HIDDEN_PATTERNS_MAX: Final = 32
HIDDEN_PATTERN_BYTES_MAX: Final = 255
HIDDEN_BYTES_MAX: Final = 4 * KIB
PACE_SECONDS_MAX: Final = 1
DRY_BYTES_MAX: Final = 4 * MIB
DRY_NODES_MAX: Final = 4096
DRY_RUNS_MAX: Final = 64
HANDSHAKE_SECONDS_MAX: Final = 10
TICKET_SECONDS_MAX: Final = 10
TICKETS_MAX: Final = 4096
KEY_BYTES_MAX: Final = 1024
OBJECT_BYTES_MAX: Final = 1024 * MIB
BATCH_CHANGES_MAX: Final = 1000
MEMORY_FILE_BYTES_MAX: Final = 16 * MIB
MEMORY_TOTAL_BYTES_MAX: Final = 64 * MIB
MEMORY_NODES_MAX: Final = 1_000_000
INDEX_BYTES_MIN: Final = 64 * MIB
INDEX_RATIO_MAX: Final = 64
PAX_BYTES_MAX: Final = 1 * MIB
LONG_NAME_BYTES_MAX: Final = 64 * KIB
TAR_SEARCH_BYTES_MAX: Final = 256 * MIB
SPARSE_REGIONS_MAX: Final = 1 << 20
SPARSE_MAP_BYTES_MAX: Final = 32 * MIB
CPIO_SEARCH_BYTES_MAX: Final = 256 * MIB
CPIO_NAME_BYTES_MAX: Final = 4096
INDEX_FINDINGS_MAX: Final = 1000
FAT_CLUSTERS_MAX: Final = 1 << 26
FAT_DIRECTORY_BYTES_MAX: Final = 2 * MIB
PARTITIONS_MAX: Final = 256
GPT_TABLE_BYTES_MAX: Final = 1 * MIB
SPAN_CACHE_BYTES_MAX: Final = 32 * MIB
CONTENT_BYTES_FLOOR: Final = 1024 * MIB
EXPANSION_MAX: Final = 1100
SPOOL_BYTES_FLOOR: Final = 1024 * MIB
SPOOL_EXPANSION_MAX: Final = 64
SPAN_BYTES_MAX: Final = 8 * MIB
STATES_BYTES_FLOOR: Final = 64 * MIB
DECODER_MEMORY_BYTES_MAX: Final = 256 * MIB
PYFS_GAP_BYTES_MAX: Final = 1024 * MIB
PYFS_SCAN_ENTRIES_MAX: Final = 20_000
PYFS_SCANS_MAX: Final = 8
PYFS_PLACES_MAX: Final = 100_000
IMAGE_DEPTH_MAX: Final = 2048
WINDOW_REQUESTS: Final = 8
WINDOW_BYTES: Final = 256 * KIB


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: its `name` on the wire, `value` in `unit`, and why it stands (`reason`)."""

    name: str
    value: int
    unit: str
    reason: str


LIMITS: Final = (
    Limit("maxNameBytes", NAME_BYTES_MAX, "bytes", "what POSIX filesystems hold"),
    Limit("maxSymlinkTargetBytes", SYMLINK_TARGET_BYTES_MAX, "bytes", "PATH_MAX without its NUL"),
    Limit("maxLabelBytes", LABEL_BYTES_MAX, "bytes", "labels are shown in listings"),
    Limit("maxTransferBytes", TRANSFER_BYTES_MAX, "bytes", "content moved by one read or write"),
    Limit("maxPageEntries", PAGE_ENTRIES_MAX, "entries", "one page of a listing"),
    Limit("maxPageBytes", PAGE_BYTES_MAX, "bytes", "names and targets in one page of a listing"),
    Limit("maxMessageBytes", MESSAGE_BYTES_MAX, "bytes", "refused before it is buffered"),
    Limit("maxMessageNesting", MESSAGE_NESTING_MAX, "levels", "pointers below one another"),
    Limit("maxReferences", REFERENCES_MAX, "references", "saved by one service"),
    Limit(
        "maxReferencesBelow", REFERENCES_BELOW_MAX, "references", "saved below one, but an owner's"
    ),
    Limit("maxOldServiceKeys", SERVICE_KEYS_OLD_MAX, "keys", "that URIs may still pin"),
    Limit("maxConnections", CONNECTIONS_MAX, "connections", "open to one service"),
    Limit("auditQueueLines", AUDIT_QUEUE_LINES_MAX, "lines", "yet to be written; then calls wait"),
    Limit("scrapes", SCRAPES_MAX, "connections", "to the metrics, at once"),
    Limit("maxScrapeSeconds", SCRAPE_SECONDS_MAX, "seconds", "of one of them"),
    Limit(
        "maxConnectionsOfPeer",
        CONNECTIONS_OF_PEER_MAX,
        "connections",
        "of one address (IPv6: /64) or user",
    ),
    Limit(
        "maxStrangers", STRANGERS_MAX, "connections", "without a token; then the oldest is closed"
    ),
    Limit("maxStrangerSeconds", STRANGER_SECONDS_MAX, "seconds", "until a token is shown"),
    Limit("maxStrangerMessages", STRANGER_MESSAGES_MAX, "messages", "before a token is shown"),
    Limit("maxStrangerBytes", STRANGER_BYTES_MAX, "bytes", "before a token is shown"),
    Limit("maxMessageSeconds", MESSAGE_SECONDS_MAX, "seconds", "from its beginning to its end"),
    Limit(
        "maxMessageCapabilities", MESSAGE_CAPABILITIES_MAX, "capabilities", "that one call brings"
    ),
    Limit("maxQuestions", QUESTIONS_MAX, "questions", "of one connection, answered and not ended"),
    Limit(
        "maxUnanswerable",
        UNANSWERABLE_MAX,
        "messages",
        "that are no calls, of who takes no answers",
    ),
    Limit("maxCallsInFlight", CALLS_IN_FLIGHT_MAX, "calls", "of one connection; then it waits"),
    Limit("maxCallBytes", CALL_BYTES_MAX, "bytes", "of calls in flight; then it waits"),
    Limit("maxCapabilities", CAPABILITIES_MAX, "capabilities", "held by one connection"),
    Limit("maxUnsentBytes", UNSENT_BYTES_MAX, "bytes", "of answers a connection has not taken"),
    Limit("maxCallsTotal", CALLS_TOTAL_MAX, "calls", "of all; who has more than its share waits"),
    Limit("maxCallBytesTotal", CALL_BYTES_TOTAL_MAX, "bytes", "of calls in flight, of all"),
    Limit("maxCapabilitiesTotal", CAPABILITIES_TOTAL_MAX, "capabilities", "held by all"),
    Limit("maxUnsentBytesTotal", UNSENT_BYTES_TOTAL_MAX, "bytes", "of answers, of all"),
    Limit("callsShared", CALLS_SHARED_MAX, "calls", "in flight, split between those that ask"),
    Limit("callsSharedLeast", CALLS_SHARED_MIN, "calls", "in flight that each of them may have"),
    Limit("turnCalls", TURN_CALLS_MAX, "calls", "begun at once of those that have some under way"),
    Limit(
        "turnCallsHurried",
        TURN_CALLS_HURRIED_MAX,
        "calls",
        "so, beside clients that ask one by one",
    ),
    Limit("turnCallsFresh", TURN_CALLS_FRESH_MAX, "calls", "begun at once of those that have none"),
    Limit("turnCallsAlone", TURN_CALLS_ALONE_MAX, "calls", "begun at once where one client asks"),
    Limit("maxStallSeconds", STALL_SECONDS_MAX, "seconds", "without taking an answer that waits"),
    Limit("maxIdleSeconds", IDLE_SECONDS_MAX, "seconds", "of a connection that holds nothing"),
    Limit("maxAttenuationDepth", GRANT_DEPTH_MAX, "levels", "of a capability below its volume"),
    Limit("hiddenPatterns", HIDDEN_PATTERNS_MAX, "patterns", "of hidden names, of a capability"),
    Limit("hiddenPatternBytes", HIDDEN_PATTERN_BYTES_MAX, "bytes", "of one of them"),
    Limit("hiddenBytes", HIDDEN_BYTES_MAX, "bytes", "of all of them, of a capability"),
    Limit(
        "paceSeconds", PACE_SECONDS_MAX, "seconds", "a call over its rate waits; then it is busy"
    ),
    Limit("dryBytes", DRY_BYTES_MAX, "bytes", "of changes that one dry run remembers"),
    Limit("dryNodes", DRY_NODES_MAX, "nodes or objects", "that one dry run remembers"),
    Limit("dryRuns", DRY_RUNS_MAX, "dry runs", "at a time, of one volume, shared by holders"),
    Limit("maxHandshakeSeconds", HANDSHAKE_SECONDS_MAX, "seconds", "for TLS"),
    Limit("maxTicketSeconds", TICKET_SECONDS_MAX, "seconds", "life of a one-time ticket"),
    Limit("maxTickets", TICKETS_MAX, "tickets", "waiting to be used, of one connection"),
    Limit("memoryFileBytes", MEMORY_FILE_BYTES_MAX, "bytes", "default for memory:, per file"),
    Limit("memoryTotalBytes", MEMORY_TOTAL_BYTES_MAX, "bytes", "default for memory:, in all"),
    Limit("memoryNodes", MEMORY_NODES_MAX, "nodes", "default for memory:"),
    Limit("indexBytes", INDEX_BYTES_MIN, "bytes", "an archive's index may take, and besides"),
    Limit("indexRatio", INDEX_RATIO_MAX, "bytes", "of index for each byte of the archive"),
    Limit("paxHeaderBytes", PAX_BYTES_MAX, "bytes", "of one extended header of a tar archive"),
    Limit("tarLongNameBytes", LONG_NAME_BYTES_MAX, "bytes", "of one GNU long name"),
    Limit(
        "tarSearchBytes", TAR_SEARCH_BYTES_MAX, "bytes", "looked through for headers behind damage"
    ),
    Limit("tarSparseRegions", SPARSE_REGIONS_MAX, "regions", "of one sparse member"),
    Limit("tarSparseMapBytes", SPARSE_MAP_BYTES_MAX, "bytes", "of the map of one sparse member"),
    Limit(
        "cpioSearchBytes",
        CPIO_SEARCH_BYTES_MAX,
        "bytes",
        "looked through for headers behind damage",
    ),
    Limit("cpioNameBytes", CPIO_NAME_BYTES_MAX, "bytes", "of a member's name, as in Linux"),
    Limit(
        "indexFindings",
        INDEX_FINDINGS_MAX,
        "findings",
        "of one archive that are kept; more are counted",
    ),
    Limit("fatClusters", FAT_CLUSTERS_MAX, "clusters", "of a FAT volume"),
    Limit(
        "fatDirectoryBytes", FAT_DIRECTORY_BYTES_MAX, "bytes", "of a FAT directory, as FAT has it"
    ),
    Limit("partitions", PARTITIONS_MAX, "partitions", "of a disk"),
    Limit("gptTableBytes", GPT_TABLE_BYTES_MAX, "bytes", "of a GPT partition table"),
    Limit(
        "spanCacheBytes",
        SPAN_CACHE_BYTES_MAX,
        "bytes",
        "of decompressed spans that are kept, of one archive",
    ),
    Limit(
        "contentBytes", CONTENT_BYTES_FLOOR, "bytes", "that a compressed archive may always have"
    ),
    Limit(
        "contentRatio", EXPANSION_MAX, "bytes", "of content for each compressed byte, beyond that"
    ),
    Limit(
        "spoolBytes", SPOOL_BYTES_FLOOR, "bytes", "of a temporary file for what has no seek points"
    ),
    Limit(
        "spoolRatio", SPOOL_EXPANSION_MAX, "bytes", "of it for each compressed byte, beyond that"
    ),
    Limit("spanBytes", SPAN_BYTES_MAX, "bytes", "between seek points; what is longer is spooled"),
    Limit(
        "seekPointBytes",
        STATES_BYTES_FLOOR,
        "bytes",
        "of seek points, beside the archive's own length",
    ),
    Limit("xzMemoryBytes", DECODER_MEMORY_BYTES_MAX, "bytes", "that decompressing xz may take"),
    Limit(
        "pyfsGapBytes", PYFS_GAP_BYTES_MAX, "bytes", "of zeros that one write behind the end makes"
    ),
    Limit(
        "pyfsScanEntries",
        PYFS_SCAN_ENTRIES_MAX,
        "entries",
        "of a listing that are kept between its pages",
    ),
    Limit("pyfsScans", PYFS_SCANS_MAX, "listings", "that are kept, of one volume"),
    Limit("pyfsPlaces", PYFS_PLACES_MAX, "places", "renamed or removed that are remembered"),
    Limit("imageDepth", IMAGE_DEPTH_MAX, "levels", "of a tree that an image is built of"),
    Limit("sinks", SINKS_MAX, "puts in pieces", "open at once, of one connection"),
    Limit("watches", WATCHES_MAX, "watches", "of one connection"),
    Limit("watchesTotal", WATCHES_TOTAL_MAX, "watches", "of all; who has less than a share may"),
    Limit(
        "watchChanges", WATCH_CHANGES_MAX, "changes", "yet to be told by a watch; then list again"
    ),
    Limit("watchChangesTotal", WATCH_CHANGES_TOTAL_MAX, "changes", "yet to be told, of all"),
    Limit("tellingsLeft", TELLINGS_LEFT_MAX, "tellings", "unanswered when their watch ended"),
    Limit("keyBytes", KEY_BYTES_MAX, "bytes", "of an object's key"),
    Limit("objectBytes", OBJECT_BYTES_MAX, "bytes", "of one object"),
    Limit("batchChanges", BATCH_CHANGES_MAX, "changes", "in one batch of a store"),
    Limit("windowRequests", WINDOW_REQUESTS, "requests", "a client's transfers in flight"),
    Limit("windowBytes", WINDOW_BYTES, "bytes", "of one request of a client's transfer"),
)
