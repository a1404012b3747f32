# What is on disk: every fixed-size record of capstore's own formats.
#
# A record is the data section of a struct without pointers, as Cap'n Proto lays it out: little-
# endian, each field at a multiple of its width.  capstore.images.records reads offsets and widths
# from the compiled schema; no other place names them.  docs/spec/ says what the fields mean, and a
# test holds its byte tables against this file.
#
# Rules of every record.  The last four bytes are the field `crc`: CRC32C (Castagnoli) of all bytes
#   before it.  Fields called `reserved` are zero when written and ignored when read.  A field is
#   never moved or given a new meaning: a format that needs that gets a new version.

@0xb3c1d8a6f2e94705;

using Wire = import "capstore.capnp";

const blockBytes :UInt32 = 512;

# CAPOSRO1, docs/spec/caposro1.md ------------------------------------------------------------------

const ro1Magic :UInt64 = 0x314f52534f504143;         # "CAPOSRO1"
const ro1Version :UInt32 = 1;

# Bits of `Ro1Superblock.features`: an image with one that is not known is refused.
const ro1ExternalData :UInt64 = 1;

# Bits of `Ro1Node.flags`.
const ro1Executable :UInt16 = 1;
const ro1Damaged :UInt16 = 2;
const ro1Summed :UInt16 = 4;

struct Ro1Superblock {
  magic @0 :UInt64;
  features @1 :UInt64;
  generation @2 :UInt64;
  imageIdLow @3 :UInt64;
  imageIdHigh @4 :UInt64;
  imageBlocks @5 :UInt64;
  built @6 :Int64;
  dataLba @7 :UInt64;
  dataBlocks @8 :UInt64;
  nodesLba @9 :UInt64;
  nodeCount @10 :UInt64;
  entriesLba @11 :UInt64;
  entryCount @12 :UInt64;
  extentsLba @13 :UInt64;
  extentCount @14 :UInt64;
  sumsLba @15 :UInt64;
  sumCount @16 :UInt64;
  heapLba @17 :UInt64;
  heapBytes @18 :UInt64;
  sourceBytes @19 :UInt64;
  version @20 :UInt32;
  labelBytes @21 :UInt32;
  labelSum @22 :UInt32;
  crc @23 :UInt32;
}

struct Ro1Node {
  kind @0 :Wire.NodeKind;
  flags @1 :UInt16;
  provenance @2 :Wire.Provenance;
  reserved @3 :UInt16;
  links @4 :UInt32;
  count @5 :UInt32;
  size @6 :UInt64;
  created @7 :Int64;
  modified @8 :Int64;
  first @9 :UInt64;
  parent @10 :UInt32;
  reserved2 @11 :UInt32;
  check @12 :UInt32;
  crc @13 :UInt32;
}

struct Ro1Entry {
  nameAt @0 :UInt64;
  node @1 :UInt32;
  directory @2 :UInt32;
  nameSum @3 :UInt32;
  nameBytes @4 :UInt16;
  reserved @5 :UInt16;
  prefix @6 :UInt32;
  crc @7 :UInt32;
}

struct Ro1Extent {
  fileOffset @0 :UInt64;
  length @1 :UInt64;
  source @2 :UInt64;
  firstSum @3 :UInt32;
  crc @4 :UInt32;
}

# The index of an archive, docs/spec/index.md ------------------------------------------------------

const indexMagic :UInt64 = 0x315849534f504143;       # "CAPOSIX1"
const indexVersion :UInt32 = 1;

struct IndexHeader {
  magic @0 :UInt64;
  sourceBytes @1 :UInt64;
  sourceModified @2 :Int64;
  sourceHash0 @3 :UInt64;
  sourceHash1 @4 :UInt64;
  sourceHash2 @5 :UInt64;
  sourceHash3 @6 :UInt64;
  tableBlocks @7 :UInt64;
  factsBytes @8 :UInt64;
  pointsBytes @9 :UInt64;
  bodySum @10 :UInt32;
  version @11 :UInt32;
  reserved @12 :UInt32;
  crc @13 :UInt32;
}

# CAPOSWF1, docs/spec/caposwf1.md ------------------------------------------------------------------

const wf1Magic :UInt64 = 0x314657534f504143;         # "CAPOSWF1"
const wf1Version :UInt32 = 1;
const wf1CheckpointMagic :UInt64 = 0x504b434657534f43;  # "COSWFCKP"

# The superblocks, and where segments begin, in blocks.
const wf1SuperblockLbas :List(UInt32) = [256, 264];
const wf1SegmentsLba :UInt32 = 272;

# Kinds of nodes beside those of Wire.NodeKind: an overlay's mark for a name that is gone.
const wf1Whiteout :UInt16 = 256;

# Bits of `Wf1Node.flags`.
const wf1Executable :UInt16 = 1;
const wf1Opaque :UInt16 = 2;
const wf1Removed :UInt16 = 4;

struct Wf1Superblock {
  magic @0 :UInt64;
  features @1 :UInt64;
  generation @2 :UInt64;
  imageIdLow @3 :UInt64;
  imageIdHigh @4 :UInt64;
  regionBlocks @5 :UInt64;
  created @6 :Int64;
  checkpointLba @7 :UInt64;
  logLba @8 :UInt64;
  logSequence @9 :UInt64;
  logKey @10 :UInt64;
  durable @11 :UInt64;
  segmentBlocks @12 :UInt32;
  checkpointSum @13 :UInt32;
  version @14 :UInt32;
  crc @15 :UInt32;
}

