# What goes over the wire between a capstore service and its clients.
#
# The comments below are the manual.  Conventions that hold for every method:
#
# Ownership.  A capability that a method returns belongs to the caller.  Dropping it releases what
#   the service holds for it (descriptors, buffers, places in tables) and nothing else: data that
#   was written stays, a reference that was saved stays saved, a Revoker that is dropped revokes
#   nothing.  When a connection ends, everything that was handed out over it is dropped.
#
# Authority.  A capability is all that its holder can do.  Attenuation is transitive: what is
#   reached through a capability has at most its authority.  `revoked`, `expired`, `denied` and
#   `readOnly` are decided before the storage is asked, so that a weak holder learns nothing from
#   the answer.  Every method may answer `revoked` or `expired`; it is not repeated below.
#
# Errors are results.  Each result struct has a field `error`, null on success.  When it is set, no
#   other field means anything, except that a returned capability is a broken one, and each call on
#   it answers with the same error: a pipelined chain reports its first cause.  Every method may
#   answer `unsupported` (this backer cannot do it), `io` (the storage failed), `corrupt` (what is
#   stored contradicts itself) and `internal` (a bug in the service, recorded in its log only).
#   RPC exceptions mean what RPC is about: the connection is gone, or the service is overloaded.
#
# Names are single path segments: 1 to 255 bytes of UTF-8, without "/" and NUL, not "." and not
#   "..".  Anything else is `invalidName`.  No method splits a path or follows a symbolic link.
#
# Times are nanoseconds since 1970-01-01T00:00:00Z.  Sizes and offsets are bytes.
#
# Limits.  One call moves at most `maxTransferBytes` of file content (Gate.info lists every limit).
#   A longer write is `tooLarge`; a longer read is a short read with `eof` false.
#
# Evolution.  The first methods of File, Directory and Store carry the ordinals that capOS gave
#   them; what capstore adds is appended.  Ordinals, field numbers and enumerants are never reused.

@0xb5b8cfcae7c1d40b;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("capstore");

const protocolVersion :UInt32 = 1;

# Errors ----------------------------------------------------------------------------------------

enum ErrorCode {
  # The closed list of what can go wrong.

  internal @0;         # a bug in the service; details are in its log and nowhere else
  notFound @1;         # no entry of this name, or the node is gone
  alreadyExists @2;    # the name is taken
  notDirectory @3;     # a directory was needed, this is something else
  isDirectory @4;      # a file or a link was needed, this is a directory
  notEmpty @5;         # the directory has entries
  notSymlink @6;       # a symbolic link was needed
  readOnly @7;         # this capability, or its volume, does not write
  denied @8;           # no such authority: a wrong token, a method that the policy withholds
  revoked @9;          # the capability was revoked
  expired @10;         # the capability's time is over
  quotaExceeded @11;   # over the quota of this capability
  noSpace @12;         # over the space of the volume; nothing was lost
  tooLarge @13;        # over a limit of the protocol or of the format
  invalidName @14;     # not a name (see above), or one that this backer cannot hold
  invalidArgument @15; # another argument makes no sense
  crossVolume @16;     # both sides of a rename or link must be of one volume
  conflict @17;        # the version is not the expected one
  busy @18;            # somebody else holds it; try again later
  closed @19;          # the file, the volume or the service was closed
  corrupt @20;         # a checksum or a structure is wrong
  unsupported @21;     # this backer or node cannot do that
  io @22;              # the storage underneath failed
}

struct Error {
  code @0 :ErrorCode;
  message @1 :Text;    # for people; holds no host path, no traceback and no secret
}

# Nodes -----------------------------------------------------------------------------------------

enum NodeKind {
  file @0;
  directory @1;
  symlink @2;
  special @3;          # a FIFO, socket or device of a host directory: listed, never opened
}

enum Provenance {
  # Where the times of a Stat come from.

  unknown @0;          # not recorded: the times are 0 and mean nothing
  wallClock @1;        # the service's clock when the change was made
  tarHeader @2;
  fatDirectoryEntry @3;
  cpioHeader @4;
  hostFilesystem @5;
}

struct Stat {
  kind @0 :NodeKind;
  executable @1 :Bool;
  provenance @2 :Provenance;
  linkCount @3 :UInt32;  # names of this node; 0 is a node that was removed while held
  size @4 :UInt64;       # of a file its length, of a link its target's length in bytes, else 0
  created @5 :Int64;
  modified @6 :Int64;
  nodeId @7 :UInt64;     # within the volume, stable for the life of the node
  version @8 :UInt64;    # differs after every change of content or entries
}

