# What a bare pycapnp server speaks, for `capstore bench`: the least that can open, read, write and
# list.  No errors, no limits, no authority: it is the floor that the service is measured from.

@0xd2c0a2a6a8f0b9e1;

struct Entry {
  name @0 :Text;
  directory @1 :Bool;
  size @2 :UInt64;
  modified @3 :Int64;   # ns since 1970
}

interface File {
  read @0 (offset :UInt64, length :UInt32) -> (data :Data);
  write @1 (offset :UInt64, data :Data) -> ();
}

interface Directory {
  # Not "name": pycapnp cannot take a keyword argument that is called so.
  open @0 (entry :Text) -> (file :File);
  sub @1 (entry :Text) -> (directory :Directory);
  names @2 (start :UInt32, limit :UInt32) -> (names :List(Text));
  entries @3 (start :UInt32, limit :UInt32) -> (entries :List(Entry));
}