struct Wf1Checkpoint {
  magic @0 :UInt64;
  sequence @1 :UInt64;
  nextNode @2 :UInt64;
  changes @3 :UInt64;
  nodeCount @4 :UInt64;
  entryCount @5 :UInt64;
  extentCount @6 :UInt64;
  heapBytes @7 :UInt64;
  runCount @8 :UInt32;
  usageCount @9 :UInt32;
  headSum @10 :UInt32;
  crc @11 :UInt32;
}

struct Wf1Frame {
  key @0 :UInt64;
  epoch @1 :UInt64;
  sequence @2 :UInt64;
  durable @3 :UInt64;
  next @4 :UInt64;
  nodeCount @5 :UInt32;
  entryCount @6 :UInt32;
  extentCount @7 :UInt32;
  heapBytes @8 :UInt32;
  payloadSum @9 :UInt32;
  crc @10 :UInt32;
}

struct Wf1Node {
  id @0 :UInt64;
  size @1 :UInt64;
  created @2 :Int64;
  modified @3 :Int64;
  version @4 :UInt64;
  parent @5 :UInt64;
  first @6 :UInt64;
  kind @7 :UInt16;
  flags @8 :UInt16;
  provenance @9 :Wire.Provenance;
  reserved @10 :UInt16;
  links @11 :UInt32;
  count @12 :UInt32;
  textSum @13 :UInt32;
  below @14 :UInt32;
  origin @15 :UInt64;
  redirectAt @16 :UInt64;
  reserved2 @17 :UInt64;
  reserved3 @18 :UInt64;
  reserved4 @19 :UInt64;
  redirectBytes @20 :UInt32;
  crc @21 :UInt32;
}

struct Wf1Entry {
  directory @0 :UInt64;
  node @1 :UInt64;
  nameAt @2 :UInt32;
  nameSum @3 :UInt32;
  nameBytes @4 :UInt16;
  reserved @5 :UInt16;
  crc @6 :UInt32;
}

struct Wf1Extent {
  fileOffset @0 :UInt64;
  lba @1 :UInt64;
  sum @2 :UInt32;
  storedLess1 @3 :UInt16;
  skip @4 :UInt16;
  lengthLess1 @5 :UInt16;
  reserved @6 :UInt16;
  crc @7 :UInt32;
}

# CAPOSST1, docs/spec/caposst1.md ------------------------------------------------------------------

const st1Magic :UInt64 = 0x315453534f504143;         # "CAPOSST1"
const st1Version :UInt32 = 1;
const st1TableMagic :UInt64 = 0x4c42545453534f43;    # "COSSTTBL"

# The superblocks, and where segments begin, in blocks.
const st1SuperblockLbas :List(UInt32) = [0, 1];
const st1SegmentsLba :UInt32 = 8;

# Bits of `St1Entry.flags`.
const st1Removed :UInt16 = 1;
const st1Hashed :UInt16 = 2;
const st1InFrame :UInt16 = 4;
const st1Replaces :UInt16 = 8;

# Bits of `St1Frame.flags`.
const st1GoesOn :UInt32 = 1;

# `St1Binding.kind`.
const st1Hash :UInt16 = 1;
const st1Reference :UInt16 = 2;

struct St1Superblock {
  magic @0 :UInt64;
  features @1 :UInt64;
  generation @2 :UInt64;
  imageIdLow @3 :UInt64;
  imageIdHigh @4 :UInt64;
  regionBlocks @5 :UInt64;
  created @6 :Int64;
  tableLba @7 :UInt64;
  logLba @8 :UInt64;
  logSequence @9 :UInt64;
  logKey @10 :UInt64;
  durable @11 :UInt64;
  segmentBlocks @12 :UInt32;
  tableSum @13 :UInt32;
  version @14 :UInt32;
  crc @15 :UInt32;
}

struct St1Table {
  magic @0 :UInt64;
  sequence @1 :UInt64;
  version @2 :UInt64;
  entryCount @3 :UInt64;
  nameCount @4 :UInt64;
  partCount @5 :UInt64;
  heapBytes @6 :UInt64;
  slotCount @7 :UInt64;
  runCount @8 :UInt32;
  usageCount @9 :UInt32;
  pageCount @10 :UInt32;
  pageBytes @11 :UInt32;
  headSum @12 :UInt32;
  crc @13 :UInt32;
}

struct St1Frame {
  key @0 :UInt64;
  epoch @1 :UInt64;
  sequence @2 :UInt64;
  durable @3 :UInt64;
  next @4 :UInt64;
  entryCount @5 :UInt32;
  partCount @6 :UInt32;
  heapBytes @7 :UInt32;
  flags @8 :UInt32;
  payloadSum @9 :UInt32;
  crc @10 :UInt32;
}

struct St1Entry {
  version @0 :UInt64;
  created @1 :Int64;
  place @2 :UInt64;
  keyAt @3 :UInt64;
  size @4 :UInt32;
  sum @5 :UInt32;
  partCount @6 :UInt32;
  keySum @7 :UInt32;
  keyBytes @8 :UInt16;
  flags @9 :UInt16;
  provenance @10 :Wire.Provenance;
  reserved @11 :UInt16;
  replacedParts @12 :UInt32;
  crc @13 :UInt32;
}

struct St1Part {
  place @0 :UInt64;
  offset @1 :UInt64;
  length @2 :UInt32;
  sum @3 :UInt32;
  reserved @4 :UInt32;
  crc @5 :UInt32;
}

struct St1Binding {
  hash0 @0 :UInt64;
  hash1 @1 :UInt64;
  hash2 @2 :UInt64;
  hash3 @3 :UInt64;
  reference @4 :UInt64;
  kind @5 :UInt16;
  reserved @6 :UInt16;
  crc @7 :UInt32;
}