struct Entry {
  name @0 :Text;
  stat @1 :Stat;
  target @2 :Text;       # of a symbolic link: where it points, uninterpreted
}

struct Attributes {
  # A change of attributes: what its flag does not name stays as it is.

  setExecutable @0 :Bool;
  executable @1 :Bool;
  setModified @2 :Bool;
  modified @3 :Int64;
  setCreated @4 :Bool;   # `unsupported` where the storage cannot record it
  created @5 :Int64;
}

struct Usage {
  # Zero in a total means: no bound is known.

  totalBytes @0 :UInt64;
  usedBytes @1 :UInt64;
  freeBytes @2 :UInt64;
  totalNodes @3 :UInt64;
  usedNodes @4 :UInt64;
  label @5 :Text;        # of the volume, where it has one
}

# Authority -------------------------------------------------------------------------------------

struct Policy {
  # What `attenuate` takes away.  Fields left at their defaults take nothing away.  A policy that a
  # service does not know or cannot enforce is refused with `unsupported`, never ignored.  Policies
  # may be put on in any order, one by one or at once: all of them hold.  Where several refuse a
  # call, the answer is the first of revoked, expired, readOnly, denied, notFound (a hidden name),
  # busy, tooLarge, quotaExceeded.

  readOnly @0 :Bool;
  revocable @1 :Bool;      # hand out a Revoker together with the capability
  expiresAt @2 :Int64;     # from then on every call answers `expired`; 0 is never
  appendOnly @3 :Bool;
  # What is there stays as it is: names are made where nothing is, files grow by `append` only,
  # store and namespace take new keys and names (`conflict` for others).  All else that changes is
  # `denied`.
  maxBytes @4 :UInt64;
  # By how much what is done through the capability, and all derived from it, may make a tree or
  # store grow (`quotaExceeded`); what it removes counts against it.  0 is no bound.
  maxNodes @5 :UInt64;     # likewise, of names and objects
  maxFileBytes @6 :UInt64;
  # No file or object gets longer through it (`tooLarge`).  0 is no bound.
  callsPerSecond @7 :UInt32;
  bytesPerSecond @8 :UInt64;
  # What is over the rate waits in the order of coming, for at most `paceSeconds`; what would wait
  # for longer is `busy`, and has had no effect.  0 is no bound.
  hiddenNames @9 :List(Text);
  # Globs as in fnmatch, in which case counts, for a name, or a store's key, as a whole; without
  # "/", "**" and NUL.  What is hidden is `notFound`, also where it would be made, and in no listing;
  # what is below it is not reached.  A directory with nothing but hidden entries is `notEmpty`.
  dryRun @10 :Bool;
  # Every call is answered as if it were done, and nothing is.  What was changed can be looked at
  # through the same capability; `noSpace` beyond `dryBytes`, `busy` beyond `dryRuns`, of
  # which no saved reference, with all below it, has more than are left.  A saved one begins anew
  # when it is restored.
  traced @11 :Bool;
  # The audit records every call.  `unsupported` by a service that has none, also when what was
  # saved so is restored there.
  fieldsKnown @12 :UInt16;
  # How many fields of Policy the sender knows, this one included.  A service that knows fewer
  # cannot see what else is asked for, and refuses.
}

enum CapabilityKind {
  directory @0;
  file @1;
  store @2;
  namespace @3;
}

interface Revoker {
  # Ends what one `attenuate` handed out.  Not tied to the capability it ends: dropping either does
  # nothing to the other.

  revoke @0 () -> (error :Error);
  # Everything derived from the capability (opened files, subdirectories, further attenuations,
  # saved references) answers `revoked` from now on, and its handles are released.  When this
  # returns, nothing done through it takes effect any more, and the end of saved references is
  # durable.  Revoking twice is no error.

  status @1 () -> (revoked :Bool, derived :UInt32, error :Error);
  # `derived`: how many attenuations and saved references hang below.
}

# File ------------------------------------------------------------------------------------------

interface File {
  # An open file.  It stays usable when its name is removed or renamed.  Every call is at an
  # explicit offset; there is no shared position.  Calls may be in flight together; those that
  # overlap are ordered only by awaiting one before sending the next.

  read @0 (offset :UInt64, length :UInt32) -> (data :Data, eof :Bool, error :Error);
  # Up to `length` bytes from `offset`.  `eof` says that the end of the file is at or before the
  # end of `data`; a read past the end gives no data and `eof`.  The result may be shorter than
  # asked for with `eof` false: ask again behind it.

  write @1 (offset :UInt64, data :Data) -> (error :Error);
  # All of `data` at `offset`, or an error.  A gap behind the old end reads as zeros.  Codes:
  # readOnly, tooLarge, noSpace, quotaExceeded.

  stat @2 () -> (stat :Stat, error :Error);

  truncate @3 (size :UInt64) -> (error :Error);
  # Cuts the file or extends it with zeros.  Codes: readOnly, tooLarge, noSpace, quotaExceeded.

  sync @4 () -> (error :Error);
  # When this returns, every change of this file that was answered before the call is durable, as
  # far as the volume is durable at all.

  close @5 () -> (error :Error);
  # Releases the file now, for this capability: one that was derived from it, or that it was derived
  # from, stays open.  Later calls answer `closed`, but for close, which succeeds, and stat,
  # which tells what was known last.  Dropping the capability does the same without an answer.

  append @6 (data :Data) -> (offset :UInt64, error :Error);
  # Writes at the end, atomically with regard to other appends, and says where that was.
  # Codes: as write.

  readOnly @7 () -> (file :File, error :Error);
  # The same file without the authority to change it.

  attenuate @8 (policy :Policy) -> (file :File, revoker :Revoker, error :Error);
  # The same file with less authority.  `revoker` is null unless policy.revocable.
  # Codes: invalidArgument, unsupported.

  setAttributes @9 (attributes :Attributes) -> (error :Error);
  # Codes: readOnly, unsupported, invalidArgument.

  save @10 (label :Text) -> (token :Text, error :Error);
  # See Directory.save.
}

# Directory -------------------------------------------------------------------------------------

const openWrite :UInt32 = 1;     # the file may be changed; without it the File is read-only
const openCreate :UInt32 = 2;    # make an empty file where there is none; needs openWrite
const openExclusive :UInt32 = 4; # `alreadyExists` where there is one; needs openCreate
const openTruncate :UInt32 = 8;  # cut an existing file to 0 bytes; needs openWrite

enum RenameMode {
  replace @0;    # an existing target is replaced atomically
  noReplace @1;  # an existing target is `alreadyExists`
  exchange @2;   # both must exist; they change places atomically
}

enum Expect {
  # What the caller of `remove` thinks it removes.

  any @0;
  notDirectory @1; # a directory is `isDirectory`
  directory @2;    # anything else is `notDirectory`
}

interface Directory {
  # A directory node, whatever it is called now: renaming it, or a directory above it, does not
  # disturb its holder.  Nothing leads upwards.

  open @0 (name :Text, flags :UInt32) -> (file :File, error :Error);
  # Codes: notFound, alreadyExists, isDirectory, invalidName, invalidArgument (flags), readOnly,
  # noSpace; `unsupported` for a symbolic link (resolve it yourself) and a special node.

  list @1 (cursor :Data, limit :UInt32) -> (entries :List(Entry), cursor :Data, error :Error);
  # One page of entries, in the order of their names' bytes.  The first cursor is empty; pass the
  # returned one to go on; an empty one ends the listing.  `limit` 0 means as many as the service
  # likes, which is also the bound.  Entries that nobody touches meanwhile appear exactly once,
  # whatever else changes.  A cursor needs no release.  Codes: invalidArgument (cursor).

  mkdir @2 (name :Text) -> (directory :Directory, error :Error);
  # Codes: alreadyExists, invalidName, readOnly, noSpace.

  remove @3 (name :Text, expect :Expect) -> (error :Error);
  # Removes a name; a directory must be empty.  Files that are open live until they are released.
  # Codes: notFound, notEmpty, isDirectory, notDirectory, invalidName, readOnly.

  sub @4 (name :Text) -> (directory :Directory, error :Error);
  # Codes: notFound, notDirectory (also for a symbolic link), invalidName.

  create @5 (name :Text, executable :Bool) -> (file :File, error :Error);
  # A new empty file, open for writing.  Codes: alreadyExists, invalidName, readOnly, noSpace.

  rename @6 (name :Text, target :Directory, newName :Text, mode :RenameMode) -> (error :Error);
  # Moves an entry, atomically.  `target` is a Directory of the same volume, this one included.
  # Write authority is needed on both sides, and `target` must stand under every attenuation that
  # this directory stands under: a node does not move out from under a policy (`denied`).
  # A directory does not move into itself.  A file replaces only what is no directory, a directory
  # only an empty directory.  Moving an entry onto itself, or onto another name of the same file,
  # changes nothing.  Codes: notFound, alreadyExists, notEmpty, isDirectory, notDirectory,
  # invalidName, invalidArgument (into itself; a target that is no Directory of this service),
  # crossVolume, denied, readOnly, noSpace.

  lookup @7 (name :Text) -> (entry :Entry, error :Error);
  # What the name stands for, without opening it; of a link also its target.
  # Codes: notFound, invalidName.

  stat @8 () -> (stat :Stat, error :Error);

  readOnly @9 () -> (directory :Directory, error :Error);
  # The same directory without any authority to change what is in or below it.

  attenuate @10 (policy :Policy) -> (directory :Directory, revoker :Revoker, error :Error);
  # See File.attenuate; the policy holds for everything below.

  sync @11 () -> (error :Error);
  # As File.sync, for every change made below this directory.

  symlink @12 (name :Text, target :Text) -> (error :Error);
  # A symbolic link is data: 1 to 4095 bytes without NUL, neither resolved nor checked.
  # Codes: alreadyExists, invalidName, invalidArgument (target), readOnly, noSpace.

  link @13 (name :Text, target :Directory, newName :Text) -> (error :Error);
  # A second name for the file `name`.  `target` as in rename; an existing newName is
  # `alreadyExists`; a directory has one name only: isDirectory.

  setAttributes @14 (name :Text, attributes :Attributes) -> (error :Error);
  # Of an entry, or with an empty name of this directory.  A symbolic link's own attributes are
  # meant, never its target's.  Codes: notFound, invalidName, readOnly, unsupported.

  usage @15 () -> (usage :Usage, error :Error);

  snapshot @16 () -> (directory :Directory, error :Error);
  # A read-only Directory that shows this one, with all below, as it is now.  What it holds back is
  # released when it is dropped.

  watch @17 (watcher :Watcher) -> (watch :Watch, error :Error);
  # Tells `watcher` what becomes of the entries of this directory, not of those below, until `watch`
  # is closed or dropped.  Who lists when this has returned, and then follows what is told, has the
  # directory as it is: each change is told behind its effect, and those of one name in their order.
  # What was to be seen in the directory before this returned may be left out.
  #
  # Told is what is done through this volume, by whatever capability and backer: `created`,
  # `removed`, and `modified`, which is content written, appended or cut and attributes set, of what
  # was changed by name or through a file, under the name that this was opened by and as that is
  # renamed.  A file whose name went to another node, or that was restored from a saved reference,
  # has none, and neither has a directory that sets its own attributes.  Renaming is `removed` and
  # `created`, likewise what it replaces; an exchange is two of each.  What others do to a host
  # directory, beside the service or through another volume of it, is not told.
  #
  # Told is what the holder could list.  Names that its policies hide are left out; what is moved
  # from one or to one is told of its other side.  In a dry run a watch tells of that run's changes
  # and of no other.  A snapshot and a tree that is only read never change.  What a watch tells is
  # under no rate.
  #
  # It ends by itself when the capability is revoked or its time is over, when the directory is
  # removed, and when `watcher` fails; then it lets go of `watcher`, and `watch` tells why.  When
  # `Revoker.revoke` has returned, nothing more is told.  Codes: busy (too many watches, or
  # capabilities, of this connection or of all), invalidArgument (no watcher), notFound (a directory
  # that was removed).

  ticket @18 () -> (ticket :Data, error :Error);
  # A one-time word by which this service recognises the capability when it gets it as an
  # argument.  It is worth nothing to anybody who could not call this.

  save @19 (label :Text) -> (token :Text, error :Error);
  # A reference that outlives the connection and the service's restart: Gate.restore(token) gives
  # the same node with the same authority, for as long as the reference that this capability came
  # from is not revoked.  The token is 43 characters of base64url and a secret; the service keeps
  # only its digest.  The reference names the node, not the path: a node that is removed is
  # `notFound` at restore, also if another takes its name.  Where a backer finds nodes by their
  # place alone (a host directory), one that was moved is `notFound` until it is moved back.
  # `label` (at most 200 bytes, printable) is shown in listings.  Codes: invalidArgument (label),
  # tooLarge (too many references), quotaExceeded (too many below the reference that this one came
  # from), notFound (a node without a name), unsupported.
}

struct Change {
  # What became of one entry.

  kind @0 :ChangeKind;
  name @1 :Text;       # empty in an overflow
  nodeId @2 :UInt64;   # of the node that the name got, lost or has; 0 if it could not be found out
}

enum ChangeKind {
  created @0;
  removed @1;
  modified @2;
  overflow @3;   # changes were left out: list again
}

interface Watcher {
  # Served by the client.

  changed @0 (changes :List(Change)) -> ();
  # One call is under way at a time: the next comes when this one was answered, and brings what
  # happened meanwhile, each change of one name once, where it came last.  If that is more than
  # `watchChanges` (or than a connection's share of `watchChangesTotal`), or the storage failed so
  # that nobody knows what it did, all of it is one `overflow`.  A client that does not answer gets
  # nothing more, and holds up nobody.  One that raises ends its watch.
}

interface Watch {
  # The life of one watch; dropping it ends it.

  close @0 () -> (error :Error);
  # Ends the watch; again is no error.  For one that has ended by itself it tells why, each time:
  # revoked, expired, notFound (the directory was removed), closed (the watcher failed).
}

# Store -----------------------------------------------------------------------------------------

struct ObjectStat {
  key @0 :Data;
  size @1 :UInt64;
  created @2 :Int64;
  provenance @3 :Provenance;
  version @4 :UInt64;      # of this key; higher after every put
}

struct Condition {
  # What a put or delete demands of the key; `conflict` if it does not hold.

  union {
    none @0 :Void;
    absent @1 :Void;
    version @2 :UInt64;
  }
}

struct BatchItem {
  key @0 :Data;
  condition @1 :Condition;
  union {
    put @2 :Data;
    delete @3 :Void;
  }
}

interface Store {
  # Objects by key.  With an empty key a put is content-addressed: the key is the SHA-256 of the
  # data, and a get verifies it.  Keys have 1 to 1024 bytes.  A put or delete that was answered is
  # durable.

  put @0 (data :Data, key :Data, condition :Condition)
      -> (key :Data, version :UInt64, error :Error, created :Int64, provenance :Provenance);
  # Codes: readOnly, denied, conflict, tooLarge, noSpace, quotaExceeded, invalidArgument (key).

  get @1 (key :Data) -> (data :Data, version :UInt64, error :Error);
  # A whole object; one longer than a message is `tooLarge`: use read.  Codes: notFound, denied.

  has @2 (key :Data) -> (present :Bool, error :Error);
  # Codes: denied.

  delete @3 (key :Data, condition :Condition) -> (error :Error);
  # Codes: notFound, conflict, readOnly, denied.

  list @4 (prefix :Data, cursor :Data, limit :UInt32, after :Data)
      -> (objects :List(ObjectStat), cursor :Data, error :Error);
  # Pages as in Directory.list, in the order of the keys.  A cursor is of one store and one prefix;
  # any other, or one that was changed, is refused.  With an empty cursor `after` may name a key
  # behind which to begin.  Codes: invalidArgument, denied.

  stat @5 (key :Data) -> (stat :ObjectStat, error :Error);
  # Codes: notFound, denied.

  read @6 (key :Data, offset :UInt64, length :UInt32)
      -> (data :Data, eof :Bool, version :UInt64, error :Error,
          size :UInt64, created :Int64, provenance :Provenance);
  # A range of an object, as File.read.  `version` says which object the range is of: who reads in
  # pieces puts together only what has the same one.  Codes: notFound, denied.

  begin @7 (key :Data, condition :Condition, size :UInt64) -> (sink :Sink, error :Error);
  # A put in chunks, for objects of any permitted size.  `size` 0 means not known yet.
  # Codes: as put; busy (too many sinks are open on this connection).

  batch @8 (items :List(BatchItem)) -> (versions :List(UInt64), error :Error);
  # All of the changes or none.  All data and keys of one batch are at most `maxTransferBytes`.
  # Codes: as put and delete.

  sync @9 () -> (error :Error);

  usage @10 () -> (usage :Usage, error :Error);
  # Under a quota: of the quota.  Otherwise it is for who may list the whole store.  Codes: denied.

  getOnly @11 () -> (store :Store, error :Error);
  # A store that gets by key (get, has, stat, read) and does nothing else: no list, no usage, no
  # put, no delete, no names.  Codes: denied (a drop box has nothing to get).

  putOnly @12 () -> (store :Store, error :Error);
  # A drop box.  Each put, or sink, makes a new object: its key is the key that was given, which may
  # be empty, followed by 32 hexadecimal digits of the service's choice; the answer tells it.  So a
  # put never meets what is there: it neither replaces anything nor finds out, by its answer or by
  # the time it takes, that a key or a content exists.  It is never content-addressed, and its
  # answer's `version` is 0, for versions tell how much others put.  A condition is `denied`, and so
  # is every other method but sync, putOnly, subStore, attenuate, ticket and save.  What a holder
  # does learn: that the volume is full (`noSpace`).  Codes: denied (a store that does not put).

  subStore @13 (prefix :Data) -> (store :Store, error :Error);
  # The part of the key space below a prefix, as a store of its own: keys are what follows the
  # prefix, and prefix and key together have at most 1024 bytes.  A put without a key is refused
  # (invalidArgument), for the hash of a content is no key below a prefix.  What a holder learns of
  # what is outside: versions are those of the whole store, so they tell how many puts it saw.
  # Codes: invalidArgument.

  attenuate @14 (policy :Policy) -> (store :Store, revoker :Revoker, error :Error);
  # See File.attenuate and Policy.

  ticket @15 () -> (ticket :Data, error :Error);

  save @16 (label :Text) -> (token :Text, error :Error);
  # As Directory.save; prefix, verbs and quota are saved with it.

  compact @17 () -> (error :Error);
  # Gives back the space of what was replaced or removed; gets and puts go on meanwhile.  For who
  # holds the whole store, unattenuated.  Codes: denied, readOnly, noSpace, unsupported.

  collect @18 (olderThan :UInt64) -> (objects :UInt64, bytes :UInt64, error :Error);
  # Removes objects that were put without a key at least `olderThan` seconds ago, in the last such
  # put, and that no name stands for.  For who holds the whole store, unattenuated.
  # Codes: denied, readOnly, unsupported.

  namespace @19 () -> (namespace :Namespace, error :Error);
  # The names over the store.  A store that is read-only, or under a quota, gives one that is
  # read-only; other attenuations of the key space give none.  Codes: denied, unsupported.
}

interface Sink {
  # One chunked put.  Dropping it before `commit` leaves no trace.

  write @0 (data :Data) -> (error :Error);
  # Chunks are taken in the order in which they are sent.  When one fails, so do those behind it and
  # `commit`.  Codes: tooLarge, noSpace, quotaExceeded, closed.

  commit @1 () -> (key :Data, version :UInt64, error :Error,
      size :UInt64, created :Int64, provenance :Provenance);
  # The object appears, whole and durable.  Codes: as Store.put; closed.

  abort @2 () -> (error :Error);
  # Gives up; again, or behind `commit`, it does nothing.
}

# Namespace -------------------------------------------------------------------------------------

struct Binding {
  name @0 :Text;
  version @1 :UInt64;
  union {
    hash @2 :Data;         # of a content-addressed object
    reference @3 :UInt64;  # the id of a saved reference
  }
}

interface Namespace {
  # Names for objects and for saved references, changed by compare-and-set.

  resolve @0 (name :Text)
      -> (binding :Binding, capability :Capability, kind :CapabilityKind, error :Error);
  # `capability` is null for a hash.  For a reference it is what was saved, with the authority of
  # the reference less what was taken from this namespace: a read-only one gives only what reads,
  # and what ends the namespace, or the reference, ends it too.  It is not saved again (`denied`):
  # who is to keep it keeps the name.  A reference that has ended is `notFound`.
  # Codes: notFound, invalidName.

  bind @1 (name :Text, binding :Binding, condition :Condition, token :Text)
      -> (version :UInt64, error :Error);
  # A name for a reference is a way to what was saved, for everybody who may resolve it.  So it
  # takes the token of the reference: `binding.reference` is its id, or 0 where only the token is
  # known.  Without a token a reference is bound only by who restored this whole namespace, or the
  # store it is over, from the reference that it was saved below.  `binding.name` and its version
  # are not looked at.
  # Codes: conflict, invalidName, invalidArgument, readOnly, denied (no authority over the
  # reference, or no such one), notFound (a hash that the store does not hold).

  unbind @2 (name :Text, condition :Condition) -> (error :Error);
  # Codes: notFound, conflict, readOnly, invalidName.

  list @3 (cursor :Data, limit :UInt32, after :Text)
      -> (bindings :List(Binding), cursor :Data, error :Error);
  # Pages as in Store.list, in the order of the names' bytes.  Codes: invalidArgument.

  sub @4 (name :Text) -> (namespace :Namespace, error :Error);
  # The names below `name`; it needs no making.  Codes: invalidName.

  save @5 (label :Text) -> (token :Text, error :Error);
  # As Directory.save.
}

# Gate ------------------------------------------------------------------------------------------

struct Limit {
  name @0 :Text;
  value @1 :UInt64;
  unit @2 :Text;
}

struct ServiceInfo {
  protocolVersion @0 :UInt32;
  software @1 :Text;
  limits @2 :List(Limit);
}

struct ReferenceInfo {
  id @0 :UInt64;
  label @1 :Text;
  kind @2 :CapabilityKind;
  volume @3 :Text;
  policy @4 :Policy;       # everything taken away since the parent reference
  created @5 :Int64;
  lastUsed @6 :Int64;      # 0 is never
  parent @7 :UInt64;       # the reference it was saved from; 0 for a volume's owner
  savedBy @8 :Text;
  # Of one below: the label of the reference that whoever saved it had ("owner" for a volume's
  # owner).  Of the reference that is asked itself it is empty: what is above is not told.
  rotations @9 :UInt32;    # how often it got another token
  anchor @10 :Bool;
  # Nobody has a token of it: it stands for a quota or a rate that those saved below it share, and
  # leaves with the last of them.
}

interface Gate {
  # What a connection begins with.  It gives nothing without a token.

  restore @0 (token :Text)
      -> (capability :Capability, kind :CapabilityKind, error :Error);
  # What was saved under the token.  A token that is wrong, cut short, revoked or expired is
  # `denied`, each with the same answer.  Codes: denied, notFound (the node is gone), unsupported
  # (it is traced, and the service has no audit).

  info @1 () -> (info :ServiceInfo, error :Error);

  reference @2 (token :Text) -> (reference :Reference, error :Error);
  # Control over the saved reference itself and over those saved below it.  Whoever holds a token
  # may end it, so that a leaked one can be killed by whoever finds it.  Codes: denied.
}

interface Reference {
  # One saved reference, and the tree of references saved below it.

  status @0 () -> (info :ReferenceInfo, error :Error);

  list @1 (cursor :Data, limit :UInt32)
      -> (references :List(ReferenceInfo), cursor :Data, error :Error);
  # Everything saved below, in the order of ids.  Never a token.  Codes: invalidArgument (cursor).

  revoke @2 (id :UInt64) -> (error :Error);
  # Ends the reference `id` (this one or one below) with all below it, as Revoker.revoke does.
  # Ending a volume's owner reference makes the service issue another at its next start.
  # Codes: notFound.

  renew @3 (id :UInt64, expiresAt :Int64) -> (info :ReferenceInfo, error :Error);
  # Gives one below another time, sooner or later than its own; 0 is as long as what it was saved
  # from.  Nothing gets a longer time than what it was saved from, and nobody gives one to himself
  # (`denied`).  What was restored from it follows at once.  One whose time is over is gone.  Codes:
  # notFound, denied, invalidArgument (a time that is over, or an anchor), unsupported (what the
  # service's configuration shares).

  rotate @4 (id :UInt64) -> (token :Text, error :Error);
  # Gives the reference `id` (this one or one below) another token.  The old one is `denied` from
  # now on, and so is every other Reference that was had with it.  What was restored with it goes on
  # until its connection ends, and what was saved below stays: revoke is what ends those.  When the
  # answer is lost, whoever holds one above can rotate again.  Codes: notFound, invalidArgument (an
  # anchor), io (then the old token is as good as before).
}

# Broken --------------------------------------------------------------------------------------

interface Broken
    extends(File, Directory, Watch, Store, Sink, Namespace, Revoker, Reference) {
  # What a failed call returns in place of a capability: every method of every interface answers
  # with the error of that call.  Clients never ask for it by name.  It stands last because C++
  # wants the interfaces that it extends to be declared before it.
}
